"""He et al.'s small ResNets for CIFAR-10 with the shortcuts of option A, and their published weights."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.recipes.precision import Precision
from pipeline.targets.errors import CorpusMissing, UserError

CLASSES = 10
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue, by which the weights' makers normalised."""


class ResNet(nn.Module):
    """6 n + 2 layers: a convolution, three stages of n blocks of 16, 32 and 64 channels, a linear layer.

    uint8 [B, 3, 32, 32] -> logits float32 [B, 10].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise UserError(f"a ResNet for CIFAR has 6 n + 2 layers, not {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16)
        self.layer2 = _stage(blocks, 16, 32)
        self.layer3 = _stage(blocks, 32, 64)
        self.linear = nn.Linear(64, CLASSES)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, 10]."""
        logits: Tensor = self.linear(self.features(image).mean((2, 3)))
        return logits

    def features(self, image: Tensor) -> Tensor:
        """The last map, [B, 64, 8, 8]."""
        x = (image.float() / 255 - self.mean) / self.std
        x = F.relu(self.bn1(self.conv1(x.contiguous(memory_format=torch.channels_last))))
        found: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return found


class _Block(nn.Module):
    """Two convolutions; where they halve the image, the shortcut has every second pixel and zero channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.lacking = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            half = self.lacking // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.lacking - half))
        return F.relu(y + x)


def _stage(blocks: int, inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*(_Block(inputs if i == 0 else outputs, outputs) for i in range(blocks)))


def weights_file(data: Path, depth: int) -> Path:
    """The published weights in `data`/weights/resnet_cifar. Raises CorpusMissing."""
    folder = data / "weights" / "resnet_cifar"
    found = sorted(folder.glob(f"resnet{depth}-*.th"))
    if len(found) != 1:
        raise CorpusMissing(
            f"{folder} has no single resnet{depth}-*.th: --data names the folder above weights/"
        )
    return found[0]


def load(path: str | Path, depth: int) -> ResNet:
    """The net with the weights of a file. Nothing of it is unpickled but tensors. Raises UserError."""
    net = ResNet(depth)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        net.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    except (OSError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} has no weights of a ResNet-{depth} ({reason}): copy it again") from error
    return net.eval()


class Committee(nn.Module):
    """Several ResNets at once: the head "ensemble" is the mean of their logits, "resnet20" one alone."""

    def __init__(self, nets: Sequence[tuple[int, ResNet]], precision: Precision) -> None:
        super().__init__()
        self.reduced = precision == "bfloat16"
        self.depths = [depth for depth, _ in nets]
        self.nets = nn.ModuleList(net for _, net in nets)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """By head, logits float32 [B, 10]."""
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.reduced):
            answers = [net(image).float() for net in self.nets]
        alone = {f"resnet{depth}": answer for depth, answer in zip(self.depths, answers, strict=True)}
        return {**alone, "ensemble": torch.stack(answers).mean(0)}


def committee(data: str, depths: list[int], precision: Precision = "float32") -> Committee:
    """The pretrained nets of those depths, for `kind: torch`. precision: of the convolutions."""
    return Committee([(depth, load(weights_file(Path(data), depth), depth)) for depth in depths], precision)
