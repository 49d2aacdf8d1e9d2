"""From files of readings to a clean Parquet dataset: streaming, resumable, nothing dropped without a word."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from calolife.errors import FileFormatError
from calolife.storage import (
    Columns,
    check_parts,
    count_flags,
    dataset_record,
    is_dataset,
    read_columns,
    ring_years,
    to_blocks,
    write_dataset_record,
    write_ring_year,
)
from calolife.transparency.cleaning import InOrder, put_in_order
from calolife.transparency.history import Block, TransparencyHistory
from calolife.transparency.release import (
    TAR_ENDINGS,
    Found,
    Rings,
    find_files,
    known_rings,
    lumi_mismatches,
    members,
    open_csv,
    parse_rows,
    read_metadata,
    read_through,
    row_batches,
    short_list,
    told,
    with_metadata,
    year_in_name,
)

if TYPE_CHECKING:
    import polars as pl

__all__ = ["IngestSummary", "ingest", "read_files"]

Report = Callable[[str, float, float], None]

_WORK = ".ingest"
_QUARANTINE = "quarantine.csv"
_QUARANTINE_HEADER = b"file,row,reason,xtal_id,laser_datetime,calibration,int_deliv_inv_ub\n"
_GROUP_BYTES = 4 << 30  # chosen: disk that waits for its ring to be put in order; a ring's three years take 0.25 GB
_STAGED = np.dtype(
    [("row", "<i8"), ("time_us", "<i8"), ("transparency", "<f8"), ("counter", "<f8"), ("xtal_id", "<i4"), ("file", "<i2"), ("iphi", "<i2")]
)


@dataclass(frozen=True)
class IngestSummary:
    """What an ingest did, and what the dataset now holds.

    Parameters
    ----------
    path : Path
        The dataset.
    n_sources, n_new_sources : int
        Files in the dataset; those that this call added.
    n_rows : int
        Rows in all files.
    n_readings, n_crystal_years : int
    years, ieta : tuple of int
    set_aside : dict
        Rows in the quarantine file by reason.
    n_reordered, n_laser_flip, n_pre_beam_step : int
        Readings that carry the flag.
    notes : tuple of str
        What was assumed or skipped in this call.
    """

    path: Path
    n_sources: int
    n_new_sources: int
    n_rows: int
    n_readings: int
    n_crystal_years: int
    years: tuple[int, ...]
    ieta: tuple[int, ...]
    set_aside: dict[str, int]
    n_reordered: int
    n_laser_flip: int
    n_pre_beam_step: int
    notes: tuple[str, ...]

    @property
    def quarantine(self) -> Path:
        return self.path / _QUARANTINE


@dataclass
class _Span:
    """Rows of one calendar year of the luminosity counter: how many, and the counter at both ends."""

    n: int = 0
    first_us: int = 2**62
    first_counter: float = 0.0
    last_us: int = -(2**62)
    last_counter: float = 0.0


@dataclass
class _Parsed:
    """What is known of a file once it is read to its end."""

    files: list[str] = field(default_factory=list)
    spans: dict[int, dict[int, _Span]] = field(default_factory=dict)
    n_rows: int = 0
    set_aside: Counter[str] = field(default_factory=Counter)
    n_mismatched: int = 0
    notes: list[str] = field(default_factory=list)


T = TypeVar("T")
Take = Callable[[int, int, NDArray[Any]], None]
Reject = Callable[[str, "pl.DataFrame"], None]


def ingest(paths: Iterable[str | Path], out: str | Path, *, progress: Report | None = None) -> IngestSummary:
    """Read files of the public release into a dataset.

    Parameters
    ----------
    paths : iterable of path
        Skimmed CSVs, ring CSVs (also gzipped), tar archives of them, metadata JSON, and directories of all these.
    out : path
        Dataset to make, or to add to.
    progress : callable, optional
        Called as ``progress(what, done, total)`` in MB.

    Returns
    -------
    IngestSummary

    Raises
    ------
    FileFormatError
        A file that is not what it should be. A dataset that was there stays as it was, and a new one is removed,
        unless whole groups of files were taken in before: these stay, and a call with the mended file goes on.

    Notes
    -----
    Works through one file at a time with bounded memory: rows are staged by ring and year, then each ring and year
    is put in order. A file is known by its SHA-256, so a second call does nothing, and a call after a kill goes on
    where it stopped and leaves the same bytes. A year is the release's label: the one in the file's or archive's
    name, else the calendar year that the luminosity counter started in.

    Calibrations outside (0.5, inf), unparsable times, luminosities below zero or not a number, a time that a
    crystal was already read at (``duplicate`` with the same values, ``conflict`` with others), and rows whose counter
    steps back go to ``quarantine.csv``. The values read first stay: corrected files need a new dataset.
    """
    out = Path(out)
    report = progress or (lambda what, done, total: None)
    found = find_files([Path(p) for p in paths], needs_readings=not is_dataset(out))
    if out.exists() and not out.is_dir():
        raise FileFormatError(f"{out} is a file; give a directory to write the dataset to")
    if out.is_dir() and not is_dataset(out) and (alien := [p.name for p in out.iterdir() if p.name != _WORK]):
        raise FileFormatError(f"{out} is not empty ({sorted(alien)[0]}) and not a dataset; give a new directory")
    before = dataset_record(out) if is_dataset(out) else None
    if before is not None and before.get("complete"):
        check_parts(out, before)
    had_directory, had_work = out.is_dir(), (out / _WORK).is_dir()
    try:
        return _take_in(found, out, record={**_new_record(), **(before or {})}, report=report)
    except FileFormatError:
        _undo(out, before, had_directory=had_directory, had_work=had_work)
        raise


def _undo(out: Path, before: dict[str, Any] | None, *, had_directory: bool, had_work: bool) -> None:
    """Remove what a call with bad input made; what a killed call left stays for the one that goes on from it."""
    if not is_dataset(out):
        return
    record = dataset_record(out)
    if before is None and not record["partitions"] and not had_work:
        if had_directory:
            for path in out.iterdir():  # it was empty
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            shutil.rmtree(out)
    elif before is not None and before.get("complete"):
        check_parts(out, record)
        if not record.get("complete"):  # a group of whole files was taken in, and is worth keeping
            write_dataset_record(out, {**record, "complete": True})
        if not had_work:
            shutil.rmtree(out / _WORK, ignore_errors=True)


def _take_in(found: Found, out: Path, *, record: dict[str, Any], report: Report) -> IngestSummary:
    if not is_dataset(out):
        out.mkdir(parents=True, exist_ok=True)
        write_dataset_record(out, record)
    work = out / _WORK
    work.mkdir(exist_ok=True)
    rings = known_rings(found.metadata)
    # what was staged with other metadata or by another version is staged again
    setup = hashlib.sha256(rings.ieta.tobytes() + rings.iphi.tobytes() + metadata.version("calolife").encode()).hexdigest()
    notes = list(found.notes)

    total = sum(p.stat().st_size for p in found.readings) / 1e6
    done = 0.0
    known = {s["sha256"] for s in record["sources"]}
    waiting: list[dict[str, Any]] = []
    n_known, n_new = 0, 0
    for path in found.readings:
        report("ingest", done, total)
        digest = _sha256(path)
        done += path.stat().st_size / 1e6
        if digest in known:
            n_known += 1
            continue
        known.add(digest)
        waiting.append(_stage(path, work / f"{digest[:16]}-{setup[:8]}", digest=digest, rings=rings))
        notes += [n for n in waiting[-1]["notes"] if n not in notes]
        n_new += 1
        if sum(s["staged_bytes"] for s in waiting) >= _GROUP_BYTES:
            record = _merge(out, record, waiting=waiting)
            waiting = []
    report("ingest", total, total)
    if waiting:
        record = _merge(out, record, waiting=waiting)
    if n_known or not found.readings:
        notes.append(f"{n_known} of {len(found.readings)} files were in {out} already" if n_new else f"nothing to do: {out} has all of it")
    if n_conflict := record["set_aside"].get("conflict", 0):
        notes.append(
            f"set aside as conflict: {n_conflict}; {out} already holds other values for these readings and keeps them: "
            "to take corrected values, ingest the corrected files into a new --out"
        )
    if not record["partitions"]:
        reasons = _total(s["set_aside"] for s in record["sources"])
        raise FileFormatError(f"no usable reading in {short_list(found.readings)}: {_counts(reasons)}")
    if not record.get("complete"):
        record = {**record, "complete": True}
        write_dataset_record(out, record)
    shutil.rmtree(work)
    return _summary(out, record, n_new=n_new, notes=notes)


def read_files(paths: Sequence[Path]) -> TransparencyHistory:
    """The same reading and cleaning in memory.

    Raises
    ------
    FileFormatError
        As `ingest`.
    """
    found = find_files(list(paths))
    rings = known_rings(found.metadata)
    merged: dict[tuple[int, int], list[tuple[int, NDArray[Any]]]] = {}
    set_aside: Counter[str] = Counter()
    seen: set[str] = set()
    for s, path in enumerate(found.readings):
        if (digest := _sha256(path)) in seen:
            continue
        seen.add(digest)
        own: list[tuple[int, int, NDArray[Any]]] = []

        def take(ieta: int, year: int, rows: NDArray[Any], own: list[tuple[int, int, NDArray[Any]]] = own) -> None:
            own.append((ieta, year, rows))

        parsed = _read(path, rings, take=take, reject=lambda name, rows: None, is_final=False)
        if parsed is None:
            own.clear()
            parsed = _read(path, _rings_inside(path, rings), take=take, reject=lambda name, rows: None, is_final=True)
            assert parsed is not None
        labels = _labels(path, parsed)
        set_aside += parsed.set_aside
        for ieta, counter_year, rows in own:
            for file, label, part in _by_label(rows, counter_year, labels):
                merged.setdefault((ieta, label), []).append(((s << 12) + file, part))
    blocks: list[Block] = []
    for (ieta, year), parts in sorted(merged.items()):
        done = put_in_order(None, parts)
        set_aside["duplicate"] += done.duplicate.size
        set_aside["conflict"] += done.conflict.size
        set_aside["negative luminosity"] += done.stepped_back.size
        blocks += to_blocks(done.columns, year=year, ieta=ieta)
    if not blocks:
        raise FileFormatError(f"no usable reading in {short_list(found.readings)}: {_counts(set_aside)}")
    if sum(set_aside.values()):
        where = short_list(found.readings)
        warnings.warn(f"{where}: bad rows left out ({_counts(set_aside)}); 'calolife transparency ingest' lists them", stacklevel=3)
    return TransparencyHistory(tuple(blocks))


# ---- one file


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path, rings: Rings, *, take: Take, reject: Reject, is_final: bool) -> _Parsed | None:
    """As `_parse`; of a damaged file, that it is damaged is said, not what its rows look like then."""
    from polars.exceptions import PolarsError

    try:
        return _parse(path, rings, take=take, reject=reject, is_final=is_final)
    except (FileFormatError, PolarsError):
        read_through(path)
        raise


def _parse(path: Path, rings: Rings, *, take: Take, reject: Reject, is_final: bool) -> _Parsed | None:
    """Read a file to its end; hand on its rows by ring and counter year, and its bad rows.

    None when an archive turns out to hold metadata behind the readings they belong to: call again with `_rings_inside`.
    """
    parsed = _Parsed()
    if not path.name.endswith(TAR_ENDINGS):
        with open_csv(path) as content:
            _parse_csv(content, path.name, rings=rings, parsed=parsed, take=take, reject=reject, path=path, is_final=True)
        return parsed
    with told(path):
        for name, content in members(path):
            if name.endswith(".csv"):
                label = f"{path.name}:{name}"
                if not _parse_csv(content, label, rings=rings, parsed=parsed, take=take, reject=reject, path=path, is_final=is_final):
                    return None
            elif not is_final and (found := read_metadata(content.read(), name=f"{path}:{name}")) is not None:
                more = with_metadata(rings, found)
                if parsed.files and not ((more.ieta == rings.ieta).all() and (more.iphi == rings.iphi).all()):
                    return None
                rings = more
    if not parsed.files:
        raise FileFormatError(f"{path} holds no CSV; give an archive of the release's ring files")
    return parsed


def _rings_inside(path: Path, rings: Rings) -> Rings:
    """The rings, with all that an archive's own metadata say."""
    places: dict[int, tuple[int, int]] = {}
    with told(path):
        for name, content in members(path):
            if name.endswith(".json") and (found := read_metadata(content.read(), name=f"{path}:{name}")) is not None:
                places.update(found)
    return with_metadata(rings, places)


