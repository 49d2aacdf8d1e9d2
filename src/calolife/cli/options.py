"""Options that mean the same in every command, and what commands share on screen."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "Config",
    "Data",
    "Debug",
    "Device",
    "Force",
    "Json",
    "Out",
    "Quiet",
    "Report",
    "Seed",
    "Workers",
    "as_typed",
    "is_typed",
    "must_be_apart",
    "parse_duration",
    "parse_numbers",
    "parse_time",
    "parse_years",
    "pick_device",
    "print_json",
    "print_table",
    "progress_bar",
    "say",
    "used_options",
]

Report = Callable[[str, float, float], None]
"""Called as ``report(what, done, total)`` while a long step runs."""

_NOT_REPEATED = {"config", "debug", "quiet", "json", "as_json", "force", "out"}


def _take_config(ctx: typer.Context, value: Path | None) -> Path | None:
    if value is None or ctx.resilient_parsing:
        return value
    path = value / "config.json" if value.is_dir() else value
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--config {value}: {error.strerror}; give a run directory or its config.json") from None
    except ValueError:
        raise ValueError(f"--config {value}: not JSON; give a run directory or its config.json") from None
    if not isinstance(stored, dict) or not isinstance(stored.get("options"), dict):
        raise ValueError(f"--config {value}: no options in it; give the config.json of a run")
    words = ctx.command_path.split(" ", 1)[-1]
    if stored.get("command") != words:
        raise ValueError(f"--config {value} belongs to 'calolife {stored.get('command')}', not to 'calolife {words}'")
    known = {p.name for p in ctx.command.params}
    if unknown := sorted(set(stored["options"]) - known):
        raise ValueError(f"--config {value}: 'calolife {words}' has no option {unknown[0]}; allowed: {', '.join(sorted(known))}")
    ctx.default_map = dict(stored["options"])
    return value


Data = Annotated[Path, typer.Argument(help="Dataset directory, or a file or directory of readings.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", "-o", help="Directory to write.", show_default=False)]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random number.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", callback=_take_config, is_eager=True, show_default=False,
        help="Take the options of an earlier run; those given here win.",
    ),
]  # fmt: skip
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes to use; 0: one per core. Results do not depend on it.")]
Device = Annotated[str, typer.Option("--device", help="Device of the networks: cpu, cuda, or auto.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks on stderr.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier run of the same name.")]


def parse_numbers(text: str, *, what: str) -> tuple[int, ...]:
    """Numbers of a list such as ``54000,54001`` or a range such as ``2016-2018``; both may be mixed.

    Parameters
    ----------
    text : str
    what : str
        Name of the option, for the message.

    Returns
    -------
    tuple of int
        Sorted, each once.

    Raises
    ------
    ValueError
        Anything else, or a range that runs backwards.

    Examples
    --------
    >>> parse_numbers("3,5-7,5", what="--crystals")
    (3, 5, 6, 7)
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d+)\s*(?:-\s*(-?\d+))?\s*", part)
        if match is None:
            raise ValueError(f"{what} {text!r}: {part.strip()!r} is not a number; write 1,2,3 or 1-3")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"{what} {text!r}: {part.strip()} runs backwards; write {last}-{first}")
        if last - first >= 1_000_000:
            raise ValueError(f"{what} {text!r}: more than a million numbers; leave the option out to take all")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def parse_years(text: str, *, what: str) -> tuple[int, ...]:
    """Years of a list or range, as `parse_numbers`.

    Raises
    ------
    ValueError
        Not a list of years between 2008 and 2100.
    """
    years = parse_numbers(text, what=what)
    if wrong := [y for y in years if not 2008 <= y <= 2100]:  # chosen: the LHC's first beam, and far enough
        raise ValueError(f"{what} {text!r}: {wrong[0]} is not a year of data taking; write 2016,2018 or 2016-2018")
    return years


