"""Which model the student is: the parameters of each kind. How one is built, `student.models` knows."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from student.config.base import Config


class SmallLM(Config):
    """A causal transformer for token stores: RMSNorm, rotary positions, no biases."""

    kind: Literal["small_lm"] = "small_lm"

    layers: PositiveInt = 4
    """Transformer blocks."""

    width: PositiveInt = 256
    """Width of the residual stream; a multiple of twice `heads`."""

    heads: PositiveInt = 4
    """Attention heads."""

    mlp: Literal["swiglu", "gelu"] = "swiglu"
    """The feed-forward layer: gated SiLU (three matrices) or GELU (two)."""

    hidden: PositiveInt | None = None
    """Width of the feed-forward layer; by default 4 * width for gelu, 8/3 * width (to a multiple of 16) for
    swiglu, which costs the same."""

    rope_theta: PositiveFloat = 10_000.0
    """Base of the rotary frequencies."""

    tie_embeddings: bool = True
    """Use the token embedding as the output matrix too."""


class MLP(Config):
    """A plain ReLU network on the flattened input, for stores of fixed-size inputs."""

    kind: Literal["mlp"] = "mlp"

    hidden: list[PositiveInt] = Field(default=[800, 800], min_length=1)
    """Widths of the hidden layers."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of hidden units dropped at each training step."""


class ShallowMimic(Config):
    """Ba & Caruana's shallow net: a linear bottleneck, then one wide ReLU layer."""

    kind: Literal["shallow_mimic"] = "shallow_mimic"

    hidden: PositiveInt = 2000
    """Width H of the one hidden layer."""

    bottleneck: PositiveInt = 64
    """Rank k of the factorised first layer: k (H + D) weights instead of H D."""


class SmallCNN(Config):
    """A few 3x3 convolutions with ReLU and 2x2 pooling, then one hidden layer, for images [C, H, W]."""

    kind: Literal["small_cnn"] = "small_cnn"

    channels: list[PositiveInt] = Field(default=[32, 64], min_length=1)
    """Output channels of each convolution; each is followed by a halving of both sides."""

    hidden: PositiveInt = 128
    """Width of the hidden layer after the convolutions."""


class Transformers(Config):
    """A causal language model of the transformers library, for token stores (extra: transformers)."""

    kind: Literal["transformers"] = "transformers"

    path: str | None = None
    """A directory with a config.json, as save_pretrained writes it."""

    pretrained: bool = False
    """Begin with the weights in `path`; otherwise with new ones."""

    config: dict[str, Any] = Field(default={})
    """Instead of `path`, or on top of it: the model's configuration, for example {model_type: llama,
    hidden_size: 256, …}. vocab_size is the head's unless it is given."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.path is None and ("model_type" not in self.config or self.pretrained):
            raise ValueError("give path, a directory with a config.json, or config with its model_type")
        return self


class TorchModule(Config):
    """Any module of yours: it takes the input tensor and returns logits [rows, V] or [rows, L, V]."""

    kind: Literal["torch"] = "torch"

    factory: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    """Where the function that builds the torch.nn.Module is: "package.module:factory"."""

    arguments: dict[str, Any] = Field(default={})
    """Its keyword arguments."""


AnyModel = Annotated[
    SmallLM | MLP | ShallowMimic | SmallCNN | Transformers | TorchModule, Field(discriminator="kind")
]
