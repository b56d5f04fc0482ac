"""What a labelled unit may be relied on for: its targets, its bytes, and what it does not hold."""

import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.inspection import describe_row
from pipeline.corpus import TextFiles
from pipeline.job import LabelJob
from pipeline.label import Cancelled, Labeller
from pipeline.prepare import prepare
from pipeline.targets.errors import CorpusChanged, SpecMismatch, TooManyQuarantined
from pipeline.targets.ragged import Ragged
from pipeline.targets.rows import Rows
from pipeline.targets.store import Store
from pipeline.targets.unit import Quarantined
from pipeline.teachers.fake import Fake, FakeTeacher

MakeJob = Callable[..., LabelJob]
DENSE = {"kind": "dense", "dtype": "float32"}

TOKENS = 91
"""Ids of the tokenizer in `make_job`; the teacher has 128 classes."""


def label_all(job: LabelJob) -> Store:
    store = prepare(job)
    labeller = Labeller(job)
    for unit in store.pending():
        labeller.label(unit)
    assert store.verify().problems == ()
    return store


def rows_of(store: Store) -> Rows:
    """All rows of a store, in the order of its plan."""
    commits = [store.find(unit.id) for unit in store.planned()]
    return Rows.concatenate([rows for commit in commits if commit for rows in store.read(commit)])


def quarantined(store: Store) -> list[Quarantined]:
    return [item for commit in store.commits() for item in store.quarantined(commit)]


def tokens_of(rows: Rows) -> Ragged:
    tokens = rows.inputs["tokens"]
    assert isinstance(tokens, Ragged)
    return tokens


def stages() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decant-prefetch")]


def test_each_target_is_what_the_teacher_says_of_its_token(make_job: MakeJob) -> None:
    store = label_all(make_job(heads={"logits": DENSE}))
    rows, teacher = rows_of(store), FakeTeacher(Fake(size=128))
    logits, tokens = rows.decode("logits").logits, tokens_of(rows)  # type: ignore[union-attr]
    expected = np.concatenate([teacher.logits(tokens[i][:-1]) for i in range(len(rows))])
    np.testing.assert_array_equal(logits, expected[:, :TOKENS])
    assert rows.targets.tolist() == (tokens.lengths - 1).tolist()


def test_rows_stand_in_corpus_order_and_hold_every_token_of_it(
    make_job: MakeJob, texts: dict[str, str]
) -> None:
    store = label_all(make_job(texts))
    for unit in store.planned():
        commit = store.find(unit.id)
        assert commit is not None
        rows = Rows.concatenate(list(store.read(commit)))
        order = list(zip(rows.row.tolist(), rows.view.tolist(), strict=True))
        assert order == sorted(set(order))
    rows = rows_of(store)
    tokens = tokens_of(rows)
    read: dict[str, list[int]] = {}
    for i, key in enumerate(rows.keys):
        known = read.setdefault(key, [])
        assert rows.view[i] < rows.views[i]
        read[key] = known + tokens[i].tolist()[1 if known else 0 :]
    assert read == {name: [int(word[1:]) for word in text.split()] for name, text in texts.items()}


def test_a_unit_labelled_again_has_the_same_bytes(make_job: MakeJob) -> None:
    first, second = label_all(make_job(store="a")), label_all(make_job(store="b"))
    ours = {commit.unit: commit for commit in first.commits()}
    for commit in second.commits():
        assert commit.shard_sha256 == ours[commit.unit].shard_sha256
        assert commit.statistics == ours[commit.unit].statistics
        assert commit.histograms == ours[commit.unit].histograms


