"""A store that was imported is audited by its own inputs."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audit import audit
from pipeline.targets.rows import Ragged, Rows
from pipeline.targets.spec import Input
from tests.pipeline.audit.stores import copy_of, label, said


def test_an_imported_store_is_audited_by_its_own_inputs_and_told_from_another_teachers(
    make: Any, tmp_path: Path, changed_teacher: Path
) -> None:
    import torch
    from transformers import LlamaForCausalLM

    honest = label(make("topk"))
    imported = dataclasses.replace(honest.spec, teacher={"kind": "imported", "fingerprint": "unknown"})
    copy_of(honest, str(tmp_path / "import"), imported)
    shutil.rmtree(tmp_path / "corpus")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "none.txt").write_text("nothing of it is left")
    result = audit(make("topk", store="import"))
    assert result.findings == (), said(result)
    assert result.checked["spec"] == result.checked["inputs"] == 0
    assert result.checked["values"] > 500
    # As importers leave it: a class to fill a target up, and positions that are not the teacher's.
    masked = dataclasses.replace(imported, inputs=(*imported.inputs, Input("target_mask", "|u1", (None,))))

    def filled(rows: Rows) -> Rows:
        fields = {name: array.copy() for name, array in rows.heads["logits"].items()}
        fields["log_probs"][::3, -1] = -np.inf
        tokens = rows.inputs["tokens"]
        assert isinstance(tokens, Ragged)
        given = np.ones(len(tokens.values), dtype=np.uint8)
        given[tokens.offsets[:-1] + 2] = given[tokens.offsets[1:] - 1] = 0
        wrong = np.cumsum(np.append(0, rows.targets[:-1])) + 2  # of each row the target at 2
        fields["ids"][wrong[rows.targets > 2]] = np.arange(8)
        inputs = {"tokens": tokens, "target_mask": Ragged(given, tokens.offsets)}
        return dataclasses.replace(rows, spec=masked, inputs=inputs, heads={"logits": fields})

    copy_of(honest, str(tmp_path / "masked"), masked, filled)
    partly = audit(make("topk", store="masked"))
    assert [f for f in partly.findings if f.check != "distribution"] == [], said(partly)
    model = LlamaForCausalLM.from_pretrained(changed_teacher)
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight.neg_()
    model.save_pretrained(changed_teacher)
    lied = audit(make("topk", store="import", teacher=changed_teacher))
    assert "another teacher, or other weights" in said(lied)
