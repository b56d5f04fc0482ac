"""Top-k columns are read whichever way they are aligned and masked, and what is written is read again."""

from __future__ import annotations

import gzip
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.targets.errors import ConfigError, CorpusUnreadable

SIZE = 100
NOTHING = -float("inf")


def row(tokens: list[int], targets: list[dict[int, float]], **more: Any) -> dict[str, Any]:
    """A source row: a dict of probabilities for each position, {} where the teacher said nothing."""
    width = max((len(item) for item in targets), default=0)
    ids = [[*item, *[0] * (width - len(item))] for item in targets]
    logs = [[*map(math.log, item.values()), *[NOTHING] * (width - len(item))] for item in targets]
    mask = [[1] * len(item) + [0] * (width - len(item)) for item in targets]
    columns = {"target_token_ids": ids, "target_logprobs": logs, "target_mask": mask}
    return {"input_ids": tokens, **columns, **more}


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        data = "".join(json.dumps(item) + "\n" for item in rows).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


P = [{5: 0.5, 7: 0.25}, {9: 0.75, 2: 0.125}, {3: 0.5, 4: 0.5}, {1: 0.875, 6: 0.0625}]
"""Distributions of four positions."""


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz"])
def test_parquet_and_json_lines_give_the_same_targets(tmp_path: Path, import_into: Any, name: str) -> None:
    save(tmp_path / "source" / name, [row([1, 5, 9, 3], P), row([4, 5, 9], P[:3])])
    found = import_into("topk-columns", tmp_path / "source", size=SIZE, k=2)
    assert [item.inputs["tokens"].tolist() for item in found.rows.values()] == [[1, 5, 9, 3], [4, 5, 9]]
    first = next(iter(found.rows.values()))
    for target in range(3):
        assert first.probabilities(target) == pytest.approx(P[target])
    np.testing.assert_allclose(np.exp(first.tail), [0.25, 0.125, 0], atol=1e-6)
    assert first.inputs["target_mask"].tolist() == [1, 1, 1, 0]
    assert found.store.spec.teacher["tail"] == "from_sum"


def test_a_target_at_its_own_tokens_place_is_moved_to_the_one_before(
    tmp_path: Path, import_into: Any
) -> None:
    save(tmp_path / "source/a.parquet", [row([1, 5, 9, 3], [{}, *P[:3]])])
    found = import_into("topk-columns", tmp_path / "source", size=SIZE, k=2, alignment="self")
    stored = found.rows["a.parquet#0"]
    for target in range(3):
        assert stored.probabilities(target) == pytest.approx(P[target])
    assert stored.inputs["target_mask"].tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("right", ["next", "self"])
def test_the_wrong_alignment_is_refused_by_what_the_data_show(
    tmp_path: Path, import_into: Any, right: str
) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(4):
        tokens = rng.integers(0, SIZE, 40).tolist()
        ahead = [*tokens[1:], 0] if right == "next" else tokens
        rows.append(row(tokens, [{token: 0.5, (token + 1) % SIZE: 0.25} for token in ahead]))
    save(tmp_path / "source/a.parquet", rows)
    import_into("topk-columns", tmp_path / "source", size=SIZE, k=2, alignment=right)
    wrong = "self" if right == "next" else "next"
    with pytest.raises(ConfigError, match=f"import with '{right}'"):
        import_into("topk-columns", tmp_path / "source", size=SIZE, k=2, alignment=wrong)


def test_a_prompt_that_the_teacher_did_not_speak_of_keeps_its_tokens_and_is_masked(
    tmp_path: Path, import_into: Any
) -> None:
    # As the chat-template loader lays it out: no log-probabilities in front, ids that mean nothing.
    empty = {"target_token_ids": [[0, 1]] * 2, "target_logprobs": [[NOTHING] * 2] * 2}
    body = row([1, 5, 9, 3], P[2:])
    body["target_token_ids"] = empty["target_token_ids"] + body["target_token_ids"]
    body["target_logprobs"] = empty["target_logprobs"] + body["target_logprobs"]
    body["target_mask"] = [[0, 0], [0, 0], [1, 1], [1, 1]]
    save(tmp_path / "source/a.parquet", [body])
    found = import_into("topk-columns", tmp_path / "source", size=SIZE, k=2).rows["a.parquet#0"]
    assert found.inputs["tokens"].tolist() == [1, 5, 9, 3]
    assert found.inputs["target_mask"].tolist() == [0, 0, 1, 0]
    assert found.probabilities(0) == found.probabilities(1) == {}
    np.testing.assert_allclose(np.exp(found.tail), [1, 1, 0], atol=1e-6)
    assert found.probabilities(2) == pytest.approx(P[2])


