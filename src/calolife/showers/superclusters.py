"""Superclusters of a sample of showers: flat columns with offsets, checked, selected and joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.detector.crystals import CrystalCalorimeter

__all__ = ["Superclusters", "rows_of", "turned"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, repr=False)
class Superclusters:
    """Superclusters of a sample of showers: flat columns with offsets, and the truth of the shower each was found in.

    The hits of object i are ``cell[hit_offsets[i]:hit_offsets[i + 1]]``, sorted by cell, each once; its clusters are
    ``cluster_seed[cluster_offsets[i]:cluster_offsets[i + 1]]``, the one that started it first, the others by falling
    transverse energy. Objects come shower by shower, in a shower by falling transverse energy of their first cluster.

    Parameters
    ----------
    detector : CrystalCalorimeter
    n_showers : int
        Showers looked at, with objects or without.
    shower : int array, (object,)
        Index of the shower, never falling.
    hit_offsets : int array, (object + 1,)
    cell : int array, (hit,)
        Crystal.
    energy_mev : float array, (hit,) [MeV]
        Energy of the crystal, > 0; all of it belongs to this object.
    hit_cluster : int array, (hit,)
        Index of the cluster, among all clusters of the sample.
    cluster_offsets : int array, (object + 1,)
    cluster_seed : int array, (cluster,)
        Crystal of the seed.
    cluster_energy_gev : float array, (cluster,) [GeV]
    cluster_eta, cluster_phi : float array, (cluster,); phi [rad]
    is_matched : bool array, (object,)
        Found where the incident particle should be; at most one object of a shower.
    pdg_id : int array, (object,)
        Incident particle of the shower, whether matched or not.
    energy_gev : float array, (object,) [GeV]
        Its energy.
    rho_gev : float array, (object,) [GeV], optional
        Energy density of the shower, as `energy_density_gev`; NaN where it is not known, so by default.
    hadronic_gev : float array, (object,) [GeV], optional
        Energy behind the crystals, the H of H/E; NaN where nothing stands there, so by default.
    readout : str
        ``"simhits"``, or ``"rechits of ..."`` with the numbers of their readout; empty where it is not known.
    n_saturated : int array, (object,), optional
        Crystals that read no less than the ceiling of the readout; 0 by default.

    Raises
    ------
    ValueError
        Shapes that do not fit, offsets that do not rise (an object without hits or clusters), showers that fall or are
        out of range, crystals out of range or out of order, energies that are not finite and > 0, an infinite rho, a hit
        in a cluster of another object, two matched objects in a shower.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> barrel = load_detector("cms-barrel")
    >>> cell = barrel.cell_id(10, [20, 21])
    >>> clusters = [0, 1], cell[:1], [1.0], [0.16], [0.34]
    >>> one = Superclusters(barrel, 2, [1], [0, 2], cell, [900.0, 100.0], [0, 0], *clusters, [True], [11], [1.1])
    >>> one.n_objects, one.n_showers_without, one.raw_energy_gev.tolist()
    (1, 1, [1.0])
    """

    detector: CrystalCalorimeter
    n_showers: int
    shower: IntArray
    hit_offsets: IntArray
    cell: NDArray[np.int32]
    energy_mev: NDArray[np.float32]
    hit_cluster: IntArray
    cluster_offsets: IntArray
    cluster_seed: NDArray[np.int32]
    cluster_energy_gev: FloatArray
    cluster_eta: FloatArray
    cluster_phi: FloatArray
    is_matched: BoolArray
    pdg_id: NDArray[np.int32]
    energy_gev: FloatArray
    rho_gev: FloatArray = None  # type: ignore[assignment]  # what is left out is filled below
    hadronic_gev: FloatArray = None  # type: ignore[assignment]
    readout: str = ""
    n_saturated: IntArray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            given = getattr(self, name)
            if given is None and name in _LEFT_OUT:
                given = np.full(np.size(self.shower), _LEFT_OUT[name])
            array: NDArray[Any] = np.ascontiguousarray(given, dtype=kind)
            array = array.view()
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        n = self.shower.size
        for name, size in (("hit", self.cell.size), ("cluster", self.cluster_seed.size)):
            offsets = getattr(self, f"{name}_offsets")
            if offsets.shape != (n + 1,) or offsets[0] != 0 or offsets[-1] != size or (np.diff(offsets) < 1).any():
                raise ValueError(
                    f"{name}_offsets must rise from 0 to the {size} {name}s, one entry more than there are objects ({n}); "
                    f"an object without {name}s is none"
                )
        for names, size in ((_PER_OBJECT, n), (_PER_HIT, self.cell.size), (_PER_CLUSTER, self.cluster_seed.size)):
            for name in names:
                if getattr(self, name).shape != (size,):
                    raise ValueError(f"{name} has shape {getattr(self, name).shape}; it must be ({size},)")
        if n and (self.shower[0] < 0 or self.shower[-1] >= self.n_showers or (np.diff(self.shower) < 0).any()):
            raise ValueError(f"shower must never fall and lie in 0 to {self.n_showers - 1}, the showers looked at")
        for name in ("cell", "cluster_seed"):
            if (wrong := (getattr(self, name) < 0) | (getattr(self, name) >= self.detector.n_cells)).any():
                raise ValueError(f"{name} {getattr(self, name)[wrong][0]} is not in 0..{self.detector.n_cells - 1}")
        if ((np.diff(self.cell.astype(np.int64)) <= 0) & (np.diff(self.hit_object) == 0)).any():
            raise ValueError("the hits of an object must be sorted by cell, each crystal once")
        for name in ("energy_mev", "cluster_energy_gev", "energy_gev"):
            if not (np.isfinite(getattr(self, name)) & (getattr(self, name) > 0)).all():
                raise ValueError(f"{name} must be finite and > 0")
        for name in ("cluster_eta", "cluster_phi"):
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"{name} must be finite")
        for name in ("rho_gev", "hadronic_gev"):
            if np.isinf(getattr(self, name)).any():
                raise ValueError(f"{name} must be finite, or NaN where it is not known")
        if (self.n_saturated < 0).any():
            raise ValueError("n_saturated must be >= 0")
        low, high = self.cluster_offsets[:-1][self.hit_object], self.cluster_offsets[1:][self.hit_object]
        if ((self.hit_cluster < low) | (self.hit_cluster >= high)).any():
            raise ValueError("hit_cluster names a cluster of another object; it counts through all clusters of the sample")
        if np.unique(self.shower[self.is_matched]).size != self.is_matched.sum():
            raise ValueError("two objects of one shower are matched; there is one incident particle")

    def __repr__(self) -> str:
        return f"Superclusters({self.n_objects} objects in {self.n_showers} showers, {self.n_hits} hits, {self.detector.name})"

    @property
    def n_objects(self) -> int:
        return self.shower.size

    @property
    def n_hits(self) -> int:
        return self.cell.size

    @property
    def n_showers_without(self) -> int:
        """Showers in which nothing was found."""
        return int(self.n_showers - np.unique(self.shower).size)

    @property
    def n_showers_unmatched(self) -> int:
        """Showers without a matched object, those without any object among them."""
        return int(self.n_showers - self.is_matched.sum())

    @cached_property
    def hit_object(self) -> IntArray:
        """Object of each hit, (hit,)."""
        return np.repeat(np.arange(self.n_objects), np.diff(self.hit_offsets))

    @cached_property
    def cluster_object(self) -> IntArray:
        """Object of each cluster, (cluster,)."""
        return np.repeat(np.arange(self.n_objects), np.diff(self.cluster_offsets))

    @property
    def n_object_hits(self) -> IntArray:
        """Hits of each object, (object,)."""
        return np.diff(self.hit_offsets)

    @property
    def n_clusters(self) -> IntArray:
        """Clusters of each object, (object,)."""
        return np.diff(self.cluster_offsets)

    @cached_property
    def raw_energy_gev(self) -> FloatArray:
        """Energy of all hits, (object,) [GeV]: no correction of any kind."""
        return np.bincount(self.hit_object, weights=self.energy_mev, minlength=self.n_objects).astype(np.float64) / 1000.0

    @property
    def seed_cell(self) -> NDArray[np.int32]:
        """Seed crystal of the first cluster, (object,)."""
        return np.asarray(self.cluster_seed[self.cluster_offsets[:-1]])

    @cached_property
    def eta(self) -> FloatArray:
        """Mean of the clusters' eta, weighted by energy, (object,)."""
        return self._mean(self.cluster_eta)

    @cached_property
    def phi(self) -> FloatArray:
        """Mean of the clusters' phi, weighted by energy, (object,) [rad], in [-pi, pi) if phi closes."""
        first = self.cluster_phi[self.cluster_offsets[:-1]]
        around = self._mean(turned(self.cluster_phi - first[self.cluster_object], self.detector))
        return turned(first + around, self.detector)

    def _mean(self, values: FloatArray) -> FloatArray:
        total = np.bincount(self.cluster_object, self.cluster_energy_gev, self.n_objects)
        return np.bincount(self.cluster_object, self.cluster_energy_gev * values, self.n_objects).astype(np.float64) / total

    def select(self, which: ArrayLike) -> Superclusters:
        """Some of the objects.

        Parameters
        ----------
        which : bool array, (object,), or int array
            A mask, or rising indices.

        Returns
        -------
        Superclusters
            Of the same showers: their numbers and their count stay.

        Raises
        ------
        ValueError
            A mask of another length, indices out of range or not rising.
        """
        index = np.asarray(which)
        if index.dtype == bool:
            if index.shape != (self.n_objects,):
                raise ValueError(f"the mask has shape {index.shape} for {self.n_objects} objects; give one entry per object")
            index = np.flatnonzero(index)
        index = index.astype(np.int64)
        if index.ndim != 1 or (np.diff(index) <= 0).any() or (index.size and not 0 <= index[0] <= index[-1] < self.n_objects):
            raise ValueError(f"the selection must be one row of rising indices from 0 to {self.n_objects - 1}, or a mask")
        hit_offsets, hit = rows_of(self.hit_offsets, index)
        cluster_offsets, cluster = rows_of(self.cluster_offsets, index)
        place = np.zeros(self.cluster_seed.size, np.int64)
        place[cluster] = np.arange(cluster.size)
        columns = {name: getattr(self, name)[index] for name in _PER_OBJECT}
        columns |= {name: getattr(self, name)[cluster] for name in _PER_CLUSTER}
        return replace(
            self, hit_offsets=hit_offsets, cell=self.cell[hit], energy_mev=self.energy_mev[hit], hit_cluster=place[self.hit_cluster[hit]],
            cluster_offsets=cluster_offsets, **columns,
        )  # fmt: skip

    def matched(self) -> Superclusters:
        """The matched objects: at most one of each shower."""
        return self.select(self.is_matched)

    @staticmethod
    def concatenate(samples: Sequence[Superclusters]) -> Superclusters:
        """One sample after the other; showers are numbered on.

        Raises
        ------
        ValueError
            Nothing given; another detector (by digest) or another readout among them.
        """
        if not samples:
            raise ValueError("no superclusters to join; give at least one sample")
        first = samples[0]
        for i, other in enumerate(samples[1:], start=1):
            if other.detector.digest != first.detector.digest:
                raise ValueError(
                    f"sample {i} was of detector {other.detector.name!r}, sample 0 of {first.detector.name!r}; join one's only"
                )
            if other.readout != first.readout:
                raise ValueError(f"sample {i} is of {other.readout!r}, sample 0 of {first.readout!r}; join objects of one readout only")
        before = np.cumsum([0, *(s.n_showers for s in samples)])
        clusters = np.cumsum([0, *(s.cluster_seed.size for s in samples)])
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(s, name) for s in samples]) for name in (*_PER_OBJECT, *_PER_CLUSTER, "cell", "energy_mev")
        }
        columns["shower"] = np.concatenate([s.shower + b for s, b in zip(samples, before[:-1], strict=True)])
        columns["hit_cluster"] = np.concatenate([s.hit_cluster + c for s, c in zip(samples, clusters[:-1], strict=True)])
        for name in ("hit_offsets", "cluster_offsets"):
            columns[name] = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(getattr(s, name)) for s in samples]))])
        return replace(first, n_showers=int(before[-1]), **columns)


