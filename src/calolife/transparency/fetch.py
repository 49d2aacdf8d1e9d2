"""The public release from Zenodo: which archives, resumable, checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from calolife.errors import FileFormatError

__all__ = ["RELEASE_TITLE", "ZENODO_API", "Fetched", "archive_names", "fetch"]

RELEASE_TITLE = "Laser response in ECAL crystals in CMS detector"
ZENODO_API = "https://zenodo.org/api"
_YEARS = (2016, 2017, 2018)  # what the release covers
_TIMEOUT_S = 30.0  # chosen: Zenodo answers within seconds or not at all
_TRIES = 5  # chosen: a transfer may be cut this often before the user is asked to run again
_CHUNK_BYTES = 1 << 16  # chosen: at most this much is lost when a transfer breaks off

Report = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Fetched:
    """What a fetch left on disk.

    Parameters
    ----------
    paths : tuple of Path
        Archives and metadata, ready for an ingest.
    record : str
        Zenodo record they belong to; empty when it could not be asked.
    n_downloaded : int
        Files that this call downloaded; the others were there.
    notes : tuple of str
    """

    paths: tuple[Path, ...]
    record: str
    n_downloaded: int
    notes: tuple[str, ...]


def archive_names(rings: Collection[int]) -> tuple[str, ...]:
    """Names, without their ending, of the release's archives that hold these rings.

    Parameters
    ----------
    rings : collection of int
        ieta; beyond +-85 the endcaps' rings as `release.read_metadata` numbers them.

    Returns
    -------
    tuple of str

    Raises
    ------
    ValueError
        Not a ring.

    Notes
    -----
    An archive holds ten numbers of the release's own ring count: ieta itself on the plus side, ieta + 86 on the
    minus side (read off its metadata files). The endcaps follow from 86 on; their count there is not by radius,
    so that all their archives are needed.

    Examples
    --------
    >>> archive_names([66, -76])
    ('minus_z_1', 'plus_z_7')
    """
    names = set()
    for ring in rings:
        if not 1 <= abs(ring) <= 124:
            raise ValueError(f"ring {ring} does not exist; ieta is -124 to -1 and 1 to 124, the barrel ends at 85")
        side = "plus_z" if ring > 0 else "minus_z"
        if abs(ring) > 85:
            names |= {f"{side}_{k}" for k in range(9, 14)}
        else:
            names.add(f"plus_z_{ring // 10 + 1}" if ring > 0 else f"minus_z_{(85 + ring) // 10 + 1}")
    return tuple(sorted(names, key=lambda n: (n.rpartition("_")[0], int(n.rpartition("_")[2]))))


def fetch(
    out: str | Path,
    *,
    rings: Collection[int],
    years: Collection[int],
    record: str | None = None,
    api: str = ZENODO_API,
    progress: Report | None = None,
) -> Fetched:
    """Download the archives of the public release that hold these rings.

    Parameters
    ----------
    out : path
        Directory for the archives.
    rings : collection of int
        ieta.
    years : collection of int
        Archives whose name says another year are left out.
    record : str, optional
        Zenodo record number or DOI; found by the release's title when left out.
    api : str
    progress : callable, optional
        Called as ``progress(file, done, total)`` in MB.

    Returns
    -------
    Fetched

    Raises
    ------
    ConnectionError
        Zenodo cannot be reached, or a transfer broke off: the message says what to do by hand.
    ValueError
        A ring that does not exist, or a year that the release does not cover.
    FileFormatError
        The record is not the release, or a file's MD5 is not the one Zenodo lists.

    Notes
    -----
    A transfer that was cut goes on where it stopped, in this call or the next. A file that is there and has the
    listed MD5 is not downloaded again.
    """
    import requests

    folder = Path(out)
    names = archive_names(rings)
    if lost := sorted(set(years) - set(_YEARS)):
        raise ValueError(f"year {lost[0]} is not in the release; give 2016, 2017 or 2018")
    report = progress or (lambda what, done, total: None)
    try:
        entry = _record(api.rstrip("/"), record)
    except requests.RequestException as error:
        there = [p for n in names for p in sorted(folder.glob(f"*{n}.t*")) if not p.name.endswith(".partial")]
        if len(there) >= len(names):
            return Fetched(tuple(there), "", 0, ("Zenodo cannot be reached: the files that are there were not checked",))
        raise ConnectionError(_by_hand(folder, names, record, why=_reason(error))) from None
    wanted, notes = _choose(entry, names, years)
    folder.mkdir(parents=True, exist_ok=True)
    paths, n_downloaded = [], 0
    for name, url, md5, size in wanted:
        was_there, path = _download(folder, name, url=url, md5=md5, size=size, report=report)
        n_downloaded += not was_there
        paths.append(path)
    return Fetched(tuple(paths), str(entry.get("doi") or entry.get("id")), n_downloaded, tuple(notes))


def _record(api: str, record: str | None) -> dict[str, Any]:
    import requests

    def get(url: str) -> dict[str, Any]:
        answer = requests.get(url, timeout=_TIMEOUT_S)
        if answer.status_code == 404:
            raise FileFormatError(f"Zenodo has no record {record}; give --record with the number or DOI of {RELEASE_TITLE!r}")
        answer.raise_for_status()
        try:
            content = answer.json()
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise FileFormatError(f"{url} did not answer with a Zenodo record; check --api")
        return content

    if record is not None:
        number = re.fullmatch(r"(?:.*zenodo\.)?(\d+)", record.strip())
        if number is None:
            raise ValueError(f"--record {record!r} is neither a record number nor a Zenodo DOI; write 1234567 or 10.5281/zenodo.1234567")
        return get(f"{api}/records/{number[1]}")
    title = quote('title:"' + RELEASE_TITLE + '"')
    hits = get(f"{api}/records?q={title}&size=10").get("hits", {}).get("hits", [])
    same = [h for h in hits if str(h.get("metadata", {}).get("title", "")).strip().lower() == RELEASE_TITLE.lower()]
    if not same:
        raise FileFormatError(f"Zenodo lists no record titled {RELEASE_TITLE!r}; give --record with its number or DOI")
    newest: dict[str, Any] = max(same, key=lambda h: int(h.get("id", 0)))
    return newest


def _choose(entry: dict[str, Any], names: Collection[str], years: Collection[int]) -> tuple[list[tuple[str, str, str, int]], list[str]]:
    listed = []
    for file in entry.get("files") or []:
        try:
            listed.append((str(file["key"]), str(file["links"]["self"]), str(file["checksum"]), int(file.get("size", 0))))
        except (KeyError, TypeError):
            raise FileFormatError(f"record {entry.get('id')} lists a file without name, link or checksum; give another --record") from None
    wanted, notes = [], []
    lost = []
    for name in names:
        pattern = re.compile(rf"(?<![a-z0-9]){name}(?!\d)", re.IGNORECASE)
        mine = [f for f in listed if pattern.search(f[0])]
        if not any(f[0].endswith((".tar.gz", ".tgz", ".tar")) for f in mine):
            lost.append(name)
        for file in mine:
            labels = {int(y) for y in re.findall(r"(?<!\d)20[0-4]\d(?!\d)", file[0])}
            if not labels or labels & set(years):
                wanted.append(file)
            if not labels and file[0].endswith((".tar.gz", ".tgz", ".tar")):
                notes.append(f"{file[0]} holds all years of the release together; the ingest splits them")
    if lost:
        shown = ", ".join(f[0] for f in listed[:6]) + (" ..." if len(listed) > 6 else "") or "none"
        raise FileFormatError(f"record {entry.get('id')} has no archive {lost[0]}; its files: {shown}. Give another --record")
    if not wanted:
        raise FileFormatError(f"record {entry.get('id')} has no archive of {', '.join(map(str, sorted(years)))}; give other --years")
    if unsafe := [f[0] for f in wanted if "/" in f[0] or "\\" in f[0] or f[0].startswith(".")]:
        raise FileFormatError(f"record {entry.get('id')} lists a file {unsafe[0]!r} whose name leaves the directory; give another --record")
    return wanted, notes


def _download(folder: Path, name: str, *, url: str, md5: str, size: int, report: Report) -> tuple[bool, Path]:
    import pooch

    known = md5 if ":" in md5 else f"md5:{md5}"
    target = folder / name
    if target.is_file() and pooch.file_hash(str(target), alg=known.partition(":")[0]) == known.partition(":")[2]:
        report(name, size / 1e6, size / 1e6)
        return True, target

    def resumed(url: str, output_file: Any, pooch: Any) -> None:
        _transfer(url, folder / f"{name}.partial", size=size, report=report)
        (folder / f"{name}.partial").replace(output_file)

    try:
        with _quiet():
            pooch.retrieve(url, known_hash=known, fname=name, path=folder, downloader=resumed)
    except ValueError as error:
        if "hash" not in str(error).lower():
            raise
        raise FileFormatError(
            f"{name}: its {known.partition(':')[0].upper()} is not the one Zenodo lists; the download was removed, run again"
        ) from None
    return False, target


def _transfer(url: str, partial: Path, *, size: int, report: Report) -> None:
    """Bytes of a URL into a file, going on where the file ends."""
    import requests

    why = ""
    for _ in range(_TRIES):
        have = partial.stat().st_size if partial.exists() else 0
        if size and have >= size:
            return
        try:
            ranges = {"Range": f"bytes={have}-"} if have else {}
            # the archive's own bytes: an answer compressed once more could not be continued
            headers = {"Accept-Encoding": "identity", **ranges}
            with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as answer:
                if answer.status_code == 416:
                    return
                answer.raise_for_status()
                goes_on = answer.status_code == 206
                with partial.open("ab" if goes_on else "wb") as file:
                    done = have if goes_on else 0
                    for chunk in answer.iter_content(_CHUNK_BYTES):
                        file.write(chunk)
                        done += len(chunk)
                        report(partial.name.removesuffix(".partial"), done / 1e6, size / 1e6)
                if not size or done >= size:
                    return
                why = f"{done} of {size} bytes came"
        except requests.RequestException as error:
            why = _reason(error)
    raise ConnectionError(
        f"{partial.name.removesuffix('.partial')}: the transfer broke off ({why}); run the same command again, it goes on from there"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    # pooch announces every file on stderr in words of its own
    import pooch

    logger = pooch.get_logger()
    before = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(before)


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return type(error).__name__


def _by_hand(folder: Path, names: Collection[str], record: str | None, *, why: str) -> str:
    files = ", ".join(f"{n}.tar.gz" for n in names)
    it = "it" if len(names) == 1 else "them"
    number = re.fullmatch(r"(?:.*zenodo\.)?(\d+)", record.strip()) if record else None
    search = f"https://zenodo.org/search?q={quote(RELEASE_TITLE)}"
    where = f"https://zenodo.org/records/{number[1]}" if number else f"{search} (the record titled {RELEASE_TITLE!r})"
    return (
        f"Zenodo cannot be reached ({why}): on another machine download {files} from {where}, put {it} into {folder.resolve()}, "
        f"then run: calolife transparency ingest {folder} --out DATASET"
    )
