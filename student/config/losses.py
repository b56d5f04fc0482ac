"""What the student minimises, and how that changes over a run. Knows names and numbers, no formula."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from student.config.base import Config


class LossConfig(Config):
    """What the student minimises: (1 - hard_weight) * soft + hard_weight * cross-entropy on the labels."""

    kind: Literal[
        "auto",
        "hard",
        "sparse_cross_entropy",
        "topk_kl",
        "tempered_kl",
        "reverse_kl",
        "jensen_shannon",
        "skew_kl",
        "skew_reverse_kl",
        "total_variation",
        "decoupled_kd",
        "logit_l2",
        "annealed_logit_l2",
        "cosine_distance",
        "feature_mse",
        "smooth_l1",
        "relational_distance",
        "relational_angle",
        "similarity_preserving",
        "seed_affinity",
    ] = "auto"
    """The soft part. "auto" takes the one that fits the stored targets: sparse_cross_entropy for threshold
    and sampled, topk_kl for topk and topp, tempered_kl for dense, cosine_distance for embeddings. "hard"
    ignores the teacher. docs/losses.md says which to use when."""

    temperature: PositiveFloat = 1.0
    """T of what is softened by one: all divergences. topk and topp need 1/T among the stored betas, or with
    slopes between two of them; threshold knows 1 alone."""

    final_temperature: PositiveFloat | None = None
    """If given, T goes evenly from `temperature` to this over the run."""

    hard_weight: float = Field(default=0.0, ge=0, le=1)
    """Weight of the cross-entropy on the labels (a token store's next tokens, or its input "label")."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of a label's probability that is spread evenly over all classes."""

    weighting: Literal["uniform", "uncertainty"] = "uniform"
    """Of each target's loss: the same for all, or the student's entropy there over a uniform guess's."""

    jsd_beta: float = Field(default=0.5, gt=0, lt=1)
    """The teacher's share in the mixture of jensen_shannon."""

    skew: float = Field(default=0.1, gt=0, lt=1)
    """Share of the first distribution in the second, of skew_kl and skew_reverse_kl."""

    decoupled_weights: tuple[NonNegativeFloat, NonNegativeFloat] = (1.0, 8.0)
    """Of decoupled_kd: of the label against all others, and of the others among themselves."""

    annealing_temperature: float = Field(default=10.0, ge=1)
    """Of annealed_logit_l2: where its temperature begins to fall to 1."""

    annealing_share: float = Field(default=0.8, gt=0, le=1)
    """Of annealed_logit_l2: the share of the run in which it does; from then on the labels are learned."""

    teacher_factor: PositiveFloat = 1.0
    """Of annealed_logit_l2: what the teacher's logits are multiplied by. A run sets it step by step."""

    def at(self, progress: float) -> LossConfig:
        """What is minimised after that share of the run, 0 to 1."""
        if self.kind == "annealed_logit_l2":
            share = progress / self.annealing_share
            if share > 1:
                return self.model_copy(update={"kind": "hard"})
            # Annealing-KD (Jafari et al. 2021): 1 - (T - 1) / T_max while T falls evenly from T_max to 1.
            highest = self.annealing_temperature
            temperature = highest + share * (1 - highest)
            return self.model_copy(update={"teacher_factor": 1 - (temperature - 1) / highest})
        if self.final_temperature is None:
            return self
        temperature = self.temperature + progress * (self.final_temperature - self.temperature)
        return self.model_copy(update={"temperature": temperature})
