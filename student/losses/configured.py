"""The loss that a configuration names, for the targets that there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pipeline.targets.errors import ConfigError
from student.config import LossConfig
from student.losses import divergences, vectors
from student.losses.affinity import seed_affinity
from student.losses.cross_entropy import CrossEntropy
from student.losses.decoupled import Decoupled
from student.losses.divergences import divergence
from student.losses.formula import Formula, Mixture
from student.losses.linear import LinearLogits
from student.losses.regression import LogitL2
from student.losses.rows import Logits, Reduction, by_rows
from student.losses.schedules import Routed, Uncertain
from student.targets import TorchDense, TorchEmbedding, TorchSparse, TorchTargets, TorchTopK, TorchTopP


def distillation_loss(
    config: LossConfig,
    logits: Logits,
    targets: TorchTargets | None,
    labels: Tensor | None,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """(1 − hard_weight) · soft + hard_weight · hard, as configured, in one pass over the logits [N, V];
    for a head of embeddings, over the student's vectors [N, D].

    weights: [N], what each target's loss is multiplied by; not differentiated.
    Raises ConfigError when the kind does not fit the targets, or labels are needed and there are none.
    """
    kind = loss_kind(config, targets)
    if kind in _RELATIONAL and isinstance(targets, TorchEmbedding):
        if config.hard_weight:
            raise ConfigError(f"loss.hard_weight must be 0 for {kind}: it compares vectors, not classes")
        if isinstance(logits, LinearLogits):
            logits = logits.make()
        return _RELATIONAL[kind](logits, targets, weights=weights, reduction=reduction)
    return by_rows(logits, distillation_formula(config, targets, labels), reduction, weights)


def distillation_formula(config: LossConfig, targets: TorchTargets | None, labels: Tensor | None) -> Formula:
    """What `distillation_loss` is a sum over rows of. Raises ConfigError as it does, and where it is none."""
    formula = _mixed(config, loss_kind(config, targets), targets, labels)
    return Uncertain(formula) if config.weighting == "uncertainty" else formula


def two_teacher_loss(
    config: LossConfig,
    logits: Logits,
    small: TorchTargets,
    large: TorchTargets,
    labels: Tensor | None,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """w · loss of the small teacher's targets + (1 − w) · of the large one's, w = H(q) / ln V of each target.

    Dynamic KD (Li et al. 2021); each as `distillation_loss`, with whose errors. For heads of logits.
    """
    both = [_mixed(config, loss_kind(config, told), told, labels) for told in (small, large)]
    return by_rows(logits, Routed(*both), reduction, weights)


def loss_kind(config: LossConfig, targets: TorchTargets | None) -> str:
    """The kind that a configuration means for these targets. Raises ConfigError when they do not fit."""
    if config.weighting == "uncertainty" and isinstance(targets, TorchEmbedding):
        raise ConfigError("loss.weighting must be uniform for embeddings: vectors have no entropy")
    if config.kind == "hard":
        return "hard"
    if targets is None:
        raise ConfigError('loss.kind must be "hard" where no targets are read')
    fitting = _FITTING[type(targets)]
    kind = fitting[0] if config.kind == "auto" else config.kind
    if kind not in fitting:
        raise ConfigError(
            f"loss.kind {kind} cannot learn from {type(targets).__name__.removeprefix('Torch').lower()} "
            f'targets; use {", ".join(fitting[:-1])}{" or " * (len(fitting) > 1)}{fitting[-1]}, or "hard"'
        )
    if kind not in _TEMPERED:
        # The last one first: on its way to it `temperature` is another one at each step.
        for name in ("final_temperature", "temperature"):
            if getattr(config, name) not in (None, 1):
                raise ConfigError(f"loss.{name} must be 1 for {kind}, not {getattr(config, name):g}")
    if kind in _TEMPERED and not isinstance(targets, TorchDense | TorchEmbedding):
        try:
            head = targets.head() if isinstance(targets, TorchSparse) else targets
        except ValueError as error:
            raise ConfigError(f"loss.kind {kind}: {error}") from None
        last = config.final_temperature or config.temperature
        for name, temperature in (
            ("temperature", config.temperature),
            ("final_temperature", last),
            ("final_temperature", (config.temperature + last) / 2),
        ):
            try:
                head.require(1 / temperature)
            except ValueError as error:
                raise ConfigError(f"loss.{name}: {error}") from None
    return kind


def _mixed(config: LossConfig, kind: str, targets: Any, labels: Tensor | None) -> Formula:
    """Soft and hard. Raises ConfigError without the labels that are needed, or for no sum over rows."""
    if kind in _RELATIONAL:
        raise ConfigError(f"loss.kind {kind} compares a batch's vectors, and has one teacher")
    hard_weight = 1.0 if kind == "hard" else config.hard_weight
    later = kind == "annealed_logit_l2" and config.annealing_share < 1
    if labels is None and (hard_weight > 0 or later or kind == "decoupled_kd"):
        raise ConfigError(
            "a loss with hard labels needs them in the store: token ids, or an input named label, and a "
            "head of logits"
        )
    hard = CrossEntropy(labels=labels, smoothing=config.label_smoothing)
    if hard_weight == 1:
        return hard
    if kind == "sparse_cross_entropy":
        return CrossEntropy(targets, labels if hard_weight else None, hard_weight, config.label_smoothing)
    soft = _SOFT[kind](config, targets, labels)
    return Mixture([(1 - hard_weight, soft), (hard_weight, hard)]) if hard_weight else soft


def _divergence(terms: Callable[[LossConfig], divergences.Divergence]) -> Callable[..., Formula]:
    return lambda config, targets, _: divergence(terms(config), targets, config.temperature)


_SOFT: dict[str, Callable[[LossConfig, Any, Any], Formula]] = {
    "tempered_kl": _divergence(lambda _: divergences.kl),
    "topk_kl": _divergence(lambda _: divergences.kl),
    "reverse_kl": _divergence(lambda _: divergences.reversed_kl),
    "jensen_shannon": _divergence(lambda config: divergences.generalised_jsd(config.jsd_beta)),
    "skew_kl": _divergence(lambda config: divergences.skewed(config.skew)),
    "skew_reverse_kl": _divergence(lambda config: divergences.skewed_reverse(config.skew)),
    "total_variation": lambda config, targets, _: divergence(
        divergences.variation, targets, config.temperature, config.temperature
    ),
    "decoupled_kd": lambda config, targets, labels: Decoupled(
        targets, labels, config.temperature, *config.decoupled_weights
    ),
    "logit_l2": lambda config, targets, _: LogitL2(targets),
    "annealed_logit_l2": lambda config, targets, _: LogitL2(targets, config.teacher_factor, centred=True),
    "cosine_distance": lambda config, targets, _: vectors.Cosine(targets),
    "feature_mse": lambda config, targets, _: vectors.Squared(targets),
    "smooth_l1": lambda config, targets, _: vectors.SmoothL1(targets, 1.0),
}
"""(configuration, targets, labels) -> formula, of what is a sum over rows."""

_RELATIONAL: dict[str, Callable[..., Tensor]] = {
    "relational_distance": vectors.relational_distance,
    "relational_angle": vectors.relational_angle,
    "similarity_preserving": vectors.similarity_preserving,
    "seed_affinity": seed_affinity,
}
"""What compares a batch's vectors with each other."""

_BUCKETED = ("reverse_kl", "jensen_shannon", "skew_kl", "skew_reverse_kl", "total_variation")
_TEMPERED = ("tempered_kl", "topk_kl", "decoupled_kd", *_BUCKETED)
"""Losses with a temperature."""

_FITTING: dict[type[TorchTargets], tuple[str, ...]] = {
    TorchDense: ("tempered_kl", "logit_l2", "annealed_logit_l2", "decoupled_kd", *_BUCKETED),
    TorchTopK: ("topk_kl", *_BUCKETED),
    TorchTopP: ("topk_kl", *_BUCKETED),
    TorchSparse: ("sparse_cross_entropy", *_BUCKETED),
    TorchEmbedding: ("cosine_distance", "feature_mse", "smooth_l1", *_RELATIONAL),
}
"""By kind of target, what learns from it; "auto" takes the first."""
