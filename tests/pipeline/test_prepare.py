"""What is refused before anything is labelled, in a sentence, and how a plan grows."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.job import LabelJob
from pipeline.prepare import prepare
from pipeline.targets.errors import ConfigError, CorpusChanged, SpecMismatch

MakeJob = Callable[..., LabelJob]


def test_a_head_that_the_teacher_lacks_is_refused_with_the_nearest_name(make_job: MakeJob) -> None:
    with pytest.raises(ConfigError, match=r'no head "logit" \(did you mean "logits"'):
        prepare(make_job(heads={"logit": {"kind": "dense"}}))


def test_a_tokenizer_larger_than_the_teacher_is_refused(make_job: MakeJob) -> None:
    with pytest.raises(SpecMismatch, match=r"tokenizer has 91 tokens .* has 64"):
        prepare(make_job(teacher={"size": 64}))


def test_next_tokens_of_views_without_tokens_are_refused(make_job: MakeJob) -> None:
    with pytest.raises(ConfigError, match="token_windows"):
        prepare(make_job(views={"kind": "arrays", "shape": [3]}))


def test_another_job_in_the_same_store_is_refused_by_what_differs(make_job: MakeJob) -> None:
    prepare(make_job())
    with pytest.raises(SpecMismatch, match="heads"):
        prepare(make_job(heads={"logits": {"kind": "dense"}}))
    with pytest.raises(SpecMismatch, match="teacher"):
        prepare(make_job(teacher={"seed": 5}))


def test_a_head_has_the_tokenizers_ids_and_the_spec_says_how_wide_the_logits_are(make_job: MakeJob) -> None:
    spec = prepare(make_job()).spec
    assert spec.vocabulary is not None
    assert (spec.vocabulary.size, spec.vocabulary.padded_size) == (91, 128)
    assert spec.head("logits").size == 91


def test_an_embedding_may_have_fewer_features_than_the_tokenizer_has_ids(make_job: MakeJob) -> None:
    """Its size is no vocabulary's; then the padded size is the tokenizer's own."""
    spec = prepare(make_job(teacher={"size": 64}, heads={"logits": {"kind": "embedding"}})).spec
    assert spec.vocabulary is not None
    assert (spec.vocabulary.size, spec.vocabulary.padded_size) == (91, 91)
    assert spec.head("logits").positions == "next_token"


def test_probabilities_of_an_embedding_are_not_averaged(make_job: MakeJob) -> None:
    members = [{"kind": "fake", "size": 128, "seed": seed} for seed in (0, 1)]
    ensemble = {"kind": "ensemble", "members": members}
    heads = {"logits": {"kind": "embedding"}}
    with pytest.raises(ConfigError, match=r'teacher\.average: the head "logits" .* use "logits"'):
        prepare(make_job(teacher={**ensemble, "average": "probabilities"}, heads=heads))
    prepare(make_job(teacher=ensemble, heads=heads))


def test_embeddings_of_members_of_different_sizes_are_not_averaged(make_job: MakeJob) -> None:
    """Logits of next tokens are: what the wider one has more is padding."""
    members = [{"kind": "fake", "size": size} for size in (128, 96)]
    ensemble = {"kind": "ensemble", "members": members}
    with pytest.raises(ConfigError, match=r'their heads "logits" have different sizes'):
        prepare(make_job(teacher=ensemble, heads={"logits": {"kind": "embedding"}}))
    spec = prepare(make_job(teacher=ensemble)).spec
    assert spec.vocabulary is not None
    assert (spec.head("logits").size, spec.vocabulary.padded_size) == (91, 96)


def test_the_spec_says_in_which_container_the_shards_are(make_job: MakeJob) -> None:
    job = make_job()
    assert prepare(job).spec.container == "parquet"
    zarr = job.store.model_copy(update={"container": "zarr", "url": job.store.url + "-zarr"})
    assert prepare(job.model_copy(update={"store": zarr})).spec.container == "zarr"


def test_a_grown_corpus_adds_units_and_changes_none(make_job: MakeJob, tmp_path: Path) -> None:
    before = {unit.id for unit in prepare(make_job()).planned()}
    assert {unit.id for unit in prepare(make_job()).planned()} == before
    (tmp_path / "corpus" / "0000-a.txt").write_text("w1 w2 w3")
    after = {unit.id for unit in prepare(make_job()).planned()}
    assert before < after
    assert len(after) == len(before) + 1


def test_a_file_that_changed_since_it_was_planned_is_reported(make_job: MakeJob, tmp_path: Path) -> None:
    prepare(make_job())
    (tmp_path / "corpus" / "0003.txt").write_text("w1 w2 w3")
    with pytest.raises(CorpusChanged, match=r"0003\.txt"):
        prepare(make_job())


def test_a_plan_holds_no_options(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job()
    secret = job.corpus.model_copy(update={"options": {"auto_mkdir": "hunter2"}})
    store = prepare(job.model_copy(update={"corpus": secret}))
    for entry in store.storage.list(""):
        assert b"hunter2" not in store.storage.read(entry.name)
