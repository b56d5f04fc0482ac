"""Any PyTorch module as a teacher, made by a function that the configuration names."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from pipeline.targets.errors import DecantError, TeacherError, UserError
from pipeline.targets.spec import Positions
from pipeline.teachers.base import Batch, Output, Teacher, TeacherConfig
from pipeline.teachers.devices import device_of, tensor
from pipeline.teachers.weights import module_fingerprint

if TYPE_CHECKING:
    import torch


class TorchCallable(TeacherConfig):
    """What `factory(**arguments)` returns: a torch.nn.Module, or an object that is a Teacher already.

    A module is called with the inputs as keyword tensors on its device (for example `forward(image)`; token
    ids as int64), and with `lengths`, int64 [views], if its forward has a parameter of that name. It returns
    the logits of the head "logits", or a dict of head to logits.
    """

    kind: Literal["torch"] = "torch"
    """A module from Python code."""

    factory: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    """The function that makes it, as package.module:function."""

    arguments: dict[str, Any] = Field(default={})
    """Keyword arguments of the function, for example the path of the weights."""

    heads: dict[str, PositiveInt] = Field(default={})
    """Classes of each head of the module: {logits: 10}. Needed unless the function returns a Teacher."""

    positions: Positions = "single"
    """Whether the module gives one row of logits a view ("single") or one a token ("next_token")."""

    device: str = "auto"
    """"cpu", "cuda", "cuda:1" …; "auto" is CUDA if there is any, else the CPU."""

    def load(self) -> Teacher:
        import torch

        function = find(self.factory)
        try:
            made = function(**self.arguments)
        except DecantError:
            raise
        except Exception as error:
            raise UserError(
                f"the teacher factory {self.factory} failed with teacher.arguments {self.arguments}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if isinstance(made, torch.nn.Module) and not hasattr(made, "outputs"):
            return ModuleTeacher(self, made)
        lacking = [name for name in ("outputs", "description") if not hasattr(made, name)]
        if lacking or not callable(made) or "fingerprint" not in made.description:
            raise UserError(
                f"{self.factory} returned {type(made).__name__}, which is neither a torch.nn.Module nor a "
                "Teacher (callable, with outputs and a description that has a fingerprint)"
            )
        teacher: Teacher = made
        return teacher


class ModuleTeacher:
    """A module in evaluation mode on its device."""

    def __init__(self, config: TorchCallable, module: torch.nn.Module) -> None:
        if not config.heads:
            raise UserError(
                f"teacher.heads is missing: name the heads of {config.factory}, as in {{logits: 10}}"
            )
        self.factory = config.factory
        self.outputs = {name: Output(size, config.positions) for name, size in config.heads.items()}
        self.description = {
            "kind": config.kind,
            "factory": config.factory,
            "fingerprint": module_fingerprint(module),
        }
        self.device = device_of(config.device)
        self.module = module.to(self.device).eval().requires_grad_(False)
        self.takes_lengths = "lengths" in inspect.signature(module.forward).parameters

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        import torch

        inputs = {name: tensor(array, self.device) for name, array in batch.inputs.items()}
        if self.takes_lengths:
            inputs["lengths"] = tensor(batch.lengths, self.device)
        with torch.inference_mode():
            result = self.module(**inputs)
        named = {"logits": result} if isinstance(result, torch.Tensor) else result
        for name, output in self.outputs.items():
            logits = named.get(name) if isinstance(named, Mapping) else None
            if logits is None:
                raise TeacherError(f"{self.factory} returned no tensor for the head {name!r}")
            if logits.shape[-1] != output.size or len(logits) != len(batch):
                raise TeacherError(
                    f"{self.factory} returned {tuple(logits.shape)} for the head {name!r} of {output.size} "
                    f"classes and {len(batch)} views: correct teacher.heads"
                )
        return {name: named[name] for name in self.outputs}


def find(factory: str) -> Callable[..., Any]:
    """The function named package.module:function. Raises UserError."""
    module, _, name = factory.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"the teacher factory {factory} cannot be imported ({error}): is it installed, or on PYTHONPATH?"
        ) from error
    if not callable(found):
        raise UserError(f"the teacher factory {factory} is no function")
    factory_function: Callable[..., Any] = found
    return factory_function
