"""What the energy regressors see of an electron or photon in crystals: its hits for the networks, its features for the trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.detector.crystals import ETA_PER_CRYSTAL, CrystalCalorimeter
from calolife.energy.features import EnergySample
from calolife.showers.superclusters import Superclusters, rows_of, turned

__all__ = [
    "CRYSTAL_FEATURES",
    "EVENT_INPUTS",
    "HIT_INPUTS",
    "Objects",
    "crystal_features",
    "network_inputs",
    "objects_of",
    "sample_of_objects",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_N_SUB = 3  # source: CMS software, RecoEgamma/EgammaTools/plugins/EGRegressionModifierV1.cc: three clusters beside the seed's
_LOG_WEIGHT = 4.7  # source: CMS software, RecoEcal/EgammaCoreTools/interface/EcalClusterTools.h: W0 of sigma ieta-ieta
CRYSTAL_FEATURES: tuple[str, ...] = (
    "raw_energy_gev", "abs_eta", "rho_gev", "h_over_e", "n_hits", "n_clusters", "n_saturated",
    "eta_width", "phi_width", "seed_cluster_share", "r9", "e5x5_share", "delta_eta_seed", "delta_phi_seed",
    "sigma_ieta_ieta", "sigma_ieta_iphi", "sigma_iphi_iphi", "centre_eta", "centre_phi",
    "e_max", "e_2nd", "e_top", "e_bottom", "e_inner", "e_outer", "e2x5_max", "e2x5_inner", "e2x5_outer", "e2x5_top", "e2x5_bottom",
    "abs_ieta", "iphi", "place_eta", "place_phi",
    *(f"cluster_{i}_{what}" for i in range(1, _N_SUB + 1) for what in ("share", "delta_eta", "delta_phi")),
)  # fmt: skip
"""Columns of `crystal_features`."""

HIT_INPUTS: tuple[str, ...] = ("row", "column", "log_energy", "root_share", "abs_ieta", "place_eta", "place_phi", "is_beside")
"""Columns of the hits of `network_inputs`."""
EVENT_INPUTS: tuple[str, ...] = ("log_raw_energy", "abs_eta", "n_hits", "rho", "h_over_e")
"""Columns of the objects of `network_inputs`."""

# chosen: what an input is divided by, so that it is of order 1; an electron of 100 GeV has about 30 hits
_ROWS, _COLUMNS, _LOG_ENERGY, _ABS_IETA, _RAW_GEV, _HITS, _RHO_GEV, _H_OVER_E = 3.0, 5.0, 3.0, 45.0, 100.0, 30.0, 20.0, 0.1


@dataclass(frozen=True, eq=False, repr=False)
class Objects:
    """Superclusters as a network reads them: flat columns of hits, the objects in any order; no truth.

    The hits of object i are ``cell[hit_offsets[i]:hit_offsets[i + 1]]``; their order tells nothing.

    Parameters
    ----------
    detector : CrystalCalorimeter
    hit_offsets : int array, (object + 1,)
    cell : int array, (hit,)
        Crystal.
    energy_mev : float array, (hit,) [MeV]
        Energy of the crystal, > 0.
    hit_cluster : int array, (hit,)
        Cluster within its object; 0 is the one that started it.
    seed_cell : int array, (object,)
        Seed crystal of that cluster.
    eta : float array, (object,)
    rho_gev, hadronic_gev : float array, (object,) [GeV]
        As in `Superclusters`; NaN where not known.

    Raises
    ------
    ValueError
        Shapes that do not fit, offsets that do not rise (an object without hits), crystals out of range, energies that are
        not finite and > 0, an eta that is not finite, an infinite rho.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> barrel = load_detector("cms-barrel")
    >>> cell = barrel.cell_id(10, [20, 21, 40])
    >>> objects = Objects(barrel, [0, 2, 3], cell, [900.0, 100.0, 500.0], [0, 0, 0], cell[[0, 2]], [0.16] * 2, [5.0] * 2, [0.0] * 2)
    >>> objects.select([1, 0]).raw_energy_gev.tolist(), objects.n_hits.tolist()
    ([0.5, 1.0], [2, 1])
    """

    detector: CrystalCalorimeter
    hit_offsets: IntArray
    cell: NDArray[np.int32]
    energy_mev: NDArray[np.float32]
    hit_cluster: NDArray[np.int16]
    seed_cell: NDArray[np.int32]
    eta: FloatArray
    rho_gev: FloatArray
    hadronic_gev: FloatArray

    def __post_init__(self) -> None:
        if not isinstance(self.detector, CrystalCalorimeter):
            raise ValueError(f"detector {self.detector.name!r} is made of layers; objects are made of crystals")
        for name, kind in _KINDS.items():
            array: NDArray[Any] = np.ascontiguousarray(getattr(self, name), dtype=kind).view()
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        n, n_hits = self.eta.size, self.cell.size
        offsets = self.hit_offsets
        if offsets.shape != (n + 1,) or offsets[0] != 0 or offsets[-1] != n_hits:
            raise ValueError(f"hit_offsets must run from 0 to the {n_hits} hits, one entry more than there are objects ({n})")
        if (empty := np.diff(offsets) < 1).any():
            raise ValueError(f"object {int(np.flatnonzero(empty)[0])} has no hits; leave it out")
        for names, size in ((_PER_HIT, n_hits), (_PER_OBJECT, n)):
            for name in names:
                if getattr(self, name).shape != (size,):
                    raise ValueError(f"{name} has shape {getattr(self, name).shape}; it must be ({size},)")
        for name in ("cell", "seed_cell"):
            if (wrong := (getattr(self, name) < 0) | (getattr(self, name) >= self.detector.n_cells)).any():
                raise ValueError(f"{name} {getattr(self, name)[wrong][0]} is not in 0..{self.detector.n_cells - 1}")
        if (wrong := ~(np.isfinite(self.energy_mev) & (self.energy_mev > 0))).any():
            raise ValueError(f"energy_mev of hit {int(np.flatnonzero(wrong)[0])} is {self.energy_mev[wrong][0]}; it must be finite and > 0")
        if not np.isfinite(self.eta).all():
            raise ValueError("eta must be finite")
        if np.isinf(self.rho_gev).any() or np.isinf(self.hadronic_gev).any():
            raise ValueError("rho_gev and hadronic_gev must be finite, or NaN where they are not known")

    def __repr__(self) -> str:
        return f"Objects({self.n_objects} objects, {self.cell.size} hits, {self.detector.name})"

    @property
    def n_objects(self) -> int:
        return self.eta.size

    @property
    def n_hits(self) -> IntArray:
        """Hits of each object, (object,)."""
        return np.diff(self.hit_offsets)

    @property
    def hit_object(self) -> IntArray:
        """Object of each hit, (hit,)."""
        return np.repeat(np.arange(self.n_objects), self.n_hits)

    @property
    def raw_energy_gev(self) -> FloatArray:
        """Energy of all hits, (object,) [GeV]: no correction of any kind."""
        return np.bincount(self.hit_object, self.energy_mev, self.n_objects).astype(np.float64) / 1000.0

    def select(self, which: ArrayLike) -> Objects:
        """Some of the objects, in the order asked for; one may come twice.

        Parameters
        ----------
        which : bool array, (object,), or int array
            A mask, or indices.

        Raises
        ------
        ValueError
            A mask of another length, an index out of range, anything that is not one row.
        """
        index = np.asarray(which)
        if index.dtype == bool:
            if index.shape != (self.n_objects,):
                raise ValueError(f"the mask has shape {index.shape} for {self.n_objects} objects; give one entry per object")
            index = np.flatnonzero(index)
        if index.ndim != 1 or (index.size and (index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= self.n_objects)):
            raise ValueError(f"the selection must be one row of indices from 0 to {self.n_objects - 1}, or a mask")
        index = index.astype(np.int64)
        offsets, hit = rows_of(self.hit_offsets, index)
        columns: dict[str, Any] = {name: getattr(self, name)[index] for name in _PER_OBJECT}
        columns |= {name: getattr(self, name)[hit] for name in _PER_HIT}
        return replace(self, hit_offsets=offsets, **columns)

    @staticmethod
    def concatenate(samples: Sequence[Objects]) -> Objects:
        """One sample after the other.

        Raises
        ------
        ValueError
            Nothing given, or another detector (by digest) among them.
        """
        if not samples:
            raise ValueError("no objects to join; give at least one sample")
        first = samples[0]
        for i, other in enumerate(samples[1:], start=1):
            if other.detector.digest != first.detector.digest:
                raise ValueError(
                    f"sample {i} was of detector {other.detector.name!r}, sample 0 of {first.detector.name!r}; join one's only"
                )
        columns: dict[str, Any] = {name: np.concatenate([getattr(s, name) for s in samples]) for name in (*_PER_OBJECT, *_PER_HIT)}
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([s.n_hits for s in samples]))])
        return replace(first, hit_offsets=offsets, **columns)


_PER_HIT = ("cell", "energy_mev", "hit_cluster")
_PER_OBJECT = ("seed_cell", "eta", "rho_gev", "hadronic_gev")
_KINDS: dict[str, type] = {
    "hit_offsets": np.int64, "cell": np.int32, "energy_mev": np.float32, "hit_cluster": np.int16, "seed_cell": np.int32,
    "eta": np.float64, "rho_gev": np.float64, "hadronic_gev": np.float64,
}  # fmt: skip


def objects_of(found: Superclusters) -> Objects:
    """Superclusters as the networks read them, matched or not: the truth is left behind.

    Parameters
    ----------
    found : Superclusters

    Returns
    -------
    Objects
        In the same order.
    """
    of = found.hit_object
    within = found.hit_cluster - found.cluster_offsets[:-1][of]
    return Objects(
        found.detector, found.hit_offsets, found.cell, found.energy_mev, within.astype(np.int16), found.seed_cell, found.eta,
        found.rho_gev, found.hadronic_gev,
    )  # fmt: skip


def network_inputs(objects: Objects) -> tuple[NDArray[np.float32], IntArray, NDArray[np.float32]]:
    """Hits and objects as numbers of order 1.

    Parameters
    ----------
    objects : Objects

    Returns
    -------
    hit : float32 array, (hit, len(HIT_INPUTS))
    count : int array, (object,)
        Hits of each object: the first `count[0]` rows of `hit` are those of object 0, and so on.
    event : float32 array, (object, len(EVENT_INPUTS))

    Notes
    -----
    Of a hit: its row (away from eta 0) and column as seen from the seed, over 3 and 5; ln(E / GeV) / 3; the root of its share
    of the raw energy; abs(ieta) / 45 - 1; its place in the module along eta and phi, as `crystal_features`; 1 in another
    cluster than the first. Of an object: ln(raw energy / 100 GeV); abs(eta); its number of hits over 30, less 1; rho / 20 GeV;
    H/E over 0.1. The scales are fixed: nothing is fitted. What is not known (NaN) is 0.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> barrel = load_detector("cms-barrel")
    >>> cell = barrel.cell_id(10, [20, 21])
    >>> hit, count, event = network_inputs(Objects(barrel, [0, 2], cell, [900.0, 100.0], [0, 0], cell[:1], [0.16], [5.0], [np.nan]))
    >>> hit.shape, count.tolist(), event.shape, hit[1, :2].round(2).tolist()
    ((2, 8), [2], (1, 5), [0.0, 0.20000000298023224])
    """
    detector, count = objects.detector, objects.n_hits
    of = np.repeat(np.arange(count.size), count)
    energy = objects.energy_mev.astype(np.float64) / 1000.0
    raw = np.bincount(of, energy, count.size)
    row, column = np.divmod(objects.cell, np.int32(detector.n_phi))
    seed_row, seed_column = np.divmod(objects.seed_cell, np.int32(detector.n_phi))
    rows, columns = _from_seed(detector, row, column, seed_row[of], seed_column[of])
    table = _table(detector)
    hit = np.empty((of.size, len(HIT_INPUTS)), np.float32)
    hit[:, 0] = rows / _ROWS
    hit[:, 1] = columns / _COLUMNS
    hit[:, 2] = np.log(energy) / _LOG_ENERGY
    hit[:, 3] = np.sqrt(energy / raw[of])
    hit[:, 4] = table.abs_ieta[row] / _ABS_IETA - 1.0
    hit[:, 5] = table.place_eta[row]
    hit[:, 6] = table.place_phi[column]
    hit[:, 7] = objects.hit_cluster > 0
    event = np.empty((count.size, len(EVENT_INPUTS)), np.float32)
    event[:, 0] = np.log(raw / _RAW_GEV)
    event[:, 1] = np.abs(objects.eta)
    event[:, 2] = count / _HITS - 1.0
    event[:, 3] = np.nan_to_num(objects.rho_gev) / _RHO_GEV
    event[:, 4] = np.nan_to_num(objects.hadronic_gev) / raw / _H_OVER_E
    return hit, count, event


def crystal_features(found: Superclusters) -> FloatArray:
    """Features of the kind that the published boosted trees read.

    Parameters
    ----------
    found : Superclusters

    Returns
    -------
    float array, (object, len(CRYSTAL_FEATURES))

    Notes
    -----
    Shares are parts of the raw energy, the ``e_...`` and ``e2x5_...`` parts of the energy in 5 x 5 crystals around the seed;
    of other crystals than the object's nothing is counted. Everything along eta counts away from eta 0 as the seed's side
    has it ("inner" is nearer to eta 0), so that an object and its mirror image have the same features.

    ``raw_energy_gev``, ``abs_eta``, ``rho_gev``, ``h_over_e`` (hadronic over raw energy), ``n_hits``, ``n_clusters``,
    ``n_saturated``; ``eta_width``, ``phi_width`` (root mean squares of the crystals about the supercluster, by energy);
    ``seed_cluster_share``, ``r9`` (3 x 3), ``e5x5_share``; ``delta_eta_seed``, ``delta_phi_seed`` (first cluster from
    supercluster); ``sigma_ieta_ieta``, ``sigma_ieta_iphi``, ``sigma_iphi_iphi`` (roots of the covariances in the 5 x 5, in
    crystals times 0.0174, each crystal with max(0, 4.7 + ln(its part)); the middle one with its sign) and ``centre_eta``,
    ``centre_phi`` (mean with the same weights, in crystals from the seed); ``e_max``, ``e_2nd`` (hottest crystals), ``e_top``,
    ``e_bottom`` (next to the seed in phi, up and down), ``e_inner``, ``e_outer`` (in eta), ``e2x5_...`` (the two strips of five
    on that side of the seed; ``max``: the seed's strip along phi and the better one beside it); ``abs_ieta``, ``iphi`` of the
    seed and ``place_eta``, ``place_phi`` in its module, from -1 at the lower gap to 1 at the upper; and of the three hardest
    other clusters ``share`` and distance from the first, 0 where there is none.

    What is not known (rho, hadronic energy) is 0. Source: CMS software, EGRegressionModifierV3.cc and, for the sub-clusters,
    EGRegressionModifierV1.cc in RecoEgamma/EgammaTools/plugins, github.com/cms-sw/cmssw; centre and numbers of hits are ours.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> from calolife.showers.clusters import find_superclusters
    >>> from calolife.showers.events import Showers
    >>> barrel = load_detector("cms-barrel")
    >>> cell = barrel.cell_id(10, [20, 21, 26])
    >>> found = find_superclusters(Showers.from_hits(barrel, [0, 0, 0], cell, [9000.0, 900.0, 400.0], pdg_id=22, energy_gev=[11.0]))
    >>> features = dict(zip(CRYSTAL_FEATURES, crystal_features(found)[0].round(3).tolist()))
    >>> features["raw_energy_gev"], features["e_top"], features["cluster_1_share"]
    (10.3, 0.091, 0.039)
    """
    detector, n, of = found.detector, found.n_objects, found.hit_object
    raw, energy = found.raw_energy_gev, found.energy_mev.astype(np.float64) / 1000.0
    table = _table(detector)
    row, column = np.divmod(found.cell, np.int32(detector.n_phi))
    seed_row, seed_column = np.divmod(found.seed_cell, np.int32(detector.n_phi))
    rows, columns = _from_seed(detector, row, column, seed_row[of], seed_column[of])

    is_near = (np.abs(rows) <= 2) & (np.abs(columns) <= 2)
    place = of[is_near] * 25 + (rows[is_near] + 2) * 5 + columns[is_near] + 2
    grid = np.bincount(place, energy[is_near], 25 * n).astype(np.float64).reshape(n, 5, 5)  # (object, row away from eta 0, column)
    e55 = grid.sum(axis=(1, 2))
    part = _ratio(grid, e55[:, None, None])
    with np.errstate(divide="ignore"):
        weight = np.maximum(_LOG_WEIGHT + np.log(part), 0.0)
    norm = weight.sum(axis=(1, 2))
    step = np.arange(-2.0, 3.0)
    by_row, by_column = weight.sum(axis=2), weight.sum(axis=1)  # (object, 5)
    centre_eta, centre_phi = _ratio(by_row @ step, norm), _ratio(by_column @ step, norm)
    # clipped: of a single crystal rounding may leave less than nothing
    var_eta = np.maximum(_ratio(by_row @ step**2, norm) - centre_eta**2, 0.0)
    var_phi = np.maximum(_ratio(by_column @ step**2, norm) - centre_phi**2, 0.0)
    covariance = _ratio(np.einsum("nij,i,j->n", weight, step, step), norm) - centre_eta * centre_phi
    strip_row, strip_column = part.sum(axis=2), part.sum(axis=1)  # (object, 5): one row of five columns, one column of five rows
    hottest = np.partition(part.reshape(n, 25), 23, axis=1)

    total = _summed(of, n)
    eta_width = np.sqrt(_ratio(total(energy * (table.eta[row] - found.eta[of]) ** 2), raw))
    phi_width = np.sqrt(_ratio(total(energy * turned(table.phi[column] - found.phi[of], detector) ** 2), raw))
    first = found.cluster_offsets[:-1]
    seed_side = np.where(table.is_negative[seed_row], -1.0, 1.0)
    first_eta, first_phi = found.cluster_eta[first], found.cluster_phi[first]
    others: list[FloatArray] = []
    for i in range(1, _N_SUB + 1):
        has_one = found.n_clusters > i
        other = np.where(has_one, first + i, first)
        others += [
            np.where(has_one, found.cluster_energy_gev[other] / raw, 0.0),
            (found.cluster_eta[other] - first_eta) * seed_side,
            turned(found.cluster_phi[other] - first_phi, detector),
        ]
    features = np.column_stack([
        raw, np.abs(found.eta), np.nan_to_num(found.rho_gev), np.nan_to_num(found.hadronic_gev) / raw, found.n_object_hits,
        found.n_clusters, found.n_saturated,
        eta_width, phi_width, found.cluster_energy_gev[first] / raw, grid[:, 1:4, 1:4].sum(axis=(1, 2)) / raw, e55 / raw,
        (first_eta - found.eta) * seed_side, turned(first_phi - found.phi, detector),
        ETA_PER_CRYSTAL * np.sqrt(var_eta), ETA_PER_CRYSTAL * np.sign(covariance) * np.sqrt(np.abs(covariance)),
        ETA_PER_CRYSTAL * np.sqrt(var_phi), centre_eta, centre_phi,
        hottest[:, 24], hottest[:, 23], part[:, 2, 3], part[:, 2, 1], part[:, 1, 2], part[:, 3, 2],
        strip_row[:, 2] + np.maximum(strip_row[:, 1], strip_row[:, 3]), strip_row[:, 0] + strip_row[:, 1],
        strip_row[:, 3] + strip_row[:, 4], strip_column[:, 3] + strip_column[:, 4], strip_column[:, 0] + strip_column[:, 1],
        table.abs_ieta[seed_row], seed_column + 1, table.place_eta[seed_row], table.place_phi[seed_column], *others,
    ])  # fmt: skip
    return np.asarray(features, dtype=np.float64)


def sample_of_objects(found: Superclusters) -> EnergySample:
    """The matched superclusters as a sample that every model of the energy reads.

    Parameters
    ----------
    found : Superclusters

    Returns
    -------
    EnergySample
        One layer, the raw energy; `crystal_features` as its shapes, and the objects themselves.

    Raises
    ------
    ValueError
        No matched object.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> from calolife.showers.clusters import find_superclusters
    >>> from calolife.showers.events import Showers
    >>> barrel = load_detector("cms-barrel")
    >>> at = barrel.cell_position_mm(barrel.cell_id([10], 20)) * [1, 1, 0]
    >>> cell = barrel.cell_id(10, [20, 21])
    >>> one = Showers.from_hits(barrel, [0, 0], cell, [9000.0, 900.0], pdg_id=22, energy_gev=[11.0], position_mm=at)
    >>> sample_of_objects(find_superclusters(one))
    EnergySample(1 showers, 1 layers, 43 shapes)
    """
    matched = found.matched()
    if not matched.n_objects:
        raise ValueError(
            f"none of the {found.n_showers} showers has a matched supercluster; give electrons or photons above 1 GeV whose impact is known"
        )
    return EnergySample(
        1000.0 * matched.raw_energy_gev[:, None], matched.energy_gev, matched.pdg_id, shape=crystal_features(matched),
        shape_names=CRYSTAL_FEATURES, digest=found.detector.digest, readout=found.readout, objects=objects_of(matched),
        n_unmatched=found.n_showers_unmatched,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Table:
    """What is known of each row and each column of crystals."""

    eta: FloatArray  # (row,)
    abs_ieta: FloatArray
    is_negative: NDArray[np.bool_]
    place_eta: FloatArray
    phi: FloatArray  # (column,)
    place_phi: FloatArray


@lru_cache(maxsize=8)
def _table(detector: CrystalCalorimeter) -> _Table:
    ieta = np.asarray(detector.ieta)
    column = np.arange(detector.n_phi)
    row_at, column_at = detector.x_edges_mm.mean(axis=1), detector.y_edges_mm.mean(axis=1)
    eta, _ = detector.eta_phi_at(row_at, 0.0)
    _, phi = detector.eta_phi_at(0.0, column_at)
    # a gap is named by the abs(ieta) on its inner side, 0 between -1 and 1
    inner = np.where((ieta[:-1] < 0) & (ieta[1:] > 0), 0, np.minimum(np.abs(ieta[:-1]), np.abs(ieta[1:])))
    eta_module = np.concatenate([[0], np.cumsum(np.isin(inner, detector.eta_module_ends))])
    place_eta = _places(eta_module) * np.where(ieta < 0, -1.0, 1.0)
    if detector.phi_module_crystals:
        place_phi = _places(column // detector.phi_module_crystals)
    else:  # a closed ring without gaps has no places
        place_phi = np.zeros(column.size) if detector.is_phi_periodic else _places(0 * column)
    return _Table(eta, np.abs(ieta).astype(np.float64), ieta < 0, place_eta, phi, place_phi)


def _places(module: IntArray) -> FloatArray:
    """Where each slot lies in its module, -1 to 1 at the ends."""
    size = np.bincount(module)
    at = np.arange(module.size) - (np.cumsum(size) - size)[module]
    return np.asarray(2.0 * (at + 0.5) / size[module] - 1.0)


def _from_seed(
    detector: CrystalCalorimeter, row: NDArray[Any], column: NDArray[Any], seed_row: NDArray[Any], seed_column: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows (away from eta 0, as the seed's side has it) and columns of each hit from the seed of its object."""
    side = np.where(_table(detector).is_negative[seed_row], -1, 1)
    columns = column - seed_column
    if detector.is_phi_periodic:
        half = detector.n_phi // 2
        columns = (columns + half) % detector.n_phi - half
    return (row - seed_row) * side, columns


def _summed(of: IntArray, n: int) -> Any:
    def total(values: FloatArray) -> FloatArray:
        return np.bincount(of, values, n).astype(np.float64)

    return total


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    """Their ratio, 0 where there is nothing below."""
    return np.divide(above, below, out=np.zeros(np.broadcast_shapes(above.shape, below.shape)), where=below > 0)
