"""Packed views: what the teacher says of each is what it says of it alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batching import filled
from pipeline.job import LabelJob
from pipeline.label import Labeller
from pipeline.prepare import prepare
from pipeline.targets.errors import ConfigError, TeacherError
from pipeline.targets.rows import Rows
from pipeline.teachers.base import Batch
from pipeline.teachers.causal_lm import CausalLM, CausalLMTeacher
from pipeline.teachers.logits import Logits, as_logits
from pipeline.teachers.packing import pack

SIZE = 97
LONGEST = 64
SMALL: dict[str, Any] = {"vocab_size": SIZE, "hidden_size": 32, "num_hidden_layers": 2}
WIDE = SMALL | {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 48}


def model(kind: str) -> Any:
    """A tiny model whose answers depend on all that it attends to."""
    import transformers as tf

    torch.manual_seed(0)
    config = {
        "llama": lambda: tf.LlamaConfig(**WIDE, max_position_embeddings=LONGEST),
        "qwen": lambda: tf.Qwen2Config(**WIDE, max_position_embeddings=LONGEST),
        "sliding": lambda: tf.MistralConfig(**WIDE, max_position_embeddings=LONGEST, sliding_window=5),
        "gpt2": lambda: tf.GPT2Config(vocab_size=SIZE, n_embd=32, n_layer=2, n_head=2, n_positions=LONGEST),
        "mamba": lambda: tf.MambaConfig(**SMALL, state_size=8),
        "bloom": lambda: tf.BloomConfig(vocab_size=SIZE, hidden_size=32, n_layer=2, n_head=2),
    }[kind]()
    made = tf.AutoModelForCausalLM.from_config(config)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], CausalLMTeacher]:
    folders: dict[str, Path] = {}

    def make(kind: str) -> CausalLMTeacher:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            model(kind).save_pretrained(folders[kind])
        return CausalLM(path=str(folders[kind]), device="cpu").load()

    return make


@pytest.fixture(scope="module")
def pairs(
    load: Callable[[str], CausalLMTeacher],
) -> Callable[[str], tuple[CausalLMTeacher, CausalLMTeacher]]:
    """One to stay as it is, one to pack."""
    return functools.cache(lambda kind: (load(kind), load(kind)))


def batch_of(lengths: list[int], seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    tokens = np.zeros((len(lengths), max(lengths)), dtype=np.uint16)
    for i, length in enumerate(lengths):
        tokens[i, :length] = generator.integers(0, SIZE, length)
    return Batch({"tokens": tokens}, np.array(lengths, dtype=np.int64))


def said(answer: Mapping[str, torch.Tensor | Logits]) -> torch.Tensor:
    return as_logits(answer["logits"]).whole()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen", "gpt2", "sliding"])
@settings(deadline=None, max_examples=12)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    row=st.integers(1, 70),
    seed=st.integers(0, 2**16),
)
def test_packed_logits_are_the_unpacked_ones(
    pairs: Callable[[str], tuple[CausalLMTeacher, CausalLMTeacher]],
    kind: str,
    lengths: list[int],
    row: int,
    seed: int,
) -> None:
    usual, packing = pairs(kind)
    packing.pack(row)
    batch = batch_of(lengths, seed)
    alone, packed = said(usual(batch)), said(packing(batch))
    assert packed.shape == alone.shape
    for i, length in enumerate(lengths):
        torch.testing.assert_close(packed[i, :length], alone[i, :length], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["mamba", "bloom"])
def test_a_model_that_mixes_the_views_of_a_row_is_refused(
    load: Callable[[str], CausalLMTeacher], kind: str
) -> None:
    with pytest.raises(
        TeacherError, match=r"does not keep the views of a row apart.*label\.batching\.packing"
    ):
        load(kind).pack(128)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20), capacity=st.integers(1, 60))
def test_rows_hold_every_token_once_at_its_position(lengths: list[int], capacity: int) -> None:
    batch = batch_of(lengths, 0)
    rows = pack(batch, capacity)
    assert rows.tokens.shape[1] <= max(capacity, max(lengths))
    taken: list[int] = []
    for i, length in enumerate(lengths):
        places = rows.places[i, :length]
        np.testing.assert_array_equal(rows.tokens.flatten()[places], batch.inputs["tokens"][i, :length])
        np.testing.assert_array_equal(rows.positions.flatten()[places], np.arange(length))
        assert len({place // rows.tokens.shape[1] for place in places.tolist()}) == 1
        taken += places.tolist()
    assert len(taken) == len(set(taken))


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=60), capacity=st.integers(20, 60))
def test_a_batch_is_packed_into_the_rows_it_was_made_for(sizes: list[int], capacity: int) -> None:
    lengths = np.array(sizes, dtype=np.int64)
    rows = filled(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    order = [i for row in rows for i in row]
    tokens = np.zeros((len(order), max(sizes)), dtype=np.uint16)
    assert len(pack(Batch({"tokens": tokens}, lengths[order]), capacity).tokens) == len(rows)
    full = sum(sizes[i] for row in rows for i in row)
    assert len(rows) <= 1 or full > len(rows) * capacity / 2 - capacity


def label_all(job: LabelJob) -> Rows:
    store = prepare(job)
    labeller = Labeller(job)
    for unit in store.planned():
        labeller.label(unit)
    commits = [store.find(unit.id) for unit in store.planned()]
    return Rows.concatenate([rows for commit in commits if commit for rows in store.read(commit)])


@pytest.mark.slow
def test_a_packed_store_is_the_unpacked_one_up_to_rounding(
    make_job: Callable[..., LabelJob], load: Callable[[str], CausalLMTeacher], tmp_path_factory: Any
) -> None:
    path = load("llama").model.name_or_path
    teacher = {"kind": "causal_lm", "path": path, "device": "cpu"}
    heads = {"logits": {"kind": "dense", "dtype": "float32"}}
    usual, packed = (
        label_all(make_job(store=name, teacher=teacher, heads=heads, label={"batching": batching}))
        for name, batching in (("usual", {"budget": 256}), ("packed", {"budget": 256, "packing": 64}))
    )
    assert packed.keys == usual.keys
    np.testing.assert_array_equal(packed.view, usual.view)
    np.testing.assert_array_equal(packed.inputs["tokens"].values, usual.inputs["tokens"].values)  # type: ignore[union-attr]
    np.testing.assert_allclose(
        packed.decode("logits").logits,  # type: ignore[union-attr]
        usual.decode("logits").logits,  # type: ignore[union-attr]
        rtol=1e-3,
        atol=1e-4,
    )


def test_a_teacher_of_another_kind_is_a_mistake_in_the_job(make_job: Callable[..., LabelJob]) -> None:
    prepare(make_job())
    with pytest.raises(ConfigError, match=r'label\.batching\.packing: a teacher of kind "fake"'):
        Labeller(make_job(label={"batching": {"packing": 64}}))
