"""A served language model as a teacher, against a real server on loopback that fails on demand."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.audit import audit
from pipeline.label import Labeller, prepare
from pipeline.targets.codecs import TopK
from pipeline.targets.errors import ConfigError, TeacherError, UserError
from pipeline.targets.store import Store
from pipeline.teachers import Endpoint, Ensemble, service
from pipeline.teachers.endpoint import EndpointTeacher
from pipeline.teachers.likeliest import Likeliest
from pipeline.teachers.service import Rate, Refused, retry_after
from tests.pipeline.conftest import WORDS
from tests.pipeline.teachers.serving import KEY, Served, serve
from tests.pipeline.teachers.tiny import TINY, VOCABULARY, enlarge, token_batch

ROWS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3], [8, 9, 7, 9]]
VARIABLE = "DECANT_TEST_KEY"


def language_model(size: int) -> Any:
    config = transformers.LlamaConfig(vocab_size=size, num_key_value_heads=2, **TINY)
    return enlarge(transformers.AutoModelForCausalLM.from_config(config))


@pytest.fixture(scope="module")
def model() -> Any:
    return language_model(VOCABULARY)


@pytest.fixture
def served(model: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setattr(service, "FIRST_WAIT", 0.002)
    with serve(Served(model)) as running:
        yield running


def endpoint(served: Served, **changes: Any) -> Endpoint:
    settings: dict[str, Any] = {"url": served.url, "model": "tiny", "size": VOCABULARY, "top": 6}
    settings |= {"key_variable": VARIABLE, "dtype": "float32", "attempts": 4}
    return Endpoint(**settings | changes)


def own_logits(served: Served, row: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = served.model(input_ids=torch.tensor([row])).logits[0, :-1]
    return logits


def test_a_served_model_tells_what_it_would_say_here(served: Served) -> None:
    told = endpoint(served).load()(token_batch(ROWS))["logits"]
    codec = TopK(k=6, dtype="float32")
    for i, row in enumerate(ROWS):
        logits = own_logits(served, row)
        places = np.arange(len(row) - 1) + i * 8
        found = codec.decode(codec.encode_ranked(told.ranked(places, 6), VOCABULARY), VOCABULARY)
        expected = codec.decode(codec.encode_torch(logits, np.zeros((len(logits), 0))), VOCABULARY)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)
        np.testing.assert_allclose(np.exp(found.tail_log_mass), np.exp(expected.tail_log_mass), atol=1e-5)
        own = torch.log_softmax(logits, -1)[torch.arange(len(row) - 1), torch.tensor(row[1:])]
        np.testing.assert_allclose(told.own[i, : len(row) - 1], own.numpy(), atol=1e-5)
        dense = told.rows(torch.from_numpy(places)).double().exp()
        np.testing.assert_allclose(dense.sum(dim=1).numpy(), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("codec", "size"),
    [
        ({"kind": "topk", "k": 5}, WORDS + 1),
        ({"kind": "topp", "k": 6, "p": 0.8}, WORDS + 1),
        ({"kind": "topk", "k": 6}, VOCABULARY),  # with classes that no token names
    ],
)
def test_a_corpus_is_labelled_by_a_served_model_and_passes_its_audit(
    served: Served, make_job: Any, codec: dict[str, Any], size: int, tmp_path: Path
) -> None:
    texts = {f"{i}.txt": " ".join(f"w{(i * 7 + j * 3) % 90}" for j in range(20)) for i in range(12)}
    served.model = language_model(size)
    teacher = endpoint(served, size=size).model_dump()
    job = make_job(texts, teacher=teacher, heads={"logits": codec}, unit_bytes=400)
    store = prepare(job)
    said = store.spec.teacher
    assert (said["model"], said["tail"], said["top"]) == ("tiny", "from_sum", 6)
    labeller = Labeller(job)
    commits = [labeller.label(unit) for unit in store.planned()]
    labeller.close()
    assert sum(commit.records for commit in commits) == 12
    for commit in commits:
        assert commit.quarantined == 0
        assert commit.statistics["logits.label_nll"] > 0
        assert "logits.entropy" not in commit.statistics
    # Of so few classes, those that left their place empty are some hundredths of the tail.
    found = audit(job, tolerance=0.02 if size > WORDS + 1 else None)
    assert list(found.findings) == []
    assert found.relabelled == 12
    assert len(served.requests) > 24
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert KEY.encode() not in content
            assert served.url.encode() not in content


@pytest.mark.parametrize(
    ("codec", "reason"),
    [
        ({"kind": "threshold"}, "the codec threshold is made of all"),
        ({"kind": "dense"}, "the codec dense is made of all"),
        ({"kind": "topk", "k": 7}, "k is 7"),
        ({"kind": "topk", "k": 6, "betas": [0.5, 1.0]}, "betas than 1"),
    ],
)
def test_codecs_that_need_more_than_is_told_are_refused_with_the_cure(
    served: Served, make_job: Any, codec: dict[str, Any], reason: str
) -> None:
    job = make_job({"a.txt": "w1 w2 w3"}, teacher=endpoint(served).model_dump(), heads={"logits": codec})
    with pytest.raises(
        ConfigError, match=rf"{reason}.*use topk or topp with k of at most 6 and betas \[1.0\]"
    ):
        prepare(job)


def test_an_average_over_what_is_not_told_is_refused(served: Served) -> None:
    with pytest.raises(UserError, match="member 1 of the ensemble tells its likeliest classes only"):
        Ensemble(members=[endpoint(served)]).load()


@pytest.mark.parametrize("fault", ["500", "429 0", "reset", "no json", "short"])
def test_a_fault_that_passes_changes_no_answer(served: Served, fault: str) -> None:
    teacher = endpoint(served, concurrency=1).load()
    expected = teacher(token_batch(ROWS))["logits"]
    before = len(served.requests)
    served.faults = ["", fault]
    found = teacher(token_batch(ROWS))["logits"]
    assert len(served.requests) - before == len(ROWS) + 1
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.log_probs, expected.log_probs)


def test_an_answer_without_end_is_not_read_to_its_end(served: Served) -> None:
    teacher = endpoint(served).load()
    served.faults = ["endless"]
    with pytest.raises(Refused, match=r"more than 1,014,000 bytes"):
        teacher(token_batch([[5, 3]]))


def test_after_retry_after_nobody_asks_before_that_time(served: Served) -> None:
    teacher = endpoint(served, concurrency=1).load()
    served.requests.clear()
    served.faults = ["429 1"]
    teacher(token_batch(ROWS))
    times = [when for when, _, _ in served.requests]
    assert len(times) == len(ROWS) + 1
    assert times[1] - times[0] > 0.99


def quarantined(store: Store) -> list[Any]:
    return [item for commit in store.commits() for item in store.quarantined(commit)]


def test_views_that_the_service_cannot_answer_go_to_quarantine_and_the_others_are_labelled(
    served: Served, make_job: Any
) -> None:
    texts = {f"{i}.txt": f"w{i} w2 w3 w4 w5" for i in range(40, 52)}
    job = make_job(texts, teacher=endpoint(served).model_dump(), heads={"logits": {"kind": "topk", "k": 6}})
    store = prepare(job)
    served.poison, served.nan_on = 44, 47
    labeller = Labeller(job)
    commits = [labeller.label(unit) for unit in store.planned()]
    labeller.close()
    found = {item.key: item for item in quarantined(store)}
    assert {key: item.code for key, item in found.items()} == {
        "44.txt": "teacher_failed",
        "47.txt": "non_finite",
    }
    assert "EngineCore encountered an issue" in found["44.txt"].reason
    assert sum(len(rows) for commit in commits for rows in store.read(commit)) == 10


def test_a_service_that_is_gone_fails_the_unit_and_quarantines_nothing(served: Served, make_job: Any) -> None:
    job = make_job(
        {"a.txt": "w1 w2 w3"},
        teacher=endpoint(served, attempts=2).model_dump(),
        heads={"logits": {"kind": "topk", "k": 6}},
    )
    store = prepare(job)
    labeller = Labeller(job)
    served.down = True
    with pytest.raises(TeacherError, match=r"does not answer any more: .* 2 attempts: status 500"):
        labeller.label(next(store.planned()))
    labeller.close()
    assert list(store.commits()) == []


def test_a_view_that_was_refused_is_not_asked_again(served: Served) -> None:
    teacher = endpoint(served, attempts=2).load()
    served.poison = 8
    for _ in range(2):
        with pytest.raises(Refused, match="status 500"):
            teacher(token_batch([ROWS[2]]))
    assert sum(8 in body["prompt"] for _, _, body in served.requests) == 2


def test_who_is_not_let_in_learns_which_variable_holds_the_key_and_nobody_learns_the_key(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "sk-another-secret")
    with pytest.raises(UserError, match=rf"status 401\): the key in {VARIABLE} was refused") as caught:
        endpoint(served).load()
    assert "sk-another-secret" not in str(caught.value)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(UserError, match=rf"the key in {VARIABLE} is not set"):
        endpoint(served).load()
    assert "Authorization" not in served.requests[-1][1]
    assert not any("secret" in json.dumps(body) for _, _, body in served.requests)


def test_what_the_service_cannot_do_is_a_users_mistake_when_it_is_opened(served: Served) -> None:
    with pytest.raises(UserError, match=r"max allowed: 20.*--max-logprobs at least teacher.top"):
        endpoint(served, top=21).load()
    with pytest.raises(UserError, match=r"The model `huge` does not exist.*correct teacher\.url and"):
        endpoint(served, model="huge").load()
    with pytest.raises(UserError, match="status 404"):
        endpoint(served, url=served.url + "/v2").load()
    served.down = True
    with pytest.raises(TeacherError, match="cannot be reached"):
        endpoint(served, attempts=1).load()


@pytest.mark.parametrize("url", ["ftp://h/v1", "host:8000", "http://me:pw@h/v1", "http://h/v1?key=pw"])
def test_a_url_that_is_none_or_holds_a_credential_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match=r"no http://|put the key into the environment"):
        Endpoint(url=url, model="m", size=5)


def test_requests_fly_together_up_to_the_configured_number(served: Served) -> None:
    teacher = endpoint(served, concurrency=3).load()
    answer = served.answer

    def slow(prompt: list[int], k: int) -> Any:
        time.sleep(0.05)
        return answer(prompt, k)

    served.answer = slow  # type: ignore[method-assign]
    teacher(token_batch([[i, i + 1] for i in range(12)]))
    assert served.most == 3


def test_without_the_library_the_extra_is_named(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(UserError, match=r'pip install "decant-kd\[endpoint\]"'):
        endpoint(served).load()


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@settings(max_examples=50)
@given(
    rate=st.floats(0.5, 50),
    amounts=st.lists(st.floats(0.1, 30), min_size=2, max_size=20),
    idle=st.floats(0, 9),
)
def test_a_rate_is_never_exceeded_but_for_a_seconds_worth(
    rate: float, amounts: list[float], idle: float
) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "time", clock)
        limit = Rate(rate)
        clock.now += idle
        began: list[float] = []
        for amount in amounts:
            limit.take(amount)
            began.append(clock.now)
    sums = list(itertools.accumulate(amounts))
    for i, j in itertools.combinations(range(len(amounts)), 2):
        between = sums[j - 1] - (sums[i - 1] if i else 0.0)
        assert between <= rate * (began[j] - began[i] + 1.0) * (1 + 1e-9)


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after("7") == 7
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 80 < retry_after(later) <= 90
    assert retry_after("") == retry_after("soon") == retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@settings(max_examples=60)
@given(seed=st.integers(0, 999), classes=st.integers(1, 12), k=st.integers(1, 12))
def test_classes_that_no_token_names_have_no_part_in_what_is_told(seed: int, classes: int, k: int) -> None:
    """As if the logits had been cut before: what is left is in proportion, each class stands there once."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (5, 12))
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ids = np.argsort(-log_p, axis=1)[:, :k]
    assume((ids < classes).any(axis=1).all())
    told = Likeliest(ids[None], np.take_along_axis(log_p, ids, 1)[None], np.zeros((1, 5)), 12).first(classes)
    assert told.shape == (1, 5, classes)
    width = told.ids.shape[-1]
    assert width == min(k, classes)
    ranked = told.ranked(np.arange(5), width)
    mass = np.exp(ranked.log_probs).sum(axis=1) + np.exp(ranked.tail_log_mass[:, 0])
    for target, (row, kept) in enumerate(zip(ranked.ids, ranked.log_probs, strict=True)):
        assert len(set(row.tolist())) == width
        assert row.max() < classes
        np.testing.assert_allclose(mass[target], 1, atol=1e-9)
        lost = np.exp(log_p[target, [i for i in ids[target] if i >= classes]]).sum()
        for class_, value in zip(row, kept, strict=True):
            if width == classes:
                continue  # nothing is left for others: what is told is scaled to one
            if class_ in ids[target]:
                np.testing.assert_allclose(value, log_p[target, class_] - np.log1p(-lost), atol=1e-9)
            else:
                assert value == -np.inf


def test_the_fingerprint_is_of_what_is_asked_and_not_of_where(served: Served) -> None:
    def fingerprint(**changes: Any) -> str:
        teacher: EndpointTeacher = endpoint(served, **changes).load()
        return str(teacher.description["fingerprint"])

    assert fingerprint() == fingerprint(url=served.url + "/", concurrency=2)
    assert fingerprint() != fingerprint(revision="2")
