"""A folder of spoken digits, wav and flac, a teacher that hears them, and a student: by the command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

from jobs.config import load_job
from jobs.replay import CorpusRecords
from pipeline.job import LabelJob
from pipeline.targets import Store
from pipeline.targets.replay import replay_of
from student.data import TargetReader
from student.student import restore
from tests.jobs.media.corpora import digits, recordings, spoken
from tests.jobs.media.networks import Ear
from tests.pipeline.teachers.tiny import TINY, enlarge

Decant = Callable[..., Any]

CHANGES: dict[str, Any] = {
    "corpus.unit_bytes": 300_000,
    "views.rate": 8000,
    "views.window": 4000,
    "views.hop": 2000,
    "views.min_length": 3000,
    "views.log_mel": {"fft": 256, "hop": 128, "mels": 32},  # 32 frames of 16 ms
    "store.heads.logits": {"kind": "dense", "dtype": "float32"},
    "label.batching.threads": 1,
}


def words(**changes: Any) -> list[str]:
    return [f"{key.replace('__', '.')}={value}" for key, value in {**CHANGES, **changes}.items()]


def labelled(decant: Decant, folder: Path, files: Mapping[str, bytes], **changes: Any) -> LabelJob:
    """The example's job, done on a folder of these recordings."""
    recordings(folder / "recordings", files)
    (folder / "job.yaml").write_text(decant(folder, "config", "example", "audio").stdout)
    result = decant(folder, "label", "job.yaml", *words(**changes))
    assert result.exit_code == 0, result.stderr
    assert f"{len(files)} records" in result.stdout
    return load_job(folder / "job.yaml", words(**changes)).labelling()


def test_what_a_spectrogram_transformer_says_of_each_window_is_read_back_with_what_it_heard(
    decant: Decant, tmp_path: Path
) -> None:
    """Gong et al. 2021, as transformers has it."""
    size = {"num_mel_bins": 32, "max_length": 32, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}
    model = enlarge(
        transformers.ASTForAudioClassification(transformers.ASTConfig(**TINY, **size, num_labels=10))
    )
    model.save_pretrained(tmp_path / "models" / "teacher")
    files = spoken(range(50), most=20)
    job = labelled(decant, tmp_path, files, teacher__device="cpu")
    store = Store.open(job.store.url)
    reader = TargetReader(job.store.url, split="all", records=CorpusRecords(store, job.corpus))
    keys = []
    for batch in reader.epoch(0):
        with torch.no_grad():
            said = model(batch.inputs["log_mel"].transpose(1, 2)).logits
        torch.testing.assert_close(said, batch.targets["logits"].logits, rtol=1e-3, atol=1e-3)
        keys += batch.keys
    assert len(keys) > len(files)  # some recordings are longer than a window
    assert {Path(key).stem for key in keys} == set(files)
    assert {Path(key).suffix for key in keys} == {".wav", ".flac"}


def first_windows(files: Mapping[str, bytes], store: Store) -> torch.Tensor:
    """The store's kind of view of each recording's beginning, float32 [recordings, bands, frames]."""
    replay, views = replay_of(store.spec), []
    for content in files.values():
        record = replay.decode({"audio": content})
        entry = {"start": 0, "length": min(len(record), CHANGES["views.window"])}
        views.append(replay.render(entry, record)["log_mel"])
    return torch.from_numpy(np.stack(views))


@pytest.mark.slow
def test_a_student_that_replays_spectrograms_from_the_folder_learns_to_hear(
    decant: Decant, tmp_path: Path
) -> None:
    files = spoken(range(6))
    take = {name: int(name.rpartition("_")[2]) for name in files}
    unheard = {name: content for name, content in files.items() if take[name] < 3}
    heard = {name: content for name, content in files.items() if take[name] >= 3}
    # An untaught teacher first, whose store says how recordings become views; then it is taught by them.
    torch.manual_seed(0)
    ear, weights = Ear(), tmp_path / "ear.pt"
    torch.save(ear.state_dict(), weights)
    teacher = {
        "kind": "torch",
        "factory": "tests.jobs.media.networks:ear",
        "arguments": {"weights": str(weights)},
        "heads": {"logits": 10},
        "device": "cpu",
    }
    (tmp_path / "first").mkdir()
    few = dict(list(heard.items())[:3])
    store = Store.open(labelled(decant, tmp_path / "first", few, teacher=teacher).store.url)
    sounds, said = first_windows(heard, store), torch.from_numpy(digits(heard))
    optimizer = torch.optim.AdamW(ear.parameters(), lr=2e-3)
    for _ in range(10):
        for rows in torch.randperm(len(said)).split(16):
            optimizer.zero_grad()
            F.cross_entropy(ear(sounds[rows]), said[rows]).backward()
            optimizer.step()
    torch.save(ear.state_dict(), weights)

    labelled(decant, tmp_path, heard, teacher=teacher)
    student = {"channels": [8, 16], "hidden": 64}
    steps = {"train.steps": 80, "train.batch_rows": 32, "train.warmup_steps": 10, "train.device": "cpu"}
    model = {f"train.model.{key}": value for key, value in student.items()}
    trained = decant(tmp_path, "train", "job.yaml", *words(teacher=teacher, **steps, **model))
    assert trained.exit_code == 0, trained.stderr
    learnt = restore(tmp_path / "runs" / "ears" / "checkpoints" / "last", store.spec)
    with torch.no_grad():
        answers = learnt.model(first_windows(unheard, store)).argmax(1).numpy()
    # By chance 18 of 180 are right, with a deviation of 4.
    assert np.sum(answers == digits(unheard)) > 60
