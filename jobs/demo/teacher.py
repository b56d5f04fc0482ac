"""The demo's teacher: a byte-level BPE tokenizer and a small Llama, trained here and kept for the next run.

Both are what they would be anywhere: a transformers directory with config.json, model.safetensors and
tokenizer.json. It knows nothing of stores or students.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import PositiveFloat, PositiveInt

from jobs.demo.sources import Part
from pipeline.config import Config

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

Precision = Literal["float32", "bfloat16"]

END = "<|endoftext|>"
"""Stands between two files while the teacher learns; no view contains it."""

TRIALS, TRIAL_SECONDS = 8, 1.5
"""Steps, or seconds, that a choice of threads and precision is tried for."""

RECORD = "decant-demo.json"
"""What the directory says about its training."""


class TeacherSettings(Config):
    """The tokenizer, the model and its training; the defaults are the demo."""

    vocabulary: PositiveInt = 2048
    """Tokens."""

    width: PositiveInt = 192
    """Width of the residual stream."""

    layers: PositiveInt = 3
    """Transformer blocks."""

    heads: PositiveInt = 4
    """Attention heads."""

    hidden: PositiveInt = 512
    """Width of the feed-forward layers."""

    length: PositiveInt = 256
    """Tokens of a row."""

    batch_rows: PositiveInt = 4
    """Rows of an optimiser step."""

    steps: PositiveInt = 1600
    """Optimiser steps at most."""

    seconds: PositiveFloat = 75.0
    """Time at most: on a slow machine the teacher takes fewer steps and the learning rate falls faster."""

    matrix_rate: PositiveFloat = 0.02
    """Peak learning rate of Muon, for the matrices inside the blocks."""

    other_rate: PositiveFloat = 0.02
    """Peak learning rate of AdamW, for the embedding and the norms."""

    seed: int = 0
    """Of the initial weights and the rows."""


class Trained(Config):
    """What is known of a kept teacher."""

    parameters: int
    """Weights, the tied embedding counted once."""

    steps: int
    """Optimiser steps it took."""

    tokens: int
    """Tokens it was trained on, repeats counted."""

    distinct_tokens: int
    """Tokens of the part of the corpus that rows were drawn from."""

    loss: float
    """Nats per token over its last steps."""

    seconds: float
    """Of the training."""

    threads: int
    """Threads it was trained with, the quickest number here."""

    precision: Precision
    """What its matrix products were computed in, the quickest here."""


Progress = Callable[[float, str], None]
"""Told how much of the training is done, in [0, 1], and how it goes."""


def directory(cache: Path, part: Part, settings: TeacherSettings) -> Path:
    """Where the teacher of these settings and sources is kept: its name is a hash of both, and of what its
    record holds, so that no other release's record is read."""
    files = [[str(path), path.stat().st_size] for path in part.paths]
    content = json.dumps([settings.model_dump(), files, sorted(Trained.model_fields)])
    return cache / f"teacher-{hashlib.blake2b(content.encode(), digest_size=8).hexdigest()}"


def kept(folder: Path) -> Trained | None:
    """The record of a teacher that an earlier run finished."""
    record = folder / RECORD
    return Trained.model_validate_json(record.read_bytes()) if record.is_file() else None


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE; every text has tokens, and they give it back exactly."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def read(part: Part) -> list[str]:
    """The texts of a part, those that are no UTF-8 left out."""
    texts = []
    for path in part.paths:
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
    return texts


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """All texts end to end, each after the end mark. int64 [tokens]."""
    end = tokenizer.token_to_id(END)
    parts = [np.array([end, *encoding.ids]) for encoding in tokenizer.encode_batch_fast(list(texts))]
    return np.concatenate(parts).astype(np.int64)


