"""What is exported is what axolotl's collator reads: columns, shapes, places and meaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.interchange import exporting, topk_columns
from pipeline.interchange.exporting import TopKExport
from pipeline.targets import Head, Input, Ragged, Rows, Slice, Spec, Store, Unit
from pipeline.targets.codecs import Codec, Dense, Threshold, TopK
from pipeline.targets.codecs.base import offsets_of
from pipeline.targets.errors import SpecMismatch, UserError
from pipeline.targets.storage import Storage

SIZE = 12
LENGTHS = [4, 1, 3, 2]


def make_rows(codec: Codec, positions: Any = "next_token", seed: int = 0) -> tuple[Rows, np.ndarray]:
    """Four rows, and the teacher's logits of all their targets."""
    rng = np.random.default_rng(seed)
    sequences = positions == "next_token"
    lengths = np.array(LENGTHS)
    counts = lengths - 1 if sequences else np.ones(4, int)
    logits = 2 * rng.normal(size=(counts.sum(), SIZE)).astype(np.float32)
    tokens = Ragged(rng.integers(0, SIZE, lengths.sum()).astype("<u2"), offsets_of(lengths))
    spec = Spec(
        inputs=(Input("tokens", "<u2", (None,)),) if sequences else (),
        heads=(Head("logits", SIZE, positions, codec),),
        teacher={"kind": "t", "fingerprint": "t"},
        views={"kind": "v", "fingerprint": "v"},
    )
    rows = Rows(
        spec=spec,
        keys=[f"k{i}" for i in range(4)],
        row=np.arange(4),
        view=np.zeros(4, np.int32),
        views=np.ones(4, np.int32),
        targets=(counts if sequences else np.zeros(4)).astype(np.int32),
        inputs={"tokens": tokens} if sequences else {},
        heads={"logits": codec.encode(logits, rng.random((len(logits), codec.draws)))},
    )
    return rows, logits


def commit(place: Path, rows: Rows) -> Store:
    store = Store.create(str(place), rows.spec)
    unit = Unit((Slice("/corpus", 0, 1, 1, "1"),), 1)
    store.write_plan([unit], {"kind": "test"}, 0)
    with store.writer(unit.id) as writer:
        writer.write(rows)
        writer.commit(records=4, statistics={}, histograms={}, started=1.0, forward_seconds=0.0, device="cpu")
    return store


def export(store: Store, place: Path, **settings: Any) -> list[dict[str, Any]]:
    wanted = TopKExport(**{"head": "logits", "k": SIZE, **settings})
    destination = Storage(str(place))
    list(exporting.run(store, destination, wanted, exporting.prepare(store, destination, wanted)))
    rows: list[dict[str, Any]] = []
    for path in sorted(place.glob("*.parquet")):
        rows += pq.read_table(path).to_pylist()
    return rows


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(logits - np.log(np.exp(logits.astype(float)).sum(axis=1, keepdims=True)))


@pytest.mark.parametrize("alignment", ["next", "self"])
@pytest.mark.parametrize("codec", [Dense("float32"), TopK(k=5, dtype="float32"), TopK(k=3, betas=(0.5, 1.0))])
def test_each_token_has_its_likeliest_classes_at_its_place(
    tmp_path: Path, codec: Codec, alignment: str
) -> None:
    rows, logits = make_rows(codec)
    found = export(commit(tmp_path / "s", rows), tmp_path / "out", k=4, alignment=alignment)
    kept = min(4, getattr(codec, "k", 4))
    truth = log_softmax(logits)
    target = 0
    for i, item in enumerate(found):
        length = LENGTHS[i]
        tokens = rows.inputs["tokens"]
        assert isinstance(tokens, Ragged)
        assert item["key"] == f"k{i}"
        assert item["input_ids"] == item["labels"] == tokens[i].tolist()
        assert item["attention_mask"] == [1] * length
        places = range(length - 1) if alignment == "next" else range(1, length)
        empty = length - 1 if alignment == "next" else 0
        assert item["target_mask"][empty] == [0]
        assert len(item["target_token_ids"]) == len(item["target_logprobs"]) == length
        for place in places:
            ids = item["target_token_ids"][place]
            assert ids == np.argsort(-truth[target], kind="stable")[:kept].tolist()
            np.testing.assert_allclose(item["target_logprobs"][place], truth[target, ids], atol=2e-3)
            assert item["target_mask"][place] == [1] * kept
            target += 1
    assert target == len(logits)


