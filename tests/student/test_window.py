"""Taking rows from a window is taking them from the rows, only faster."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.targets.ragged import Ragged
from pipeline.targets.rows import Rows
from pipeline.targets.store import Store
from student import window
from student.table import Table, lay_out, widened
from student.window import Window


def arrays(table: Table) -> dict[str, Any]:
    rows = table.rows()
    found: dict[str, Any] = {"keys": np.array(rows.keys), "row": rows.row, "targets": rows.targets}
    for name, stored in rows.inputs.items():
        if isinstance(stored, Ragged):
            found[f"{name}.values"], found[f"{name}.offsets"] = stored.values, stored.offsets
        else:
            found[name] = stored
    for head, encoded in rows.heads.items():
        found.update({f"{head}.{name}": array for name, array in encoded.items()})
    return found


@pytest.mark.parametrize("long", [1, 10**6])
@pytest.mark.parametrize("codec", ["dense", "topk", "threshold"])
@pytest.mark.parametrize("lengths", [(2, 9), (5, 5)])
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_window_takes_what_rows_take(
    token_store: Any, data: st.DataObject, codec: str, lengths: tuple[int, int], long: int
) -> None:
    """Both ways of gathering, rows of one length and of several."""
    store = Store.open(token_store(codec=codec, lengths=lengths))
    parts = [part for commit in store.commits() for part in store.read(commit)]
    chosen = np.array(data.draw(st.lists(st.integers(0, 25), min_size=1, max_size=30)), dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window, "LONG", long)
        ours = arrays(Window([lay_out(part) for part in parts]).take(chosen))
    wanted = arrays(lay_out(Rows.concatenate(parts).take(chosen)))
    assert ours.keys() == wanted.keys()
    for name in wanted:
        assert ours[name].dtype == widened(store.spec).get(name, wanted[name].dtype), name
        assert np.array_equal(ours[name], wanted[name]), name


def test_a_window_of_images_takes_what_rows_take(image_store: Any) -> None:
    store = Store.open(image_store(codec="threshold"))
    parts = [part for commit in store.commits() for part in store.read(commit)]
    chosen = np.array([3, 59, 3, 0])
    ours = arrays(Window([lay_out(part) for part in parts]).take(chosen))
    wanted = arrays(lay_out(Rows.concatenate(parts).take(chosen)))
    assert all(np.array_equal(ours[name], wanted[name]) for name in wanted)
