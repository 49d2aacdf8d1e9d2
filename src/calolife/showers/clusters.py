"""From crystals to electrons and photons: seeds, the crystals around them, and superclusters that collect what radiated off in phi."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.detector.crystals import ETA_PER_CRYSTAL, CrystalCalorimeter
from calolife.showers.events import PDG, Showers, readout_text

__all__ = [
    "ClusterSettings",
    "Superclusters",
    "energy_density_gev",
    "eta_window",
    "find_superclusters",
    "phi_window",
    "rows_of",
    "turned",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_BEND = 0.299792458e-3  # pT [GeV] = 0.2998e-3 B [T] radius [mm]: the speed of light; PDG Review, "Kinematics"
# Upper and lower edge in eta of the supercluster window, and its reach in phi.
# Source: CMS software, RecoEcal/EgammaCoreTools/src/Mustache.cc (the constants of Run 3), github.com/cms-sw/cmssw
_UPPER_CURVE = (-0.107537, 0.590969, -0.076494)  # source: ibid., p0x
_LOWER_CURVE = (-0.0268843, 0.147742, -0.0191235)  # source: ibid., p1x
_WIDTH_ETA, _WIDTH_ENERGY = (0.000699995, -0.00681785), (-0.00554331, -0.00239516)  # source: ibid., w10 and w00, w11 and w01
_LOG_OFFSET = 1.1  # source: ibid., under the root
_LEAST_ETA = 0.0087  # half a crystal; source: ibid.
_PHI_OFFSET, _PHI_SCALE, _PHI_MIDDLE, _PHI_SLOPE = 0.0280506, 0.946048, -0.101172, 0.432767  # source: ibid., barrel
_LEAST_PHI, _MOST_PHI = 0.14, 0.60  # [rad]; source: ibid., barrel
_LEAST_GEV = 0.1  # chosen: the root above ends at 80 MeV; a softer cluster gets the window of this one
_AROUND = ((0, 1), (1, -1), (1, 0), (1, 1))  # half of a crystal's eight neighbours (row, column); the others see it as theirs
_BLOCK_HITS = 1_000_000  # chosen: about 150 MB of intermediate columns
_TILE = (17, 20)  # chosen: rows and columns of a tile; the barrel has 180 of 0.30 x 0.35, of which a shower fills a few
_FEWEST_TILES = 10  # chosen: of fewer, the shower itself would move the median


@dataclass(frozen=True)
class ClusterSettings:
    """What counts as a seed, a crystal of a cluster, a supercluster and a match.

    Parameters
    ----------
    seed_mev : float [MeV]
        Least energy of a seed.
    gather_mev : float [MeV]
        Least energy of any crystal of a cluster; what the readout suppressed is not there to gather.
    least_et_gev : float [GeV]
        Least transverse energy of the cluster that starts a supercluster; others only join one.
    log_weight : float
        W0 of a cluster's position: a crystal counts with max(0, W0 + ln(its share of the energy)).
    match_dr : float
        Largest distance in eta and phi [rad] to the incident particle.
    field_tesla : float [T]
        Of showers that came through a field: bends the expected arrival of electrons.

    Raises
    ------
    ValueError
        A number that is not finite or not > 0 (the field: finite), a seed below the gathering threshold.
    """

    seed_mev: float = 230.0  # source: CMS software, particleFlowClusterECALUncorrected_cfi.py, barrel, github.com/cms-sw/cmssw
    gather_mev: float = 80.0  # source: ibid.
    least_et_gev: float = 1.0  # chosen: softest particle of the gun, and above what noise and soft photons make
    log_weight: float = 4.2  # source: ibid., W0
    match_dr: float = 0.05  # chosen: the usual cut, three crystals
    field_tesla: float = 3.8  # source: CMS, JINST 5 (2010) T03021

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name == "field_tesla" and not math.isfinite(value):
                raise ValueError(f"cluster settings: field_tesla = {value:g} must be finite; 0 switches it off")
            if one.name != "field_tesla" and not 0 < value < math.inf:
                raise ValueError(f"cluster settings: {one.name} = {value:g} must be finite and > 0")
        if self.seed_mev < self.gather_mev:
            raise ValueError(
                f"cluster settings: seed_mev = {self.seed_mev:g} is below gather_mev = {self.gather_mev:g}; a seed is gathered too"
            )


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


def phi_window(energy_gev: ArrayLike, eta: ArrayLike) -> FloatArray:
    """How far in phi a cluster may lie from the seed of its supercluster.

    Parameters
    ----------
    energy_gev : float array, (...) [GeV]
        Of the cluster, > 0.
    eta : float array, (...)
        Of the cluster.

    Returns
    -------
    float array, (...) [rad]
        0.14 to 0.60.

    Notes
    -----
    A sigmoid in the logarithm of the cluster's transverse energy: wide for soft clusters, which the field takes far, and
    narrow for hard ones. Source: CMS software, RecoEcal/EgammaCoreTools/src/Mustache.cc, barrel, github.com/cms-sw/cmssw.

    Examples
    --------
    >>> phi_window([0.5, 5.0, 50.0], 0.0).round(3).tolist()
    [0.6, 0.157, 0.14]
    """
    log_et = np.log10(np.asarray(energy_gev, np.float64) / np.cosh(eta))
    reach = _PHI_OFFSET + _PHI_SCALE / (1.0 + np.exp((log_et - _PHI_MIDDLE) / _PHI_SLOPE))
    return np.asarray(np.clip(reach, _LEAST_PHI, _MOST_PHI))


def eta_window(energy_gev: ArrayLike, seed_eta: ArrayLike, delta_phi: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Lower and upper edge in eta, seen from the seed and away from eta 0, of where a cluster may lie: CMS's mustache.

    Parameters
    ----------
    energy_gev : float array, (...) [GeV]
        Of the cluster.
    seed_eta : float array, (...)
        Of the cluster that starts the supercluster.
    delta_phi : float array, (...) [rad]
        From that one to the cluster.

    Returns
    -------
    (lower, upper) : float arrays, (...)

    Notes
    -----
    Two parabolas in phi that turn away from eta 0, half a crystal apart at least: an electron that bends more travels
    longer and arrives at larger abs(eta). Source: as `phi_window`.

    Examples
    --------
    >>> lower, upper = eta_window(5.0, 1.2, [0.0, 0.3])
    >>> lower.round(4).tolist(), upper.round(4).tolist()
    ([-0.0087, 0.0014], [0.0174, 0.0581])
    """
    at = np.asarray(seed_eta, np.float64)
    x = at * np.sin(at)
    root = np.sqrt(np.log10(np.maximum(np.asarray(energy_gev, np.float64), _LEAST_GEV)) + _LOG_OFFSET)
    up, low = (_WIDTH_ETA[i] * x + _WIDTH_ENERGY[i] / root for i in (0, 1))
    half = 0.5 * (up - low)
    edges = []
    for (a, b, c), offset in ((_LOWER_CURVE, -half), (_UPPER_CURVE, half)):
        curve = 1.0 / (4.0 * (x * (a * x + b) + c)) - np.abs(offset)
        bend = np.maximum(1.0 / (4.0 * curve), 0.0) * np.square(delta_phi)
        edges.append((bend, offset))
    lower = edges[0][0] + np.minimum(edges[0][1], -_LEAST_ETA)
    return np.asarray(lower), np.asarray(edges[1][0] + np.maximum(edges[1][1], _LEAST_ETA) + _LEAST_ETA)