def test_a_masked_position_keeps_what_the_teacher_said_and_a_masked_entry_is_padding(
    tmp_path: Path, import_into: Any
) -> None:
    item = row([1, 5, 9], P[:3])
    item["target_mask"] = [[0, 0], [1, 0], [1, 1]]
    save(tmp_path / "source/a.parquet", [item])
    found = import_into("topk-columns", tmp_path / "source", size=SIZE, k=2).rows["a.parquet#0"]
    assert found.probabilities(0) == pytest.approx(P[0])
    assert found.probabilities(1) == pytest.approx({9: 0.75})
    assert found.inputs["target_mask"].tolist() == [0, 1, 0]


def test_positions_of_several_widths_keep_their_k_likeliest(tmp_path: Path, import_into: Any) -> None:
    item = row([1, 5, 9], [{}, {}, {}])
    item["target_token_ids"] = [[5, 7, 8], [9], [1, 2]]
    item["target_logprobs"] = [[-3.0, -0.5, -2.0], [-0.25], [-1.0, -2.0]]
    item["target_mask"] = [[1, 1, 1], [1], [1, 1]]
    save(tmp_path / "source/a.jsonl", [item])
    found = import_into("topk-columns", tmp_path / "source", size=SIZE, k=2).rows["a.jsonl@0"]
    assert found.probabilities(0) == pytest.approx({7: math.exp(-0.5), 8: math.exp(-2)})
    assert found.probabilities(1) == pytest.approx({9: math.exp(-0.25)})
    assert found.ids[1].tolist() == [9, 99]


def test_logits_need_no_normaliser_when_it_is_said_that_they_are_logits(
    tmp_path: Path, import_into: Any
) -> None:
    item = row([1, 5], [{}, {}])
    item["target_token_ids"], item["target_logprobs"] = [[5, 7], [1, 2]], [[30.0, 29.0], [5.0, 5.0]]
    item["target_mask"] = [[1, 1], [1, 1]]
    save(tmp_path / "source/a.jsonl", [item])
    found = import_into("topk-columns", tmp_path / "source", size=SIZE, k=2, values="logits")
    p = 1 / (1 + math.exp(-1))
    assert found.rows["a.jsonl@0"].probabilities(0) == pytest.approx({5: p, 7: 1 - p})
    assert found.store.spec.teacher["tail"] == "none"
    with pytest.raises(ConfigError, match=r"no row at the beginning of .* more than one"):
        import_into("topk-columns", tmp_path / "source", size=SIZE, k=2, store=tmp_path / "other")


