"""Superclusters on disk: HDF5 with the columns of `Superclusters`, written and checked as showers are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.presets import Detector
from calolife.errors import FileFormatError
from calolife.showers.hdf5 import beside, checked, flush_columns, new_columns, open_hdf5, stored_detector, write_detector
from calolife.showers.superclusters import Superclusters

__all__ = ["CLUSTERS_FILE", "is_superclusters", "read_superclusters", "write_superclusters"]

CLUSTERS_FILE = "objects.h5"
"""Name of the superclusters in a run directory."""

_FORMAT, _VERSION = "calolife superclusters", 1
_WHAT = {"name": CLUSTERS_FILE, "what": "superclusters", "maker": "calolife showers cluster"}
_HIT_COLUMNS = {"cell": "i4", "energy_mev": "f4", "hit_cluster": "i4"}
_CLUSTER_COLUMNS = {"cluster_seed": "i4", "cluster_energy_gev": "f8", "cluster_eta": "f8", "cluster_phi": "f8"}
_OBJECT_COLUMNS = {
    "shower": "i8", "is_matched": "u1", "pdg_id": "i4", "energy_gev": "f8", "rho_gev": "f8", "hadronic_gev": "f8", "n_saturated": "i4",
}  # fmt: skip
_OFFSETS = ("hit_offsets", "cluster_offsets")
_OBJECTS_PER_CHUNK, _HITS_PER_CHUNK = 4096, 32768  # chosen: 32 and 128 kB, as in files of showers


def write_superclusters(path: str | Path, found: Superclusters | Iterable[Superclusters]) -> int:
    """Write superclusters as HDF5, part by part.

    Parameters
    ----------
    path : path
        A file there is replaced once the new one is whole.
    found : Superclusters, or iterable of Superclusters
        Parts of one sample, in order: the same detector and readout. Memory holds one part.

    Returns
    -------
    int
        Objects written.

    Raises
    ------
    ValueError
        Nothing to write, or parts that do not belong together.

    Notes
    -----
    Columns as in `Superclusters`, chunked, compressed (gzip), with checksums; ``hit_cluster`` counts within its object. The
    detector is inside as TOML. No date: the same objects give the same bytes, however they were cut into parts.
    """
    import h5py

    parts = iter([found]) if isinstance(found, Superclusters) else iter(found)
    first = next(parts, None)
    if first is None:
        raise ValueError("no superclusters to write; give at least one part, it may be empty")
    nothing = first.select([])
    with beside(Path(path)) as partial, h5py.File(partial, "w") as file:
        sizes: dict[str, tuple[str, tuple[int, ...], int]] = {
            name: (dtype, (), _OBJECTS_PER_CHUNK)
            for name, dtype in {**dict.fromkeys(_OFFSETS, "i8"), **_OBJECT_COLUMNS, **_CLUSTER_COLUMNS}.items()
        }
        sizes |= {name: (dtype, (), _HITS_PER_CHUNK) for name, dtype in _HIT_COLUMNS.items()}
        columns = new_columns(file, sizes)
        waiting: dict[str, list[NDArray[Any]]] = {name: [np.zeros(1, np.int64)] if name in _OFFSETS else [] for name in columns}
        n_showers = n_objects = n_hits = n_clusters = 0
        part: Superclusters | None = first
        while part is not None:
            Superclusters.concatenate([nothing, part.select([])])  # refuses another detector or readout
            waiting["hit_offsets"].append(part.hit_offsets[1:] + n_hits)
            waiting["cluster_offsets"].append(part.cluster_offsets[1:] + n_clusters)
            waiting["hit_cluster"].append(part.hit_cluster - part.cluster_offsets[:-1][part.hit_object])
            waiting["shower"].append(part.shower + n_showers)
            for name in (*_OBJECT_COLUMNS, *_HIT_COLUMNS, *_CLUSTER_COLUMNS):
                if name not in ("shower", "hit_cluster"):
                    waiting[name].append(getattr(part, name))
            n_showers, n_objects = n_showers + part.n_showers, n_objects + part.n_objects
            n_hits, n_clusters = n_hits + part.n_hits, n_clusters + part.cluster_seed.size
            flush_columns(columns, waiting)
            part = next(parts, None)
        flush_columns(columns, waiting, is_last=True)
        write_detector(file, first.detector)
        for name, value in (
            ("format", _FORMAT), ("version", _VERSION), ("detector_digest", first.detector.digest), ("readout", first.readout),
            ("n_showers", n_showers), ("n_objects", n_objects), ("n_hits", n_hits),
        ):  # fmt: skip
            file.attrs[name] = value
    return n_objects


def read_superclusters(path: str | Path, *, detector: Detector | None = None) -> Superclusters:
    """Superclusters that `write_superclusters` wrote.

    Parameters
    ----------
    path : path
        The file, or a run directory with ``objects.h5`` in it.
    detector : CrystalCalorimeter, optional
        Must be the one of the file.

    Returns
    -------
    Superclusters

    Raises
    ------
    FileFormatError
        Not there, truncated, damaged, of another program, or made in another detector.

    Examples
    --------
    >>> import tempfile
    >>> from calolife.detector.presets import load_detector
    >>> from calolife.showers.clusters import find_superclusters
    >>> from calolife.showers.events import Showers
    >>> barrel = load_detector("cms-barrel")
    >>> showers = Showers.from_hits(barrel, [0, 1], barrel.cell_id(10, [20, 21]), [900.0, 9000.0], pdg_id=22, energy_gev=[1.0, 10.0])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     n = write_superclusters(f"{folder}/objects.h5", find_superclusters(showers))
    ...     read_superclusters(folder)
    Superclusters(1 objects in 2 showers, 1 hits, cms-barrel)
    """
    path = Path(path)
    with open_hdf5(path, **_WHAT) as file:
        if not np.array_equal(file.attrs.get("format"), _FORMAT):
            raise FileFormatError(f"{path} holds no superclusters that calolife wrote; give a run of 'calolife showers cluster'")
        names = (*_OFFSETS, *_OBJECT_COLUMNS, *_HIT_COLUMNS, *_CLUSTER_COLUMNS)
        rank = {**dict.fromkeys(names, 1), "detector": 0}
        if missing := [name for name, n_axes in rank.items() if len(getattr(file.get(name), "shape", (None,) * 9)) != n_axes]:
            raise FileFormatError(f"{path} is damaged: {missing[0]} is missing; make it again")
        record = {name: file.attrs.get(name) for name in ("version", "detector_digest", "readout", "n_showers")}
        record["detector"] = checked(path, lambda: bytes(file["detector"][()]).decode())
        here = stored_detector(record, path, version=_VERSION, detector=detector)
        if not isinstance(here, CrystalCalorimeter):
            raise FileFormatError(f"{path} is damaged: its detector {here.name!r} is made of layers; make it again")
        columns: dict[str, Any] = {name: file[name][()] for name in names}

    def made() -> Superclusters:
        n_object_hits = np.diff(columns["hit_offsets"])
        if columns["cluster_offsets"].size != columns["hit_offsets"].size or (n_object_hits < 0).any():
            raise ValueError("its offsets do not fit")
        columns["hit_cluster"] = columns["hit_cluster"] + np.repeat(columns["cluster_offsets"][:-1], n_object_hits)
        return Superclusters(here, int(record["n_showers"]), readout=str(record["readout"]), **columns)

    return checked(path, made)


def is_superclusters(path: str | Path) -> bool:
    """Whether there are superclusters at a path: a file that `write_superclusters` wrote, or a run directory with ``objects.h5``.

    Raises
    ------
    FileFormatError
        HDF5 that is damaged.
    """
    import h5py

    path = Path(path)
    if path.is_dir():
        return (path / CLUSTERS_FILE).is_file()
    if not (path.is_file() and h5py.is_hdf5(path)):
        return False
    with open_hdf5(path, **_WHAT) as file:
        return bool(np.array_equal(file.attrs.get("format"), _FORMAT))
