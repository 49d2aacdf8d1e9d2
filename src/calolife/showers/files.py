"""Showers on disk: our HDF5, the CaloChallenge layout, ROOT trees, and sparse samples of the cu-scint-24x24 stack.

What we write goes to ``<name>.partial`` first and is renamed at the end. The same showers give the same bytes (HDF5),
however they were cut into parts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calolife.detector.layers import LayeredCalorimeter, Readout
from calolife.detector.presets import Detector, load_detector, to_toml
from calolife.errors import FileFormatError, MissingExtraError
from calolife.showers.events import PDG, UNKNOWN_PARTICLE, Showers
from calolife.showers.hdf5 import beside, checked, flush_columns, new_columns, open_hdf5, stored_detector, write_detector

if TYPE_CHECKING:
    import h5py

__all__ = [
    "SHOWERS_FILE",
    "LayerSums",
    "count_showers",
    "holds_layer_sums",
    "iter_showers",
    "read_layer_sums",
    "read_showers",
    "write_calochallenge",
    "write_root",
    "write_showers",
]

FloatArray = NDArray[np.float64]

SHOWERS_FILE = "showers.h5"
"""Name of the showers in a run directory."""

_FORMAT, _VERSION = "calolife showers", 1
_WHAT = {"name": SHOWERS_FILE, "what": "showers", "maker": "calolife showers"}
_TREE, _RECORD = "showers", "calolife"
_HIT_COLUMNS = {"cell": "i4", "energy_mev": "f4"}
_TRUTH_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "pdg_id": ("i4", ()), "energy_gev": ("f8", ()), "position_mm": ("f8", (3,)), "direction": ("f8", (3,)),
    "active_mev": ("f8", ()), "passive_mev": ("f8", ()), "leaked_mev": ("f8", ()), "invisible_mev": ("f8", ()),
}  # fmt: skip
_SHOWERS_PER_CHUNK = 1024  # chosen: a part of a file is found by decoding little more than it
_HITS_PER_CHUNK = 32768  # chosen: 128 kB, a few milliseconds to decode
_DENSE_BYTES = 1 << 24  # chosen: dense layouts are written and read in parts of 16 MB


@dataclass(frozen=True, eq=False)
class LayerSums:
    """Showers of which a file keeps the sum of each active layer only.

    Parameters
    ----------
    layer_energy_mev : float array, (shower, layer) [MeV]
    energy_gev : float array, (shower,) [GeV]
    pdg_id : int array, (shower,)
    """

    layer_energy_mev: FloatArray
    energy_gev: FloatArray
    pdg_id: NDArray[np.int32]


@dataclass(frozen=True)
class _Source:
    """An open file: how many showers there are, and how to read some of them."""

    n_showers: int
    read: Callable[[int, int], Showers]


def write_showers(path: str | Path, showers: Showers | Iterable[Showers]) -> int:
    """Write showers as HDF5, part by part.

    Parameters
    ----------
    path : path
        A file there is replaced once the new one is whole.
    showers : Showers, or iterable of Showers
        Parts of one sample, in order: the same detector, kind and readout. Memory holds a part and 1,024 showers.

    Returns
    -------
    int
        Showers written.

    Raises
    ------
    ValueError
        Nothing to write, or parts that do not belong together.

    Notes
    -----
    Columns as in `Showers`, chunked, compressed (gzip), with checksums; the detector is inside as TOML. No date: the
    same showers give the same bytes. Of `origin`, what all parts share is kept.
    """
    import h5py

    parts, n_hits = _one_sample(showers), 0
    first = next(parts)
    with beside(Path(path)) as partial, h5py.File(partial, "w") as file:
        sizes: dict[str, tuple[str, tuple[int, ...], int]] = {"offsets": ("i8", (), _SHOWERS_PER_CHUNK)}
        sizes |= {name: (dtype, (), _HITS_PER_CHUNK) for name, dtype in _HIT_COLUMNS.items()}
        sizes |= {name: (dtype, shape, _SHOWERS_PER_CHUNK) for name, (dtype, shape) in _TRUTH_COLUMNS.items()}
        columns = new_columns(file, sizes)
        waiting: dict[str, list[NDArray[Any]]] = {name: [] for name in columns}
        waiting["offsets"].append(np.zeros(1, np.int64))
        n_showers, origin = 0, first.origin
        for block in _blocks(first, parts, size=_SHOWERS_PER_CHUNK):
            waiting["offsets"].append(block.offsets[1:] + n_hits)
            for name in (*_HIT_COLUMNS, *_TRUTH_COLUMNS):
                waiting[name].append(getattr(block, name))
            n_showers, n_hits = n_showers + block.n_showers, n_hits + block.n_hits
            origin = _shared(origin, block.origin)
            flush_columns(columns, waiting)
        flush_columns(columns, waiting, is_last=True)
        write_detector(file, first.detector)
        record = _record(first, origin)
        del record["detector"]  # written above
        for name, value in record.items():
            file.attrs[name] = json.dumps(value) if isinstance(value, dict) or value is None else value
        file.attrs["n_showers"], file.attrs["n_hits"] = n_showers, n_hits
    return n_showers


def read_showers(path: str | Path, *, start: int = 0, stop: int | None = None, detector: Detector | None = None) -> Showers:
    """Showers of a file, or some of them.

    Parameters
    ----------
    path : path
        A run directory with showers, HDF5 of `write_showers`, ROOT of `write_root`, the CaloChallenge layout, or the
        sparse layout of a regular grid (offsets, cell, energy_mev, true_energy_gev).
    start, stop : int
        The showers from `start` to ``stop - 1``; to the end when left out. Only these are read.
    detector : LayeredCalorimeter or CrystalCalorimeter, optional
        Needed where the file does not tell: the CaloChallenge layout, a grid that is not the one of
        ``cu-scint-24x24``. It must agree with a file that does tell.

    Returns
    -------
    Showers

    Raises
    ------
    FileFormatError
        Not there, truncated, damaged, of another program, or made in another detector.
    ValueError
        A range that the file does not have; a detector that is missing.
    MissingExtraError
        A ROOT file and no uproot.

    Notes
    -----
    The sparse layout does not tell where showers met the detector: position and direction are NaN.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> import tempfile
    >>> calo = load_detector("cu-scint-24x24")
    >>> showers = Showers.from_hits(calo, [0, 1], [300, 876], [1.5, 0.5], pdg_id=-211, energy_gev=[10.0, 20.0])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     n = write_showers(f"{folder}/pions.h5", showers)
    ...     read_showers(f"{folder}/pions.h5", start=1).energy_gev.tolist()
    [20.0]
    """
    with _opened(Path(path), detector) as source:
        last = source.n_showers if stop is None else stop
        if not 0 <= start <= last <= source.n_showers:
            raise ValueError(f"{path} has {source.n_showers} showers, from 0; there are none from {start} to {last}")
        return source.read(start, last)


def iter_showers(
    path: str | Path, *, chunk: int = 1000, start: int = 0, stop: int | None = None, detector: Detector | None = None
) -> Iterator[Showers]:
    """Showers of a file, `chunk` at a time; otherwise as `read_showers`.

    Raises
    ------
    FileFormatError, ValueError, MissingExtraError
        As `read_showers`, when the first part is asked for; chunk < 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk = {chunk} must be >= 1")
    with _opened(Path(path), detector) as source:
        last = source.n_showers if stop is None else stop
        if not 0 <= start <= last <= source.n_showers:
            raise ValueError(f"{path} has {source.n_showers} showers, from 0; there are none from {start} to {last}")
        for at in range(start, max(last, start + 1), chunk):  # an empty file is one empty part: its detector is worth having
            yield source.read(at, min(at + chunk, last))


