"""Ba & Caruana's recipe: all of it from one command, with teachers that are the published ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.recipes import cifar10, mimic_results, resnet
from jobs.recipes.shallow import ShallowNet
from pipeline.targets.errors import CorpusMissing, CorpusUnreadable, UserError
from pipeline.targets.store import Store
from tests.jobs.recipes.data import write_cifar10
from tests.real_data import real_data


@pytest.mark.slow
def test_one_command_labels_trains_measures_and_draws(decant: Callable[..., Any], tmp_path: Path) -> None:
    write_cifar10(tmp_path / "data")
    result = decant(
        tmp_path, "recipe", "mimic", "--quick", "--data", "data", "--output", "out", "--seeds", "1"
    )
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out"
    made = json.loads((folder / "results.json").read_text())
    rows = mimic_results.rows(made["settings"])
    assert set(made["values"]) >= {row.name for row in rows} | {"bottleneck's speed-up", "weights large"}
    assert all(row.title in (folder / "table.md").read_text() for row in rows)
    assert "<svg" in (folder / "figure.svg").read_text()

    pictures, store = (Store.open(str(folder / "stores" / name)) for name in ("pictures", "views"))
    assert [head.name for head in pictures.spec.heads] == ["resnet20"]
    assert sum(commit.rows for commit in store.commits()) == 2 * sum(c.rows for c in pictures.commits())
    assert {item.name for item in store.spec.inputs} == {"image", "label", "ledger", "digest"}
    truth = {
        f"pictures.parquet#{i}": label
        for i, label in enumerate(cifar10.read(tmp_path / "data", "train").labels)
    }
    for commit in store.commits():
        for rows_ in store.read(commit):
            assert [truth[key] for key in rows_.keys] == np.asarray(rows_.inputs["label"]).tolist()


def test_the_published_resnet_is_right_about_nine_of_ten_test_pictures() -> None:
    data = real_data("cifar10").parent
    images, labels = cifar10.read(data, "test")
    net = resnet.load(resnet.weights_file(data, 20), 20)
    with torch.inference_mode():
        logits = net(torch.from_numpy(images[:400].transpose(0, 3, 1, 2).copy()))
    assert float((logits.argmax(-1) == torch.from_numpy(labels[:400])).float().mean()) > 0.88


def test_the_ensemble_is_the_mean_of_the_heads_beside_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    committee = resnet.Committee([(8, resnet.ResNet(8)), (14, resnet.ResNet(14))], "float32").eval()
    with torch.inference_mode():
        said = committee(torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8))
    assert set(said) == {"resnet8", "resnet14", "ensemble"}
    torch.testing.assert_close(said["ensemble"], (said["resnet8"] + said["resnet14"]) / 2)


def test_a_bottleneck_is_a_factorised_layer_and_nothing_else() -> None:
    torch.manual_seed(0)
    narrow, whole = ShallowNet(4, 4, 8, 30), ShallowNet(4, 4, None, 30)
    assert isinstance(narrow.wide, torch.nn.Sequential)
    v, u = narrow.wide
    state = {
        **{name: value for name, value in narrow.state_dict().items() if not name.startswith("wide")},
        "wide.weight": u.weight @ v.weight,
        "wide.bias": u.bias,
    }
    whole.load_state_dict(state)
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(narrow(images), whole(images), atol=1e-4, rtol=1e-4)


def test_strips_come_back_in_order_and_broken_ones_are_refused_by_name(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    pictures = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(cifar10.read(tmp_path, "train").images, pictures)
    (tmp_path / "cifar10" / "train-001.webp").write_bytes(b"no picture")
    with pytest.raises(CorpusUnreadable, match=r"train-001\.webp"):
        cifar10.read(tmp_path, "train")
    with pytest.raises(CorpusMissing, match="--data"):
        cifar10.read(tmp_path / "elsewhere", "train")


def test_weights_of_another_net_are_refused_by_name(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    file = resnet.weights_file(tmp_path, 20)
    with pytest.raises(UserError, match=file.name):
        resnet.load(file, 32)
    with pytest.raises(CorpusMissing, match="resnet32"):
        resnet.weights_file(tmp_path, 32)
