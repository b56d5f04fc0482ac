"""`decant recipe`: published results, reproduced."""

from __future__ import annotations

from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.targets.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobs.demo.stages import Stages
    from jobs.recipes.results import Results, Row

recipe = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.add_typer(recipe, name="recipe")


@recipe.callback()
def recipes() -> None:
    """Reproduce a paper: label real data, train students from the stores, compare.

    Everything is kept in --output, so a recipe that is stopped goes on where it was, and one that asks for
    more seeds trains only those. At the end there are results.json, table.md and figure.svg.

    \b
      decant recipe hinton --data DATA --quick      all of it in seconds; its figures say nothing
      decant recipe hinton --data DATA              temperatures, missing digits, ensembles on MNIST
      decant recipe mimic --data DATA               shallow nets that mimic ResNets on CIFAR-10

    Next: docs/recipe-hinton.md and docs/recipe-mimic.md say what was cut, and why
    """


Data = Annotated[Path, typer.Option("--data", "-d", help="Folder with the data set's files.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder of all that is made.")]
Quick = Annotated[bool, typer.Option("--quick", help="A miniature in seconds: it shows that all runs.")]
Seeds = Annotated[int | None, typer.Option(min=1, help="Repetitions.", show_default="three, of mimic two")]


class Numbers(StrEnum):
    """In what nets compute."""

    bfloat16 = "bfloat16"
    float32 = "float32"


Precision = Annotated[
    Numbers, typer.Option("--precision", help="Of products. float32 is faster on CPUs without AMX.")
]


@recipe.command()
def hinton(
    data: Data,
    output: Output = None,
    quick: Quick = False,
    seeds: Seeds = None,
    members: Annotated[
        int | None, typer.Option(min=0, help="Teachers of the ensemble; 0: none.", show_default="ten")
    ] = None,
    precision: Precision = Numbers.bfloat16,
) -> None:
    """Distilling the Knowledge in a Neural Network (2015), section 3: MNIST.

    Teachers of 2 × 1200 units with dropout on jittered digits; students of 2 × 800 from labels and from the
    store; transfer sets without 3s, and of 7s and 8s alone; temperatures for small students; an ensemble as
    the teacher; 3 % of the transfer set. DATA/mnist has the four idx.gz files.
    """
    folder, stages = _open(output, "hinton", quick)
    from jobs.recipes import hinton as paper
    from jobs.recipes.hinton_results import ROWS, draw

    settings = (paper.quick() if quick else paper.HintonSettings()).at(precision.value)
    asked = {"seeds": seeds, "members": members}
    settings = settings.model_copy(update={k: v for k, v in asked.items() if v is not None})
    _close(stages, folder, paper.reproduce(data, folder, settings, stages), ROWS, 1, draw)


@recipe.command()
def mimic(
    data: Data,
    output: Output = None,
    quick: Quick = False,
    seeds: Seeds = None,
    precision: Precision = Numbers.bfloat16,
) -> None:
    """Do Deep Nets Really Need to be Deep? (2014), section 4: CIFAR-10.

    An ensemble of pretrained ResNets labels views of the training pictures. Nets of one convolution and one
    wide layer behind a linear bottleneck, in three sizes, learn the labels of these views, or mimic what the
    ensemble says of them: by L2 on logits, by KL, or after the weakest ResNet alone. DATA/cifar10 has the
    pictures, DATA/weights/resnet_cifar the ResNets.
    """
    folder, stages = _open(output, "mimic", quick)
    from jobs.recipes import mimic as paper
    from jobs.recipes.mimic_results import draw, rows

    settings = (paper.quick() if quick else paper.MimicSettings()).at(precision.value)
    if seeds is not None:
        settings = settings.model_copy(update={"seeds": seeds})
    results = paper.reproduce(data, folder, settings, stages)
    _close(stages, folder, results, rows(dict(results.settings)), 2, draw)


def _open(output: Path | None, name: str, quick: bool) -> tuple[Path, Stages]:
    """Where all is kept, and how the recipe speaks. Raises UserError where a library is lacking."""
    for library in ("torch", "matplotlib", "PIL"):
        if find_spec(library) is None:
            raise UserError(f"recipes need {library}: pip install 'decant-kd[demo,images]'")
    from jobs.demo.stages import Stages
    from jobs.terminal import err

    folder = output or Path("runs") / (f"recipe-{name}-quick" if quick else f"recipe-{name}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder, Stages(err())


def _close(
    stages: Stages,
    folder: Path,
    results: Results,
    rows: Sequence[Row],
    digits: int,
    draw: Callable[[Results, Path], None],
) -> None:
    """The table, here and in the folder, the picture, and all values. digits: after the point."""
    from jobs.terminal import out

    results.write(folder / "results.json")
    table = results.table(rows, digits)
    (folder / "table.md").write_text(table)
    draw(results, folder / "figure.svg")
    out().print(table, markup=False, soft_wrap=True)
    stages.say(f"results.json, table.md and figure.svg are in {folder}")
