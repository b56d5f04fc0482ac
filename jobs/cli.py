"""The command `decant`: what each word on the command line runs, and with which exit code it leaves.

It knows no labelling and no training; the commands are in `jobs.commands`, one a file, and each imports what
it needs when it runs, so that `decant --help` loads neither torch nor Ray nor a model library.

Exit codes: 0 done; 1 a failure, or units are left; 2 a mistake in the command, the job file or the input;
130 aborted by a second Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from jobs.commands import (
    audit,
    config,
    convert,
    demo,
    inspect,
    interchange,
    label,
    merge,
    plan,
    recipe,
    repair,
    retry,
    stats,
    stores,
    sweep,
    train,
    watch,
)
from jobs.terminal import complain
from pipeline.targets.errors import DecantError


class Guarded(TyperGroup):
    """Every command's failures, as one sentence and the promised exit code."""

    def invoke(self, ctx: Any) -> Any:
        debug = bool(ctx.params.get("debug"))
        cause: Exception
        try:
            return super().invoke(ctx)
        except DecantError as error:
            message, code, cause = str(error), error.exit_code, error
        except BrokenPipeError:
            # The reader of our output went away (`decant inspect … | head`): nothing is left to say to it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except OSError as error:
            message, code, cause = _of_the_system(error), 1, error
        except KeyboardInterrupt:
            complain("aborted; what was committed is whole, and the same command goes on from there")
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if type(error).__module__.startswith(("typer", "click")):
                raise  # a mistake on the command line: typer words it and leaves with 2
            message = f"unexpected {type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
            message += " (see where: decant --debug …)"
            code, cause = 1, error
        if debug:
            traceback.print_exception(cause)
        complain(message)
        raise typer.Exit(code)


app = typer.Typer(
    cls=Guarded,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"decant {version('decant-kd')}")
        raise typer.Exit


@app.callback()
def decant(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="DECANT_DEBUG", help="Show the traceback of a failure.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Label a huge unlabelled corpus once with a teacher, keep what it said in a compact, verified store,
    and train any number of students from that store.

    A job is one YAML file. In the order in which you will want them:

    \b
      decant demo                               the whole way on this machine, in minutes
      decant config example text > job.yaml     a job file to begin with, every key explained
      decant plan job.yaml                      what the corpus is, and what labelling it will take
      decant label job.yaml                     label; run it again to resume
      decant watch STORE                        how far it is, from any machine
      decant inspect STORE                      what the teacher said
      decant verify STORE                       that every shard is whole
      decant audit job.yaml                     that it is what the teacher says
      decant train job.yaml                     a student from the store
      decant sweep job.yaml grid.yaml           many students from the store, compared
      decant recipe hinton --data DATA          a paper's results, reproduced
      decant import FORMAT SOURCE STORE         a store of what another system has captured

    Any key of the job can be given on the command line: decant label job.yaml label.replicas.max=8
    """


plan.register(app)
label.register(app)
inspect.register(app)
stats.register(app)
stores.register(app)
audit.register(app)
repair.register(app)
retry.register(app)
merge.register(app)
convert.register(app)
train.register(app)
sweep.register(app)
watch.register(app)
demo.register(app)
recipe.register(app)
interchange.register(app)
config.register(app)


def main() -> None:
    """The console script."""
    # For `factory: module:function` of a person's own files; last, so that no file there hides a library.
    sys.path.append(os.getcwd())
    app(prog_name="decant")


def _of_the_system(error: OSError) -> str:
    """An operating system's refusal as a sentence."""
    what = error.strerror or " ".join(str(error).split()) or type(error).__name__
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{what[:1].lower()}{what[1:]}; what was committed is whole: mend it and run again"


if __name__ == "__main__":
    main()
