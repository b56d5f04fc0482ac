"""A student learns from an imported store as from any other, also where the teacher said nothing."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pipeline.interchange import FORMATS, Source, importing
from student.data import TargetReader
from student.losses import topk_kl

SIZE = 50


def test_positions_of_which_the_teacher_said_nothing_cost_next_to_nothing_and_are_known_by_their_mask(
    tmp_path: Path,
) -> None:
    silent = {"ids": [[0, 1]] * 3, "logs": [[-float("inf")] * 2] * 3}
    row = {
        "input_ids": [3, 4, 5, 6, 7],
        "target_token_ids": [*silent["ids"], [7, 8], [9, 2]],
        "target_logprobs": [*silent["logs"], [-0.5, -2.0], [-1.0, -1.0]],
        "target_mask": [[0, 0]] * 3 + [[1, 1]] * 2,
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    importer = FORMATS["topk-columns"].model_validate({"size": SIZE, "k": 2})
    source = Source(str(tmp_path / "a.jsonl"), importer.patterns)
    store = importing.prepare(importer, source, str(tmp_path / "store"))
    list(importing.run(importer, source, store))

    batch = next(TargetReader(store.url, batch_rows=1, holdout=0).epoch(0))
    logits = torch.zeros(4, SIZE, requires_grad=True)
    losses = topk_kl(logits, batch.targets["logits"], reduction="none")  # type: ignore[arg-type]
    mask = batch.inputs["target_mask"][batch.row_index, batch.position_index]
    assert mask.tolist() == [0, 0, 0, 1]
    # Of a uniform student, -ln(1 - 2/50); of one that does not predict the two highest ids, nothing.
    torch.testing.assert_close(losses[:3], torch.full((3,), 0.04082), atol=1e-4, rtol=0)
    losses.sum().backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())
    assert float(logits.grad[:3].abs().max()) < 0.05 < float(logits.grad[3].abs().max())