def test_threshold_weights_are_exported_as_probabilities_that_sum_to_one_and_are_right_on_average(
    tmp_path: Path,
) -> None:
    rows, logits = make_rows(Threshold(0.2))
    draws = 400
    mean = np.zeros((len(logits), SIZE))
    for seed in range(draws):
        codec = rows.spec.heads[0].codec
        uniforms = np.random.default_rng(seed).random((len(logits), codec.draws))
        drawn = Rows(**{**vars(rows), "heads": {"logits": codec.encode(logits, uniforms)}})
        batch = topk_columns.columns(drawn, "logits", SIZE, "next", False).to_pylist()
        targets = [
            (ids, values)
            for item in batch
            for ids, values in zip(item["target_token_ids"][:-1], item["target_logprobs"][:-1], strict=True)
        ]
        for target, (ids, values) in enumerate(targets):
            assert len(set(ids)) == len(ids)
            assert np.exp(values).sum() == pytest.approx(1, abs=1e-5)
            mean[target, ids] += np.exp(values) / draws
    # Five standard deviations of a mean of draws that are worth at most 0.2 each.
    np.testing.assert_allclose(mean, np.exp(log_softmax(logits)), atol=5 * 0.1 / np.sqrt(draws))


@given(st.integers(1, SIZE), st.integers(0, 5), st.booleans())
def test_normalising_scales_what_is_kept_to_one(k: int, seed: int, threshold: bool) -> None:
    rows, _ = make_rows(Threshold(0.05) if threshold else Dense("float32"), seed=seed)
    plain = topk_columns.columns(rows, "logits", k, "next", False).to_pylist()
    scaled = topk_columns.columns(rows, "logits", k, "next", True).to_pylist()
    for before, after in zip(plain, scaled, strict=True):
        assert before["target_token_ids"] == after["target_token_ids"]
        for mask, old, new in zip(
            *(before["target_mask"], before["target_logprobs"]), after["target_logprobs"], strict=True
        ):
            if mask[0]:
                assert len(new) <= k
                assert np.exp(new).sum() == pytest.approx(1, abs=1e-5)
                assert np.ptp(np.subtract(new, old)) < 1e-4


def test_an_import_of_an_export_is_the_store_again(tmp_path: Path, import_into: Any) -> None:
    rows, _ = make_rows(TopK(k=5, dtype="float32"))
    store = commit(tmp_path / "s", rows)
    for alignment in ("next", "self"):
        export(store, tmp_path / alignment, alignment=alignment)
        found = import_into(
            "topk-columns",
            tmp_path / alignment,
            size=SIZE,
            k=5,
            alignment=alignment,
            store=tmp_path / f"{alignment}-store",
        )
        (commit_,) = found.store.commits()
        (back,) = found.store.read(commit_)
        for name in ("ids", "log_probs"):
            np.testing.assert_allclose(back.heads["logits"][name], rows.heads["logits"][name], atol=1e-6)
        np.testing.assert_allclose(
            back.heads["logits"]["tail_log_mass"], rows.heads["logits"]["tail_log_mass"], atol=1e-3
        )
        assert back.inputs["tokens"].values.tolist() == rows.inputs["tokens"].values.tolist()


def test_masks_and_silent_positions_survive_there_and_back(tmp_path: Path, import_into: Any) -> None:
    item = {
        "input_ids": [1, 2, 3, 4],
        "target_token_ids": [[0, 1], [4, 5], [6, 7], [0, 1]],
        "target_logprobs": [[-1e9, -1e9], [-0.5, -2.0], [-0.25, -3.0], [-1e9, -1e9]],
        "target_mask": [[0, 0], [1, 1], [0, 0], [0, 0]],
    }
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist([item]), tmp_path / "in/a.parquet")
    store = import_into("topk-columns", tmp_path / "in", size=SIZE, k=2).store
    (back,) = export(store, tmp_path / "out")
    assert back["target_mask"] == [[0], [1, 1], [0, 0], [0]]
    assert back["target_token_ids"][1:3] == [[4, 5], [6, 7]]
    np.testing.assert_allclose(back["target_logprobs"][2], [-0.25, -3])


def test_a_head_of_one_target_a_row_has_one_position(tmp_path: Path) -> None:
    rows, logits = make_rows(TopK(k=2, dtype="float32"), "single")
    found = export(commit(tmp_path / "s", rows), tmp_path / "out")
    assert [set(item) for item in found] == [
        {"key", "target_token_ids", "target_logprobs", "target_mask"}
    ] * 4
    assert [item["target_token_ids"][0][0] for item in found] == logits.argmax(axis=1).tolist()


def test_an_export_is_resumed_and_never_mixed_with_another(tmp_path: Path) -> None:
    rows, _ = make_rows(TopK(k=5))
    store = commit(tmp_path / "s", rows)
    first = export(store, tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*.parquet")
    before = file.stat().st_mtime_ns
    assert export(store, tmp_path / "out") == first
    assert file.stat().st_mtime_ns == before
    assert json.loads((tmp_path / "out/export.json").read_text())["store"] == store.spec.fingerprint
    with pytest.raises(UserError, match="holds an export of another store or with other settings"):
        export(store, tmp_path / "out", k=2)
    with pytest.raises(SpecMismatch, match="no head 'other'"):
        export(store, tmp_path / "other", head="other")