def find_superclusters(showers: Showers, *, settings: ClusterSettings | None = None) -> Superclusters:
    """Superclusters of every shower.

    Parameters
    ----------
    showers : Showers
        Of crystals; rechits, or simhits to see what an ideal readout would give.
    settings : ClusterSettings, optional
        The defaults when left out.

    Returns
    -------
    Superclusters
        Of photons and electrons alike. A shower in which nothing is found has none; they are counted.

    Raises
    ------
    ValueError
        Showers of a layered detector.

    Notes
    -----
    1. A seed is a crystal above `seed_mev` with no hotter one among its eight neighbours.
    2. Every crystal above `gather_mev` goes, with all its energy, the way its hottest neighbour points: uphill to a seed.
       Hills too low for a seed fall to the hottest crystal beside them that has one; what touches no cluster is left out.
       No crystal is split between clusters, as CMS's particle flow does.
    3. A cluster stands at the log-weighted mean of its crystals.
    4. The cluster of largest transverse energy of a shower starts a supercluster if it has `least_et_gev`, and takes all
       clusters in `phi_window` and `eta_window` around it; then the largest of those left, and so on.
    5. Matched is the object of most raw energy within `match_dr` of the incident particle: of the stretch in phi between
       where a photon would arrive and, for electrons through a field, where one that radiates nothing would. The mean of
       all it became, weighted by energy, arrives there too: the force does not depend on the momentum.

    A rechit that noise made is taken like any other if it touches a cluster. rho is that of `energy_density_gev`, of all
    rechits of the shower; NaN in a detector of fewer than ten tiles.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> barrel = load_detector("cms-barrel")
    >>> cell = barrel.cell_id(10, [20, 21, 26])  # a shower, and a photon five columns on
    >>> showers = Showers.from_hits(barrel, [0, 0, 0], cell, [9000.0, 900.0, 400.0], pdg_id=22, energy_gev=[11.0])
    >>> found = find_superclusters(showers)
    >>> found.n_objects, found.n_clusters.tolist(), found.raw_energy_gev.round(3).tolist()
    (1, [2], [10.3])
    """
    detector = _must_be_crystals(showers)
    used = settings or ClusterSettings()
    # the cuts do not show: nothing is shared between showers
    step = max(1, int(_BLOCK_HITS * showers.n_showers / max(showers.n_hits, 1)))
    blocks = [showers.between(i, min(i + step, showers.n_showers)) for i in range(0, max(showers.n_showers, 1), step)]
    return Superclusters.concatenate([_of_block(block, detector, used) for block in blocks])


