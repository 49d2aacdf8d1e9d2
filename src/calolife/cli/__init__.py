"""The command line: parses, calls one verb, saves one run."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, TextIO

import typer

from calolife.cli import (
    ageing,
    ageing_correct,
    demo,
    detector,
    detector_optimise,
    energy,
    energy_export,
    energy_zee,
    show,
    showers,
    showers_age,
    showers_cluster,
    showers_data,
    showers_tune,
    transparency,
    transparency_data,
)
from calolife.errors import MissingExtraError, NotConvergedError

__all__ = ["app", "main"]

app = typer.Typer(
    name="calolife",
    help="Design, simulate, read out, age, recalibrate and forecast a calorimeter.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
stage = typer.Typer(help="Forecast the transparency of crystals from laser readings.", rich_markup_mode=None)
for verb in (
    transparency_data.fetch,
    transparency_data.ingest,
    transparency_data.info,
    transparency_data.simulate,
    transparency.train,
    transparency.forecast,
    transparency.rescore,
    transparency.backtest,
    transparency.table,
    transparency.scan,
):
    stage.command()(verb)
shower_stage = typer.Typer(help="Shower particles in a calorimeter.", rich_markup_mode=None)
for shower_verb in (
    showers.simulate,
    showers_data.info,
    showers_data.digitise,
    showers_age.age,
    showers_cluster.cluster,
    showers_data.convert,
    showers_tune.tune,
):
    shower_stage.command()(shower_verb)
detectors = typer.Typer(help="Describe a calorimeter: what it is made of, contains and costs.", rich_markup_mode=None)
detectors.command("list")(detector.list_detectors)
detectors.command()(detector.show)
detectors.command()(detector.check)
detectors.command()(detector_optimise.optimise)
energies = typer.Typer(help="Measure the energy of particles from the layers of a calorimeter.", rich_markup_mode=None)
energies.command()(energy.train)
energies.command()(energy.evaluate)
energies.command()(energy_export.export)
energies.command()(energy_zee.zee)
ageings = typer.Typer(help="Find what radiation did to every cell.", rich_markup_mode=None)
ageings.command()(ageing.estimate)
ageings.command()(ageing.compare)
ageings.command()(ageing_correct.correct)
app.command()(demo.demo)
app.add_typer(detectors, name="detector")
app.add_typer(shower_stage, name="showers")
app.add_typer(energies, name="energy")
app.add_typer(ageings, name="ageing")
app.add_typer(stage, name="transparency")
app.command()(show.show)


def _version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        print(f"calolife {version('calolife')}")
        raise typer.Exit


@app.callback()
def _stages(
    is_asked: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and leave.")] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; the process's own when left out.

    Returns
    -------
    int
        0 done, 1 a check said no or a fit found no answer, 2 bad input, 130 interrupted. One line on stderr says
        what was wrong; ``--debug`` adds the traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    command = typer.main.get_command(app)
    try:
        with warnings.catch_warnings(), command.make_context("calolife", list(arguments)) as context:
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _warn
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    except typer.TyperException as error:
        return _refuse(error, error.format_message(), code=error.exit_code, debug="--debug" in arguments)
    except NotConvergedError as error:
        return _refuse(error, str(error), code=1, debug="--debug" in arguments)
    except (ValueError, TypeError, MissingExtraError) as error:
        return _refuse(error, str(error), code=2, debug="--debug" in arguments)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of stdout has gone: nobody is left to tell
        return 1
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        return _refuse(error, text, code=2, debug="--debug" in arguments)
    except ArithmeticError as error:
        return _refuse(error, f"a number given is too large or too small: {error}", code=2, debug="--debug" in arguments)
    except MemoryError as error:
        return _refuse(error, f"not enough memory: {error}" if str(error) else "not enough memory", code=2, debug="--debug" in arguments)
    except KeyboardInterrupt as error:
        return _refuse(error, "; ".join(["interrupted", *getattr(error, "__notes__", [])]), code=130, debug="--debug" in arguments)
    return 0


def _warn(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
) -> None:
    if issubclass(category, UserWarning):  # what was assumed; anything else is for developers
        print(f"calolife: {' '.join(str(message).split())}", file=sys.stderr)


def _refuse(error: BaseException, text: str, *, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    line = " ".join(text.split()).rstrip(".") or type(error).__name__
    print(f"calolife: {line[:1].lower() + line[1:] if line[1:2].islower() else line}", file=sys.stderr)
    return code