def _parse_csv(
    stream: IO[bytes], name: str, *, rings: Rings, parsed: _Parsed, take: Take, reject: Reject, path: Path, is_final: bool
) -> bool:
    import polars as pl

    number = len(parsed.files)
    parsed.files.append(name)
    where = f"{path}:{name.partition(':')[2]}" if ":" in name else str(path)
    # reading, parsing and staging overlap: two cores are kept busy
    for rows in _ahead(parse_rows(*piece) for piece in _ahead(row_batches(stream, name=where))):
        parsed.n_rows += rows.height
        parsed.n_mismatched += lumi_mismatches(rows)
        if rows["reason"].null_count() < rows.height:
            bad = rows.filter(pl.col("reason").is_not_null())
            parsed.set_aside.update(bad["reason"].to_list())
            reject(name, bad)
            rows = rows.filter(pl.col("reason").is_null())
        if not rows.height:
            continue
        staged = np.empty(rows.height, dtype=_STAGED)
        for column, source in (("row", "row"), ("time_us", "time_us"), ("transparency", "calibration"), ("counter", "int_deliv_inv_ub")):
            staged[column] = rows[source].to_numpy()
        staged["xtal_id"] = rows["xtal_id"].to_numpy()
        staged["file"] = number
        year = rows["lumi_year"].to_numpy()
        staged["iphi"] = rings.iphi[staged["xtal_id"]]
        ieta = rings.ieta[staged["xtal_id"]]
        if (ieta == 0).any() and not is_final:
            return False
        if (ieta == 0).any():
            lost = np.unique(staged["xtal_id"][ieta == 0])
            also = f" (and {lost.size - 1} more)" if lost.size > 1 else ""
            raise FileFormatError(
                f"{where}: the ring of endcap crystal {lost[0]}{also} is not known; add the release's metadata JSON to the paths"
            )
        key = ieta.astype(np.int64) * 10_000 + year
        for k in np.unique(key) if key.min() != key.max() else key[:1]:
            part = staged if key.min() == key.max() else staged[key == k]
            counter_year = int(k % 10_000)
            _extend(parsed.spans.setdefault(number, {}).setdefault(counter_year, _Span()), part)
            take(int(k // 10_000), counter_year, part)
    return True


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; the next one is made while the last one is used."""
    with ThreadPoolExecutor(max_workers=1) as worker:
        coming = worker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = worker.submit(next, items, None)
            yield item


def _extend(span: _Span, rows: NDArray[Any]) -> None:
    first, last = int(rows["time_us"].argmin()), int(rows["time_us"].argmax())
    span.n += rows.size
    if rows["time_us"][first] < span.first_us:
        span.first_us, span.first_counter = int(rows["time_us"][first]), float(rows["counter"][first])
    if rows["time_us"][last] >= span.last_us:
        span.last_us, span.last_counter = int(rows["time_us"][last]), float(rows["counter"][last])


def _labels(path: Path, parsed: _Parsed) -> dict[tuple[int, int], int]:
    """Year label of each (file, counter year) of a source."""
    labels: dict[tuple[int, int], int] = {}
    counted_by: dict[str, set[int]] = {}
    for number, spans in parsed.spans.items():
        member = parsed.files[number].partition(":")[2]
        named = year_in_name(member or path.name)
        around = None
        if named is None:
            folder = PurePosixPath(member).parent.name if member else path.parent.name
            around = int(folder) if year_in_name(folder) and len(folder) == 4 else (year_in_name(path.name) if member else None)
        counted: dict[int, int] = {}
        previous: int | None = None
        for year in sorted(spans):
            # no new start of the counter means that the same year goes on, whatever the calendar says
            goes_on = previous is not None and year - previous == 1 and spans[year].first_counter >= spans[previous].last_counter
            counted[year] = counted[previous] if previous is not None and goes_on else year
            previous = year
        label = named if named is not None else around
        n_rows = sum(s.n for s in spans.values())
        # chosen: below 1 % of the rows, a counter year other than the name's is a typo in a time, not data
        stray = sum(s.n for y, s in spans.items() if label is not None and counted[y] not in (label, label + 1))
        is_one_year = len(set(counted.values())) == 1
        if label is not None and (is_one_year or stray < 0.01 * n_rows) and (named is not None or stray == 0):
            counted = dict.fromkeys(counted, label)
        else:
            why = "has no year in its name" if label is None else f"holds other years than {label}"
            counted_by.setdefault(why, set()).update(counted.values())
        labels.update({(number, y): v for y, v in counted.items()})
    for why, years in counted_by.items():
        found = ", ".join(map(str, sorted(years)))
        parsed.notes.append(f"{path.name} {why}: labelled by the start of the luminosity counter ({found})")
    return labels


def _stage(path: Path, folder: Path, *, digest: str, rings: Rings) -> dict[str, Any]:
    """Rows of one file, split by ring and year on disk; done once per content."""
    done = folder / "source.json"
    if done.is_file():
        stored: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return stored
    partial = folder.with_name(folder.name + ".partial")

    def take(ieta: int, year: int, rows: NDArray[Any]) -> None:
        with (partial / f"{ieta}_{year}.rows").open("ab") as file:
            rows.tofile(file)

    def reject(name: str, rows: pl.DataFrame) -> None:
        with (partial / "bad.csv").open("ab") as file:
            file.write(_quarantine_rows(rows, name))

    parsed = None
    for is_final in (False, True):
        if parsed is None:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            (partial / "bad.csv").touch()
            parsed = _read(path, _rings_inside(path, rings) if is_final else rings, take=take, reject=reject, is_final=is_final)
    assert parsed is not None
    labels = _labels(path, parsed)
    if parsed.n_mismatched:
        parsed.notes.append(
            f"{path.name}: delta_lumi is not the step of int_deliv_inv_ub in {parsed.n_mismatched} rows; the latter is used"
        )
    if parsed.n_rows and parsed.n_rows == sum(parsed.set_aside.values()):
        parsed.notes.append(f"{path.name}: none of its {parsed.n_rows} rows is usable ({_counts(parsed.set_aside)})")
    about = {
        "name": path.name, "sha256": digest, "size_bytes": path.stat().st_size, "files": parsed.files, "n_rows": parsed.n_rows,
        "set_aside": dict(sorted(parsed.set_aside.items())), "notes": parsed.notes, "folder": folder.name,
        "labels": sorted([file, year, label] for (file, year), label in labels.items()),
        "staged_bytes": sum(p.stat().st_size for p in partial.iterdir()),
    }  # fmt: skip
    (partial / "source.json").write_text(json.dumps(about), encoding="utf-8")
    partial.replace(folder)
    return about


def _quarantine_rows(rows: pl.DataFrame, name: str) -> bytes:
    import polars as pl

    c = pl.col
    listed = rows.select(
        pl.lit(name).alias("file"), c("row"), c("reason"), c("xtal_id").cast(pl.Int64, strict=False),
        c("laser_datetime"), c("calibration"), c("int_deliv_inv_ub"),
    )  # fmt: skip
    buffer = io.BytesIO()
    listed.write_csv(buffer, include_header=False)
    return buffer.getvalue()


# ---- one ring and year


def _by_label(rows: NDArray[Any], counter_year: int, labels: dict[tuple[int, int], int]) -> list[tuple[int, int, NDArray[Any]]]:
    files = np.unique(rows["file"]).tolist()
    return [(f, labels[f, counter_year], rows if len(files) == 1 else rows[rows["file"] == f]) for f in files]


def _merge(out: Path, record: dict[str, Any], *, waiting: list[dict[str, Any]]) -> dict[str, Any]:
    """Put the staged files into the dataset's rings and years, then record them as done."""
    work = out / _WORK
    if record.get("complete"):  # until all is merged, its parts are not those of the record
        write_dataset_record(out, {**record, "complete": False})
    staged_of: dict[tuple[int, int], list[tuple[int, Path]]] = {}
    for s, source in enumerate(waiting):
        for staged in sorted((work / source["folder"]).glob("*_*.rows")):
            ieta, year = (int(v) for v in staged.stem.split("_"))
            for label in sorted({label for _, y, label in source["labels"] if y == year}):
                files = staged_of.setdefault((ieta, label), [])
                if (s, staged) not in files:
                    files.append((s, staged))
    have = {(p.ieta, p.year): p.path for p in ring_years(out)}
    partitions = {(p["ieta"], p["year"]): p for p in record["partitions"]}
    with (work / "merged.csv").open("wb") as bad_rows:
        for source in waiting:
            with (work / source["folder"] / "bad.csv").open("rb") as bad:
                shutil.copyfileobj(bad, bad_rows)
        for (ieta, year), staged in sorted(staged_of.items()):
            fragment = work / f"set_aside_{ieta}_{year}.csv"
            digests = [waiting[s]["sha256"] for s in dict.fromkeys(s for s, _ in staged)]
            stored, about = read_columns(have[ieta, year]) if (ieta, year) in have else (None, {})
            if not set(digests) <= set(about.get("sources", [])):
                about = _merge_ring_year(
                    out, ieta, year=year, staged=staged, waiting=waiting, stored=stored, about=about, fragment=fragment
                )
            with fragment.open("rb") as bad:
                shutil.copyfileobj(bad, bad_rows)
            size = (out / f"ieta={ieta}" / f"year={year}" / "part-0.parquet").stat().st_size
            partitions[ieta, year] = {**{k: v for k, v in about.items() if k not in ("sources", "units")}, "size_bytes": size}
    counted = Counter(record["set_aside"])
    for source in waiting:
        counted += Counter(source["set_aside"])
    before = _total(p.get("set_aside", {}) for p in record["partitions"])
    after = _total(p.get("set_aside", {}) for p in partitions.values())
    counted += after - before
    # the record says how long the quarantine file is: what a killed call appended beyond that is cut off
    with (out / _QUARANTINE).open("r+b" if (out / _QUARANTINE).exists() else "w+b") as quarantine:
        quarantine.truncate(record["quarantine_bytes"])
        quarantine.seek(0, os.SEEK_END)
        if quarantine.tell() == 0:
            quarantine.write(_QUARANTINE_HEADER)
        with (work / "merged.csv").open("rb") as bad:
            shutil.copyfileobj(bad, quarantine)
        size = quarantine.tell()
    kept_fields = ("name", "sha256", "size_bytes", "files", "n_rows", "set_aside", "notes")
    record = {
        **record,
        "complete": False,
        "sources": [*record["sources"], *({k: s[k] for k in kept_fields} for s in waiting)],
        "partitions": [partitions[k] for k in sorted(partitions)],
        "set_aside": dict(sorted(counted.items())),
        "quarantine_bytes": size,
    }
    write_dataset_record(out, record)
    for source in waiting:
        shutil.rmtree(work / source["folder"])
    for fragment in work.glob("set_aside_*.csv"):
        fragment.unlink()
    return record


def _merge_ring_year(
    out: Path, ieta: int, *, year: int, staged: list[tuple[int, Path]], waiting: list[dict[str, Any]], stored: Columns | None,
    about: dict[str, Any], fragment: Path,
) -> dict[str, Any]:  # fmt: skip
    parts: list[tuple[int, NDArray[Any]]] = []
    names: dict[int, str] = {}
    for s, path in staged:
        counter_year = int(path.stem.split("_")[1])
        labels = {(f, y): v for f, y, v in waiting[s]["labels"]}
        for file, label, rows in _by_label(np.fromfile(path, dtype=_STAGED), counter_year, labels):
            if label == year:
                code = (s << 12) + file
                names[code] = waiting[s]["files"][file]
                parts.append((code, rows))
    done = put_in_order(stored, parts)
    lost = ((done.duplicate, "duplicate"), (done.conflict, "conflict"), (done.stepped_back, "negative luminosity"))
    listed = b"".join(_set_aside_rows(index, why, done=done, names=names) for index, why in lost)
    partial = fragment.with_suffix(".partial")
    partial.write_bytes(listed)
    partial.replace(fragment)
    counts = Counter(about.get("set_aside", {}))
    counts.update({why: index.size for index, why in lost})
    digests = [waiting[s]["sha256"] for s in dict.fromkeys(s for s, _ in staged)]
    about = {
        "sources": [*about.get("sources", []), *digests],
        "set_aside": dict(sorted((+counts).items())),
        **count_flags(done.columns),
    }
    write_ring_year(out, ieta, year=year, columns=done.columns, about=about)
    return {"ieta": ieta, "year": year, **about}


def _set_aside_rows(index: NDArray[np.int64], why: str, *, done: InOrder, names: dict[int, str]) -> bytes:
    import polars as pl

    new = index[index >= 0]
    new = new[np.lexsort((done.rows["row"][new], done.source[new]))]
    picked, codes = done.rows[new], done.source[new]
    listed = pl.DataFrame(
        {
            "file": [names[c] for c in codes.tolist()],
            "row": picked["row"],
            "reason": [why] * new.size,
            "xtal_id": picked["xtal_id"],
            "laser_datetime": pl.Series(picked["time_us"]).cast(pl.Datetime("us")).dt.strftime("%Y-%m-%d %H:%M:%S"),
            "calibration": picked["transparency"],
            "int_deliv_inv_ub": picked["counter"],
        }
    )
    buffer = io.BytesIO()
    listed.write_csv(buffer, include_header=False)
    # of a reading that came with an earlier call, the line is no longer known
    return buffer.getvalue() + f"(stored earlier),,{why},,,,\n".encode() * (index.size - new.size)


# ---- words


def _new_record() -> dict[str, Any]:
    return {
        "complete": False,
        "calolife": metadata.version("calolife"),
        "sources": [],
        "partitions": [],
        "set_aside": {},
        "quarantine_bytes": 0,
        "year": "the release's label: a run into the next calendar year keeps the year its luminosity counter started in",
    }


def _summary(out: Path, record: dict[str, Any], *, n_new: int, notes: list[str]) -> IngestSummary:
    partitions = record["partitions"]
    return IngestSummary(
        path=out,
        n_sources=len(record["sources"]),
        n_new_sources=n_new,
        n_rows=sum(s["n_rows"] for s in record["sources"]),
        n_readings=sum(p["n_readings"] for p in partitions),
        n_crystal_years=sum(p["n_crystals"] for p in partitions),
        years=tuple(sorted({p["year"] for p in partitions})),
        ieta=tuple(sorted({p["ieta"] for p in partitions})),
        set_aside=dict(record["set_aside"]),
        n_reordered=sum(p["n_reordered"] for p in partitions),
        n_laser_flip=sum(p["n_laser_flip"] for p in partitions),
        n_pre_beam_step=sum(p["n_pre_beam_step"] for p in partitions),
        notes=tuple(notes),
    )


def _total(counts: Iterable[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for c in counts:
        total.update(c)
    return total


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{why}: {n}" for why, n in sorted(counts.items()) if n) or "no rows"
