"""What files of showers and of superclusters share: written beside and renamed once whole, columns, the detector; damage in one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from calolife.detector.presets import Detector, from_toml, to_toml
from calolife.errors import FileFormatError

if TYPE_CHECKING:
    import h5py

__all__ = ["beside", "checked", "flush_columns", "new_columns", "open_hdf5", "stored_detector", "write_detector"]

T = TypeVar("T")

_GZIP = 1  # chosen: higher levels save 3 % of a sample of pions and take twice the time


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A name to write to, renamed to `path` when all went well and removed when not."""
    if not path.parent.is_dir():  # uproot would make one, HDF5 tells it in five clauses
        raise FileNotFoundError(errno.ENOENT, "no such directory; make it first", str(path.parent))
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def new_columns(file: h5py.File, sizes: Mapping[str, tuple[str, tuple[int, ...], int]]) -> dict[str, h5py.Dataset]:
    """Empty columns in a file being written, of a type, a shape beside their length, and a length of chunks."""
    return {
        name: file.create_dataset(
            name, shape=(0, *shape), maxshape=(None, *shape), chunks=(chunk, *shape), dtype=dtype,
            compression="gzip", compression_opts=_GZIP, shuffle=True, fletcher32=True,
        )
        for name, (dtype, shape, chunk) in sizes.items()
    }  # fmt: skip


def flush_columns(columns: Mapping[str, h5py.Dataset], waiting: dict[str, list[NDArray[Any]]], *, is_last: bool = False) -> None:
    """Write what waits for each column: whole chunks only, so that the file does not show how the sample was cut; at the end all."""
    for name, column in columns.items():
        chunk = column.chunks[0]
        n = sum(len(a) for a in waiting[name])
        n_out = n if is_last else n // chunk * chunk
        if n_out == 0:
            continue
        values = np.concatenate(waiting[name])
        at = column.shape[0]
        column.resize(at + n_out, axis=0)
        column[at:] = values[:n_out]
        waiting[name] = [values[n_out:]]


def write_detector(file: h5py.File, detector: Detector) -> None:
    """The detector as TOML in a data set of its own: an attribute holds 64 kB at most."""
    import h5py

    text = to_toml(detector).encode()
    file.create_dataset("detector", data=np.array(text, dtype=h5py.string_dtype("utf-8", len(text))))


@contextmanager
def open_hdf5(path: Path, *, name: str, what: str, maker: str) -> Iterator[h5py.File]:
    """The open file, or the one of that name in a run directory; what HDF5 finds wrong with it is told in one line."""
    import h5py

    if path.is_dir():
        if not (path / name).is_file():
            raise FileFormatError(f"{path} has no {name}; give a file of {what}, or a run of '{maker}'")
        path = path / name
    if not path.is_file():
        hint = path.with_name(path.name + ".partial")
        hint_text = f"{hint} is unfinished: repeat its command to go on" if hint.exists() else "give a file or a run directory"
        raise FileFormatError(f"no {what} at {path}; {hint_text}")
    if not h5py.is_hdf5(path):
        raise FileFormatError(f"{path} is not HDF5; give a file that '{maker}' wrote, or convert it")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileFormatError:
        raise
    except (OSError, RuntimeError, KeyError) as error:  # to h5py a damaged link is a KeyError
        what = "truncated" if "truncated" in str(error) else "damaged"
        raise FileFormatError(f"{path} is {what}: HDF5 cannot read it; make it or get it again") from error


def stored_detector(record: Mapping[str, Any], path: Path, *, version: int, detector: Detector | None) -> Detector:
    """Detector of a file, with the version of its format and the detector's digest checked, and that it is the one asked for."""
    if str(record.get("version")) != str(version):
        raise FileFormatError(f"{path} has version {record.get('version')} of the format, this calolife reads {version}; update calolife")
    here = checked(path, lambda: from_toml(str(record["detector"])))
    if here.digest != record["detector_digest"]:
        raise FileFormatError(f"{path} is damaged: its detector {here.name!r} is not the one its digest names; make it again")
    if detector is not None and detector.digest != here.digest:
        raise FileFormatError(
            f"{path} was made in detector {here.name!r} ({here.digest[:8]}), not in {detector.name!r} ({detector.digest[:8]}); leave it out"
        )
    return here


def checked(path: Path, make: Callable[[], T]) -> T:
    """What `make` makes of the contents of a file; what it refuses is damage."""
    try:
        return make()
    except FileFormatError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise FileFormatError(f"{path} is damaged: {error}") from error