def energy_density_gev(showers: Showers) -> FloatArray:
    """What lies all over the barrel beside the shower, rho: transverse energy per unit of eta and phi.

    Parameters
    ----------
    showers : Showers
        Rechits of crystals.

    Returns
    -------
    float array, (shower,) [GeV]

    Raises
    ------
    ValueError
        Showers of a layered detector, or fewer than ten tiles of 17 x 20 crystals.

    Notes
    -----
    The median over tiles of 17 x 20 crystals of their transverse energy over their area: pileup counts, a shower does not.
    Zero while more than half of the tiles read nothing. Negative rechits count, so that noise without a threshold has none.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> barrel = load_detector("cms-barrel")
    >>> everywhere = Showers.from_hits(barrel, [0] * 61200, range(61200), [10.0] * 61200, pdg_id=22, energy_gev=[1.0])
    >>> energy_density_gev(everywhere).round(1).tolist()
    [25.6]
    """
    detector = _must_be_crystals(showers)
    row, column = np.divmod(np.arange(detector.n_cells), detector.n_phi)
    tile = row // _TILE[0] * -(-detector.n_phi // _TILE[1]) + column // _TILE[1]  # (all cells,)
    n_tiles = _n_tiles(detector)
    if n_tiles < _FEWEST_TILES:
        raise ValueError(
            f"detector {detector.name!r} has {n_tiles} tiles of 17 x 20 crystals; it takes {_FEWEST_TILES} to see beside a shower"
        )
    eta, _ = detector.eta_phi_at(*detector.cell_position_mm(np.arange(detector.n_cells))[:, :2].T)
    area = np.bincount(tile) * ETA_PER_CRYSTAL * _phi_step(detector)
    transverse = 1e-3 * showers.energy_mev / np.cosh(eta)[showers.cell]
    summed = np.bincount(showers.shower_index * n_tiles + tile[showers.cell], transverse, showers.n_showers * n_tiles)
    return np.median(summed.reshape(showers.n_showers, n_tiles) / area, axis=1).astype(np.float64)