def count_showers(path: str | Path, *, detector: Detector | None = None) -> int:
    """Showers in a file that `read_showers` reads.

    Raises
    ------
    FileFormatError, ValueError, MissingExtraError
        As `read_showers`.
    """
    with _opened(Path(path), detector) as source:
        return source.n_showers


def holds_layer_sums(path: str | Path) -> bool:
    """Whether a file keeps the sums of layers only, no cells; False for what is not HDF5.

    Raises
    ------
    FileFormatError
        HDF5 that is damaged.
    """
    import h5py

    if not (Path(path).is_file() and h5py.is_hdf5(path)):
        return False
    with open_hdf5(Path(path), **_WHAT) as file:
        return _is_layer_sums(file) and not np.array_equal(file.attrs.get("format"), _FORMAT)


def read_layer_sums(path: str | Path) -> LayerSums:
    """Layer sums of a file that keeps nothing else, or of any showers `read_showers` reads.

    Raises
    ------
    FileFormatError
        As `read_showers`.
    """
    with open_hdf5(Path(path), **_WHAT) as file:
        if _is_layer_sums(file):
            found = LayerSums(
                np.asarray(file["layer_energy_mev"][()], dtype=np.float64),
                np.asarray(file["true_energy_gev"][()], dtype=np.float64),
                np.asarray(file["pdg_id"][()], dtype=np.int32),
            )
            n = found.energy_gev.size
            if found.layer_energy_mev.shape[:1] != (n,) or found.pdg_id.shape != (n,):
                raise FileFormatError(f"{path} is damaged: its columns have different lengths; get it again")
            return found
    parts = list(iter_showers(path))
    return LayerSums(
        np.concatenate([p.layer_energy_mev() for p in parts]),
        np.concatenate([p.energy_gev for p in parts]),
        np.concatenate([p.pdg_id for p in parts]),
    )


