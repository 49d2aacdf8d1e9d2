"""The public CMS laser data as files: crystal numbering, metadata, CSV rows and archives."""

from __future__ import annotations

import difflib
import gzip
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calolife.errors import FileFormatError
from calolife.storage import is_dataset

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "BATCH_BYTES",
    "COLUMNS",
    "CSV_ENDINGS",
    "N_CRYSTALS",
    "TAR_ENDINGS",
    "Found",
    "Rings",
    "barrel_rings",
    "find_files",
    "known_rings",
    "lumi_mismatches",
    "members",
    "open_csv",
    "parse_rows",
    "read_header",
    "read_metadata",
    "read_through",
    "row_batches",
    "short_list",
    "told",
    "with_metadata",
    "year_in_name",
]

N_CRYSTALS = 75_848  # EB- 0..30599, EB+ 30600..61199, EE- 61200..68523, EE+ 68524..75847: the release's numbering
_N_BARREL_SIDE, _N_BARREL, _FIRST_EE_PLUS = 30_600, 61_200, 68_524
COLUMNS = ("xtal_id", "laser_datetime", "calibration", "time", "int_deliv_inv_ub")
_OPTIONAL = ("delta_lumi", "good", "beamstatus")
BATCH_BYTES = 8 << 20  # chosen: fits the allocator's reuse; 32 MiB took twice the time in page faults
TAR_ENDINGS = (".tar.gz", ".tgz", ".tar")
CSV_ENDINGS = (".csv", ".csv.gz")
_TIME_FORMAT = "%Y-%m-%d %H:%M:%S"


@dataclass(frozen=True, eq=False)
class Rings:
    """Where each crystal sits.

    Parameters
    ----------
    ieta, iphi : int16 array, (75848,)
        By xtal_id; ieta 0 where it is not known.
    """

    ieta: NDArray[np.int16]
    iphi: NDArray[np.int16]


