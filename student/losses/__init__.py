"""What a student minimises: functions of its outputs and the stored targets. Knows nothing of models.

Outputs are logits [N, V]; or `LinearLogits`, the hidden states and the matrix that would make them, of which
every loss makes a part at a time; or vectors [N, D] where the targets are embeddings.

All values are means over the N targets, in nats unless said otherwise; reduction="sum" or "none" ([N]) is
for callers that weight by themselves, and `weights` [N] multiplies each target's loss.
"""

from student.losses.affinity import Queue, clip_affinity, seed_affinity
from student.losses.configured import distillation_loss, loss_kind, two_teacher_loss
from student.losses.cross_entropy import hard_cross_entropy, sparse_cross_entropy, tempered_cross_entropy
from student.losses.decoupled import decoupled_kd
from student.losses.divergences import (
    jensen_shannon,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    tempered_kl,
    topk_kl,
    total_variation,
)
from student.losses.linear import LinearLogits
from student.losses.regression import annealed_logit_l2, logit_l2
from student.losses.schedules import LearnedTemperature, adversarial_kl, uncertainty
from student.losses.vectors import (
    cosine_distance,
    feature_mse,
    relational_angle,
    relational_distance,
    similarity_preserving,
    smooth_l1,
)

__all__ = [
    "LearnedTemperature",
    "LinearLogits",
    "Queue",
    "adversarial_kl",
    "annealed_logit_l2",
    "clip_affinity",
    "cosine_distance",
    "decoupled_kd",
    "distillation_loss",
    "feature_mse",
    "hard_cross_entropy",
    "jensen_shannon",
    "logit_l2",
    "loss_kind",
    "relational_angle",
    "relational_distance",
    "reverse_kl",
    "seed_affinity",
    "similarity_preserving",
    "skew_kl",
    "skew_reverse_kl",
    "smooth_l1",
    "sparse_cross_entropy",
    "tempered_cross_entropy",
    "tempered_kl",
    "topk_kl",
    "total_variation",
    "two_teacher_loss",
    "uncertainty",
]
