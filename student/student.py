"""A model made ready for a store's head: from a batch to the logits that its targets are about, no others."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn

from pipeline.targets.codecs import Sampled
from pipeline.targets.errors import ConfigError, SpecMismatch
from pipeline.targets.replay import RECORDED, replayed
from pipeline.targets.spec import LABEL, Spec
from pipeline.targets.strict import nearest
from student import models
from student.causal_lm import CausalLM
from student.checkpoint import read
from student.config import TrainConfig
from student.data import Batch, has_labels, id_map
from student.losses.linear import LinearLogits
from student.losses.rows import Logits


class Student(nn.Module):
    """A model whose forward gives logits [N, V], or of a head of embeddings vectors [N, D], for exactly the
    positions that have targets.

    All goes through `forward`, so DDP can wrap it whole. A model with `features` and `head` (see
    `student.models.SmallLM`) never makes the logits of other positions; and where the head is a plain
    nn.Linear, none at all in training and in `student.evaluate`: forward gives `LinearLogits`. Such a model
    may say `logit_scale` and `logit_softcap`, as in `LinearLogits`.
    Raises ConfigError or SpecMismatch for a configuration that does not fit the store.
    """

    def __init__(self, config: TrainConfig, spec: Spec) -> None:
        super().__init__()
        self.head = spec.head(config.head)
        self.inputs = _input_name(config, spec)
        self.vocabulary = config.vocabulary
        self.labelled = has_labels(spec, config.head)
        # Only of a student whose tokenizer is known is it clear that what it has more is padding.
        known = config.vocabulary is not None or config.tokenizer_fingerprint is not None
        self.may_pad = known and self.head.positions == "next_token" and self.head.codec.of == "logits"
        _check_vocabulary(config, spec)
        _check_loss(config, spec)
        shape = next(item.shape for item in spec.inputs if item.name == self.inputs)
        self.model = models.build(config.model, shape, self.head.size)
        self._halves = (
            self.head.positions == "next_token"
            and hasattr(self.model, "features")
            and hasattr(self.model, "head")
        )

    def forward(self, batch: Batch, *, make: bool | None = None) -> Logits:
        """Logits [N, V], in the order of the batch's targets, without those that pad a model's vocabulary.

        make: whether to make those that may stay `LinearLogits`; by default where it is not in training.
        Raises SpecMismatch if V is not the head's.
        """
        name = self.head.name
        logits = self._logits(batch)
        if self.may_pad and logits.ndim == 2:
            size = self.head.size
            logits = logits.first(size) if isinstance(logits, LinearLogits) else logits[:, :size]
        if logits.ndim != 2 or logits.shape[1] != self.head.size:
            raise SpecMismatch(
                f"the student gives logits of shape {list(logits.shape)}, the teacher's head {name} has "
                f"{self.head.size} {'classes' if self.head.codec.of == 'logits' else 'features'}: "
                "give the student as many outputs, or, if it has more ids than its tokenizer, name that in "
                "train.vocabulary"
            )
        make = not self.training if make is None else make
        return logits.make() if isinstance(logits, LinearLogits) and make else logits

    def _logits(self, batch: Batch) -> Logits:
        inputs, name = batch.inputs[self.inputs], self.head.name
        if not self._halves:
            return batch.pick(self.model(inputs), name)
        hidden = batch.pick(self.model.features(inputs), name)  # type: ignore[operator]
        if type(self.model.head) is nn.Linear:
            scale = getattr(self.model, "logit_scale", 1.0)
            return LinearLogits.of(hidden, self.model.head, scale, getattr(self.model, "logit_softcap", None))
        logits: torch.Tensor = self.model.head(hidden)  # type: ignore[operator]
        return logits

    @property
    def plain(self) -> nn.Module:
        """The model as its makers know it, whose names for weights a checkpoint has."""
        return self.model.model if isinstance(self.model, CausalLM) else self.model

    def write_beside(self, folder: Path) -> None:
        """What other libraries need to load the weights in a folder: a transformers student's configuration,
        and the tokenizer, if it is known.
        """
        if isinstance(self.model, CausalLM):
            self.model.write_config(folder)
        if self.vocabulary is not None:
            kept = Path(self.vocabulary.tokenizer)
            kept = kept.parent if kept.is_file() else kept
            for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
                if (file := kept / name).exists():
                    shutil.copyfile(file, folder / name)

    def count(self, batch: Batch) -> int:
        """N, how many targets of the head the batch has."""
        return len(batch.row_index) if self.head.positions == "next_token" else len(batch)


def restore(checkpoint: Path, spec: Spec) -> Student:
    """The student of a checkpoint, for example `output`/checkpoints/best, for evaluation.

    spec: of the store it was trained on, `Store.open(url).spec`. Its plain model is `.model`. Where it has a
    tokenizer of its own, both are read again from where the configuration says.
    """
    found = read(checkpoint)
    config = TrainConfig.model_validate(found.config)
    spec, mapped = replayed(spec), id_map(config.vocabulary, spec)
    student = Student(config, mapped.spec(spec) if mapped else spec)
    found.load(student.plain)
    return student.eval()


def _input_name(config: TrainConfig, spec: Spec) -> str:
    names = [item.name for item in spec.inputs if item not in RECORDED]
    if not names:
        raise ConfigError(
            "the store keeps no inputs: train with the job file that labelled it, from whose corpus they are "
            "rendered again, or label with store.inputs: embed"
        )
    candidates = [name for name in names if name != LABEL]
    if config.input is not None:
        if config.input not in names:
            raise ConfigError(f"the store has no input {config.input!r}{nearest(config.input, names)}")
        return config.input
    if len(candidates) != 1:
        raise ConfigError(f"input: name the one that the student sees, the store has {names}")
    return candidates[0]


def _check_loss(config: TrainConfig, spec: Spec) -> None:
    """What targets alone do not show: those of draws are a threshold codec's without likely classes."""
    kind, codec = config.loss.kind, spec.head(config.head).codec
    if isinstance(codec, Sampled) and kind not in ("auto", "hard", "sparse_cross_entropy"):
        raise ConfigError(
            f"loss.kind {kind} compares each class's own probability, which sampled targets do not say: use "
            "sparse_cross_entropy"
        )


def _check_vocabulary(config: TrainConfig, spec: Spec) -> None:
    vocabulary = spec.vocabulary
    wanted = config.tokenizer_fingerprint
    if wanted is not None and (vocabulary is None or vocabulary.fingerprint != wanted):
        found = f"{vocabulary.fingerprint}" if vocabulary else "none"
        raise SpecMismatch(
            f"tokenizer_fingerprint is {wanted}, the store was labelled with {found}: its token ids mean "
            "something else to this student"
        )
    head = spec.head(config.head)
    predicts = head.positions == "next_token" and head.codec.of == "logits"
    if vocabulary is not None and predicts and vocabulary.size > head.size:
        raise SpecMismatch(
            f"the store's tokenizer has {vocabulary.size} ids, its head {head.name} only {head.size} classes"
        )
