"""A DistillKit capture of a real causal language model, imported, is audited against that model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.audit import Audit, audit_imported
from pipeline.interchange.distillkit_forms import Polynomial
from pipeline.targets.errors import UserError
from pipeline.targets.store import Store
from pipeline.teachers import CausalLM
from tests.pipeline.audit.stores import checks, label, said
from tests.pipeline.interchange.distillkit_format import packed, position, term, write
from tests.pipeline.tiny_llama import SENTENCES, change_a_layer

CONFIG: dict[str, Any] = {
    "d": 400,
    "k": 64,
    "exact_k": 16,
    "exact_dtype": "bfloat16",
    "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"],
    "term_dtype": "float32",
    "residual_bins": [],
    "delta_encoding": False,
    "normalize_t": True,
}

Capture = Callable[..., str]


def captured(config: dict[str, Any], log_probs: npt.NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """A position's two lists of bytes, as a capture makes them of all its log-probabilities [d].

    The k likeliest classes, the first exact_k as they are and a least-squares polynomial through the others.
    """
    ids = np.argsort(-log_probs, kind="stable")[: config["k"]]
    values, exact = log_probs[ids], config["exact_k"]
    last = max(config["k"] - exact - 1, 1)
    ranks = [i / last if config.get("normalize_t") else float(i) for i in range(config["k"] - exact)]
    basis = np.array([[term(name, t) for name in config["polynomial_terms"]] for t in ranks])
    coefficients = np.linalg.lstsq(basis, values[exact:], rcond=None)[0]
    data, _ = position(config, values[:exact].tolist(), coefficients.tolist())
    return list(data), list(packed(ids.tolist(), math.ceil(math.log2(config["d"]))))


@pytest.fixture
def capture(model_directory: Path, tmp_path: Path, import_into: Any) -> Capture:
    """Imports a capture of the model on 24 texts, its targets `by` tokens too late: the store's URL."""

    def run(by: int = 0, **changes: Any) -> str:
        import torch
        from tokenizers import Tokenizer
        from transformers import LlamaForCausalLM

        config = {**CONFIG, **changes}
        model = LlamaForCausalLM.from_pretrained(model_directory).eval()
        tokenizer = Tokenizer.from_file(str(model_directory / "tokenizer.json"))
        rows = []
        for i in range(24):
            text = " ".join(np.random.default_rng(i).choice(SENTENCES.split(), 30))
            tokens = tokenizer.encode(text).ids[:48]
            with torch.inference_mode():
                logits = model(torch.tensor([tokens])).logits[0].double()
            log_probs = torch.log_softmax(logits, dim=1).numpy()[:, : config["d"]]
            values, ids = zip(*(captured(config, row) for row in np.roll(log_probs, by, axis=0)), strict=True)
            rows.append(
                {"input_ids": tokens, "compressed_logprobs": list(values), "bytepacked_indices": list(ids)}
            )
        source = tmp_path / "captured"
        source.mkdir()
        write(source / "data_0.parquet", rows)
        compression = Polynomial.model_validate(config)
        made: Store = import_into("distillkit", source, compression=compression).store
        return made.url

    return run


def audited(store: str, teacher: Path, seed: int = 0) -> Audit:
    return audit_imported(Store.open(store), CausalLM(path=str(teacher), device="cpu"), rows=24, seed=seed)


def test_the_teacher_that_was_captured_passes(capture: Capture, model_directory: Path) -> None:
    store = capture()
    for seed in range(3):
        result = audited(store, model_directory, seed)
        assert result.findings == (), said(result)
    assert result.relabelled == 24
    assert result.checked["values"] > 500
    assert result.checked["place"] > 100


def test_a_head_without_the_models_padding_passes(capture: Capture, model_directory: Path) -> None:
    """A capture knows the tokenizer's size, and the model's logits are often wider."""
    result = audited(capture(d=396), model_directory)
    assert result.findings == (), said(result)


def test_a_teacher_with_one_changed_layer_is_found(
    capture: Capture, model_directory: Path, tmp_path: Path
) -> None:
    result = audited(capture(), change_a_layer(model_directory, tmp_path / "changed", by=1.0))
    assert "values" in checks(result)
    assert "another teacher, or other weights" in said(result)


def test_a_polynomial_that_misfits_is_found_and_called_that(capture: Capture, model_directory: Path) -> None:
    result = audited(capture(polynomial_terms=[0]), model_directory)
    assert checks(result) == {"values"}
    assert "their likeliest classes are and others are not, as where an approximation misfits" in said(result)


@pytest.mark.parametrize("by", [-1, 1])
def test_targets_shifted_by_one_token_are_found_and_called_that(
    capture: Capture, model_directory: Path, by: int
) -> None:
    result = audited(capture(by), model_directory)
    assert {"values", "place"} <= checks(result)
    neighbour = "previous" if by == 1 else "next"
    assert f"targets fit the {neighbour} token better than their own: shifted by one" in said(result)


def test_a_store_that_was_labelled_is_audited_with_its_job(make_job: Any, model_directory: Path) -> None:
    store = label(make_job())
    with pytest.raises(UserError, match="audit it with its job file"):
        audited(store.url, model_directory)