def train(
    tokens: npt.NDArray[np.int64], settings: TeacherSettings, progress: Progress
) -> tuple[LlamaForCausalLM, Trained]:
    """A causal LM trained on rows drawn at random from the stream of tokens.

    Matrices inside the blocks are trained by Muon, which needs less than half of AdamW's steps at this size.
    The schedule follows the steps or the clock, whichever is further.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(settings.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=settings.vocabulary,
            hidden_size=settings.width,
            intermediate_size=settings.hidden,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            max_position_embeddings=settings.length,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
        )
    ).train()
    optimizers = _optimizers(model, settings)
    stream = torch.from_numpy(tokens)
    draws = torch.Generator().manual_seed(settings.seed)
    within = torch.arange(settings.length)
    step, smooth = 0, float(np.log(settings.vocabulary))
    before = torch.get_num_threads()
    progress(0.0, "trying threads and precisions")
    threads, precision = _fastest(model, stream[: settings.batch_rows * settings.length], settings)
    torch.set_num_threads(threads)
    began, done = time.monotonic(), 0.0
    while done < 1:
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * (1 - done))
        starts = torch.randint(len(stream) - settings.length, (settings.batch_rows, 1), generator=draws)
        loss = _gradients(model, stream[starts + within], precision)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        seconds = time.monotonic() - began
        done = max(step / settings.steps, seconds / settings.seconds)
        smooth += max(0.02, 1 / step) * (loss.item() - smooth)
        speed = step * settings.batch_rows * settings.length / seconds
        progress(min(done, 1.0), f"step {step:,}, {smooth:.2f} nats per token, {speed:,.0f} tokens/s")
    torch.set_num_threads(before)
    trained = Trained(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=step,
        tokens=step * settings.batch_rows * settings.length,
        distinct_tokens=len(tokens),
        loss=smooth,
        seconds=time.monotonic() - began,
        threads=threads,
        precision=precision,
    )
    return model.eval(), trained


def _gradients(model: LlamaForCausalLM, rows: torch.Tensor, precision: Precision) -> torch.Tensor:
    """The loss of these rows, int64 [B, L], in nats per token; its gradients are in the parameters."""
    import torch
    import torch.nn.functional as F

    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(input_ids=rows, use_cache=False).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), rows[:, 1:].flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def _fastest(
    model: LlamaForCausalLM, tokens: torch.Tensor, settings: TeacherSettings
) -> tuple[int, Precision]:
    """Threads and precision of the quickest steps here: a median of a few, so that busy neighbours count.

    Some processors multiply bfloat16 many times faster and some slower, and on a shared machine a second
    thread may wait longer than it works.
    """
    import torch

    rows = tokens.view(settings.batch_rows, settings.length)
    most = torch.get_num_threads()
    precisions: list[Precision] = ["float32", "bfloat16"]
    taken: dict[tuple[int, Precision], float] = {}
    for threads in sorted({1, most}):
        torch.set_num_threads(threads)
        for precision in precisions:
            times: list[float] = []
            while len(times) < 2 or (len(times) < TRIALS and sum(times) < TRIAL_SECONDS):
                began = time.perf_counter()
                _gradients(model, rows, precision)
                times.append(time.perf_counter() - began)
                model.zero_grad(set_to_none=True)
            taken[threads, precision] = median(times[1:])
    torch.set_num_threads(most)
    return min(taken, key=lambda choice: taken[choice])


def _optimizers(
    model: LlamaForCausalLM, settings: TeacherSettings
) -> list[tuple[torch.optim.Optimizer, float]]:
    """Each with its peak learning rate."""
    import torch

    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    muon = torch.optim.Muon(matrices, lr=settings.matrix_rate, weight_decay=0.0)
    adamw = torch.optim.AdamW(others, lr=settings.other_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return [(muon, settings.matrix_rate), (adamw, settings.other_rate)]


def keep(folder: Path, model: LlamaForCausalLM, tokenizer: Tokenizer, trained: Trained) -> None:
    """The teacher's directory, there whole or not at all."""
    from transformers import PreTrainedTokenizerFast

    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    if temporary.exists():
        shutil.rmtree(temporary)
    model.save_pretrained(temporary)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
    wrapped.model_max_length = model.config.max_position_embeddings
    wrapped.save_pretrained(temporary)
    (temporary / RECORD).write_text(trained.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
