"""Run directories: what was asked, what came out, and what it was made from."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calolife.errors import FileFormatError

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes

__all__ = [
    "Metric",
    "Run",
    "StoredRun",
    "json_number",
    "log",
    "new_run",
    "read_run",
    "write_json",
    "write_metrics",
    "write_plot",
    "write_table",
]

_RECORDS = ("config.json", "metrics.json", "provenance.json")
_HASHED_BYTES = 1 << 30  # chosen: a larger input is recorded by its files' names and sizes, not read again
_PACKAGES = ("calolife", "numpy", "scipy", "torch", "polars", "pyarrow", "matplotlib")


@dataclass(frozen=True)
class Metric:
    """One reported number.

    Parameters
    ----------
    value : float
    uncertainty : float
        Standard error; NaN where none is known.
    unit : str
        ``%``, ``s``, ``1/fb``; empty for a plain number.
    n : int
        Readings, crystals or events behind it.
    """

    value: float
    uncertainty: float
    unit: str
    n: int


@dataclass(frozen=True)
class Run:
    """A run being written.

    Parameters
    ----------
    path : Path
        Where to write now: ``<name>.partial``.
    final : Path
        What it is renamed to when all is done.
    is_resumed : bool
        An unfinished run of the same options was found here: checkpoints in it are worth taking up.
    """

    path: Path
    final: Path
    is_resumed: bool


@dataclass(frozen=True)
class StoredRun:
    """A finished run: its three records, as read, and its other files."""

    path: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Metric]
    provenance: Mapping[str, Any]
    files: tuple[str, ...]


@contextmanager
def new_run(
    path: Path, *, config: Mapping[str, Any], seed: int | None = None, inputs: Sequence[Path] = (), force: bool = False
) -> Iterator[Run]:
    """Write a run directory: to ``<name>.partial`` first, renamed when the block ends well.

    Parameters
    ----------
    path : Path
        Name of the run.
    config : mapping
        What repeats the run; JSON-able.
    seed : int, optional
    inputs : sequence of Path
        Files and directories the run reads; their hashes go to the provenance.
    force : bool
        Replace a run that is there.

    Yields
    ------
    Run

    Raises
    ------
    ValueError
        The run exists and `force` is not set; the name is taken by something that is no run; an unfinished run of
        other options is in the way.

    Notes
    -----
    A block that raises leaves ``<name>.partial`` behind if there is work in it (anything but records and log), so that
    the same call takes it up again; an empty one is removed. A killed process leaves it always.
    """
    final = Path(path)
    if final.exists() and not (final.is_dir() and all((final / name).is_file() for name in _RECORDS)):
        raise ValueError(f"{final} exists and is not a run directory; choose another --out")
    if final.exists() and not force:
        raise ValueError(f"{final} exists; choose another --out, or replace it with --force")
    partial = final.with_name(final.name + ".partial")
    asked = json.loads(json.dumps(dict(config)))
    is_resumed = partial.exists() and _json_or_none(partial / "config.json") == asked
    if partial.exists() and not is_resumed:
        if _has_work(partial) and not force:
            raise ValueError(f"{partial} is an unfinished run of other options; repeat those to go on, or drop it with --force")
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    run = Run(partial, final, is_resumed)
    _write_json(partial / "config.json", asked)
    log(run, f"{'resumed' if is_resumed else 'started'}: {' '.join(sys.argv)}")
    started = time.perf_counter()
    try:
        yield run
    except BaseException as error:
        log(run, f"stopped: {type(error).__name__}: {error}")
        if _has_work(partial):
            error.add_note(f"unfinished work is kept in {partial}: give the same command again to go on")
        else:
            shutil.rmtree(partial)
        raise
    if not (partial / "metrics.json").exists():
        write_metrics(run, {})
    _write_json(partial / "provenance.json", _provenance(seed=seed, inputs=inputs, wall_s=time.perf_counter() - started))
    log(run, "done")
    if final.exists():
        old = final.with_name(final.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
        os.rename(partial, final)
        shutil.rmtree(old)
    else:
        os.rename(partial, final)


def log(run: Run, text: str) -> None:
    """Add a line to the run's log."""
    with (run.path / "log.txt").open("a", encoding="utf-8") as file:
        file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n")


