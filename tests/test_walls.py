"""The walls that an import linter cannot see: what is in memory after an import."""

import subprocess
import sys

import pytest

HEAVY = {"ray", "torch", "transformers", "tokenizers", "sklearn", "matplotlib"}


def loaded_by(statement: str) -> set[str]:
    """Modules in memory after the statement, in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_the_contract_loads_only_numpy_pyarrow_and_fsspec() -> None:
    modules = loaded_by("import pipeline.targets.store, pipeline.targets.rows, pipeline.targets.replay")
    assert not modules & (HEAVY | {"pydantic", "typer", "rich", "yaml", "PIL", "scipy", "soundfile"})


@pytest.mark.parametrize("statement", ["import pipeline.job", "import jobs.cli"])
def test_describing_a_job_loads_no_model_library(statement: str) -> None:
    assert not loaded_by(statement) & HEAVY


def test_a_student_loads_neither_ray_nor_the_teacher_side() -> None:
    modules = loaded_by("import student.train, student.data, student.losses, student.models")
    assert not modules & {"ray", "transformers"}
    teacher_side = {name for name in modules if name.startswith("pipeline.")}
    assert all(name.startswith("pipeline.targets") for name in teacher_side)