GOOD = row([1, 5], P[:2])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target_token_ids": [[5, -7], [9, 2]]}, "class -7 is not one of 100"),
        ({"target_token_ids": [[5, 100], [9, 2]]}, "class 100 is not one of 100"),
        ({"target_token_ids": [[5, 5], [9, 2]]}, "class 5 stands there twice"),
        ({"target_token_ids": [[5, 7.5], [9, 2]]}, "target_token_ids has a number that is not whole"),
        (
            {"target_token_ids": [["5", "7"], ["9", "2"]]},
            "target_token_ids holds something else than numbers",
        ),
        ({"target_token_ids": [[5, None], [9, 2]]}, "target_token_ids holds something else than numbers"),
        ({"target_token_ids": [5, 7]}, "target_token_ids is no list of lists"),
        ({"target_token_ids": [[5, 7], 9]}, "target_token_ids is no list of numbers"),
        ({"target_token_ids": [[5, 2**70], [9, 2]]}, "target_token_ids is no list of numbers"),
        ({"target_token_ids": [[5, 2**63], [9, 2]]}, "target_token_ids"),
        ({"target_token_ids": "no"}, "target_token_ids is a JSON str"),
        ({"target_token_ids": None}, "target_token_ids is missing"),
        ({"target_token_ids": [[5, 7]]}, "are of shapes"),
        ({"target_logprobs": [[float("nan"), -1.0], [-1.0, -2.0]]}, "not finite"),
        ({"target_logprobs": [[0.5, -1.0], [-1.0, -2.0]]}, "more than one"),
        ({"target_mask": [[1, 1]]}, "are of shapes"),
        ({"input_ids": [1, 100]}, "token 100 is not one of 100"),
        ({"input_ids": [-1, 5]}, "token -1 is not one of 100"),
        ({"input_ids": [1, 5, 9, 9]}, "4 tokens and 2 targets"),
        ({"attention_mask": [1]}, "2 tokens and 1 entries of attention_mask"),
    ],
)
def test_a_broken_line_goes_to_quarantine_with_its_reason(
    tmp_path: Path, import_into: Any, change: dict[str, Any], said: str
) -> None:
    save(tmp_path / "source/a.jsonl", [GOOD, {**GOOD, **change}])
    found = import_into("topk-columns", tmp_path / "source", size=SIZE, k=2)
    assert set(found.rows) == {"a.jsonl@0"}
    ((key, (code, reason)),) = found.reasons.items()
    assert said in reason
    assert key in reason
    assert code == ("non_finite" if "finite" in said else "undecodable")


@pytest.mark.parametrize("line", ["no JSON", "[1]", "3", '{"input_ids": [1', "[" * 5000])
def test_a_line_that_is_no_object_goes_to_quarantine(tmp_path: Path, import_into: Any, line: str) -> None:
    path = save(tmp_path / "source/a.jsonl", [GOOD])
    path.write_text(f"{path.read_text()}{line}\n\n{json.dumps(GOOD)}\n")
    found = import_into("topk-columns", tmp_path / "source", size=SIZE, k=2)
    assert len(found.rows) == 2
    assert len(found.reasons) == 1


def test_a_list_that_claims_a_huge_width_costs_no_memory(tmp_path: Path, import_into: Any) -> None:
    ids = [[0]] * 3000 + [list(range(3000))]
    item = {"input_ids": [1] * 3001, "target_token_ids": ids, "target_logprobs": [[-1.0]] * 3001}
    save(tmp_path / "source/a.parquet", [GOOD, item])
    found = import_into("topk-columns", tmp_path / "source", size=SIZE, k=2)
    assert "among much shorter ones" in found.reasons["a.parquet#1"][1]


@pytest.mark.parametrize("keep", [0.3, 0.99])
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz"])
def test_a_half_written_file_is_refused(tmp_path: Path, import_into: Any, name: str, keep: float) -> None:
    rng = np.random.default_rng(1)
    rows = [row(rng.integers(0, SIZE, 3).tolist(), P[:3]) for _ in range(200)]
    path = save(tmp_path / "source" / name, rows)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(CorpusUnreadable, match=name.replace(".", r"\.")):
        import_into("topk-columns", tmp_path / "source", size=SIZE, k=2)


def test_a_file_without_the_columns_is_refused_by_name(tmp_path: Path, import_into: Any) -> None:
    pq.write_table(pa.table({"input_ids": [[1]], "messages": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"a\.parquet has no column 'target_token_ids', it has input_ids"):
        import_into("topk-columns", tmp_path / "a.parquet", size=SIZE, k=2)


@settings(max_examples=25)
@given(st.binary(max_size=400), st.integers(0, 2000), st.integers(0, 255))
def test_no_bytes_of_a_parquet_file_do_more_than_be_refused(
    import_anywhere: Any, noise: bytes, at: int, value: int
) -> None:
    from pipeline.targets.errors import DecantError

    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder, "source/a.parquet"), [GOOD] * 5)
        data = bytearray(path.read_bytes())
        data[at % len(data)] = value
        path.write_bytes(bytes(data) if at % 2 else noise + bytes(data[at % len(data) :]))
        try:
            found = import_anywhere("topk-columns", path, Path(folder, "store"), size=SIZE, k=2)
        except DecantError:
            return
        assert found.verified.problems == ()
