"""Signal fractions on disk: one Parquet file, the same as CSV beside it, and the truth of aged showers in either."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calolife.ageing.coefficients import STATUSES, Ageing
from calolife.errors import FileFormatError

if TYPE_CHECKING:
    import polars as pl

__all__ = ["AGEING_FILE", "TRUTH_FILE", "read_ageing", "read_truth", "write_ageing"]

AGEING_FILE = "ageing.parquet"
"""Name of an estimate in a run directory."""

TRUTH_FILE = "truth/truth.parquet"
"""Name of the truth in a run of aged showers: in a folder of its own, which no estimator reads."""

_FORMAT, _VERSION = "calolife ageing", 1
_KEY = "calolife"
_NUMBERS = ("signal_fraction", "coefficient", "uncertainty", "own_fraction", "own_uncertainty")
_WANTED = "give a run of 'calolife ageing estimate', or its ageing.parquet"


def write_ageing(path: str | Path, ageing: Ageing) -> None:
    """Write signal fractions as Parquet and, for the eye, as CSV of the same name beside it.

    Parameters
    ----------
    path : path
        Ends in ``.parquet``. Files there are replaced once the new ones are whole.
    ageing : Ageing

    Raises
    ------
    ValueError
        A path with another suffix.

    Notes
    -----
    One row per cell: cell, signal_fraction, coefficient (1 / signal_fraction), uncertainty, status, own_fraction,
    own_uncertainty. Label and detector are in the metadata of the Parquet file. No date: the same ageing gives the same bytes.
    """
    import polars as pl

    target = Path(path)
    if target.suffix != ".parquet":
        raise ValueError(f"{target} must end in .parquet; its CSV is written beside it")
    table = pl.DataFrame(
        {
            "cell": ageing.cell, "signal_fraction": ageing.signal_fraction, "coefficient": ageing.coefficient,
            "uncertainty": ageing.uncertainty, "status": pl.Series(ageing.status.tolist(), dtype=pl.String),
            "own_fraction": ageing.own_fraction, "own_uncertainty": ageing.own_uncertainty,
        }
    )  # fmt: skip
    about = {"format": _FORMAT, "version": _VERSION, "label": ageing.label, "detector_digest": ageing.detector_digest}
    beside = target.with_name(target.name + ".partial")
    table.write_parquet(beside, metadata={_KEY: json.dumps(about, sort_keys=True)})
    os.replace(beside, target)
    table.write_csv(beside)
    os.replace(beside, target.with_suffix(".csv"))


def read_ageing(path: str | Path) -> Ageing:
    """Signal fractions that `write_ageing` wrote.

    Parameters
    ----------
    path : path
        The Parquet file, or a run directory with ``ageing.parquet`` in it.

    Returns
    -------
    Ageing

    Raises
    ------
    FileFormatError
        Not there, of another program, or damaged.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_ageing(f"{folder}/ageing.parquet", Ageing([3, 7], [0.9, 0.8], [0.01, 0.02], label="two cells"))
    ...     read_ageing(folder)
    Ageing(2 cells, mean signal fraction 0.85, two cells)
    """
    found = Path(path)
    if found.is_dir():
        if not (found / AGEING_FILE).is_file():
            is_truth = (found / TRUTH_FILE).is_file()
            what = f"it is a run of aged showers, whose truth is {found / TRUTH_FILE}" if is_truth else _WANTED
            raise FileFormatError(f"{found} has no {AGEING_FILE}; {what}")
        found = found / AGEING_FILE
    if not found.is_file():
        hint = next((p for p in (found.with_name(found.name + ".partial"), *found.parents) if p.name.endswith(".partial")), None)
        what = f"{hint} is unfinished: repeat its command to go on" if hint is not None and hint.exists() else _WANTED
        raise FileFormatError(f"no ageing at {found}; {what}")
    table, about = _parquet(found)
    if about is None or about.get("format") != _FORMAT:
        raise FileFormatError(f"{found} is Parquet, but no ageing that calolife wrote; {_WANTED}")
    if about.get("version") != _VERSION:
        raise FileFormatError(f"{found} has version {about.get('version')} of the format, this calolife reads {_VERSION}; update calolife")
    if missing := [name for name in ("cell", *_NUMBERS, "status") if name not in table.columns]:
        raise FileFormatError(f"{found} is damaged: column {missing[0]} is missing; make it again")
    return _ageing(table, found, label=str(about.get("label", "")), detector_digest=str(about.get("detector_digest", "")))


def read_truth(path: str | Path) -> Ageing:
    """True signal fractions, for scores alone.

    Parameters
    ----------
    path : path
        Parquet, or CSV (any other suffix), with at least the columns cell and signal_fraction, in any order; or a run of
        aged showers with ``truth/truth.parquet``.

    Returns
    -------
    Ageing
        With the uncertainties and the detector, if the file tells them.

    Raises
    ------
    FileFormatError
        Not there, not a table, a column that is missing or holds no numbers, no rows, a cell twice or below 0, a signal
        fraction that is missing, not finite or not > 0.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(f"{folder}/truth.csv").write_text("cell,signal_fraction\\n7,0.8\\n3,0.9\\n")
    ...     read_truth(f"{folder}/truth.csv").cell.tolist()
    [3, 7]
    """
    found = Path(path)
    if found.is_dir():
        if (found / TRUTH_FILE).is_file():
            found = found / TRUTH_FILE
        elif (found / AGEING_FILE).is_file():
            found = found / AGEING_FILE
        else:
            raise FileFormatError(f"{found} has no {TRUTH_FILE}; give a run of 'calolife showers age', or a table of cells")
    if not found.is_file():
        raise FileFormatError(f"no truth at {found}; give a table with the columns cell and signal_fraction (.parquet or .csv)")
    table, about = _parquet(found) if found.suffix == ".parquet" else (_csv(found), None)
    for name in ("cell", "signal_fraction"):
        if name not in table.columns:
            has = ", ".join(table.columns[:6]) or "none"
            raise FileFormatError(f"{found} has no column {name}; its columns are {has}: cell and signal_fraction are needed")
    if not table.height:
        raise FileFormatError(f"{found} lists no cell; one row per cell is needed")
    ours = about or {}
    return _ageing(table, found, label=str(ours.get("label", found.name)), detector_digest=str(ours.get("detector_digest", "")))


def _parquet(path: Path) -> tuple[pl.DataFrame, dict[str, Any] | None]:
    import polars as pl

    try:
        table = pl.read_parquet(path, memory_map=False, glob=False)
        stored = pl.read_parquet_metadata(path).get(_KEY)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise FileFormatError(f"{path} is not Parquet, or damaged; make it or get it again") from error
    try:
        about = None if stored is None else json.loads(stored)
    except ValueError:
        about = None
    return table, about if isinstance(about, dict) else None


def _csv(path: Path) -> pl.DataFrame:
    import polars as pl

    try:
        return pl.read_csv(path, infer_schema_length=None, glob=False)
    except pl.exceptions.NoDataError:
        raise FileFormatError(f"{path} is empty; one row per cell with cell,signal_fraction is needed") from None
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} is no table of comma-separated values; its first line must be cell,signal_fraction") from error


def _ageing(table: pl.DataFrame, path: Path, *, label: str, detector_digest: str) -> Ageing:
    cell = _whole(_numbers(table, "cell", path), path)
    fraction = _numbers(table, "signal_fraction", path)
    if (wrong := ~np.isfinite(fraction)).any():
        at = int(np.flatnonzero(wrong)[0])
        raise FileFormatError(f"{path}: signal_fraction of cell {cell[at]} is {fraction[at]:g} or missing; it must be finite and > 0")
    if (wrong := fraction <= 0).any():
        at = int(np.flatnonzero(wrong)[0])
        raise FileFormatError(f"{path}: signal_fraction of cell {cell[at]} is {fraction[at]:g}; it must be > 0")
    order = np.argsort(cell, kind="stable")
    if (twice := np.flatnonzero(np.diff(cell[order]) == 0)).size:
        raise FileFormatError(f"{path} lists cell {cell[order][twice[0]]} twice; one row per cell is needed")
    given = {
        name: _numbers(table, name, path)[order] for name in ("uncertainty", "own_fraction", "own_uncertainty") if name in table.columns
    }
    status: NDArray[np.str_] = np.full(cell.size, STATUSES[0])
    if "status" in table.columns:
        status = np.array([str(s) for s in table["status"].to_list()], dtype=np.str_)[order]
        if (wrong := ~np.isin(status, STATUSES)).any():
            raise FileFormatError(f"{path}: status {str(status[wrong][0])!r} is not one of {', '.join(STATUSES)}")
    try:
        return Ageing(cell[order], fraction[order], status=status, label=label, detector_digest=detector_digest, **given)
    except ValueError as error:
        raise FileFormatError(f"{path}: {error}") from error


def _numbers(table: pl.DataFrame, name: str, path: Path) -> NDArray[np.float64]:
    column = table[name]
    if not column.dtype.is_numeric():
        text = next((str(v) for v in column.to_list() if v is not None), "nothing")
        raise FileFormatError(f"{path}: column {name} holds {text[:40]!r}; it must hold numbers")
    return column.cast(float).fill_null(float("nan")).to_numpy().astype(np.float64)


def _whole(values: NDArray[np.float64], path: Path) -> NDArray[np.int64]:
    if (wrong := ~(np.isfinite(values) & (values >= 0) & (values < 2**31) & (values == np.round(values)))).any():
        row = int(np.flatnonzero(wrong)[0])
        raise FileFormatError(f"{path}: cell of row {row + 1} is {values[row]:g}; cell numbers are whole and >= 0")
    return values.astype(np.int64)