def write_metrics(run: Run, metrics: Mapping[str, Metric]) -> None:
    """Write `metrics.json`; a number that is not finite is stored as null."""
    plain = {
        name: {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(m).items()} for name, m in metrics.items()
    }
    _write_json(run.path / "metrics.json", plain)


def write_table(run: Run, name: str, table: pl.DataFrame) -> None:
    """Write a table as ``<name>.parquet`` and, for the eye, ``<name>.csv``."""
    table.write_parquet(run.path / f"{name}.parquet")
    table.write_csv(run.path / f"{name}.csv")


def json_number(value: float) -> float | None:
    """The number as JSON holds it: null where it is not finite.

    Examples
    --------
    >>> json_number(0.5), json_number(math.nan)
    (0.5, None)
    """
    return float(value) if math.isfinite(value) else None


def write_json(run: Run, name: str, value: Mapping[str, Any]) -> None:
    """Write ``<name>.json``; NaN is refused."""
    _write_json(run.path / f"{name}.json", dict(value))


def write_plot(run: Run, name: str, axes: Axes, numbers: pl.DataFrame) -> None:
    """Save a figure as ``plots/<name>.png`` and the numbers behind it as ``plots/<name>.csv``.

    Parameters
    ----------
    run : Run
    name : str
    axes : matplotlib Axes
        Any of the figure's.
    numbers : polars DataFrame
        One column per quantity, named with its unit.
    """
    from matplotlib.figure import Figure

    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    plots = run.path / "plots"
    plots.mkdir(exist_ok=True)
    figure.savefig(plots / f"{name}.png", dpi=150, bbox_inches="tight")
    numbers.write_csv(plots / f"{name}.csv")


def read_run(path: Path) -> StoredRun:
    """Read the records of a finished run.

    Raises
    ------
    FileFormatError
        Not a run directory, an unfinished one, or a record that cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        partial = path.with_name(path.name + ".partial")
        hint = (
            f"{partial} is unfinished: repeat its command to go on" if partial.is_dir() else "give the directory a command wrote with --out"
        )
        raise FileFormatError(f"no run at {path}; {hint}")
    records = []
    for name in _RECORDS:
        if not (path / name).is_file():
            raise FileFormatError(f"{path} is not a run directory: it has no {name}")
        stored = _json_or_none(path / name)
        if not isinstance(stored, dict):
            raise FileFormatError(f"{path / name} is not a JSON object; the run is damaged, make it again")
        records.append(stored)
    try:
        metrics = {
            name: Metric(_or_nan(m["value"]), _or_nan(m["uncertainty"]), str(m["unit"]), int(m["n"])) for name, m in records[1].items()
        }
    except (TypeError, KeyError, ValueError):
        raise FileFormatError(
            f"{path / 'metrics.json'}: a metric is value, uncertainty, unit and n; the run is damaged, make it again"
        ) from None
    files = tuple(sorted(str(f.relative_to(path)) for f in path.rglob("*") if f.is_file() and f.name not in _RECORDS))
    return StoredRun(path, records[0], metrics, records[2], files)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _has_work(partial: Path) -> bool:
    return any(f.is_file() and f.name not in (*_RECORDS, "log.txt") for f in partial.rglob("*"))


def _json_or_none(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_json(path: Path, value: Any) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _provenance(*, seed: int | None, inputs: Sequence[Path], wall_s: float) -> dict[str, Any]:
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "commit": _commit(),
        "argv": sys.argv,
        "seed": seed,
        "inputs": {str(p): _hash(Path(p)) for p in inputs},
        "platform": {"system": platform.platform(), "machine": platform.machine(), "cores": os.cpu_count()},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_s": round(wall_s, 3),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists() or not (source / "pyproject.toml").is_file():
        return None
    try:
        describe = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40"]
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _hash(path: Path) -> str | None:
    if path.is_file():
        with path.open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        return None
    files = sorted(f for f in path.rglob("*") if f.is_file())
    is_small = sum(f.stat().st_size for f in files) <= _HASHED_BYTES
    digest = hashlib.sha256()
    for f in files:
        digest.update(f"{f.relative_to(path).as_posix()}\0{f.stat().st_size}\0".encode())
        if is_small:
            with f.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return ("sha256:" if is_small else "sha256-of-names-and-sizes:") + digest.hexdigest()