def write_calochallenge(path: str | Path, showers: Showers | Iterable[Showers]) -> int:
    """Write the dense layout of the Fast Calorimeter Simulation Challenge 2022.

    Parameters
    ----------
    path : path
    showers : Showers, or iterable of Showers
        Parts of one sample.

    Returns
    -------
    int
        Showers written.

    Raises
    ------
    ValueError
        As `write_showers`; negative rechits.

    Notes
    -----
    ``incident_energies`` (shower, 1) [MeV], float64, and ``showers`` (shower, voxel) [MeV], float32, gzip: the layout of
    C. Krause et al., arXiv:2410.21611. A voxel is a cell of the detector, in the order of its cells: layers from the
    beam on, then x, then y, not the cylinders of the Challenge's own data. Particle, impact point, direction, kind and
    detector are lost. The incident energy is kinetic.
    """
    import h5py

    parts = _one_sample(showers)
    first, n_showers = next(parts), 0
    n_cells = first.detector.n_cells
    step = max(1, _DENSE_BYTES // (4 * n_cells))
    with beside(Path(path)) as partial, h5py.File(partial, "w") as file:
        energy = file.create_dataset(
            "incident_energies", shape=(0, 1), maxshape=(None, 1), chunks=(_SHOWERS_PER_CHUNK, 1), dtype="f8", compression="gzip"
        )
        dense = file.create_dataset(
            "showers", shape=(0, n_cells), maxshape=(None, n_cells), chunks=(max(1, step // 16), n_cells), dtype="f4", compression="gzip"
        )
        for block in _blocks(first, parts, size=step):
            if block.n_hits and block.energy_mev.min() < 0:
                raise ValueError("the CaloChallenge layout holds no negative energies, but noise made some; digitise with a threshold")
            last = n_showers + block.n_showers
            energy.resize(last, axis=0)
            dense.resize(last, axis=0)
            energy[n_showers:last, 0] = block.energy_gev * 1000.0
            voxels = np.zeros((block.n_showers, n_cells), dtype=np.float32)
            voxels[block.shower_index, block.cell] = block.energy_mev
            dense[n_showers:last] = voxels
            n_showers = last
    return n_showers


def write_root(path: str | Path, showers: Showers | Iterable[Showers]) -> int:
    """Write a ROOT file with a TTree ``showers``.

    Parameters
    ----------
    path : path
    showers : Showers, or iterable of Showers
        Parts of one sample.

    Returns
    -------
    int
        Showers written.

    Raises
    ------
    MissingExtraError
        No uproot here.
    ValueError
        As `write_showers`.

    Notes
    -----
    One entry per shower: jagged ``cell`` and ``energy_mev``, and the truth in flat branches (``x_mm``, ``direction_x``,
    ...). Detector, kind, readout and origin are in the TObjString ``calolife``, as JSON. Of `origin`, what all parts share is kept.
    """
    uproot, ak = _uproot()
    parts = _one_sample(showers)
    first = next(parts)
    n_showers, origin = 0, first.origin
    types: dict[str, Any] = {"cell": "var * int32", "energy_mev": "var * float32"}
    types |= {name: np.dtype(dtype) for name, dtype in _flat_types().items()}
    with beside(Path(path)) as partial, uproot.recreate(partial) as file:
        tree = file.mktree(_TREE, types)
        for block in _blocks(first, parts, size=_SHOWERS_PER_CHUNK):
            n_hit = np.diff(block.offsets)
            columns = {name: ak.unflatten(getattr(block, name), n_hit) for name in _HIT_COLUMNS}
            tree.extend({**columns, **_flat(block)})
            n_showers += block.n_showers
            origin = _shared(origin, block.origin)
        file[_RECORD] = json.dumps(_record(first, origin))
    return n_showers


def _one_sample(showers: Showers | Iterable[Showers]) -> Iterator[Showers]:
    """The parts of one sample, each checked against the first."""
    parts = iter([showers]) if isinstance(showers, Showers) else iter(showers)
    first = next(parts, None)
    if first is None:
        raise ValueError("no showers to write; give at least one part, it may be empty")

    def each() -> Iterator[Showers]:
        yield first
        ends = first.between(0, 0)
        for part in parts:
            Showers.concatenate([ends, part.between(0, 0)])  # refuses another detector, kind or readout
            yield part

    return each()


def _blocks(first: Showers, parts: Iterator[Showers], *, size: int) -> Iterator[Showers]:
    """The same showers in blocks of `size`, the last one shorter."""
    held, n_held = [first], first.n_showers
    while True:
        if n_held >= size:
            joined = Showers.concatenate(held)
            whole = n_held // size * size
            for start in range(0, whole, size):
                yield joined.between(start, start + size)
            held, n_held = [joined.between(whole, n_held)], n_held - whole
        part = next(parts, None)
        if part is None:
            break
        held.append(part)
        n_held += part.n_showers
    if n_held:
        yield Showers.concatenate(held)


def _shared(origin: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in origin.items() if k in other and other[k] == v}


def _record(showers: Showers, origin: Mapping[str, Any]) -> dict[str, Any]:
    readout = None
    if showers.readout is not None:  # JSON has no infinity
        readout = {k: None if math.isinf(v) else v for k, v in asdict(showers.readout).items()}
    return {
        "format": _FORMAT, "version": _VERSION, "kind": showers.kind, "detector": to_toml(showers.detector),
        "detector_digest": showers.detector.digest, "readout": readout, "origin": dict(origin),
    }  # fmt: skip


def _flat_types() -> dict[str, str]:
    types: dict[str, str] = {}
    for name, (dtype, shape) in _TRUTH_COLUMNS.items():
        types |= dict.fromkeys(_flat_names(name) if shape else [name], dtype)
    return types


def _flat_names(name: str) -> list[str]:
    return ["x_mm", "y_mm", "z_mm"] if name == "position_mm" else ["direction_x", "direction_y", "direction_z"]


def _flat(block: Showers) -> dict[str, NDArray[Any]]:
    flat: dict[str, NDArray[Any]] = {}
    for name, (_, shape) in _TRUTH_COLUMNS.items():
        column = getattr(block, name)
        flat |= {axis: column[:, i] for i, axis in enumerate(_flat_names(name))} if shape else {name: column}
    return flat


def _opened(path: Path, detector: Detector | None) -> AbstractContextManager[_Source]:
    return _opened_root(path, detector) if path.suffix == ".root" else _opened_hdf5(path, detector)


@contextmanager
def _opened_hdf5(path: Path, detector: Detector | None) -> Iterator[_Source]:
    import h5py

    with open_hdf5(path, **_WHAT) as file:
        columns = {name for name in file if isinstance(file.get(name), h5py.Dataset)}
        if np.array_equal(file.attrs.get("format"), _FORMAT):
            source = _ours(file, path, detector)
        elif {"offsets", "cell", "energy_mev", "true_energy_gev"} <= columns:
            source = _sparse(file, path, detector)
        elif {"incident_energies", "showers"} <= columns:
            source = _dense(file, path, detector)
        elif _is_layer_sums(file):
            raise FileFormatError(f"{path} keeps the sums of layers only, no cells; read them with read_layer_sums")
        else:
            raise FileFormatError(f"{path} holds no showers that calolife knows: it has {', '.join(sorted(file)[:6]) or 'nothing'}")
        yield source


def _is_column(file: h5py.File, name: str, n_axes: int) -> bool:
    # a group has no shape
    return len(getattr(file.get(name), "shape", (None,) * 9)) == n_axes


def _is_layer_sums(file: h5py.File) -> bool:
    return {"layer_energy_mev", "true_energy_gev", "pdg_id"} <= set(file)


def _ours(file: h5py.File, path: Path, detector: Detector | None) -> _Source:
    rank = {"offsets": 1, **dict.fromkeys(_HIT_COLUMNS, 1), **{name: 1 + len(shape) for name, (_, shape) in _TRUTH_COLUMNS.items()}}
    missing = [name for name, n_axes in {**rank, "detector": 0}.items() if not _is_column(file, name, n_axes)]
    if missing:
        raise FileFormatError(f"{path} is damaged: {missing[0]} is missing; make it again")
    record = {name: file.attrs.get(name) for name in ("version", "kind", "detector_digest")}
    record |= {name: _json(file.attrs.get(name), path) for name in ("readout", "origin")}
    text = checked(path, lambda: bytes(file["detector"][()]).decode())
    here, common = _common({**record, "detector": text}, path, detector)
    n_showers = file["offsets"].shape[0] - 1
    if n_showers < 0 or any(file[name].shape[0] != n_showers for name in _TRUTH_COLUMNS):
        raise FileFormatError(f"{path} is damaged: its columns have different lengths; make it again")

    def read(start: int, stop: int) -> Showers:
        offsets, hits = _part(file, start, stop, path)
        columns = {name: file[name][start:stop] for name in _TRUTH_COLUMNS}
        return checked(path, lambda: Showers(here, offsets, hits["cell"], hits["energy_mev"], **columns, **common))

    return _Source(n_showers, read)


def _sparse(file: h5py.File, path: Path, detector: Detector | None) -> _Source:
    """Offsets, cells and energies on a regular grid; cell = (layer n_x + ix) n_y + iy."""
    try:
        grid = tuple(int(file.attrs[name]) for name in ("n_layers", "n_x", "n_y"))
        cell_mm = float(file.attrs["cell_mm"])
    except (KeyError, TypeError, ValueError):
        raise FileFormatError(f"{path} does not tell its grid: the attributes n_layers, n_x, n_y and cell_mm are needed") from None
    if missing := [name for name in ("offsets", *_HIT_COLUMNS, "true_energy_gev") if not _is_column(file, name, 1)]:
        raise FileFormatError(f"{path} is damaged: {missing[0]} is no column; make it or get it again")
    here = load_detector("cu-scint-24x24") if detector is None else detector
    if not isinstance(here, LayeredCalorimeter) or _grid(here) != (*grid, cell_mm):
        what = "the preset cu-scint-24x24" if detector is None else f"detector {here.name!r}"
        raise FileFormatError(f"{path} was made on {grid[0]} layers of {grid[1]} x {grid[2]} cells of {cell_mm:g} mm; {what} is another")
    what = str(file.attrs.get("what", ""))
    named = [code for name, code in PDG.items() if re.search(rf"(?<!\S){re.escape(name)}(?!\S)", what)]
    pdg_id = named[0] if len(named) == 1 else UNKNOWN_PARTICLE
    origin = {k: v.item() if isinstance(v, np.generic) else v for k, v in file.attrs.items() if k in ("engine", "seed", "what")}

    def read(start: int, stop: int) -> Showers:
        offsets, hits = _part(file, start, stop, path)
        unknown = np.full((stop - start, 3), np.nan)
        truth = np.full(stop - start, pdg_id), file["true_energy_gev"][start:stop], unknown, unknown
        return checked(path, lambda: Showers(here, offsets, hits["cell"], hits["energy_mev"], *truth, origin=origin))

    return _Source(file["offsets"].shape[0] - 1, read)


def _grid(detector: LayeredCalorimeter) -> tuple[int, int, int, float] | None:
    cells = {layer.cells for layer in detector.layers if layer.is_active}
    if len(cells) != 1:
        return None
    n_x, n_y = cells.pop()
    return (detector.n_active, n_x, n_y, detector.size_x_mm / n_x)


def _part(file: h5py.File, start: int, stop: int, path: Path) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]]]:
    offsets = np.asarray(file["offsets"][start : stop + 1], dtype=np.int64)
    n_hits = {file[name].shape[0] for name in _HIT_COLUMNS}
    if offsets.size != stop - start + 1 or len(n_hits) != 1 or offsets[-1] > min(n_hits) or offsets[0] < 0:
        raise FileFormatError(f"{path} is damaged: its offsets do not fit its hits; make it or get it again")
    first, last = int(offsets[0]), int(offsets[-1])
    return offsets - first, {name: file[name][first:last] for name in _HIT_COLUMNS}


