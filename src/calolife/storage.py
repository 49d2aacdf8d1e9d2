"""File formats: the Parquet dataset of transparency readings, and fitted models."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calolife.errors import FileFormatError
from calolife.transparency.history import Block, TransparencyHistory

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = [
    "Columns",
    "RingYear",
    "check_parts",
    "count_flags",
    "dataset_record",
    "describe",
    "is_dataset",
    "iter_rings",
    "load_model_state",
    "read_columns",
    "read_history",
    "ring_years",
    "save_model",
    "to_blocks",
    "write_dataset_record",
    "write_history",
    "write_ring_year",
]

_FORMAT, _VERSION = "calolife transparency dataset", 1
_RECORD = "dataset.json"
_KEY = b"calolife"
_MODEL_FORMAT = "calolife model"
_CRYSTALS_PER_GROUP = 32  # chosen: two crystals of a ring are found by decoding a tenth of it
UNITS = {
    "time": "UTC as released, microseconds since 1970",
    "transparency": "APD/PN, relative to the start of the detector's life",
    "lumi_ifb": "1/fb delivered between this reading and the crystal's next one; 0 after the last one of a year",
    "int_deliv_inv_ub": "1/ub delivered since the start of the year",
    "flag": "bits: 1 on the second state of a two-laser flip, 2 first reading after a step before beam, 4 came out of time order",
}


@dataclass(frozen=True, eq=False)
class Columns:
    """Readings of one ring and year as they are stored: by crystal, then by time.

    Parameters
    ----------
    xtal_id : int32 array, (reading,)
    iphi : int16 array, (reading,)
    time_us : int64 array, (reading,) [us]
    transparency : float array, (reading,)
    lumi_ifb : float array, (reading,) [1/fb]
    counter_inv_ub : float array, (reading,) [1/ub]
        Delivered since the start of the year.
    flag : uint8 array, (reading,)
    """

    xtal_id: NDArray[np.int32]
    iphi: NDArray[np.int16]
    time_us: NDArray[np.int64]
    transparency: NDArray[np.float64]
    lumi_ifb: NDArray[np.float64]
    counter_inv_ub: NDArray[np.float64]
    flag: NDArray[np.uint8]


@dataclass(frozen=True)
class RingYear:
    """One partition of a dataset: the readings of a ring in a year."""

    ieta: int
    year: int
    path: Path


def is_dataset(path: Path) -> bool:
    """Whether the directory is a dataset that `write_history` or an ingest made."""
    return (path / _RECORD).is_file()


def ring_years(path: Path) -> list[RingYear]:
    """Partitions of a dataset, by ring, then by year."""
    found = []
    for part in path.glob("ieta=*/year=*/part-0.parquet"):
        year, ieta = part.parent.name.removeprefix("year="), part.parent.parent.name.removeprefix("ieta=")
        if re.fullmatch(r"-?\d+", ieta) and re.fullmatch(r"\d+", year):
            found.append(RingYear(int(ieta), int(year), part))
    return sorted(found, key=lambda r: (r.ieta, r.year))


def check_parts(path: Path, record: Mapping[str, Any], *, years: Sequence[int] | None = None, ieta: Sequence[int] | None = None) -> None:
    """Check that the Parquet files of a dataset are there with the size they were written with.

    Parameters
    ----------
    path : Path
    record : mapping
        As `dataset_record` gives it.
    years, ieta : sequence of int, optional
        Which partitions to look at.

    Raises
    ------
    FileFormatError
        One that is missing or has another size.

    Notes
    -----
    Only sizes are compared: bytes changed in place show when they are read, if at all.
    """
    for p in record["partitions"]:
        if (years is not None and p["year"] not in years) or (ieta is not None and p["ieta"] not in ieta):
            continue
        part = _part_path(path, p["ieta"], year=p["year"])
        if not part.is_file():
            raise FileFormatError(f"{part} is missing; restore it, or remove the dataset and ingest the readings again")
        size = part.stat().st_size
        if size != p.get("size_bytes", size):  # datasets of earlier versions do not say
            raise FileFormatError(
                f"{part} is damaged ({size} bytes, written with {p['size_bytes']}); "
                "restore it, or remove the dataset and ingest the readings again"
            )


def _part_path(path: Path, ieta: int, *, year: int) -> Path:
    return path / f"ieta={ieta}" / f"year={year}" / "part-0.parquet"


def dataset_record(path: Path) -> dict[str, Any]:
    """What a dataset says about itself: sources, counts, units.

    Raises
    ------
    FileFormatError
        Not a dataset, a damaged or newer record, or an ingest that did not end.
    """
    record = _read_json(path / _RECORD)
    if record.get("format") != _FORMAT:
        raise FileFormatError(f"{path / _RECORD} is not the record of a transparency dataset; ingest the readings again")
    if record.get("format_version") != _VERSION:
        raise FileFormatError(
            f"{path} has dataset version {record.get('format_version')}; this calolife reads version {_VERSION}: update it"
        )
    return record


def write_dataset_record(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the record of a dataset in one step."""
    _write_json(path / _RECORD, {"format": _FORMAT, "format_version": _VERSION, **content, "units": UNITS})


