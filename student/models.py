"""Reference students, small enough to read, and any torch module by name. Knows nothing of stores and losses.

Each maps one input tensor to logits: [B, V] for fixed-size inputs, [B, L, V] for tokens.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.targets.errors import ConfigError
from student import config
from student.causal_lm import load

FixedShape = Sequence[int | None]
"""Shape of one row of the input, as the spec declares it: (None,) for tokens, (1, 8, 8) for an image."""


def build(model: config.AnyModel, shape: FixedShape, classes: int) -> nn.Module:
    """The configured model for inputs of that shape and V classes. Raises ConfigError if it cannot be."""
    if isinstance(model, config.TorchModule):
        return _named(model)
    varying = None in shape
    if varying != isinstance(model, config.SmallLM | config.Transformers):
        raise ConfigError(
            f"model.kind {model.kind} needs inputs of {'a fixed shape' if varying else 'token ids'}, "
            f"the store's have the shape {list(shape)} (null: varying)"
        )
    fixed = [extent for extent in shape if extent is not None]
    features = int(torch.Size(fixed).numel())
    match model:
        case config.SmallLM():
            if model.width % (2 * model.heads):
                raise ConfigError(
                    f"model.width {model.width} is no multiple of twice model.heads {model.heads}"
                )
            return SmallLM(model, classes)
        case config.Transformers():
            return load(model, classes)
        case config.MLP():
            return MLP(features, model.hidden, classes, model.dropout)
        case config.ShallowMimic():
            return ShallowMimic(features, model.bottleneck, model.hidden, classes)
        case config.SmallCNN():
            return SmallCNN(fixed, model.channels, model.hidden, classes)


def _named(model: config.TorchModule) -> nn.Module:
    package, _, name = model.factory.partition(":")
    try:
        factory = importlib.import_module(package)
        for attribute in name.split("."):
            factory = getattr(factory, attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"model.factory {model.factory} cannot be imported: {error}") from error
    if not callable(factory):
        raise ConfigError(f"model.factory {model.factory} is not a function")
    try:
        inspect.signature(factory).bind(**model.arguments)
    except TypeError as error:
        raise ConfigError(f"model.arguments do not fit {model.factory}: {error}") from error
    except ValueError:
        pass  # one written in C, which does not say what it takes
    module = factory(**model.arguments)
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"model.factory {model.factory} gave a {type(module).__name__}, not a torch.nn.Module"
        )
    return module


def _pixels(inputs: Tensor) -> Tensor:
    """float32; bytes are scaled to [0, 1]."""
    return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs.float()


class MLP(nn.Module):
    """Linear layers with ReLU between them, and dropout after each ReLU. [B, ...] -> [B, V]."""

    def __init__(self, features: int, hidden: Sequence[int], classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(features, width), nn.ReLU(), nn.Dropout(dropout)]
            features = width
        self.layers = nn.Sequential(*layers, nn.Linear(features, classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, V]."""
        logits: Tensor = self.layers(_pixels(inputs).flatten(1))
        return logits


class ShallowMimic(nn.Module):
    """One wide ReLU layer behind a linear bottleneck: β ReLU(U V x), W ≈ U V. [B, ...] -> [B, V].

    Ba & Caruana 2014, section 2.3: V is [k, D] and U [H, k] with nothing between them, so that H can be
    large for k (H + D) weights, and the net learns much faster than with the full W [H, D].
    """

    def __init__(self, features: int, bottleneck: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.v = nn.Linear(features, bottleneck, bias=False)
        self.u = nn.Linear(bottleneck, hidden)
        self.beta = nn.Linear(hidden, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, V]."""
        logits: Tensor = self.beta(F.relu(self.u(self.v(_pixels(inputs).flatten(1)))))
        return logits


class SmallCNN(nn.Module):
    """Convolutions 3x3 with ReLU and 2x2 max-pooling, then one hidden layer. [B, C, H, W] -> [B, V].

    A shape of two extents is an image of one channel.
    """

    def __init__(self, shape: Sequence[int], channels: Sequence[int], hidden: int, classes: int) -> None:
        super().__init__()
        if len(shape) not in (2, 3):
            raise ConfigError(f"model.kind small_cnn needs images [C, H, W] or [H, W], not {list(shape)}")
        inputs, height, width = (1, *shape) if len(shape) == 2 else shape
        layers: list[nn.Module] = []
        for outputs in channels:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            inputs, height, width = outputs, height // 2, width // 2
        if not height * width:
            raise ConfigError(
                f"model.channels halves an image of {list(shape)} {len(channels)} times: too often"
            )
        self.layers = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Linear(inputs * height * width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, V]."""
        images = _pixels(inputs)
        logits: Tensor = self.layers(images[:, None] if images.ndim == 3 else images)
        return logits


class SmallLM(nn.Module):
    """A causal transformer: tokens int64 [B, L] -> logits [B, L, V].

    Rows are padded at the right, and attention is causal, so padding never reaches a real position and needs
    no mask. `features` and `head` are the two halves of the forward pass, for callers that want the logits
    of some positions only.
    """

    def __init__(self, model: config.SmallLM, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, model.width)
        self.blocks = nn.ModuleList(_Block(model) for _ in range(model.layers))
        self.norm = nn.RMSNorm(model.width, eps=1e-6)
        self.head = nn.Linear(model.width, classes, bias=False)
        if model.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.head_width, self.theta = model.width // model.heads, model.rope_theta
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # Normal, and smaller for what is added to the residual stream once per block (GPT-2).
                deep = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * model.layers) ** 0.5 if deep else 0.02)

    def features(self, tokens: Tensor) -> Tensor:
        """Normalised hidden states [B, L, width], which `head` maps to logits."""
        x = self.embedding(tokens)
        rotation = _rotation(tokens.shape[1], self.head_width, self.theta, x.device)
        for block in self.blocks:
            x = block(x, rotation)
        hidden: Tensor = self.norm(x)
        return hidden

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, L, V]; those of position i are for token i + 1."""
        logits: Tensor = self.head(self.features(tokens))
        return logits


class _Block(nn.Module):
    """Attention and feed-forward, each normalised before and added after."""

    def __init__(self, model: config.SmallLM) -> None:
        super().__init__()
        width = model.width
        self.heads = model.heads
        self.gated = model.mlp == "swiglu"
        hidden = model.hidden or (16 * round(width / 6) if self.gated else 4 * width)
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 2 * hidden if self.gated else hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        rows, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(_rotate(q, rotation), _rotate(k, rotation), v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        hidden = self.up(self.norm2(x))
        if self.gated:
            gate, hidden = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * hidden
        else:
            hidden = F.gelu(hidden)
        y: Tensor = x + self.down(hidden)
        return y


def _rotation(length: int, width: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles (Su et al. 2021), float32 [length, width / 2] each."""
    frequencies = theta ** -(torch.arange(0, width, 2, device=device) / width)
    angles = torch.outer(torch.arange(length, device=device), frequencies)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Each pair (x[i], x[i + width / 2]) of [..., length, width] turned by its angle."""
    cos, sin = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)