def barrel_rings() -> Rings:
    """Positions that follow from the crystal's number alone: the barrel's.

    Notes
    -----
    360 crystals a ring, from ieta -1 to -85 (EB-), then from 1 to 85 (EB+); iphi runs from 1 in each. Checked
    against the release's metadata of 20 rings. An endcap crystal's place needs the metadata.

    Examples
    --------
    >>> rings = barrel_rings()
    >>> [(int(rings.ieta[x]), int(rings.iphi[x])) for x in (27005, 30600, 54000, 61200)]
    [(-76, 6), (1, 1), (66, 1), (0, 0)]
    """
    ieta = np.zeros(N_CRYSTALS, dtype=np.int16)
    iphi = np.zeros(N_CRYSTALS, dtype=np.int16)
    number = np.arange(_N_BARREL_SIDE)
    ieta[:_N_BARREL_SIDE] = -(number // 360 + 1)
    ieta[_N_BARREL_SIDE:_N_BARREL] = number // 360 + 1
    iphi[:_N_BARREL] = np.arange(_N_BARREL) % 360 + 1
    return Rings(ieta, iphi)


def read_metadata(text: bytes, *, name: str) -> dict[int, tuple[int, int]] | None:
    """Crystals of one metadata JSON: xtal_id -> (ieta, iphi).

    Parameters
    ----------
    text : bytes
    name : str
        For the messages.

    Returns
    -------
    dict, or None
        None when the JSON is something else than the release's metadata.

    Raises
    ------
    FileFormatError
        Metadata of which an entry is broken.

    Notes
    -----
    Only ``xtal_ieta`` and ``xtal_iphi`` are believed: the ring in the CSV's name counts differently on the minus
    side and ``iz`` can contradict the side. The endcap's entries carry ``xtal_ix, xtal_iy`` instead; their rings
    are one crystal wide in radius, |ieta| = 86 outermost to 124 (chosen: CMS has 39 rings there as well), and
    iphi counts degrees of azimuth.
    """
    try:
        content = json.loads(text)
    except ValueError:
        return None
    files = list(content.values()) if isinstance(content, dict) else []
    if not files or not all(isinstance(f, dict) and isinstance(f.get("xtal_info"), list) for f in files):
        return None
    found: dict[int, tuple[int, int]] = {}
    for entry in (e for f in files for e in f["xtal_info"]):
        try:
            xtal_id = int(entry["xtal_id"])
            if entry.get("xtal_ieta") is not None:
                place = int(entry["xtal_ieta"]), int(entry["xtal_iphi"])
            else:
                place = _endcap_ring(xtal_id, int(entry["xtal_ix"]), int(entry["xtal_iy"]))
        except (KeyError, TypeError, ValueError):
            raise FileFormatError(
                f"{name}: entry {entry} needs xtal_id with xtal_ieta and xtal_iphi, or with xtal_ix and xtal_iy"
            ) from None
        if not 0 <= xtal_id < N_CRYSTALS or not 1 <= abs(place[0]) <= 124 or not 1 <= place[1] <= 360:
            raise FileFormatError(
                f"{name}: entry {entry} is not a crystal; xtal_id is 0 to {N_CRYSTALS - 1}, |ieta| 1 to 124, iphi 1 to 360"
            )
        if found.setdefault(xtal_id, place) != place:
            raise FileFormatError(f"{name}: crystal {xtal_id} is at (ieta, iphi) {found[xtal_id]} and at {place}; keep one")
    return found


def _endcap_ring(xtal_id: int, ix: int, iy: int) -> tuple[int, int]:
    x, y = ix - 50.5, iy - 50.5
    ring = 86 + int(np.clip(np.floor(50.0 - np.hypot(x, y)), 0, 38))
    degrees = np.degrees(np.arctan2(y, x)) % 360
    return (ring if xtal_id >= _FIRST_EE_PLUS else -ring), int(degrees) % 360 + 1


def with_metadata(rings: Rings, metadata: Mapping[int, tuple[int, int]]) -> Rings:
    """The same positions, with those of a metadata file put in."""
    if not metadata:
        return rings
    ieta, iphi = rings.ieta.copy(), rings.iphi.copy()
    ids = np.fromiter(metadata, dtype=np.int64)
    places = np.array([metadata[i] for i in ids.tolist()], dtype=np.int16)
    ieta[ids], iphi[ids] = places[:, 0], places[:, 1]
    return Rings(ieta, iphi)


def year_in_name(name: str) -> int | None:
    """The one year that a file's name carries, if it carries exactly one.

    Examples
    --------
    >>> year_in_name("df_skimmed_xtal_54000_2018.csv"), year_in_name("ring_66.csv"), year_in_name("2016-2018.csv")
    (2018, None, None)
    """
    years = {int(y) for y in re.findall(r"(?<!\d)20[0-4]\d(?!\d)", PurePosixPath(name).name)}
    return years.pop() if len(years) == 1 else None


@contextmanager
def open_csv(path: Path) -> Iterator[IO[bytes]]:
    """A CSV file, or a gzipped one, as a byte stream."""
    with path.open("rb") as raw, told(path):
        yield gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw  # type: ignore[misc]


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Errors of unpacking a file, in this block, become one line that names the file.

    Raises
    ------
    FileFormatError
        Truncated or damaged.
    """
    try:
        yield
    except EOFError:
        raise FileFormatError(f"{path} is cut short; download it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise FileFormatError(f"{path} is damaged or not gzip ({error}); download it again") from None
    except tarfile.TarError as error:
        raise FileFormatError(f"{path} is damaged, cut short or not a tar archive ({error}); download it again") from None


def members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """CSV and JSON files of an archive in its order, each as a stream to read before the next one is asked for.

    Nothing is unpacked to disk. Read the streams inside ``told(path)``: damage shows when a stream is read.

    Raises
    ------
    FileFormatError
        Truncated or damaged; a member whose path leaves the archive, or a link.
    """
    with path.open("rb") as raw, told(path):
        is_plain = path.suffix == ".tar"
        stream: Any = raw if is_plain else gzip.GzipFile(fileobj=raw)
        with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts or "\\" in member.name:
                    raise FileFormatError(f"{path}: member {member.name!r} leaves the archive; do not use this file")
                if member.issym() or member.islnk():
                    raise FileFormatError(f"{path}: member {member.name!r} is a link to {member.linkname!r}; only plain files are read")
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None and name.suffix in (".csv", ".json") and not name.name.startswith("."):
                    yield member.name, content
            end = archive.offset
        if is_plain:
            # tarfile takes a broken header, or none, for the end; the end is two blocks of zeros
            raw.seek(end)
            if raw.read(1024) != bytes(1024):
                raise FileFormatError(f"{path} is damaged or cut short (no end of archive); download it again")
        else:
            while stream.read(1 << 20):  # the checksum stands at the very end
                pass


def read_through(path: Path) -> None:
    """Unpack a file to its end, checksums included, and keep nothing.

    Raises
    ------
    FileFormatError
        Truncated or damaged.
    """
    if path.name.endswith(TAR_ENDINGS):
        for _ in members(path):
            pass
        return
    with open_csv(path) as content:
        while content.read(1 << 20):
            pass


def read_header(first: bytes, *, name: str) -> list[str]:
    """Column names of a CSV with readings.

    Raises
    ------
    FileFormatError
        Empty, not text, or a column missing.
    """
    if not first.strip():
        raise FileFormatError(f"{name} is empty; download it again")
    line = first.splitlines()[0]
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    columns = [c.strip().strip('"') for c in text.split(",")]
    if "\0" in text or len(columns) < 2:
        raise FileFormatError(f"{name} is not a CSV with readings; its first line must name the columns {', '.join(COLUMNS)}")
    missing = [c for c in COLUMNS if c not in columns]
    if missing:
        got = ", ".join(c or "(index)" for c in columns[:12])
        near = difflib.get_close_matches(missing[0], columns, n=1)
        hint = f"; rename {near[0]} to {missing[0]}" if near else f"; readings need {', '.join(COLUMNS)}"
        raise FileFormatError(f"{name} has no column {missing[0]}: it has {got}{hint}")
    if twice := [c for c in COLUMNS if columns.count(c) > 1]:
        raise FileFormatError(f"{name} has the column {twice[0]} {columns.count(twice[0])} times; keep one")
    return columns


def row_batches(stream: IO[bytes], *, name: str) -> Iterator[tuple[list[str], int, bytes]]:
    """A CSV in pieces that end at a line's end: (columns, line number of the first row, bytes).

    Raises
    ------
    FileFormatError
        As `read_header`; also when no row follows the header.
    """
    head = b""
    while b"\n" not in head and (more := stream.read(1 << 16)):
        head += more
    columns = read_header(head, name=name)
    rest, line, n_pieces = head.partition(b"\n")[2], 2, 0
    while True:
        more = stream.read(BATCH_BYTES)
        rest += more
        cut = rest.rfind(b"\n") + 1 if more else len(rest)
        piece, rest = rest[:cut], rest[cut:]
        if piece and not piece.isspace():
            n_pieces += 1
            yield columns, line, piece
        line += piece.count(b"\n")
        if not more:
            break
    if not n_pieces:
        raise FileFormatError(f"{name} has a header and no readings; download it again")


def parse_rows(columns: list[str], first_line: int, piece: bytes) -> pl.DataFrame:
    """Rows of one piece of a CSV.

    Parameters
    ----------
    columns : list of str
    first_line : int
        Line of the file that the piece starts at.
    piece : bytes

    Returns
    -------
    polars.DataFrame
        row, xtal_id, laser_datetime (text), time_us, calibration, int_deliv_inv_ub [1/ub], lumi_year and reason:
        null for a good row, else why it must be set aside.

    Notes
    -----
    lumi_year is the calendar year of the luminosity record matched to the reading. That counter starts anew every
    year, and a reading in the winter after a year's last beam is matched to that year: it is the release's label.
    """
    import polars as pl

    # quotes and blanks never carry meaning here, and a stray quote would swallow lines
    piece = piece.replace(b'"', b"") if b'"' in piece else piece
    piece = piece.replace(b", ", b",") if b", " in piece else piece
    wanted = [c for c in (*COLUMNS, *_OPTIONAL) if c in columns]
    text = ("laser_datetime", "time", "beamstatus")
    names = [c if c in wanted and columns.index(c) == i else f"column {i}" for i, c in enumerate(columns)]
    rows = pl.read_csv(
        piece,
        has_header=False,
        schema={n: pl.Float64 if n in wanted and n not in text else pl.String for n in names},
        columns=[names.index(c) for c in wanted],
        ignore_errors=True,
        truncate_ragged_lines=True,
        quote_char=None,
    ).with_row_index("row", offset=first_line)
    rows = rows.with_columns(pl.col("row").cast(pl.Int64))
    rows = rows.with_columns(time_us=_time_us(rows["laser_datetime"]), lumi_us=_time_us(rows["time"]))
    c = pl.col
    reasons = [
        (~c("xtal_id").is_between(0, N_CRYSTALS - 1) | (c("xtal_id") != c("xtal_id").floor()) | c("xtal_id").is_null(), "bad xtal_id"),
        (c("time_us").is_null() | c("lumi_us").is_null(), "unparsable time"),
        (c("calibration").is_null() | c("calibration").is_nan(), "NaN calibration"),
        (c("calibration") <= 0.5, "calibration <= 0.5"),  # the published cleaning
        (c("calibration").is_infinite(), "infinite calibration"),
        (c("int_deliv_inv_ub").is_null() | ~c("int_deliv_inv_ub").is_finite(), "NaN luminosity"),
        (c("int_deliv_inv_ub") < 0, "negative luminosity"),
    ]
    if "good" in wanted:  # the published cleaning again, for tables that still have these columns
        reasons.append((c("good") != 1, "flagged bad"))
    if "beamstatus" in wanted:
        reasons.append((c("beamstatus").is_in(["ADJUST", "SQUEEZE"]), "beam status"))
    if "delta_lumi" in wanted:
        # an own step that goes back although the counter does not; steps of the counter are judged once in time order
        follows = (c("int_deliv_inv_ub").shift(-1) >= c("int_deliv_inv_ub")) & (c("xtal_id").shift(-1) == c("xtal_id"))
        reasons.append(((c("delta_lumi") < 0) & follows.fill_null(True), "negative luminosity"))
    reason = pl.lit(None, dtype=pl.String)
    for is_bad, why in reversed(reasons):
        reason = pl.when(is_bad).then(pl.lit(why)).otherwise(reason)
    rows = rows.with_columns(reason=reason, lumi_year=_year_of(c("lumi_us")))
    is_void = rows.select(pl.all_horizontal(c(name).is_null() for name in COLUMNS)).to_series()
    if is_void.any():  # nothing in it could be read: a blank line, or text that must be set aside
        lines = piece.split(b"\n")
        is_blank = [not lines[i].strip() for i in is_void.arg_true()]
        rows = rows.filter(~pl.Series(np.isin(np.arange(rows.height), is_void.arg_true().filter(pl.Series(is_blank)))))
    return rows


def lumi_mismatches(rows: pl.DataFrame) -> int:
    """Rows of a skim whose own delta_lumi is not the step of the counter to the next row."""
    import polars as pl

    if "delta_lumi" not in rows.columns:
        return 0
    c = pl.col
    step = c("int_deliv_inv_ub").shift(-1) - c("int_deliv_inv_ub")
    # 1e-6 relative: the counter is printed with 9 decimals or more
    off = (step - c("delta_lumi")).abs() > 1e-6 * pl.max_horizontal(step.abs(), c("delta_lumi").abs(), pl.lit(1.0))
    return int(rows.select((off & (c("xtal_id").shift(-1) == c("xtal_id"))).sum()).item())


def _time_us(text: pl.Series) -> pl.Series:
    import polars as pl

    times = text.str.to_datetime(_TIME_FORMAT, time_unit="us", strict=False)
    if times.null_count() > text.null_count():
        plain = text.str.strip_chars().str.replace("T", " ", literal=True).str.strip_suffix("Z").str.strip_suffix("+00:00")
        other = plain.str.to_datetime(_TIME_FORMAT + "%.f", time_unit="us", strict=False)
        times = times.to_frame("a").with_columns(b=other).select(pl.coalesce("a", "b")).to_series()
    return times.cast(pl.Int64)


def _year_of(time_us: pl.Expr) -> pl.Expr:
    import polars as pl

    return time_us.cast(pl.Datetime("us")).dt.year().cast(pl.Int32)


@dataclass(frozen=True)
class Found:
    """Files to ingest.

    Parameters
    ----------
    readings : tuple of Path
    metadata : tuple of (name, crystals)
        As `read_metadata` gives them.
    notes : tuple of str
        What was skipped.
    """

    readings: tuple[Path, ...]
    metadata: tuple[tuple[str, dict[int, tuple[int, int]]], ...]
    notes: tuple[str, ...]


def find_files(paths: Sequence[Path], *, needs_readings: bool = True) -> Found:
    """Files to ingest, in a fixed order; every CSV's header is looked at before hours go into the first file.

    Parameters
    ----------
    paths : sequence of Path
        Files, and directories to walk.
    needs_readings : bool
        Metadata alone are not enough.

    Raises
    ------
    FileFormatError
        Missing, empty, of another kind, a wrong header; or no file of readings among them.
    """
    if not paths:
        raise FileFormatError("no path given; give CSV files, tar.gz archives or directories of them")
    readings: list[Path] = []
    places: list[tuple[str, dict[int, tuple[int, int]]]] = []
    notes: list[str] = []
    for path in paths:
        if not path.exists():
            raise FileFormatError(f"{path}: no such file or directory")
        if path.is_dir():
            if is_dataset(path):
                raise FileFormatError(
                    f"{path} is a dataset already; give it to the verbs that read one, or give the files it was made from"
                )
            inside = _walk(path)
        else:
            inside = [path]
        for file in inside:
            if file.name.endswith((*CSV_ENDINGS, *TAR_ENDINGS)):
                if file not in readings:
                    readings.append(file)
            elif file.suffix == ".json":
                found = read_metadata(file.read_bytes(), name=str(file))
                if found is None:
                    notes.append(f"{file}: skipped, not the release's metadata")
                else:
                    places.append((str(file), found))
            elif file == path:
                allowed = ", ".join((*CSV_ENDINGS, *TAR_ENDINGS, ".json"))
                raise FileFormatError(f"{path} is neither a CSV, a tar archive nor a metadata JSON; allowed: {allowed}")
            else:
                notes.append(f"{file}: skipped, not a file of readings")
    if places:
        notes.append(f"{short_list([Path(name) for name, _ in places])}: used to place {sum(len(c) for _, c in places)} crystals")
    if not readings and places and not needs_readings:
        notes.append("no file of readings given: only metadata")
    elif not readings:
        only = f"; {places[0][0]} only says where crystals sit" if places else ""
        raise FileFormatError(f"no file of readings in {short_list(paths)}{only}: give CSV files, tar.gz archives or directories of them")
    for file in readings:
        if file.stat().st_size == 0:
            raise FileFormatError(f"{file} is empty; download it again")
        if file.name.endswith(CSV_ENDINGS):
            with open_csv(file) as content:
                read_header(content.read(1 << 16), name=str(file))
    return Found(tuple(readings), tuple(places), tuple(notes))


def _walk(root: Path) -> list[Path]:
    found = []
    for folder, inside, names in os.walk(root):
        here = Path(folder)
        inside[:] = sorted(d for d in inside if not d.startswith(".") and not is_dataset(here / d))
        found += [here / n for n in sorted(names) if not n.startswith(".")]
    return found


def known_rings(found: Iterable[tuple[str, dict[int, tuple[int, int]]]]) -> Rings:
    """The barrel's positions, with those of metadata files put in.

    Raises
    ------
    FileFormatError
        Two files that disagree.
    """
    places: dict[int, tuple[int, int]] = {}
    for name, content in found:
        clash = next((x for x, p in content.items() if places.get(x, p) != p), None)
        if clash is not None:
            raise FileFormatError(
                f"{name} puts crystal {clash} at (ieta, iphi) {content[clash]}, another metadata file at {places[clash]}; give one"
            )
        places.update(content)
    return with_metadata(barrel_rings(), places)


def short_list(paths: Sequence[Path]) -> str:
    """Paths for a message: the first, and how many more."""
    return str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