def parse_duration(text: str, *, what: str) -> float:
    """Seconds in a duration such as ``12h``, ``30d`` or ``2w``.

    Raises
    ------
    ValueError
        No unit, an unknown one, or nothing longer than zero.

    Examples
    --------
    >>> parse_duration("1.5d", what="--horizon")
    129600.0
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([hdw])\s*", text)
    if match is None or float(match[1]) == 0:
        raise ValueError(f"{what} {text!r} is not a duration; write hours, days or weeks: 12h, 30d, 2w")
    return float(match[1]) * {"h": 3600.0, "d": 86400.0, "w": 604800.0}[match[2]]


def parse_time(text: str, *, what: str) -> float:
    """Seconds since 1970 of a time in ISO 8601; UTC unless it names an offset.

    Raises
    ------
    ValueError
        Not a time.

    Examples
    --------
    >>> parse_time("1970-01-02", what="--from")
    86400.0
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{what} {text!r} is not a time; write it as 2018-06-01T12:00:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def pick_device(name: str) -> str:
    """The PyTorch device of ``--device``: ``auto`` is a GPU where there is one.

    Raises
    ------
    ValueError
        Another name, or a GPU that is not there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device {name!r} is not one of auto, cpu, cuda")
    if name == "cpu":
        return name
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if name == "cuda":
        raise ValueError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    return "cpu"


def must_be_apart(out: Path, inputs: Sequence[Path]) -> None:
    """Refuse a run inside its input, which it would change, and one around it, which would replace it.

    Raises
    ------
    ValueError
        One of both.
    """
    # Path.resolve raises RuntimeError on links that go round in a circle; reading says so better
    target = Path(os.path.realpath(out))
    for path in (Path(os.path.realpath(p)) for p in inputs):
        if path.is_dir() and target.is_relative_to(path):
            raise ValueError(f"--out {out} lies inside the input {path}; choose a directory beside it")
        if path.is_relative_to(target):
            raise ValueError(f"--out {out} holds the input {path}; choose another directory")


@contextmanager
def as_typed(names: Mapping[str, str], *, of: str = "") -> Iterator[None]:
    """Errors from within name what was typed: an option where a function names its argument.

    Parameters
    ----------
    names : mapping of str to str
        What functions say, and what is said instead; whole words only.
    of : str
        Option whose value all of them are about, put in front.

    Examples
    --------
    >>> with as_typed({"energy_gev": "--energy"}):
    ...     raise ValueError("energy_gev = 0 GeV; it must be > 0")
    Traceback (most recent call last):
    ValueError: --energy = 0 GeV; it must be > 0
    """
    try:
        yield
    except ValueError as error:
        text = str(error)
        if names:
            longest_first = sorted(names, key=len, reverse=True)
            words = rf"(?<![\w-])(?:{'|'.join(re.escape(name) for name in longest_first)})(?![\w-])"
            text = re.sub(words, lambda found: names[found[0]], text)
        raise ValueError(f"{of}: {text}" if of else text) from error


def is_typed(ctx: typer.Context, name: str) -> bool:
    """Whether the option stands on the command line; one of `--config` or a default does not."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def used_options(ctx: typer.Context) -> dict[str, Any]:
    """The command and every option in use, as `config.json` holds them; paths are made absolute.

    Raises
    ------
    ValueError
        A number that is not finite: JSON has none.
    """
    options = {}
    for name, value in sorted(ctx.params.items()):
        if name in _NOT_REPEATED or value is None:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            option = next(p.opts[0] for p in ctx.command.params if p.name == name)
            raise ValueError(f"{option} {value:g} must be a finite number; give one, or leave it out")
        options[name] = _plain(value)
    return {"command": ctx.command_path.split(" ", 1)[-1], "options": options}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.resolve())
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON document on stdout; NaN becomes null."""
    print(json.dumps(_finite(value), indent=1))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not (value == value and abs(value) != float("inf")):
        return None
    return value


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A table on stdout: the first column left, the rest right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    # a table in a file or a pipe must not be folded to the 80 columns assumed there
    # no markup: a unit such as [s] is text
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, markup=False).print(table)


def say(text: str, *, quiet: bool) -> None:
    """One remark on stderr."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def _slow_lines(*, rate: bool) -> Report:
    """For a log file: a line every 10 s."""
    told = begun = time.monotonic()
    at_start: dict[str, float] = {}

    def report(what: str, done: float, total: float) -> None:
        nonlocal told
        at_start.setdefault(what, done)
        if time.monotonic() - told > 10:
            told = time.monotonic()
            text = f"{what}: {done:g}/{total:g}" if total > 1 else what
            per_s = (done - at_start[what]) / (told - begun)
            if rate and per_s > 0:
                text += f", {per_s:.3g}/s, {(total - done) / per_s:.0f} s left"
            print(text, file=sys.stderr, flush=True)

    return report


@contextmanager
def progress_bar(*, quiet: bool, rate: bool = False) -> Iterator[Report]:
    """A progress bar on stderr, with steps per second if `rate`; gives the function to call with (what, done, total)."""
    if quiet:
        yield lambda what, done, total: None
        return
    if not sys.stderr.isatty():
        yield _slow_lines(rate=rate)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.3g}/s" if task.speed else "")

    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:g}/{task.total:g}"), TimeRemainingColumn()]
    with Progress(*columns[:3], *([Rate()] if rate else []), columns[3], console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def report(what: str, done: float, total: float) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield report
