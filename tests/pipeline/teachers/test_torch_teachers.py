"""Teachers from Python code, ensembles of teachers, and the fake."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.targets.errors import TeacherError, UserError
from pipeline.teachers import AnyTeacher, Batch, Ensemble, Fake, TorchCallable
from pipeline.teachers.base import Output

MODULE = '''
import torch

class Net(torch.nn.Module):
    def __init__(self, classes, features):
        super().__init__()
        torch.manual_seed(classes)
        self.linear = torch.nn.Linear(features, classes)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, image):
        return self.drop(self.linear(image.float()))

class Two(Net):
    def forward(self, image):
        logits = super().forward(image)
        return {"logits": logits, "coarse": logits[:, :2]}

class Mean(torch.nn.Module):
    """Mean of a view's token embeddings, which padding would change without lengths."""
    def __init__(self, classes):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(100, classes)

    def forward(self, tokens, lengths):
        inside = torch.arange(tokens.shape[1]) < lengths[:, None]
        return (self.embedding(tokens) * inside[..., None]).sum(1) / lengths[:, None]

class Ready:
    outputs, description = {}, {"kind": "ready", "fingerprint": "f"}
    def __call__(self, batch):
        return {}

net, two, mean, ready, wrong = Net, Two, Mean, Ready, dict
'''


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets_of_this_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def load(name: str, heads: dict[str, int] | None = None, **arguments: Any) -> Any:
    chosen = {"logits": 4} if heads is None else heads
    return TorchCallable(
        factory=f"nets_of_this_test:{name}", arguments=arguments, heads=chosen, device="cpu"
    ).load()


def images(count: int = 3, features: int = 6) -> Batch:
    values = np.random.default_rng(0).normal(size=(count, features)).astype(np.float32)
    return Batch({"image": values}, np.ones(count, dtype=np.int64))


def test_a_module_becomes_a_teacher_in_evaluation_mode() -> None:
    teacher = load("net", classes=4, features=6)
    assert teacher.outputs == {"logits": Output(4, "single")}
    batch = images()
    first = teacher(batch)["logits"]
    torch.testing.assert_close(first, teacher.module.linear(torch.from_numpy(batch.inputs["image"])).detach())
    assert torch.equal(first, teacher(batch)["logits"])


def test_several_heads_come_by_name() -> None:
    teacher = load("two", {"logits": 4, "coarse": 2}, classes=4, features=6)
    result = teacher(images())
    assert {name: tuple(t.shape) for name, t in result.items()} == {"logits": (3, 4), "coarse": (3, 2)}


def test_a_module_that_asks_for_lengths_gets_them_and_tokens_as_int64() -> None:
    teacher = load("mean", classes=4)
    tokens = np.array([[1, 2, 3], [4, 0, 0]], dtype=np.uint16)
    logits = teacher(Batch({"tokens": tokens}, np.array([3, 1])))["logits"]
    torch.testing.assert_close(logits[1], teacher.module.embedding.weight[4])


def test_an_object_that_is_a_teacher_is_taken_as_it_is() -> None:
    assert load("ready", {}).description == {"kind": "ready", "fingerprint": "f"}


def test_the_fingerprint_follows_the_weights() -> None:
    one, same, other = (load("net", classes=4, features=n).description for n in (6, 6, 7))
    assert one == same
    assert one["fingerprint"] != other["fingerprint"]


def test_a_factory_that_fails_is_one_sentence_with_its_arguments() -> None:
    config = TorchCallable(
        factory="torch:load", arguments={"f": "/nowhere/weights.pt"}, heads={"logits": 4}, device="cpu"
    )
    with pytest.raises(UserError) as caught:
        config.load()
    said = str(caught.value)
    assert "the teacher factory torch:load failed with teacher.arguments {'f': '/nowhere/weights.pt'}" in said
    assert "FileNotFoundError: " in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("nosuch.package:factory", "nosuch.package:factory .*is it installed, or on PYTHONPATH"),
        ("nets_of_this_test:nosuch", "nets_of_this_test:nosuch .*nosuch"),
        ("nets_of_this_test:wrong", "wrong returned dict"),
        ("nets_of_this_test:__name__", "is no function"),
    ],
)
def test_a_factory_that_is_none_is_a_users_mistake(factory: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        TorchCallable(factory=factory, heads={"logits": 4}).load()


def test_heads_that_disagree_with_the_module_are_named() -> None:
    with pytest.raises(UserError, match=r"teacher\.heads is missing"):
        load("net", {}, classes=4, features=6)
    with pytest.raises(TeacherError, match=r"\(3, 4\) for the head 'logits' of 5 classes"):
        load("net", {"logits": 5}, classes=4, features=6)(images())
    with pytest.raises(TeacherError, match="no tensor for the head 'other'"):
        load("two", {"other": 5}, classes=4, features=6)(images())


def fakes(*seeds: int, size: int = 5) -> list[Any]:
    return [Fake(size=size, seed=seed, positions="single") for seed in seeds]


def test_an_ensemble_averages_logits_or_probabilities() -> None:
    batch = images()
    each = [member.load()(batch)["logits"].double() for member in fakes(1, 2, 3)]
    logits = Ensemble(members=fakes(1, 2, 3)).load()(batch)["logits"].whole()
    torch.testing.assert_close(logits.double(), sum(each) / 3, rtol=1e-5, atol=1e-5)
    teacher = Ensemble(members=fakes(1, 2, 3), average="probabilities").load()
    expected = sum(z.softmax(-1) for z in each) / 3
    torch.testing.assert_close(
        teacher(batch)["logits"].whole().double().exp(), expected, rtol=1e-5, atol=1e-6
    )


def test_an_ensemble_leaves_its_members_outputs_alone() -> None:
    member = Fake(size=5, positions="single").load()
    ensemble = Ensemble(members=fakes(0)).load()
    ensemble.members = [member, member]
    batch = images()
    torch.testing.assert_close(ensemble(batch)["logits"].whole(), member(batch)["logits"])


def test_members_that_disagree_about_heads_are_refused() -> None:
    with pytest.raises(UserError, match="member 2 of the ensemble"):
        Ensemble(members=[*fakes(1), *fakes(1, size=6)]).load()


def test_members_may_pad_their_logits_of_next_tokens_differently() -> None:
    """Padding has no part in any member's distribution: the mean is that of the members without it."""
    batch = sequences([[3, 4, 5], [7, 8]])
    members = [Fake(size=size, seed=size) for size in (9, 12, 10)]
    each = [member.load()(batch)["logits"].double()[..., :7] for member in members]
    for average in ("logits", "probabilities"):
        ensemble = Ensemble(members=list(members), average=average).load()
        assert ensemble.outputs == {"logits": Output(9, "next_token", padded=True)}
        answer = ensemble(batch)["logits"]
        assert answer.shape == (2, 3, 9)
        found = answer.first(7).whole().double().softmax(-1)
        log_p = sum(each) / 3 if average == "logits" else sum(z.softmax(-1) for z in each).log()
        torch.testing.assert_close(found, log_p.softmax(-1), rtol=1e-5, atol=1e-6)


def test_the_example_in_the_documentation_works_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[3] / "docs" / "teachers.md").read_text()
    section = text[text.index("## Your own") :]
    code, job = (re.search(rf"```{kind}\n(.*?)```", section, re.S) for kind in ("python", "yaml"))
    assert code is not None
    assert job is not None
    (tmp_path / "mymodels.py").write_text(code[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    net = torch.nn.Linear(64, 12)
    torch.save({"net.1.weight": net.weight, "net.1.bias": net.bias}, "tagger.pt")
    said = yaml.safe_load(job[1])
    teacher = TypeAdapter(AnyTeacher).validate_python(said["teacher"]).load()
    image = np.random.default_rng(0).integers(0, 255, (3, 8, 8)).astype(np.uint8)
    found = teacher(Batch({"image": image}, np.ones(3, dtype=np.int64)))
    expected = net(torch.from_numpy(image).float().flatten(1))
    torch.testing.assert_close(torch.cat([found["kind"], found["colour"]], dim=1), expected.detach())
    assert teacher.outputs == {"kind": Output(10, "single"), "colour": Output(2, "single")}
    assert set(said["store"]["heads"]) == set(teacher.outputs)


def test_an_ensembles_fingerprint_follows_members_and_average() -> None:
    ensembles = [
        Ensemble(members=fakes(1, 2)),
        Ensemble(members=fakes(1, 3)),
        Ensemble(members=fakes(1, 2), average="probabilities"),
    ]
    assert len({ensemble.load().description["fingerprint"] for ensemble in ensembles}) == 3


def test_any_kind_of_teacher_is_built_from_its_keys() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(AnyTeacher)
    nested = {
        "kind": "ensemble",
        "members": [
            {"kind": "fake", "size": 3},
            {"kind": "ensemble", "members": [{"kind": "causal_lm", "path": "x"}]},
        ],
    }
    teacher = adapter.validate_python(nested)
    assert adapter.validate_json(teacher.model_dump_json()) == teacher
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": "ensemble", "members": []})
    with pytest.raises(ValidationError, match="sizes"):
        adapter.validate_python({"kind": "fake", "sizes": 3})


def sequences(rows: list[list[int]]) -> Batch:
    lengths = np.array([len(row) for row in rows])
    tokens = np.zeros((len(rows), lengths.max()), dtype=np.uint16)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return Batch({"tokens": tokens}, lengths)


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=8), min_size=1, max_size=5), st.booleans())
def test_the_fakes_logits_can_be_computed_again_and_ignore_padding(
    rows: list[list[int]], single: bool
) -> None:
    teacher = Fake(size=4, positions="single" if single else "next_token").load()
    logits = teacher(sequences(rows))["logits"].numpy()
    for row, found in zip(rows, logits, strict=True):
        expected = teacher.logits(np.array(row))
        np.testing.assert_array_equal(found if single else found[: len(row)], expected)


def test_the_fake_fails_where_it_is_told_to_and_not_on_padding() -> None:
    batch = sequences([[1, 2, 3], [4]])
    with pytest.raises(RuntimeError, match="told to fail on 4"):
        Fake(size=3, raise_on=4).load()(batch)
    Fake(size=3, raise_on=0).load()(batch)
    logits = Fake(size=3, nan_on=2).load()(batch)["logits"]
    assert bool(logits[0].isnan().all())
    assert not bool(logits[1].isnan().any())


def test_the_fake_ends_the_process_once_where_a_marker_is_given(tmp_path: Path) -> None:
    teacher = Fake(size=3, exit_on=2, exit_marker=str(tmp_path / "died")).load()
    codes = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            try:
                teacher(sequences([[1, 2]]))
            finally:
                os._exit(0)  # straight out: this process has no business in pytest
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert codes == [1, 0]


def test_a_read_only_batch_is_taken_without_a_warning() -> None:
    batch = images()
    batch.inputs["image"].setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("net", classes=4, features=6)(batch)