@pytest.mark.slow
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(budget=st.integers(1, 600), window=st.integers(1, 200), prefetch=st.integers(1, 3))
def test_how_views_are_batched_changes_no_byte(
    make_job: MakeJob, texts: dict[str, str], budget: int, window: int, prefetch: int
) -> None:
    few = dict(list(texts.items())[:12])
    batching = {"budget": budget, "window": window, "prefetch": prefetch}
    usual = label_all(make_job(few, store="usual"))  # the first time only
    name = f"other-{budget}-{window}-{prefetch}"
    other = label_all(make_job(few, store=name, label={"batching": batching}))
    ours = {commit.unit: commit.shard_sha256 for commit in usual.commits()}
    assert {commit.unit: commit.shard_sha256 for commit in other.commits()} == ours


@pytest.mark.parametrize(
    ("teacher", "code"), [({"raise_on": 90}, "teacher_failed"), ({"nan_on": 90}, "non_finite")]
)
def test_a_poisonous_view_is_quarantined_alone(make_job: MakeJob, teacher: dict[str, Any], code: str) -> None:
    poison = " ".join(["w1"] * 40 + ["poison"] + ["w2"] * 40)
    texts = {f"{i:02}.txt": " ".join(["w5"] * 50) for i in range(20)} | {"10.txt": poison}
    good = label_all(make_job(texts, store="good"))
    bad = label_all(make_job(texts, store="bad", teacher=teacher))
    (item,) = quarantined(bad)
    assert (item.key, item.view, item.code) == ("10.txt", 1, code)
    assert item.reason
    (commit,) = (commit for commit in bad.commits() if commit.quarantined)
    assert commit.failures == 1
    rows, all_rows = rows_of(bad), rows_of(good)
    left = [
        i
        for i, (key, view) in enumerate(zip(all_rows.keys, all_rows.view, strict=True))
        if (key, view) != ("10.txt", 1)
    ]
    expected = all_rows.take(np.array(left))
    assert rows.keys == expected.keys
    assert rows.view.tolist() == expected.view.tolist()
    for name, array in rows.heads["logits"].items():
        np.testing.assert_array_equal(array, expected.heads["logits"][name])


def test_what_cannot_be_read_or_is_empty_is_quarantined_with_its_reason(make_job: MakeJob) -> None:
    store = label_all(make_job({"a.txt": "w1 w2 w3", "b.txt": b"\xff\xfe", "c.txt": "", "d.txt": "w4 w5"}))
    found = {item.key: item for item in quarantined(store)}
    assert {key: item.code for key, item in found.items()} == {"b.txt": "undecodable", "c.txt": "empty"}
    assert "b.txt" in found["b.txt"].reason
    assert rows_of(store).keys == ["a.txt", "d.txt"]
    commits = list(store.commits())
    assert sum(commit.records for commit in commits) == 4
    assert sum(commit.failures for commit in commits) == 1


def test_what_the_corpus_filters_leave_out_is_counted_and_nothing_else_of_the_store_changes(
    make_job: MakeJob,
) -> None:
    job, everything = make_job(store="some"), label_all(make_job(store="all"))
    where = {"key_not": "^000[37]", "length": {"text": {"min": 100}}}
    some = TextFiles.model_validate({**job.corpus.model_dump(), "where": where})
    store = label_all(job.model_copy(update={"corpus": some}))
    rows, wanted = rows_of(store), rows_of(everything)
    chosen = [i for i, key in enumerate(wanted.keys) if key in set(rows.keys)]
    assert 0 < len(chosen) < len(wanted)
    assert rows.keys == wanted.take(np.array(chosen)).keys
    assert rows.row.tolist() == wanted.take(np.array(chosen)).row.tolist()
    commits = list(store.commits())
    assert sum(commit.records + commit.filtered for commit in commits) == 40
    assert sum(commit.filtered for commit in commits) == 40 - len(set(rows.keys))
    assert quarantined(store) == []
    store.compact()
    assert sorted(Store.open(store.url).commits(), key=lambda c: c.unit) == sorted(
        commits, key=lambda c: c.unit
    )


