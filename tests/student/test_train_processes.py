"""Training in processes of its own: killed at any moment, and on two ranks."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from student.config import TrainConfig
from student.train import train
from tests.student.runs import same

REPOSITORY = Path(__file__).parents[2]

SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
from student.config import TrainConfig
from student.train import train

torch.set_num_threads(1)
configs, rank, size, meeting = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if size > 1:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
for config in configs:
    for event in train(TrainConfig.model_validate(config)):
        print(event, flush=True)
if size > 1:
    dist.destroy_process_group()
"""


def start(
    *configs: dict[str, Any], rank: int = 0, size: int = 1, meeting: Path = Path("none")
) -> subprocess.Popen[str]:
    arguments = [json.dumps(configs), str(rank), str(size), str(meeting)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=REPOSITORY,
    )


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Their output, once all have ended well."""
    outputs = [process.communicate(timeout=240) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [output for output, _ in outputs]


def started_together(meeting: Path, *configs: dict[str, Any]) -> list[subprocess.Popen[str]]:
    """Two ranks that train one configuration after the other."""
    return [start(*configs, rank=rank, size=2, meeting=meeting) for rank in range(2)]


def killed_together(meeting: Path, config: dict[str, Any], step: int) -> None:
    """Two ranks, both killed when the first has told of that step."""
    processes = started_together(meeting, config)
    assert processes[0].stdout is not None
    for line in processes[0].stdout:
        if line.startswith(f"Step(step={step},"):
            break
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()


def configured(url: str, output: Path, **changes: Any) -> dict[str, Any]:
    return {
        "store": {"url": url},
        "output": str(output),
        "model": {"kind": "small_lm", "layers": 1, "width": 16, "heads": 2},
        "steps": 6,
        "batch_rows": 12,
        "window_shards": 2,
        "holdout": 0.3,
        "evaluate_every": 3,
        "checkpoint_every": 2,
        "log_every": 1,
        "device": "cpu",
        **changes,
    }


def weights(output: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(output / "checkpoints" / name / "model.safetensors")


def told(output: Path, event: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


@pytest.mark.slow
def test_gradients_on_two_ranks_are_those_on_one(token_store: Any, tmp_path: Path) -> None:
    """SGD without momentum, at learning rate 1: the weights are the gradients. The ranks' rows have different
    numbers of targets, so averaging the ranks' means would not do. Held-out rows are the average's to judge,
    and do not come out even: a rank without any still gives its part of sharded weights to the other.
    """
    url = token_store()

    def settings(name: str, **changes: Any) -> dict[str, Any]:
        return configured(
            url,
            tmp_path / name,
            optimizer="sgd",
            momentum=0.0,
            learning_rate=1.0,
            clip_norm=0.5,
            schedule="constant",
            accumulation=2,
            average_decay=0.5,
            steps=4,
            evaluate_every=2,
            **changes,
        )

    outputs = finish(
        started_together(
            tmp_path / "meeting", settings("ddp", parallel="ddp"), settings("fsdp", parallel="fsdp")
        )
    )
    list(train(TrainConfig.model_validate(settings("one"))))
    assert outputs[0].count("Finished") == 2
    assert not outputs[1], "only rank 0 tells"
    for name in ("ddp", "fsdp"):
        one, two = weights(tmp_path / "one"), weights(tmp_path / name)
        assert one.keys() == two.keys()
        for key in one:
            torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-5)
        for event in ("step", "evaluated"):
            alone = told(tmp_path / "one", event)
            assert alone
            for a, b in zip(alone, told(tmp_path / name, event), strict=True):
                for key, value in {**a, **a.get("score", {})}.items():
                    if key in ("loss", "hard_loss", "accuracy", "gradient_norm", "epoch"):
                        assert {**b, **b.get("score", {})}[key] == pytest.approx(value, rel=1e-4), key


@pytest.mark.slow
def test_two_ranks_that_were_killed_end_with_the_weights_they_would_have_had(
    token_store: Any, tmp_path: Path
) -> None:
    """Sharded, to the bit on two ranks again; whole on each of two, or alone, with the same samples in the
    same order, as the losses say.
    """
    url = token_store()
    settings = {"parallel": "fsdp", "average_decay": 0.9, "steps": 16, "checkpoint_every": 6}
    killed_together(tmp_path / "a", configured(url, tmp_path / "cut", **settings), 8)
    for name in ("alone", "ddp"):
        shutil.copytree(tmp_path / "cut", tmp_path / name, symlinks=True)
    (first, _) = finish(
        started_together(
            tmp_path / "b",
            configured(url, tmp_path / "cut", **settings),
            configured(url, tmp_path / "whole", **settings),
            configured(url, tmp_path / "ddp", **settings | {"parallel": "ddp"}),
        )
    )
    assert int(first.split("Started(step=")[1].split(",")[0]) >= 6, "it went on"
    for name in ("last", "best"):
        assert same(weights(tmp_path / "cut", name), weights(tmp_path / "whole", name))
    list(train(TrainConfig.model_validate(configured(url, tmp_path / "alone", **settings))))
    whole = [line["loss"] for line in told(tmp_path / "whole", "step")]
    assert len(whole) == 16
    for name in ("alone", "ddp"):
        assert [line["loss"] for line in told(tmp_path / name, "step")] == pytest.approx(whole, rel=1e-3)


@pytest.mark.slow
def test_torchrun_starts_the_same_training(token_store: Any, tmp_path: Path) -> None:
    config = configured(token_store(), tmp_path / "run")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("size > 1", "False"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        [*command, str(script), json.dumps([config]), "0", "2", "none"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Finished(step=6") == 1
    assert "ranks=2" in result.stdout


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_weights_it_would_have_had(
    image_store: Any, tmp_path: Path
) -> None:
    """kill -9 of the process, six times, at a random report and a random instant after it; with dropout,
    checkpoints at every second step, so that many kills fall into a save.
    """
    url = image_store()
    settings: dict[str, Any] = {
        "model": {"kind": "mlp", "hidden": [64], "dropout": 0.3},
        "steps": 200,
        "evaluate_every": 7,
    }
    finish([start(configured(url, tmp_path / "whole", **settings))])
    generator = random.Random(0)
    killed = 0
    while killed < 6:
        process = start(configured(url, tmp_path / "cut", **settings))
        assert process.stdout is not None
        reports = generator.randrange(1, 40)
        for _ in range(reports):
            process.stdout.readline()
        time.sleep(generator.random() * 0.02)
        process.kill()
        process.communicate()
        killed += 1
    finish([start(configured(url, tmp_path / "cut", **settings))])
    for name in ("last", "best"):
        whole, cut = weights(tmp_path / "whole", name), weights(tmp_path / "cut", name)
        assert all(torch.equal(whole[key], cut[key]) for key in whole)
    steps = [line["step"] for line in told(tmp_path / "cut", "step")]
    assert steps == list(range(1, 201))
