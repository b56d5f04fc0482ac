"""Stores in the world of transformers: a Trainer that learns from one, students as directories.

    reader = TargetReader(url, batch_rows=64, rank=args.process_index, world_size=args.world_size)
    DistillationTrainer(model, args, train_dataset=reader).train()

The order of rows, and which of them a rank gets, are the reader's affair; all else is the library's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback

from pipeline.targets.errors import ConfigError
from pipeline.targets.spec import TOKENS
from student.causal_lm import HalvedCausalLM, halved
from student.checkpoint import read
from student.config import LossConfig, SmallLM, TrainConfig, Transformers
from student.data import Batch, Epoch, TargetReader
from student.losses import LinearLogits, distillation_loss
from student.losses.rows import Logits
from student.stream import Stream

FUSED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""Where a model's head is whole on each device, and the loss can take its place."""


@dataclass(frozen=True)
class Collator:
    """From a reader's batch to what a causal language model of transformers and its trainers take.

    input_ids, attention_mask, labels: int64 [B, L]; labels are the tokens that have a target of the head, at
    their own positions (the library shifts them), else -100. batch: the batch itself. A loader that makes
    lists, as the Trainer's own, is to make them of one batch.
    """

    head: str = "logits"

    def __call__(self, batch: Batch | Sequence[Batch]) -> dict[str, Any]:
        """Raises SpecMismatch when the head is none of the batch's, ConfigError for several batches."""
        if not isinstance(batch, Batch):
            if len(batch) != 1:
                raise ConfigError("per_device_train_batch_size must be 1: what a reader gives are batches")
            (batch,) = batch
        batch.spec.head(self.head)
        tokens = batch.inputs[TOKENS].long()
        at = batch.row_index, batch.position_index + 1
        labels = torch.full_like(tokens, -100)
        labels[at] = tokens[at]
        mask = (torch.arange(tokens.shape[1]) < batch.lengths[:, None]).long()
        return {"input_ids": tokens, "attention_mask": mask, "labels": labels, "batch": batch}


