"""A language model cut over two processes, which on this machine meet on the CPU."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pipeline.label import Labeller, prepare
from pipeline.targets.errors import TeacherError, UserError
from pipeline.teachers import CausalLM
from pipeline.teachers.logits import Projected
from tests.pipeline.teachers.tiny import TINY, enlarge, save, token_batch

SIZE = 98
ROWS = [list(range(1, 20)), [5, 6, 7]]


def saved(folder: Path, **changes: Any) -> str:
    config = transformers.LlamaConfig(vocab_size=SIZE, num_key_value_heads=2, **TINY, **changes)
    return save(enlarge(transformers.AutoModelForCausalLM.from_config(config)), folder)


@pytest.fixture
def needs_accelerate() -> None:
    pytest.importorskip("accelerate")
    if torch.cuda.is_available():
        pytest.skip("this test is for machines without an accelerator")


@pytest.mark.slow
@pytest.mark.usefixtures("needs_accelerate")
def test_a_model_cut_in_two_says_what_it_says_whole_and_leaves_no_process(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = CausalLM(path=path, device="cpu").load()
    teacher = CausalLM(path=path, tensor_parallel=2).load()
    assert teacher.outputs == whole.outputs
    assert teacher.description == whole.description
    assert type(teacher.model.lm_head.weight).__name__ == "DTensor"
    for rows in (ROWS, ROWS[:1]):
        found, expected = (each(token_batch(rows))["logits"] for each in (teacher, whole))
        assert isinstance(found, Projected)
        torch.testing.assert_close(found.whole()[0], expected.whole()[0], rtol=1e-4, atol=1e-4)  # type: ignore[union-attr]
    assert teacher.group is not None
    (process,) = teacher.group._others
    assert process.poll() is None
    del teacher, found
    gc.collect()
    assert process.poll() == 0
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
@pytest.mark.usefixtures("needs_accelerate")
def test_a_process_that_dies_fails_the_teacher_and_a_new_one_can_be_loaded(tmp_path: Path) -> None:
    path = saved(tmp_path)
    teacher = CausalLM(path=path, tensor_parallel=2).load()
    assert teacher.group is not None
    os.kill(teacher.group._others[0].pid, 9)
    teacher.group._others[0].wait()
    with pytest.raises(TeacherError, match="failed and has ended"):
        teacher(token_batch(ROWS))
    with pytest.raises(TeacherError, match="has ended: run the command again"):
        teacher(token_batch(ROWS))
    del teacher
    again = CausalLM(path=path, tensor_parallel=2).load()
    assert again(token_batch(ROWS))["logits"].shape == (2, 19, SIZE)


@pytest.mark.slow
@pytest.mark.usefixtures("needs_accelerate")
def test_a_corpus_is_labelled_by_a_teacher_that_is_cut_in_two(tmp_path: Path, make_job: Any) -> None:
    job = make_job(
        {"a.txt": "w1 w2 w3 w4", "b.txt": "w5 w6 w7"},
        teacher={"kind": "causal_lm", "path": saved(tmp_path / "model"), "tensor_parallel": 2},
        heads={"logits": {"kind": "topk", "k": 5}},
    )
    store = prepare(job)
    labeller = Labeller(job)
    commits = [labeller.label(unit) for unit in store.planned()]
    labeller.close()
    assert sum(commit.records for commit in commits) == 2
    assert sum(commit.quarantined for commit in commits) == 0


@pytest.mark.usefixtures("needs_accelerate")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tensor_parallel": 3}, "2 key-value heads of .* are not cut into so many like parts"),
        ({"tensor_parallel": 2, "device": "cpu"}, "device must be auto"),
    ],
)
def test_what_cannot_be_cut_so_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        CausalLM(path=saved(tmp_path), **changes).load()


@pytest.mark.usefixtures("needs_accelerate")
def test_an_architecture_without_a_plan_is_refused(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=SIZE, n_embd=32, n_layer=2, n_head=4)
    path = save(transformers.AutoModelForCausalLM.from_config(config), tmp_path)
    with pytest.raises(UserError, match=r"\(gpt2\) has no tensor-parallel plan"):
        CausalLM(path=path, tensor_parallel=2).load()
