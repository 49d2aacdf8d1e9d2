"""From crystals to electrons and photons: seeds, the crystals around them, and superclusters that collect what radiated off in phi."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.detector.crystals import ETA_PER_CRYSTAL, CrystalCalorimeter
from calolife.showers.events import PDG, Showers, readout_text
from calolife.showers.superclusters import Superclusters, turned

__all__ = ["ClusterSettings", "energy_density_gev", "eta_window", "find_superclusters", "phi_window"]

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


def _offsets(object_of: IntArray, n_objects: int) -> IntArray:
    return np.concatenate([[0], np.cumsum(np.bincount(object_of, minlength=n_objects))]).astype(np.int64)