class DistillationTrainer(Trainer):  # type: ignore[misc]
    """transformers.Trainer whose loss is a store's targets instead of labels.

    train_dataset: a TargetReader or MixedReader of this rank, whose `batch_rows`, over all ranks, stand for
    the arguments' batch sizes; give `max_steps`, for a reader has no end. eval_dataset: a TargetReader, an
    evaluation is an epoch of it. loss: what is minimised, a mean over the targets of all ranks and
    accumulated batches; in training, logits are made whole only under FSDP, DeepSpeed, nn.DataParallel,
    `torch_compile` and `model_init`, and by models that are spread over devices or have more than a matrix
    behind their hidden states.

    The reader's state is kept in each checkpoint, and a run that is resumed goes on at that row, with
    `dataloader_num_workers` too. Raises ConfigError for other datasets.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self, *arguments: Any, loss: LossConfig | None = None, head: str = "logits", **settings: Any
    ) -> None:
        if not isinstance(settings.get("train_dataset"), Stream | None):
            raise ConfigError("train_dataset of a DistillationTrainer is a TargetReader or a MixedReader")
        if not isinstance(settings.get("eval_dataset"), TargetReader | None):
            raise ConfigError("eval_dataset of a DistillationTrainer is a TargetReader")
        settings.setdefault("data_collator", Collator(head))
        super().__init__(*arguments, **settings)
        self.loss, self.head = loss or LossConfig(), head
        self.model_accepts_loss_kwargs = True  # that is: count the targets of a step
        whole = self.args.torch_compile or self.model_init or self.accelerator.distributed_type not in FUSED
        # nn.DataParallel cuts the batch, and a model that is spread over devices has its head on another one.
        cut = self.args.n_gpu > 1 or self.is_model_parallel
        halves = None if whole or cut else halved(self.model)
        self._halves = halves if halves is not None and halves.plain else None
        if self.train_dataset is not None:
            self.args.ignore_data_skip = True
            self.add_callback(ReaderState(self.train_dataset))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The reader's batches, which are whole and this rank's already."""
        return self._loader(self.train_dataset)

    def get_eval_dataloader(self, eval_dataset: TargetReader | None = None) -> DataLoader[Any]:
        """An epoch of the reader."""
        return self._loader(Epoch(eval_dataset or self.eval_dataset))

    def _loader(self, batches: IterableDataset[Batch]) -> DataLoader[Any]:
        return DataLoader(
            batches,
            batch_size=None,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The distillation loss, summed and divided by the number of targets of the whole step."""
        batch: Batch = inputs["batch"].to(self.args.device)
        tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        if self._halves is not None and model.training and not return_outputs:
            outputs, loss = None, self._fused(model, self._halves, tokens, batch)
        else:
            outputs = model(**tokens)
            loss = self._sum(batch.pick(outputs.logits, self.head), batch)
        if num_items_in_batch is None:
            loss = loss / len(batch.row_index)
        else:
            loss = loss / num_items_in_batch
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes  # whose gradients are averaged
        return (loss, outputs) if return_outputs else loss

    def _fused(
        self, model: nn.Module, halves: HalvedCausalLM, tokens: dict[str, Tensor], batch: Batch
    ) -> Tensor:
        """The loss in place of the logits, of which none are made.

        Worked out in the model's own forward pass: what wraps the model (DDP) sees the head's weight there.
        """

        def lose(states: Tensor) -> Tensor:
            return self._sum(LinearLogits.of(batch.pick(states, self.head), halves.head), batch)

        with halves.heading(lose):
            loss: Tensor = model(**tokens).logits
        return loss

    def _sum(self, logits: Logits, batch: Batch) -> Tensor:
        """The loss summed over the batch's targets."""
        targets, labels = batch.targets.get(self.head), batch.labels(self.head)
        return distillation_loss(self.loss, logits, targets, labels, reduction="sum")


class ReaderState(TrainerCallback):  # type: ignore[misc]
    """Keeps the state of train_dataset beside the Trainer's checkpoints, and has it go on there.

    That is behind the batches that were learned, whatever the Trainer or a DataLoader's workers have read
    ahead. A DistillationTrainer has one; another Trainer needs `ignore_data_skip=True` with it, or reads and
    drops all that came before.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._start: Mapping[str, Any] = stream.state_dict()
        self._step = 0

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The state is the same on every rank."""
        if state.is_world_process_zero:
            batches = (state.global_step - self._step) * args.gradient_accumulation_steps
            self._file(args, state).write_text(json.dumps(self._stream.advanced(self._start, batches)))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Raises ConfigError when the checkpoint that is resumed is not of this trainer and output_dir."""
        if state.global_step:
            file = self._file(args, state)
            if not file.exists():
                raise ConfigError(f"there is no {file}: resume from a checkpoint of output_dir itself")
            self._stream.load_state_dict(json.loads(file.read_text()))
        self._start, self._step = self._stream.state_dict(), state.global_step

    @staticmethod
    def _file(args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "reader.json"


def export(checkpoint: Path, directory: Path) -> None:
    """The student of a checkpoint as a directory that transformers' from_pretrained reads.

    A student of kind transformers as what it is, a small_lm with swiglu as the Llama that it is: the same
    logits, but for rounding. Raises ConfigError for other kinds, and DecantError for what is no checkpoint.
    """
    model = TrainConfig.model_validate(read(checkpoint).config).model
    if isinstance(model, SmallLM) and model.mlp == "swiglu":
        _llama(model, load_file(checkpoint / "model.safetensors")).save_pretrained(directory)
    elif isinstance(model, Transformers):
        directory.mkdir(parents=True, exist_ok=True)
    else:
        raise ConfigError(
            f"model.kind {model.kind} has no counterpart in transformers, or with mlp gelu none"
        )
    for file in checkpoint.glob("*.json" if isinstance(model, SmallLM) else "*.*"):
        if file.name not in ("state.json", "train.json"):
            shutil.copyfile(file, directory / file.name)


def _llama(model: SmallLM, tensors: dict[str, Tensor]) -> LlamaForCausalLM:
    classes, width = tensors["embedding.weight"].shape
    config = LlamaConfig(
        vocab_size=classes,
        hidden_size=width,
        intermediate_size=tensors["blocks.0.down.weight"].shape[1],
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        tie_word_embeddings=model.tie_embeddings,
    )
    named = {"model.embed_tokens.weight": "embedding.weight", "model.norm.weight": "norm.weight"}
    state = {theirs: tensors[ours] for theirs, ours in named.items()}
    state["lm_head.weight"] = tensors.get("head.weight", tensors["embedding.weight"])
    for number in range(model.layers):
        ours, theirs = f"blocks.{number}", f"model.layers.{number}"
        attention = [f"{theirs}.self_attn.{name}_proj.weight" for name in "qkv"]
        gated = [f"{theirs}.mlp.{name}_proj.weight" for name in ("gate", "up")]
        state |= dict(zip(attention, tensors[f"{ours}.qkv.weight"].chunk(3), strict=True))
        state |= dict(zip(gated, tensors[f"{ours}.up.weight"].chunk(2), strict=True))
        state[f"{theirs}.self_attn.o_proj.weight"] = tensors[f"{ours}.out.weight"]
        state[f"{theirs}.mlp.down_proj.weight"] = tensors[f"{ours}.down.weight"]
        state[f"{theirs}.input_layernorm.weight"] = tensors[f"{ours}.norm1.weight"]
        state[f"{theirs}.post_attention_layernorm.weight"] = tensors[f"{ours}.norm2.weight"]
    llama = LlamaForCausalLM(config)
    llama.load_state_dict(state)
    return llama