@pytest.mark.parametrize("teacher", [{"raise_on": 1}, {"nan_on": 1}])
def test_a_teacher_that_fails_on_everything_commits_nothing(
    make_job: MakeJob, teacher: dict[str, Any]
) -> None:
    texts = {f"{i:03}.txt": "w1 w2 w3" for i in range(120)}
    job = make_job(texts, teacher=teacher)
    store = prepare(job)
    (unit,) = store.planned()
    with pytest.raises(TooManyQuarantined, match="120 views"):
        Labeller(job).label(unit)
    assert store.committed() == set()
    assert stages() == []


def test_a_file_that_changed_is_reported_and_nothing_of_its_unit_is_committed(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job({"a.txt": "w1 w2 w3", "b.txt": "w1 w2 w3"})
    store = prepare(job)
    (unit,) = store.planned()
    (tmp_path / "corpus" / "b.txt").write_text("something else")
    with pytest.raises(CorpusChanged, match=r"b\.txt"):
        Labeller(job).label(unit)
    assert store.committed() == set()
    assert list(store.storage.list("shards/")) == []
    assert stages() == []


def test_a_model_that_is_not_the_stores_is_refused(make_job: MakeJob) -> None:
    prepare(make_job())
    with pytest.raises(SpecMismatch, match="teacher"):
        Labeller(make_job(teacher={"seed": 1}))


def test_cancelling_ends_a_unit_uncommitted(make_job: MakeJob) -> None:
    job = make_job(teacher={"seconds_per_view": 0.05})
    store, labeller = prepare(job), Labeller(job)
    timer = threading.Timer(0.2, labeller.cancel)
    timer.start()
    with pytest.raises(Cancelled):
        deque(map(labeller.label, store.pending()), maxlen=0)
    assert len(store.committed()) < store.planned_count()
    assert stages() == []


def test_two_units_at_a_time_are_labelled_as_one_after_the_other(make_job: MakeJob) -> None:
    alone = label_all(make_job(store="alone"))
    job = make_job(store="together")
    store, labeller = prepare(job), Labeller(job)
    threads = [threading.Thread(target=labeller.label, args=(unit,)) for unit in store.pending()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ours = {commit.unit: commit.shard_sha256 for commit in alone.commits()}
    assert {commit.unit: commit.shard_sha256 for commit in store.commits()} == ours


def test_statistics_are_of_the_targets(make_job: MakeJob) -> None:
    store = label_all(make_job({"a.txt": " ".join(["w3", "w4"] * 100)}))
    (commit,) = store.commits()
    z = torch.from_numpy(FakeTeacher(Fake(size=128)).table[[3, 4], :TOKENS]).double()
    log_p = torch.log_softmax(z, dim=1)
    entropy = -(log_p.exp() * log_p).sum(dim=1)
    nll = torch.stack([-log_p[0, 4], -log_p[1, 3]])
    # Each measured target is one of the two, so the means lie between them.
    assert float(entropy.min()) - 1e-4 <= commit.statistics["logits.entropy"] <= float(entropy.max()) + 1e-4
    assert float(nll.min()) - 1e-4 <= commit.statistics["logits.label_nll"] <= float(nll.max()) + 1e-4
    bins = commit.histograms["logits.entropy"]
    assert len(bins) == 40
    assert {i for i, n in enumerate(bins) if n} <= {int(e / 0.25) for e in entropy.tolist()}
    assert sum(bins) >= commit.targets / 8
    assert commit.targets == 199
    assert 0 < commit.statistics["logits.captured_mass"] <= 1
    assert commit.forward_seconds > 0
    assert commit.device.startswith("cpu: ")
    assert commit.started <= commit.finished


def test_a_text_has_one_target_a_window_when_the_teacher_says_one(make_job: MakeJob) -> None:
    job = make_job(teacher={"positions": "single"}, heads={"logits": DENSE})
    store = label_all(job)
    rows, teacher = rows_of(store), FakeTeacher(Fake(size=128, positions="single"))
    logits, tokens = rows.decode("logits").logits, tokens_of(rows)  # type: ignore[union-attr]
    np.testing.assert_array_equal(logits, [teacher.logits(tokens[i]) for i in range(len(rows))])
    assert sum(commit.targets for commit in store.commits()) == len(rows)
    assert all("logits.label_nll" not in commit.statistics for commit in store.commits())


def test_an_object_store_gets_the_same_bytes_as_a_directory(
    make_job: MakeJob, s3_bucket_url: tuple[str, dict[str, Any]]
) -> None:
    url, options = s3_bucket_url
    local = make_job()
    target = local.store.model_copy(update={"url": url, "options": options})
    here, there = label_all(local), label_all(local.model_copy(update={"store": target}))
    ours = {commit.unit: commit.shard_sha256 for commit in here.commits()}
    assert {commit.unit: commit.shard_sha256 for commit in there.commits()} == ours


class LettersAndShape(torch.nn.Module):
    """Of a window's tokens: how often each of ten classes is in it, and a vector of 16 features."""

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> dict[str, torch.Tensor]:
        inside = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        counts = torch.zeros(len(tokens), 10).scatter_add_(1, tokens % 10, inside.float())
        angles = torch.outer(counts @ torch.arange(10.0), torch.arange(1.0, 17.0))
        vector = angles.sin()
        return {"logits": counts, "embedding": torch.where(counts[:, :1] > 20, torch.nan, vector)}


@pytest.mark.parametrize(
    "kept",
    [
        {"kind": "embedding", "dtype": "int8"},
        {"kind": "embedding"},
        {"kind": "codebooks", "bytes": 8, "pilot": 400},
    ],
)
def test_one_store_holds_classes_and_an_embedding_of_several_views_a_record(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, kept: Any
) -> None:
    module = ModuleType("letters")
    module.LettersAndShape = LettersAndShape  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "letters", module)
    teacher = {
        "kind": "torch",
        "factory": "letters:LettersAndShape",
        "heads": {"logits": 10, "embedding": 16},
    }
    texts = {f"{i}.txt": " ".join(f"w{(i + j * 7) % 90}" for j in range(100)) for i in range(120)}
    texts["bad.txt"] = " ".join(["w10"] * 31)  # its vector is NaN
    job = make_job(texts, teacher=teacher, heads={"logits": {"kind": "topp", "p": 0.8}, "embedding": kept})
    store = label_all(job)
    (item,) = quarantined(store)
    assert (item.key, item.code, item.reason) == (
        "bad.txt",
        "non_finite",
        "the teacher's embedding are not finite",
    )
    rows = rows_of(store)
    assert int(rows.views.max()) > 1
    tokens = tokens_of(rows)
    vectors: Any = rows.decode("embedding")
    classes: Any = rows.decode("logits")
    assert vectors.vectors.shape == (len(rows), 16)
    cosines = []
    for i in range(len(rows)):
        expected = LettersAndShape()(
            torch.from_numpy(tokens[i].astype(np.int64))[None], torch.tensor([len(tokens[i])])
        )
        wanted, found = expected["embedding"][0].double().numpy(), vectors.vectors[i].astype(np.float64)
        cosines.append(float(wanted @ found / max(np.linalg.norm(wanted) * np.linalg.norm(found), 1e-9)))
        assert classes.ids[classes.offsets[i]] == expected["logits"][0].argmax()
    assert np.mean(cosines) > (0.8 if kept["kind"] == "codebooks" else 0.9999)
    statistics = [commit.statistics for commit in store.commits() if commit.rows]
    weights = [commit.rows for commit in store.commits() if commit.rows]
    assert np.average([s["embedding.cosine"] for s in statistics], weights=weights) == pytest.approx(
        np.mean(cosines), abs=1e-3
    )
    for name in ("embedding.entropy", "embedding.captured_mass", "embedding.label_nll"):
        assert not any(name in s for s in statistics)
    assert all(set(commit.histograms) <= {"logits.entropy"} for commit in store.commits())
    shown = describe_row(next(c for c in store.commits() if c.rows), rows.take(np.array([0])), None, 3, 5)
    (target,) = shown["heads"]["embedding"]
    assert target["norm"] == pytest.approx(float(np.linalg.norm(vectors.vectors[0])), rel=1e-5)
    assert target["values"] == vectors.vectors[0, :5].tolist()


class TwoHeads(torch.nn.Module):
    """An array and its negative, doubled, as logits."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"plus": image * 2, "minus": -image * 2}


def test_a_view_that_is_not_finite_in_one_head_is_stored_in_none(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("two_heads")
    module.TwoHeads = TwoHeads  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "two_heads", module)
    values = np.random.default_rng(0).normal(size=(50, 10)).astype(np.float32)
    values[7, 0] = 3e38  # doubled, it is infinite: a target in "minus" (a class excluded), none in "plus"
    np.save(tmp_path / "images.npy", values)
    job = make_job(
        corpus={"kind": "arrays", "urls": [str(tmp_path / "images.npy")]},
        views={"kind": "arrays", "shape": [10]},
        teacher={"kind": "torch", "factory": "two_heads:TwoHeads", "heads": {"plus": 10, "minus": 10}},
        heads={"plus": DENSE, "minus": {"kind": "topk", "k": 3}},
    )
    store = label_all(job)
    (item,) = quarantined(store)
    assert (item.row, item.code) == (7, "non_finite")
    left = np.delete(values, 7, axis=0)
    rows = rows_of(store)
    np.testing.assert_array_equal(rows.decode("plus").logits, 2 * left)  # type: ignore[union-attr]
    np.testing.assert_array_equal(rows.decode("minus").ids, np.argsort(left, axis=1)[:, :3])  # type: ignore[union-attr]
    np.testing.assert_array_equal(rows.inputs["image"], left)
    (commit,) = store.commits()
    assert (commit.records, commit.targets, commit.failures) == (50, 49, 1)


def test_records_to_be_skipped_are_quarantined_unseen_and_the_rest_is_as_ever(make_job: MakeJob) -> None:
    job = make_job(store="plain")
    plain, labeller = prepare(job), Labeller(job)
    unit = next(unit for unit in plain.pending() if len(unit.slices) > 3)
    whole = Rows.concatenate(list(plain.read(labeller.label(unit))))
    skipping = make_job(store="skipping")
    store = prepare(skipping)
    commit = Labeller(skipping).label(unit, {2: "killed the replica: no memory"})
    rows = Rows.concatenate(list(store.read(commit)))
    assert rows.to_arrow().equals(whole.take(np.flatnonzero(whole.row != 2)).to_arrow())
    (item,) = store.quarantined(commit)
    assert (item.row, item.view, item.code, item.reason) == (
        2,
        None,
        "killed",
        "killed the replica: no memory",
    )
    assert (commit.records, commit.failures) == (len(unit.slices), 1)


def test_a_rehearsal_meets_the_teacher_with_some_records_and_leaves_nothing(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[int] = []
    original = FakeTeacher.__call__

    def spy(self: FakeTeacher, batch: Any) -> Any:
        met.append(len(batch))
        return original(self, batch)

    monkeypatch.setattr(FakeTeacher, "__call__", spy)
    job = make_job({f"{i}.txt": "w1 w2 w3" for i in range(6)}, unit_bytes=1000)
    store, labeller = prepare(job), Labeller(job)
    (unit,) = store.pending()
    for rows, skip, views in ((range(0), {}, 0), (range(2, 5), {}, 3), (range(2, 5), {3: "killed"}, 2)):
        met.clear()
        assert labeller.rehearse(unit, rows, skip) == 6
        assert sum(met) == views
    assert store.committed() == set()
    names = {entry.name for entry in store.storage.list("")}
    assert names == {"spec.json", "plan/000001.parquet"}
