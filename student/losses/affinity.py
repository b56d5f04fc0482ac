"""Affinity losses: how similar a student finds things, against how similar a teacher does.

Of embeddings, whose rows are scaled to length 1 here. Means over the N rows, in nats.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from student.losses.divergences import NOTHING, kl
from student.losses.formula import upcast
from student.losses.rows import Reduction, reduced
from student.targets import TorchEmbedding


def clip_affinity(
    images: Tensor,
    texts: Tensor,
    teachers: Sequence[tuple[TorchEmbedding, TorchEmbedding]],
    scale: Tensor | float,
    teacher_scale: float = 100.0,
    *,
    reduction: Reduction = "mean",
) -> Tensor:
    """½ KL(P ‖ softmax(s U Vᵀ)) + ½ the same with U and V exchanged, P the mean over the teachers of theirs.

    DataCompDR's loss (MobileCLIP, Vasu et al. 2024). images, texts: the student's U and V [N, D], row n of
    both being a pair. teachers: as many (images, texts) pairs of embeddings [N, D_k] as there are teachers,
    their widths their own; their affinities are averaged after the softmax. scale: s, the student's
    1 / temperature, which may be learned. Row n of reduction="none" is of image n and text n.
    Exact up to what the codec keeps of the embeddings; of a shared batch each part is left to itself.
    """
    u, v = (F.normalize(upcast(side), dim=-1) for side in (images, texts))
    found = []
    for one, other, turn in ((u, v, False), (v, u, True)):
        told = torch.stack(
            [_affinity(*(pair[::-1] if turn else pair), teacher_scale, u) for pair in teachers]
        )
        log_p = told.mean(0).log().clamp(min=NOTHING)
        log_q = F.log_softmax(scale * one @ other.T, dim=-1).clamp(min=NOTHING)
        found.append(kl(log_p, log_q).sum(-1))
    return reduced(0.5 * (found[0] + found[1]), reduction)


def _affinity(one: TorchEmbedding, other: TorchEmbedding, scale: float, like: Tensor) -> Tensor:
    u, v = (F.normalize(side.vectors.to(like.dtype), dim=-1) for side in (one, other))
    return F.softmax(scale * u @ v.T, dim=-1)


def seed_affinity(
    vectors: Tensor,
    targets: TorchEmbedding,
    queue: Tensor | None = None,
    temperature: float = 0.2,
    teacher_temperature: float = 0.01,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """H(p, q) of row n: p = softmax(e_n Kᵀ / T_t), q = softmax(g_n Kᵀ / T_s) over K, the teacher's embeddings
    of the batch and of the queue.

    SEED (Fang et al. 2021), whose temperatures are the defaults: the student is as near to what the teacher
    has seen as the teacher is. vectors: g [N, D], as wide as the teacher's e. queue: [Q, D], what `Queue`
    keeps of batches before; without one the batch alone. Exact up to what the codec keeps of e.
    """
    g = F.normalize(upcast(vectors), dim=-1)
    e = F.normalize(targets.vectors.to(g.dtype), dim=-1)
    keys = e if queue is None else torch.cat([e, F.normalize(queue.to(g.dtype), dim=-1)])
    p = F.softmax(e @ keys.T / teacher_temperature, dim=-1)
    each = -(p * F.log_softmax(g @ keys.T / temperature, dim=-1)).sum(-1)
    return reduced(each if weights is None else each * weights.detach(), reduction)


class Queue(torch.nn.Module):
    """The last embeddings of a teacher, float32, for `seed_affinity`: in a buffer that checkpoints keep.

    size: how many; SEED has 65,536. Each process has its own.
    """

    vectors: Tensor
    written: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, width))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))

    def seen(self) -> Tensor:
        """Those that are there, [at most size, width], in no order."""
        return self.vectors[: int(self.written)]

    @torch.no_grad()
    def add(self, targets: TorchEmbedding) -> None:
        """Put a batch's in the place of the oldest."""
        size, count = len(self.vectors), int(self.written)
        new = targets.vectors[-size:]
        places = torch.arange(count, count + len(new), device=new.device) % size
        self.vectors[places] = new.to(self.vectors.dtype)
        self.written.fill_(count + len(new))