_PER_OBJECT = ("shower", "is_matched", "pdg_id", "energy_gev", "rho_gev", "hadronic_gev", "n_saturated")
_LEFT_OUT = {"rho_gev": np.nan, "hadronic_gev": np.nan, "n_saturated": 0}
_PER_HIT = ("cell", "energy_mev", "hit_cluster")
_PER_CLUSTER = ("cluster_seed", "cluster_energy_gev", "cluster_eta", "cluster_phi")
_KINDS: dict[str, type] = {
    "shower": np.int64, "hit_offsets": np.int64, "cell": np.int32, "energy_mev": np.float32, "hit_cluster": np.int64,
    "cluster_offsets": np.int64, "cluster_seed": np.int32, "cluster_energy_gev": np.float64, "cluster_eta": np.float64,
    "cluster_phi": np.float64, "is_matched": np.bool_, "pdg_id": np.int32, "energy_gev": np.float64, "rho_gev": np.float64,
    "hadronic_gev": np.float64, "n_saturated": np.int64,
}  # fmt: skip


def turned(angle: FloatArray, detector: CrystalCalorimeter) -> FloatArray:
    """Angles [rad] brought into [-pi, pi) where phi closes; as they are where it does not."""
    return np.asarray((angle + math.pi) % (2 * math.pi) - math.pi) if detector.is_phi_periodic else angle


def rows_of(offsets: IntArray, index: IntArray) -> tuple[IntArray, IntArray]:
    """Offsets of some rows, in the order asked for, and the places of what they hold.

    Examples
    --------
    >>> [found.tolist() for found in rows_of(np.array([0, 2, 5]), np.array([1, 0]))]
    [[0, 3, 5], [2, 3, 4, 0, 1]]
    """
    n = np.diff(offsets)[index]
    start = np.concatenate([[0], np.cumsum(n)]).astype(np.int64)
    return start, np.repeat(offsets[index] - start[:-1], n) + np.arange(start[-1])
