"""Rows of different lengths laid behind each other in lines of one length, so that little is padding.

Knows batches, nothing of stores or models. A model has to keep the rows of a line apart: attention within a
segment only, positions that begin anew.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.targets.errors import ConfigError
from pipeline.targets.spec import TOKENS
from student.batch import Batch


@dataclass(frozen=True)
class Packed:
    """A batch in lines. batch: the same rows, whose tokens are [P, length], and whose `pick` and `labels` are
    of [P, length] outputs. segments: int64 [P, length], the row of the line that a token is of, from 1; 0 is
    padding. positions: int64 [P, length], a token's place in its row.
    """

    batch: Batch
    segments: Tensor
    positions: Tensor


def pack(batch: Batch, length: int) -> Packed:
    """First fit, the longest row first: at most 11/9 of the fewest lines possible, and one more (Johnson
    1973).

    Other inputs stay as they are. Raises ConfigError for a row longer than a line, naming its key, and for
    rows without tokens.
    """
    if TOKENS not in batch.inputs:
        raise ConfigError(f"only rows of tokens are packed, and the store has {', '.join(batch.inputs)}")
    lengths = batch.lengths.tolist()
    free: list[int] = []
    lines, starts, numbers = [0] * len(lengths), [0] * len(lengths), [0] * len(lengths)
    rows_of: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if lengths[row] > length:
            raise ConfigError(f"{batch.keys[row]} has {lengths[row]} tokens: lines of {length} are too short")
        line = next((at for at, room in enumerate(free) if room >= lengths[row]), len(free))
        if line == len(free):
            free.append(length)
            rows_of.append(0)
        rows_of[line] += 1
        lines[row], starts[row], numbers[row] = line, length - free[line], rows_of[line]
        free[line] -= lengths[row]
    stored = batch.inputs[TOKENS]
    tokens, segments, positions = (stored.new_zeros(len(free), length) for _ in range(3))
    for row, (line, start, size) in enumerate(zip(lines, starts, lengths, strict=True)):
        part = slice(start, start + size)
        tokens[line, part] = stored[row, :size]
        segments[line, part] = numbers[row]
        positions[line, part] = torch.arange(size, device=stored.device)
    places = torch.tensor([lines, starts], device=stored.device)
    packed = dataclasses.replace(
        batch,
        inputs={**batch.inputs, TOKENS: tokens},
        row_index=places[0][batch.row_index],
        position_index=places[1][batch.row_index] + batch.position_index,
    )
    return Packed(packed, segments, positions)
