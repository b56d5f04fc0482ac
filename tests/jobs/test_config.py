"""A job file's problems are sentences that name the key and the nearest right one; secrets stay secret."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from jobs.commands.config import Example
from jobs.config import Job, load_job, load_train, shown
from pipeline.job import LabelJob
from pipeline.targets.errors import ConfigError

JOB = """
corpus: {kind: text, urls: [corpus]}
views: {kind: token_windows, tokenizer: models/t}
teacher: {kind: fake, size: 16}
store:
  url: runs/store
  options: {client_kwargs: {endpoint_url: "http://localhost:9000"}}
  heads: {logits: {kind: threshold, threshold: 0.02}}
train: {output: runs/student, model: {kind: small_lm}, steps: 10}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("corpus.urlz=x", 'corpus.urlz: unknown key (did you mean "urls"?)'),
        ("corpus.kind=txt", 'corpus.kind: unknown "txt" (did you mean "text"?)'),
        (
            "corpus={urls: [a]}",
            "corpus.kind: missing (one of arrays, arrow, audio, images, jsonl, mix, parquet, source_tree, "
            "text, webdataset, zarr)",
        ),
        ("corpus.urls=a", 'corpus.urls: should be a list, got "a"'),
        ("labl.engine=ray", 'labl: unknown key (did you mean "label"?)'),
        ("label.replicas.maximum=3", "label.replicas.maximum: unknown key"),
        ("label.engine=rai", "label.engine: should be 'local' or 'ray', got \"rai\""),
        ("label.attempts=0", "label.attempts: should be greater than 0, got 0"),
        ("label.attempts=three", 'label.attempts: should be a whole number, got "three"'),
        ("label.attempts='3'", 'label.attempts: should be a whole number, got "3"'),
        ("label.attempts=true", "label.attempts: should be a whole number, got true"),
        ("store.heads.logits.tresh=1", 'store.heads.logits.tresh: unknown key (did you mean "threshold"?)'),
        ("store.heads.logits.threshold=2", "store.heads.logits: threshold: must be between"),
        ("store.heads.logits.kind=tresh", 'store.heads.logits.kind: unknown "tresh"'),
        ("store.heads=3", "store.heads: should be a mapping of keys, got 3"),
        (
            "teacher={kind: ensemble, members: [{kind: fake, siz: 3}]}",
            "teacher.members.0.siz: unknown key (did",
        ),
        ("teacher=null", "teacher: should be a mapping of keys, got nothing (null)"),
        ("train.model.layerz=3", 'train.model.layerz: unknown key (did you mean "layers"?)'),
        ("train.betas=[0.9]", "train.betas"),
    ],
)
def test_a_wrong_key_or_value_is_one_sentence_with_its_full_path(job: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_job(job, [override])
    assert f"command line: {said}" in str(caught.value).splitlines()[0]


def test_a_mistake_in_the_file_names_the_file_and_a_missing_key_its_meaning(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB.replace("kind: fake, size: 16", "kind: fake").replace("url: runs/store", "urll: x"))
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    lines = str(caught.value).splitlines()
    assert f'{path}: store.urll: unknown key (did you mean "url"?)' in lines
    assert any(line.startswith(f"{path}: teacher.size: missing (Classes of the head") for line in lines)
    assert len(lines) == 3


def test_only_the_first_of_many_problems_are_named(job: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_job(job, [f"label.x{i}=1" for i in range(20)])
    assert str(caught.value).splitlines()[-1] == "and 12 more"


def test_the_students_store_is_the_jobs_unless_it_names_another(job: Path) -> None:
    train = load_train(job)
    assert train.store is not None
    assert train.store.url == "runs/store"
    assert train.store.options == {"client_kwargs": {"endpoint_url": "http://localhost:9000"}}
    train = load_train(job, ["train.store.url=elsewhere"])
    assert train.store is not None
    assert (train.store.url, train.store.options) == ("elsewhere", {})


def test_a_machine_with_only_a_student_needs_only_a_train_section(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    section = {"output": "o", "model": {"kind": "mlp"}, "steps": 3, "store": {"url": "s"}}
    path.write_text(yaml.safe_dump({"train": section}))
    assert load_train(path, ["train.steps=4"]).steps == 4
    with pytest.raises(ConfigError, match=r'train\.stepz: unknown key \(did you mean "steps"\?\)'):
        load_train(path, ["train.stepz=4"])
    with pytest.raises(ConfigError, match="nothing to label"):
        load_job(path)
    del section["store"]
    path.write_text(yaml.safe_dump({"train": section}))
    with pytest.raises(ConfigError, match=r"train\.store: missing"):
        load_train(path)


def test_a_job_without_a_student_has_nothing_to_train(job: Path) -> None:
    with pytest.raises(ConfigError, match="train section"):
        load_train(job, ["train=null"])


def test_the_labelling_side_gets_the_job_without_the_student(job: Path) -> None:
    labelling = load_job(job).labelling()
    assert type(labelling) is LabelJob
    assert LabelJob.model_validate_json(labelling.model_dump_json()) == labelling


def test_credentials_are_neither_shown_nor_quoted(job: Path) -> None:
    secret = "s3cr3t-value"
    overrides = [
        f"store.options.secret={secret}",
        f"store.options.client_kwargs.aws_secret_access_key={secret}",
        f"store.options.token=[{secret}]",
        f"corpus.urls.0=https://user:{secret}@host/x",
    ]
    text = shown(load_job(job, overrides))
    assert secret not in text
    assert yaml.safe_load(text)["store"]["options"]["secret"] == "***"
    assert (
        yaml.safe_load(text)["store"]["options"]["client_kwargs"]["endpoint_url"] == "http://localhost:9000"
    )
    with pytest.raises(ConfigError) as caught:
        load_job(job, [f"store.options={secret}"])
    assert secret not in str(caught.value)


def test_what_is_shown_is_the_whole_job_and_reads_back(job: Path, tmp_path: Path) -> None:
    loaded = load_job(job, ["label.batching.budget=77"])
    again = tmp_path / "again.yaml"
    again.write_text(shown(loaded))
    assert load_job(again) == loaded


@pytest.mark.parametrize("name", list(Example))
def test_the_examples_are_jobs(name: Example, tmp_path: Path) -> None:
    text = files("jobs").joinpath("examples", f"{name}.yaml").read_text("utf-8")
    path = tmp_path / "job.yaml"
    path.write_text(text)
    assert load_job(path).train is not None


def test_the_schema_explains_every_key() -> None:
    schema = Job.model_json_schema()
    undocumented = [
        f"{name}.{key}"
        for name, part in [("Job", schema), *schema["$defs"].items()]
        for key, value in part.get("properties", {}).items()
        if not value.keys() & {"description", "$ref"} and key != "kind"
    ]
    assert undocumented == []
    assert json.loads(json.dumps(schema)) == schema


def test_no_section_takes_an_unknown_key() -> None:
    open_sections = [
        name
        for name, part in Job.model_json_schema()["$defs"].items()
        if part["type"] == "object" and part.get("additionalProperties") is not False
    ]
    assert open_sections == []
