"""One model cut over several devices of a node, by transformers' own tensor-parallel plan.

The replica's process is rank 0 and starts the others. Before each forward pass it sends them the batch
through a pipe, and all compute it together; only rank 0 uses what comes out. It knows processes and how they
meet, and nothing of what is computed. A process ends when its pipe is closed, so none outlives the replica.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from importlib import import_module
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from pipeline.targets.errors import TeacherError, UserError
from pipeline.teachers.weights import model_directory

if TYPE_CHECKING:
    from pipeline.teachers.causal_lm import CausalLM

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others."""

Array = npt.NDArray[Any]


class Group:
    """This process as rank 0, and the others, which load the same model while it does."""

    def __init__(self, config: CausalLM) -> None:
        """Start them. Raises UserError for a model or a machine that cannot be cut so, TeacherError when one
        of the processes does not start.
        """
        import torch.distributed as dist
        from torch._C._distributed_c10d import TCPStore

        _check(config)
        if dist.is_initialized():
            raise UserError(
                "teacher.tensor_parallel: this process computes in a group already; a replica can have one "
                "tensor-parallel teacher only"
            )
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
        self._others = [_start(config, rank, store.port) for rank in range(1, config.tensor_parallel)]
        self._end = weakref.finalize(self, _end, self._others)
        for rank, process in enumerate(self._others, start=1):
            assert process.stdout is not None
            if process.stdout.readline() != READY:
                self._end()
                raise TeacherError(f"process {rank} of the tensor-parallel teacher did not start")
        _join(store, 0, config.tensor_parallel)

    def compute(self, forward: Callable[..., Any], *arrays: Array | None) -> Any:
        """`forward(*arrays)`, here and in all other processes. Raises TeacherError when it fails anywhere:
        processes that have lost step cannot go on.
        """
        if not self._end.alive:
            raise TeacherError("the tensor-parallel teacher has ended: run the command again")
        try:
            for process in self._others:
                assert process.stdin is not None
                _send(process.stdin, arrays)
            return forward(*arrays)
        except Exception as error:
            self._end()
            reason = " ".join(str(error).split())[:300]
            raise TeacherError(
                f"the tensor-parallel teacher failed and has ended ({type(error).__name__}: {reason}): run "
                "the command again, with a smaller label.batching.budget if memory ran out"
            ) from error


READY = b"ready\n"


def _check(config: CausalLM) -> None:
    try:
        import_module("accelerate")  # with which transformers places the parts of a model
        from transformers import AutoConfig
        from transformers.distributed import DistributedConfig  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'teacher.tensor_parallel needs more ({error}): pip install "decant-kd[tensor-parallel]"'
        ) from error
    import torch

    size = config.tensor_parallel
    if config.device != "auto":
        raise UserError("teacher.device must be auto with tensor_parallel: each process takes one device")
    if torch.cuda.is_available() and torch.cuda.device_count() < size:
        raise UserError(
            f"teacher.tensor_parallel is {size} and this process sees {torch.cuda.device_count()} GPUs: give "
            "each replica so many (label.replicas.gpus)"
        )
    model = AutoConfig.from_pretrained(model_directory(config.path), local_files_only=True)
    said = model.get_text_config()
    if not said.base_model_tp_plan:
        raise UserError(f"{config.path} ({model.model_type}) has no tensor-parallel plan in transformers")
    heads = getattr(said, "num_key_value_heads", None) or said.num_attention_heads
    if heads % size:
        raise UserError(
            f"teacher.tensor_parallel is {size}, and the {heads} key-value heads of {config.path} are not "
            "cut into so many like parts"
        )


def _start(config: CausalLM, rank: int, port: int) -> subprocess.Popen[bytes]:
    settings = {"rank": rank, "port": port, "config": config.model_dump_json()}
    process = subprocess.Popen(
        [sys.executable, "-c", "from pipeline.teachers.tensor_parallel import follow; follow()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "LOCAL_RANK": str(rank), "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(settings).encode() + b"\n")
    process.stdin.flush()
    return process


def _end(others: Sequence[subprocess.Popen[bytes]]) -> None:
    """Close the pipes, at which the others end, and leave the group."""
    import torch.distributed as dist

    for process in others:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):  # it has ended itself
            process.stdin.close()
        process.stdout.close()
    for process in others:
        process.wait()
    if dist.is_initialized():
        dist.destroy_process_group()


def _join(store: Any, rank: int, size: int) -> None:
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)


def _send(pipe: IO[bytes], arrays: Sequence[Array | None]) -> None:
    """A line of JSON that says what follows, then int64 values."""
    shapes = [None if array is None else array.shape for array in arrays]
    pipe.write(json.dumps(shapes).encode() + b"\n")
    for array in arrays:
        if array is not None:
            pipe.write(array.astype("<i8").tobytes())
    pipe.flush()


def _receive(pipe: IO[bytes]) -> list[Array | None] | None:
    """What `_send` sent; None at the end."""
    line = pipe.readline()
    if not line:
        return None
    arrays: list[Array | None] = []
    for shape in json.loads(line):
        if shape is None:
            arrays.append(None)
        else:
            content = pipe.read(8 * int(np.prod(shape)))
            arrays.append(np.frombuffer(content, dtype="<i8").reshape(shape))
    return arrays


def follow() -> NoReturn:
    """What every process but rank 0 does: compute what it is sent, until the pipe is closed."""
    from torch._C._distributed_c10d import TCPStore

    from pipeline.teachers.causal_lm import CausalLM, CausalLMTeacher

    pipe = sys.stdin.buffer
    settings = json.loads(pipe.readline())
    config = CausalLM.model_validate_json(settings["config"])
    sys.stdout.buffer.write(READY)
    sys.stdout.flush()
    work: SimpleQueue[list[Array | None]] = SimpleQueue()

    def listen() -> None:
        # Whoever waits for a rank 0 that is gone in the middle of a collective would never read the pipe.
        while (arrays := _receive(pipe)) is not None:
            work.put(arrays)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    store = TCPStore("127.0.0.1", settings["port"], is_master=False, timeout=PATIENCE)
    _join(store, settings["rank"], config.tensor_parallel)
    teacher = CausalLMTeacher(config, leads=False)
    while True:
        tokens, mask = work.get()
        assert tokens is not None
        teacher.forward(tokens, mask)