def _dense(file: h5py.File, path: Path, detector: Detector | None) -> _Source:
    """The CaloChallenge layout: a voxel is a cell, in the order of the detector's cells."""
    if detector is None:
        raise ValueError(f"{path} has the CaloChallenge layout, which does not tell its detector; name it (detector=, or --detector)")
    n_showers, n_voxels = file["showers"].shape if file["showers"].ndim == 2 else (0, 0)
    if file["incident_energies"].size != n_showers or n_voxels == 0:
        raise FileFormatError(f"{path} is damaged: one incident energy and one row of voxels per shower are needed")
    if n_voxels != detector.n_cells:
        raise FileFormatError(f"{path} has {n_voxels} voxels but detector {detector.name!r} has {detector.n_cells} cells; name another")
    step = max(1, _DENSE_BYTES // (4 * n_voxels))

    def read(start: int, stop: int) -> Showers:
        shower, cell, energy = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
        for at in range(start, stop, step):
            voxels = file["showers"][at : min(at + step, stop)]
            i, j = np.nonzero(voxels)
            shower.append(i + at - start)
            cell.append(j)
            energy.append(voxels[i, j])
        incident = np.asarray(file["incident_energies"][start:stop], dtype=np.float64).ravel() / 1000.0
        made = (np.concatenate(a) for a in (shower, cell, energy))
        return checked(path, lambda: Showers.from_hits(detector, *made, pdg_id=UNKNOWN_PARTICLE, energy_gev=incident))

    return _Source(n_showers, read)


@contextmanager
def _opened_root(path: Path, detector: Detector | None) -> Iterator[_Source]:
    uproot, ak = _uproot()
    if not path.is_file():
        raise FileFormatError(f"no showers at {path}; give a file or a run directory")
    with _by_uproot(path, lambda: uproot.open(path)) as file:
        keys = _by_uproot(path, lambda: set(file.keys(cycle=False)))
        if not {_RECORD, _TREE} <= keys:
            raise FileFormatError(f"{path} holds no showers of calolife: a TTree {_TREE!r} and the TObjString {_RECORD!r} are needed")
        here, common = _common(_json(_by_uproot(path, lambda: str(file[_RECORD])), path) or {}, path, detector)
        tree = _by_uproot(path, lambda: file[_TREE])
        names = [*_HIT_COLUMNS, *_flat_types()]
        if missing := [name for name in names if name not in tree]:
            raise FileFormatError(f"{path} is damaged: branch {missing[0]} is missing; make it again")

        def read(start: int, stop: int) -> Showers:
            found = _by_uproot(path, lambda: tree.arrays(names, entry_start=start, entry_stop=stop, library="ak"))
            hits = {name: ak.to_numpy(ak.flatten(found[name])) for name in _HIT_COLUMNS}
            truth: dict[str, Any] = {
                name: np.stack([ak.to_numpy(found[axis]) for axis in _flat_names(name)], axis=1) if shape else ak.to_numpy(found[name])
                for name, (_, shape) in _TRUTH_COLUMNS.items()
            }
            offsets = np.concatenate([[0], np.cumsum(ak.to_numpy(ak.num(found["cell"])), dtype=np.int64)])
            return checked(path, lambda: Showers(here, offsets, hits["cell"], hits["energy_mev"], **truth, **common))

        yield _Source(int(tree.num_entries), read)


def _by_uproot(path: Path, call: Callable[[], Any]) -> Any:
    # what uproot raises on a damaged file depends on where the damage is
    try:
        return call()
    except Exception as error:
        raise FileFormatError(f"{path} is no ROOT file that uproot can read ({type(error).__name__}); make it or get it again") from error


def _uproot() -> tuple[Any, Any]:
    try:
        import awkward
        import uproot
    except ImportError:
        raise MissingExtraError('ROOT files need uproot and awkward: pip install "calolife[root]"') from None
    return uproot, awkward


def _json(text: Any, path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (TypeError, ValueError):
        raise FileFormatError(f"{path} is damaged: its record is not JSON; make it again") from None
    if found is not None and not isinstance(found, dict):
        raise FileFormatError(f"{path} is damaged: its record is not a JSON object; make it again")
    return found


def _common(record: Mapping[str, Any], path: Path, detector: Detector | None) -> tuple[Detector, dict[str, Any]]:
    """Detector, and what all showers of a file share."""
    here = stored_detector(record, path, version=_VERSION, detector=detector)
    readout = None
    if record.get("readout") is not None:
        stored = {f.name: record["readout"].get(f.name) for f in fields(Readout)}
        readout = checked(path, lambda: Readout(**{k: math.inf if v is None else float(v) for k, v in stored.items()}))
    return here, {"kind": str(record["kind"]), "readout": readout, "origin": dict(record["origin"] or {})}