def _n_tiles(detector: CrystalCalorimeter) -> int:
    return -(-detector.n_eta // _TILE[0]) * -(-detector.n_phi // _TILE[1])


def _must_be_crystals(showers: Showers) -> CrystalCalorimeter:
    if not isinstance(showers.detector, CrystalCalorimeter):
        raise ValueError(f"detector {showers.detector.name!r} is made of layers; superclusters are made of crystals")
    return showers.detector


def _of_block(showers: Showers, detector: CrystalCalorimeter, used: ClusterSettings) -> Superclusters:
    is_used = showers.energy_mev >= used.gather_mev
    shower, cell = showers.shower_index[is_used], showers.cell[is_used].astype(np.int64)
    energy = showers.energy_mev[is_used].astype(np.float64)
    seed_of = _attach(shower, cell, energy, detector, used)  # (hit,) seed's place among the hits, -1: none
    is_used = seed_of >= 0
    seed, cluster = np.unique(seed_of[is_used], return_inverse=True)  # clusters in the order of their seeds: by shower
    hit_cell, hit_mev = cell[is_used], energy[is_used]
    cluster_mev = np.bincount(cluster, hit_mev, seed.size).astype(np.float64)
    cluster_shower = shower[seed]
    eta, phi = _positions(hit_cell, hit_mev, cluster, cell[seed], cluster_mev, detector, used)
    leader = _collect(cluster_shower, 1e-3 * cluster_mev, eta, phi, detector, used)  # (cluster,) first cluster of its object, -1: none

    et = cluster_mev / np.cosh(eta)
    first = np.flatnonzero(leader == np.arange(leader.size))
    first = first[np.lexsort((-et[first], cluster_shower[first]))]
    number = np.full(leader.size, -1)
    number[first] = np.arange(first.size)
    object_of = np.where(leader >= 0, number[leader], -1)  # (cluster,)
    kept = np.flatnonzero(object_of >= 0)
    order = kept[np.lexsort((-et[kept], leader[kept] != kept, object_of[kept]))]
    place = np.full(leader.size, -1)
    place[order] = np.arange(order.size)
    hit = np.flatnonzero(place[cluster] >= 0)
    hit = hit[np.argsort(object_of[cluster[hit]], kind="stable")]  # by cell within an object: hits are in that order already
    found_in = cluster_shower[first]
    rho = energy_density_gev(showers)[found_in] if _n_tiles(detector) >= _FEWEST_TILES else np.full(first.size, np.nan)
    ceiling_mev = math.inf if showers.readout is None else np.float32(showers.readout.saturation_mev)
    n_saturated = np.bincount(object_of[cluster[hit]], hit_mev[hit] >= ceiling_mev, first.size)
    found = Superclusters(
        detector, showers.n_showers, found_in, _offsets(object_of[cluster[hit]], first.size), hit_cell[hit].astype(np.int32),
        hit_mev[hit].astype(np.float32), place[cluster[hit]], _offsets(object_of[order], first.size), cell[seed][order].astype(np.int32),
        1e-3 * cluster_mev[order], eta[order], phi[order], np.zeros(first.size, np.bool_), showers.pdg_id[found_in],
        showers.energy_gev[found_in], rho, readout=readout_text(showers), n_saturated=n_saturated.astype(np.int64),
    )  # fmt: skip
    return replace(found, is_matched=_match(found, showers, used))


def _attach(shower: IntArray, cell: IntArray, energy: FloatArray, detector: CrystalCalorimeter, used: ClusterSettings) -> IntArray:
    """Seed that each hit belongs to, as its place among the hits, (hit,); -1 where there is none."""
    n = cell.size
    near = _neighbours(shower, cell, detector)  # (8, hit)
    # ranks are unique: of two equal crystals the one of the larger number is the hotter
    rank = np.empty(n + 1, np.int64)
    rank[np.argsort(energy, kind="stable")] = np.arange(n)
    rank[n] = -1  # a neighbour that is not there
    own = np.arange(n)
    hottest = near[np.argmax(rank[near], axis=0), own] if n else own
    up = np.where(rank[hottest] > rank[:n], hottest, own)
    while True:  # each step doubles the way: to the top after log2 of the longest
        further = up[up]
        if (further == up).all():
            break
        up = further
    seed = np.append(np.where(energy[up] >= used.seed_mev, up, -1), -1)
    while True:
        left = np.flatnonzero(seed[:n] < 0)
        around = near[:, left]
        taken = np.where(seed[around] >= 0, rank[around], -1)  # (8, left)
        beside = np.argmax(taken, axis=0)
        is_beside = taken[beside, np.arange(left.size)] >= 0
        if not is_beside.any():
            return seed[:n]
        grown = left[is_beside]
        seed[grown] = seed[around[beside[is_beside], np.flatnonzero(is_beside)]]


def _neighbours(shower: IntArray, cell: IntArray, detector: CrystalCalorimeter) -> IntArray:
    """Places of the eight neighbours of each hit among the hits, (8, hit); the number of hits where there is none."""
    n, n_phi = cell.size, detector.n_phi
    near = np.full((2 * len(_AROUND), n), n, np.int64)
    if n == 0:
        return near
    key = shower * detector.n_cells + cell  # rising: hits are sorted
    row, column = np.divmod(cell, n_phi)
    for k, (rows, columns) in enumerate(_AROUND):
        at = column + columns
        is_there = row + rows < detector.n_eta
        if detector.is_phi_periodic:
            at %= n_phi
        else:
            is_there &= (at >= 0) & (at < n_phi)
        wanted = key + (rows * n_phi + at - column)
        place = np.minimum(np.searchsorted(key, wanted), n - 1)
        found = np.flatnonzero(is_there & (key[place] == wanted))
        near[k, found] = place[found]
        near[len(_AROUND) + k, place[found]] = found
    return near


def _positions(
    cell: IntArray,
    energy: FloatArray,
    cluster: IntArray,
    seed: IntArray,
    total: FloatArray,
    detector: CrystalCalorimeter,
    used: ClusterSettings,
) -> tuple[FloatArray, FloatArray]:
    """eta and phi of each cluster, (cluster,)."""
    x, y, _ = detector.cell_position_mm(cell).T
    eta, phi = detector.eta_phi_at(x, y)
    seed_eta, seed_phi = detector.eta_phi_at(*detector.cell_position_mm(seed)[:, :2].T)
    weight = np.maximum(used.log_weight + np.log(energy / total[cluster]), 0.0)
    norm = np.bincount(cluster, weight, total.size)
    # relative to the seed: phi may close within the cluster
    from_seed = (eta - seed_eta[cluster], turned(phi - seed_phi[cluster], detector))
    mean = [np.bincount(cluster, weight * d, total.size) / np.where(norm > 0, norm, 1.0) for d in from_seed]
    return seed_eta + mean[0], turned(seed_phi + mean[1], detector)


def _collect(
    shower: IntArray, energy_gev: FloatArray, eta: FloatArray, phi: FloatArray, detector: CrystalCalorimeter, used: ClusterSettings
) -> IntArray:
    """First cluster of the supercluster of each cluster, (cluster,); -1: in none. A round finds the next supercluster of every shower."""
    leader = np.full(shower.size, -1)
    et = energy_gev / np.cosh(eta)
    reach = phi_window(energy_gev, eta)
    left = np.lexsort((-et, shower))
    while left.size:
        of = shower[left]
        starts = np.flatnonzero(np.append(True, of[1:] != of[:-1]))
        first = np.repeat(left[starts], np.diff(np.append(starts, left.size)))  # clusters are sorted: the hardest of each shower
        can_start = et[first] >= used.least_et_gev
        left, first = left[can_start], first[can_start]
        delta_phi = turned(phi[left] - phi[first], detector)
        away = np.where(eta[first] < 0, -1.0, 1.0) * (eta[left] - eta[first])
        lower, upper = eta_window(energy_gev[left], eta[first], delta_phi)
        is_inside = (np.abs(delta_phi) < reach[left]) & (away > lower) & (away < upper) | (left == first)
        leader[left[is_inside]] = first[is_inside]
        left = left[~is_inside]
    return leader


def _match(found: Superclusters, showers: Showers, used: ClusterSettings) -> BoolArray:
    """Which object of each shower is the incident particle, (object,)."""
    of = found.shower
    x, y = showers.position_mm[of, 0], showers.position_mm[of, 1]
    is_known = np.isfinite(x) & np.isfinite(y)
    eta, phi = found.detector.eta_phi_at(np.where(is_known, x, 0.0), np.where(is_known, y, 0.0))
    bent = np.zeros(of.size)
    if showers.origin.get("upstream"):
        charge = (found.pdg_id == PDG["e+"]).astype(np.float64) - (found.pdg_id == PDG["e-"])
        radius_mm = _face_radius_mm(found.detector)
        pt_gev = found.energy_gev / np.cosh(eta)
        # a circle through the beam; what curls up arrives nowhere, a quarter of a turn is its limit
        bent = -np.arcsin(np.clip(charge * _BEND * used.field_tesla * radius_mm / (2.0 * pt_gev), -1.0, 1.0))
    ahead = turned(found.phi - phi, found.detector)
    beyond = ahead - np.clip(ahead, np.minimum(bent, 0.0), np.maximum(bent, 0.0))
    near = np.flatnonzero(is_known & (np.hypot(found.eta - eta, beyond) < used.match_dr))
    order = near[np.lexsort((-found.raw_energy_gev[near], of[near]))]
    is_matched = np.zeros(of.size, np.bool_)
    is_matched[order[np.flatnonzero(np.append(True, np.diff(of[order]) != 0))] if order.size else order] = True
    return is_matched


def _phi_step(detector: CrystalCalorimeter) -> float:
    """One column of crystals [rad]."""
    if detector.is_phi_periodic:
        return 2 * math.pi / detector.n_phi
    _, phi = detector.eta_phi_at(0.0, detector.y_edges_mm[[0, -1], [0, 1]])
    return float(phi[1] - phi[0]) / detector.n_phi


def _face_radius_mm(detector: CrystalCalorimeter) -> float:
    """Distance of the front face from the beam [mm]: where a column of crystals is a step in phi."""
    length_mm = detector.period_y_mm if detector.is_phi_periodic else detector.size_y_mm
    return length_mm / (detector.n_phi * _phi_step(detector))


def turned(angle: FloatArray, detector: CrystalCalorimeter) -> FloatArray:
    """Angles [rad] brought into [-pi, pi) where phi closes; as they are where it does not."""
    return np.asarray((angle + math.pi) % (2 * math.pi) - math.pi) if detector.is_phi_periodic else angle


def _offsets(object_of: IntArray, n_objects: int) -> IntArray:
    return np.concatenate([[0], np.cumsum(np.bincount(object_of, minlength=n_objects))]).astype(np.int64)


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