def write_ring_year(path: Path, ieta: int, *, year: int, columns: Columns, about: Mapping[str, Any]) -> Path:
    """Write one partition in one step; an earlier one is replaced.

    Parameters
    ----------
    path : Path
        The dataset's directory.
    ieta, year : int
    columns : Columns
    about : mapping
        Provenance and counts, kept in the file's metadata as JSON.

    Returns
    -------
    Path
        The Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("xtal_id", pa.int32()), ("iphi", pa.int16()), ("time", pa.timestamp("us")), ("transparency", pa.float64()),
            ("lumi_ifb", pa.float64()), ("int_deliv_inv_ub", pa.float64()), ("flag", pa.uint8()),
        ],
        metadata={_KEY: json.dumps({"ieta": ieta, "year": year, "units": UNITS, **about}, sort_keys=True).encode()},
    )  # fmt: skip
    table = pa.table(
        [
            columns.xtal_id, columns.iphi, pa.array(columns.time_us).view(pa.timestamp("us")), columns.transparency,
            columns.lumi_ifb, columns.counter_inv_ub, columns.flag,
        ],
        schema=schema,
    )  # fmt: skip
    start = np.flatnonzero(np.r_[True, columns.xtal_id[1:] != columns.xtal_id[:-1]])
    edges = [*start[::_CRYSTALS_PER_GROUP].tolist(), columns.xtal_id.size]
    target = _part_path(path, ieta, year=year)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    repeated = ["xtal_id", "iphi", "time", "lumi_ifb", "int_deliv_inv_ub", "flag"]
    # split by byte, float64 readings of 8 digits shrink to half; crystals share the other columns' values
    options: dict[str, Any] = {"use_dictionary": repeated, "use_byte_stream_split": ["transparency"], "compression": "zstd"}
    with pq.ParquetWriter(partial, schema, compression_level=1, **options) as writer:
        for first, last in pairwise(edges):
            writer.write_table(table.slice(first, last - first), row_group_size=last - first)
    partial.replace(target)
    return target


def read_columns(part: Path) -> tuple[Columns, dict[str, Any]]:
    """One partition as stored, and what it says about itself.

    Raises
    ------
    FileFormatError
        A damaged file, or one that calolife did not write.
    """
    file = _open_part(part)
    table = file.read(use_threads=False)
    return _columns(table), _about(file, part)


def write_history(histories: TransparencyHistory | Iterable[TransparencyHistory], path: Path, *, provenance: Mapping[str, Any]) -> None:
    """Write a dataset.

    Parameters
    ----------
    histories : TransparencyHistory, or an iterable of them
        With several, each holds whole rings of whole years: one at a time is in memory.
    path : Path
        Directory to make; must not hold a dataset.
    provenance : mapping
        Where the readings come from; JSON-able.

    Raises
    ------
    FileExistsError
        There is a dataset already.
    ValueError
        A ring and year that came before.
    """
    path = Path(path)
    if is_dataset(path):
        raise FileExistsError(f"{path} holds a dataset already; give another directory or remove it")
    path.mkdir(parents=True, exist_ok=True)
    partitions: dict[tuple[int, int], dict[str, Any]] = {}
    for history in [histories] if isinstance(histories, TransparencyHistory) else histories:
        groups: dict[tuple[int, int], list[Block]] = {}
        for block in history.blocks:
            for ring in np.unique(block.ieta).tolist():
                rows = block.ieta == ring
                groups.setdefault((ring, block.year), []).append(block if rows.all() else block.crystals(rows))
        for (ieta, year), blocks in sorted(groups.items()):
            if (ieta, year) in partitions:
                raise ValueError(f"ring {ieta} of {year} comes twice; give all its crystals at once")
            columns = _from_blocks(blocks)
            counts = count_flags(columns)
            part = write_ring_year(path, ieta, year=year, columns=columns, about={**counts, "provenance": dict(provenance)})
            partitions[ieta, year] = {"ieta": ieta, "year": year, **counts, "size_bytes": part.stat().st_size}
    listed = [partitions[k] for k in sorted(partitions)]
    write_dataset_record(path, {"complete": True, "sources": [], "provenance": dict(provenance), "partitions": listed})


def count_flags(columns: Columns) -> dict[str, Any]:
    """Counts of a partition that its record and summary show."""
    from calolife.transparency.history import FLAG_LASER_FLIP, FLAG_PRE_BEAM_STEP, FLAG_REORDERED

    n_crystals = int(np.count_nonzero(np.diff(columns.xtal_id))) + (columns.xtal_id.size > 0)
    first_us, last_us = int(columns.time_us.min()), int(columns.time_us.max())
    return {
        "n_crystals": n_crystals,
        "n_readings": int(columns.xtal_id.size),
        "first_reading": str(np.datetime64(first_us, "us").astype("datetime64[s]")),
        "last_reading": str(np.datetime64(last_us, "us").astype("datetime64[s]")),
        "lumi_ifb": float(columns.lumi_ifb.sum() / n_crystals),
        "n_reordered": int(np.count_nonzero(columns.flag & FLAG_REORDERED)),
        "n_laser_flip": int(np.count_nonzero(columns.flag & FLAG_LASER_FLIP)),
        "n_pre_beam_step": int(np.count_nonzero(columns.flag & FLAG_PRE_BEAM_STEP)),
    }


def describe(path: str | Path) -> dict[str, Any]:
    """What a dataset, or a directory of the release's files, holds: by ring and year, and what was set aside.

    Raises
    ------
    FileFormatError
        As `read_history`.
    """
    root = Path(path)
    if is_dataset(root):
        record = _must_be_complete(root)
        check_parts(root, record)
        return {"path": str(root), "set_aside": {}, **record}
    groups: dict[tuple[int, int], list[Block]] = {}
    for block in read_history(root).blocks:
        groups.setdefault((int(block.ieta[0]), block.year), []).append(block)
    partitions = [{"ieta": e, "year": y, **count_flags(_from_blocks(b))} for (e, y), b in sorted(groups.items())]
    return {"path": str(root), "set_aside": {}, "partitions": partitions}


def read_history(
    path: str | Path | Sequence[str | Path],
    *,
    years: Iterable[int] | None = None,
    xtal_ids: Iterable[int] | None = None,
    ieta: Iterable[int] | None = None,
) -> TransparencyHistory:
    """Readings of a dataset, or straight from the release's files.

    Parameters
    ----------
    path : path, or sequence of paths
        A dataset; or CSV files, archives and directories of them, which are parsed and cleaned in memory as an
        ingest would (a warning says how many bad rows were left out).
    years, xtal_ids, ieta : iterable of int, optional
        What to read; only the partitions and row groups that hold it are touched.

    Returns
    -------
    TransparencyHistory
        Crystals of a ring with the same times and luminosities share a block.

    Raises
    ------
    FileFormatError
        Nothing readable there, or damaged.
    ValueError
        A year, crystal or ring that the data does not have.
    """
    wanted_years = None if years is None else sorted({int(y) for y in years})
    wanted_ids = None if xtal_ids is None else np.unique(np.fromiter((int(x) for x in xtal_ids), np.int64))
    wanted_rings = None if ieta is None else sorted({int(e) for e in ieta})
    several = not isinstance(path, (str, Path))
    if several or not is_dataset(Path(path)):  # type: ignore[arg-type]
        from calolife.transparency.ingest import read_files

        files = [Path(p) for p in path] if several else [Path(path)]  # type: ignore[union-attr, arg-type]
        return read_files(files).select(years=wanted_years, xtal_ids=wanted_ids, ieta=wanted_rings)
    root = Path(path)  # type: ignore[arg-type]
    check_parts(root, _must_be_complete(root), years=wanted_years, ieta=wanted_rings)
    parts = ring_years(root)
    have_years, have_rings = sorted({p.year for p in parts}), sorted({p.ieta for p in parts})
    _must_have(root, have_years, wanted_years or [], what="year")
    _must_have(root, have_rings, wanted_rings or [], what="ring")
    blocks: list[Block] = []
    for part in parts:
        if (wanted_years is None or part.year in wanted_years) and (wanted_rings is None or part.ieta in wanted_rings):
            blocks += _part_blocks(part, wanted_ids)
    if wanted_ids is not None and (missing := set(wanted_ids.tolist()) - {int(x) for b in blocks for x in b.xtal_id}):
        span = ", ".join(map(str, have_years if wanted_years is None else wanted_years))
        raise ValueError(f"{root} has no readings of crystal {min(missing)} in {span}; 'calolife transparency info {root}' lists its rings")
    if not blocks:
        raise ValueError(f"{root} holds no readings of that selection; 'calolife transparency info {root}' lists what it has")
    return TransparencyHistory(tuple(blocks))


def iter_rings(path: str | Path, *, years: Iterable[int] | None = None, ieta: Iterable[int] | None = None) -> Iterator[TransparencyHistory]:
    """The rings of a dataset one after the other, each with all its years: only one is in memory.

    Raises
    ------
    FileFormatError, ValueError
        As `read_history`.
    """
    root = Path(path)
    if not is_dataset(root):
        history = read_history(root, years=years, ieta=ieta)
        for ring in sorted({int(e) for b in history.blocks for e in b.ieta}):
            yield history.select(ieta=[ring])
        return
    asked_years = None if years is None else [int(y) for y in years]
    asked_rings = None if ieta is None else [int(e) for e in ieta]
    check_parts(root, _must_be_complete(root), years=asked_years, ieta=asked_rings)
    parts = ring_years(root)
    wanted_years = {p.year for p in parts} if asked_years is None else set(asked_years)
    wanted = sorted({p.ieta for p in parts} if asked_rings is None else set(asked_rings))
    for have, asked, what in (({p.year for p in parts}, wanted_years, "year"), ({p.ieta for p in parts}, set(wanted), "ring")):
        _must_have(root, sorted(have), asked, what=what)
    for ring in wanted:
        blocks = [b for p in parts if p.ieta == ring and p.year in wanted_years for b in _part_blocks(p, None)]
        if blocks:
            yield TransparencyHistory(tuple(blocks))


def _must_have(root: Path, have: Sequence[int], asked: Iterable[int], *, what: str) -> None:
    if lost := set(asked) - set(have):
        shown = ", ".join(map(str, have[:6])) + (f" ... {have[-1]}" if len(have) > 6 else "")
        raise ValueError(f"{root} has no readings of {what} {min(lost)}; it has {what}s {shown}")


def to_blocks(columns: Columns, *, year: int, ieta: int) -> list[Block]:
    """Blocks of one ring and year: crystals with the same times and luminosities share one."""
    start = np.flatnonzero(np.r_[True, columns.xtal_id[1:] != columns.xtal_id[:-1]])
    count = np.diff(np.r_[start, columns.xtal_id.size])
    # NumPy keeps microseconds as integers: exact seconds for the release's whole-second times
    time_s = columns.time_us / 1e6
    grids: dict[tuple[int, int], list[list[int]]] = {}
    for k, (a, n) in enumerate(zip(start.tolist(), count.tolist(), strict=True)):
        # a cheap key first, the whole grid after
        alike = grids.setdefault((n, int(columns.time_us[a + n // 2])), [])
        for grid in alike:
            b = int(start[grid[0]])
            if (columns.time_us[a : a + n] == columns.time_us[b : b + n]).all() and (
                columns.lumi_ifb[a : a + n] == columns.lumi_ifb[b : b + n]
            ).all():
                grid.append(k)
                break
        else:
            alike.append([k])
    blocks = []
    for grid in (g for alike in grids.values() for g in alike):
        first, n = int(start[grid[0]]), int(count[grid[0]])
        if grid[-1] - grid[0] + 1 == len(grid):  # neighbours in the file: a view is enough
            rows = slice(first, first + n * len(grid))
            transparency, flag = columns.transparency[rows].reshape(-1, n), columns.flag[rows].reshape(-1, n)
        else:
            index = start[grid][:, None] + np.arange(n)
            transparency, flag = columns.transparency[index], columns.flag[index]
        at = start[grid]
        blocks.append(
            Block(
                year,
                columns.xtal_id[at].astype(np.int64),
                np.full(at.size, ieta),
                columns.iphi[at].astype(np.int64),
                time_s[first : first + n].copy(),
                columns.lumi_ifb[first : first + n].copy(),
                transparency,
                flag,
            )
        )
    return blocks


def _from_blocks(blocks: Sequence[Block]) -> Columns:
    where = sorted((int(x), b, i) for b, block in enumerate(blocks) for i, x in enumerate(block.xtal_id))
    picked = [(blocks[b], i) for _, b, i in where]
    n = [b.n_readings for b, _ in picked]
    if any(np.isnan(b.transparency).any() for b in blocks):
        raise ValueError("transparency holds NaN, a reading still to come; write the part of the history that was read")
    counters = {id(b): np.r_[0.0, np.cumsum(b.lumi_ifb)[:-1]] * 1e9 for b in blocks}
    return Columns(
        np.repeat(np.array([x for x, _, _ in where], dtype=np.int32), n),
        np.repeat(np.array([b.iphi[i] for b, i in picked], dtype=np.int16), n),
        np.concatenate([np.rint(b.time_s * 1e6).astype(np.int64) for b, _ in picked]),
        np.concatenate([b.transparency[i] for b, i in picked]),
        np.concatenate([b.lumi_ifb for b, _ in picked]),
        np.concatenate([counters[id(b)] for b, _ in picked]),
        np.concatenate([b.flag[i] for b, i in picked if b.flag is not None]),
    )


def _open_part(part: Path) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(part, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        first = str(error).splitlines()[0]
        raise FileFormatError(f"{part} is damaged ({first}); remove the dataset and ingest the readings again") from None


def _about(file: pq.ParquetFile, part: Path) -> dict[str, Any]:
    stored = (file.schema_arrow.metadata or {}).get(_KEY)
    if stored is None:
        raise FileFormatError(f"{part} was not written by calolife; ingest the readings again")
    about: dict[str, Any] = json.loads(stored)
    return about


def _columns(table: pa.Table) -> Columns:
    import pyarrow as pa

    def column(name: str) -> NDArray[Any]:
        if name not in table.column_names:  # the counter, which blocks do not carry
            return np.broadcast_to(np.float64(np.nan), table.num_rows)
        values = table.column(name)
        if name == "time":
            values = values.cast(pa.int64())
        array: NDArray[Any] = values.to_numpy()
        return array

    return Columns(
        column("xtal_id"), column("iphi"), column("time"), column("transparency"),
        column("lumi_ifb"), column("int_deliv_inv_ub"), column("flag"),
    )  # fmt: skip


def _part_blocks(part: RingYear, wanted_ids: NDArray[np.int64] | None) -> list[Block]:
    file = _open_part(part.path)
    _about(file, part.path)
    groups = list(range(file.num_row_groups))
    if wanted_ids is not None:
        spans = [file.metadata.row_group(g).column(0).statistics for g in groups]
        groups = [g for g, s in zip(groups, spans, strict=True) if ((wanted_ids >= s.min) & (wanted_ids <= s.max)).any()]
        if not groups:
            return []
    needed = [name for name in file.schema_arrow.names if name != "int_deliv_inv_ub"]
    table = file.read_row_groups(groups, columns=needed)
    if wanted_ids is not None:
        keep = np.isin(table.column("xtal_id").to_numpy(), wanted_ids)
        if not keep.any():
            return []
        table = table.filter(keep) if not keep.all() else table
    return to_blocks(_columns(table), year=part.year, ieta=part.ieta)


def _must_be_complete(path: Path) -> dict[str, Any]:
    record = dataset_record(path)
    if not record.get("complete"):
        raise FileFormatError(
            f"the ingest into {path} did not end; run the same 'calolife transparency ingest' again, it goes on from there"
        )
    return record


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileFormatError(f"{path} is missing; give a directory that calolife wrote") from None
    except ValueError:
        raise FileFormatError(f"{path} is damaged: not JSON; remove the directory and make it again") from None
    if not isinstance(content, dict):
        raise FileFormatError(f"{path} is damaged: not a JSON object; remove the directory and make it again")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, path)


def save_model(model: Any, directory: str | Path) -> None:
    """Write a fitted model as model.safetensors and model.json.

    Parameters
    ----------
    model
        Has ``name`` and ``state() -> (arrays, meta)``: NumPy arrays by name, and what JSON can hold.
    directory : path
        Made if missing; an earlier model there is replaced.
    """
    from safetensors.numpy import save

    arrays, meta = model.state()
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    weights = save({k: np.asarray(v, order="C") for k, v in sorted(arrays.items())})
    partial = folder / "model.safetensors.partial"
    partial.write_bytes(weights)
    os.replace(partial, folder / "model.safetensors")
    digest = hashlib.sha256(weights).hexdigest()
    _write_json(folder / "model.json", {"format": _MODEL_FORMAT, "name": model.name, "meta": meta, "sha256": digest})


def load_model_state(directory: str | Path) -> tuple[str, dict[str, NDArray[Any]], dict[str, Any]]:
    """A stored model's name, arrays and metadata.

    Raises
    ------
    FileFormatError
        No model there, or one whose two files do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = Path(directory)
    record = _read_json(folder / "model.json")
    if record.get("format") != _MODEL_FORMAT or not isinstance(record.get("meta"), dict):
        raise FileFormatError(f"{folder / 'model.json'} is not a calolife model; give the run directory of a 'calolife ... train'")
    try:
        weights = (folder / "model.safetensors").read_bytes()
        arrays = load(weights)
    except FileNotFoundError:
        raise FileFormatError(f"{folder / 'model.safetensors'} is missing; train the model again") from None
    except (SafetensorError, ValueError) as error:
        raise FileFormatError(f"{folder / 'model.safetensors'} is damaged ({error}); train the model again") from None
    if hashlib.sha256(weights).hexdigest() != record.get("sha256"):
        raise FileFormatError(f"{folder}: model.safetensors is not the one that model.json describes; train the model again")
    return str(record["name"]), dict(arrays), dict(record["meta"])
