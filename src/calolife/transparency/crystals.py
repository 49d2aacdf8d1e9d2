"""Where the crystals are: numbering, rings, pseudorapidity, light-monitoring regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from calolife.transparency.history import FloatArray, IntArray

__all__ = ["N_CRYSTALS", "N_REGIONS", "Crystals", "detector_crystals", "ring_eta", "select_crystals"]

N_CRYSTALS = 75848  # CMS ECAL: 61200 in the barrel, 7324 in each endcap (CMS, JINST 3 (2008) S08004, sec. 4)
_N_BARREL = 61200
_N_ENDCAP = 7324
N_REGIONS = 92  # 72 halves of barrel supermodules and 20 endcap sectors; CMS has as many light-monitoring regions


@dataclass(frozen=True, eq=False)
class Crystals:
    """Where crystals are.

    Parameters
    ----------
    xtal_id, ieta, iphi : int array, (crystal,)
    region : int array, (crystal,)
        Light-monitoring region, 0 to 91: crystals of one region are read together.
    """

    xtal_id: IntArray
    ieta: IntArray
    iphi: IntArray
    region: IntArray

    def at(self, index: ArrayLike) -> Crystals:
        i = np.asarray(index)
        return Crystals(self.xtal_id[i], self.ieta[i], self.iphi[i], self.region[i])


def ring_eta(ieta: ArrayLike) -> FloatArray:
    """Pseudorapidity of the middle of a ring.

    Parameters
    ----------
    ieta : int array, (...)
        1 to 85 in the barrel, 86 to 124 in the endcap, negative at -z.

    Returns
    -------
    float array, (...)

    Notes
    -----
    Barrel: a straight line between .0114 at ieta 1 and 1.478 at 85, as in the release's metadata; the gaps
    between modules move rings by up to .005 from it. Endcap: 39 circles of
    one crystal width, 28.62 mm at the front, 50 to 11 widths from the beam, 3.154 m from the collision
    point (JINST 3 (2008) S08004); the real crystals sit on a square grid, which is not modelled.

    Examples
    --------
    >>> ring_eta([1, 66, 86, 124]).round(2).tolist()
    [0.01, 1.15, 1.54, 2.96]
    """
    n = np.abs(np.asarray(ieta, dtype=np.float64))
    return np.sign(ieta) * np.where(n <= 85, 0.01136 + 0.017462 * (n - 1), np.arcsinh(3154.0 / (28.62 * (135.5 - n))))


def detector_crystals(*, ieta: Sequence[int] | None = None) -> Crystals:
    """All 75,848 crystals, or those of some rings, sorted by id.

    Raises
    ------
    ValueError
        A ring that does not exist.

    Notes
    -----
    Barrel: id = 30600 [at +z] + 360 (|ieta| - 1) + iphi - 1; every crystal listed in the release's metadata
    that we have agrees. Endcap ids run over 61200-75847; their order, the iphi and the number of crystals
    of a ring (proportional to its radius) are chosen here. Regions: half a supermodule, 10 iphi x 85 ieta,
    in the barrel; a tenth of a disc in the endcap.

    Examples
    --------
    >>> detector_crystals(ieta=[66]).xtal_id[0], detector_crystals().xtal_id.size
    (np.int64(54000), 75848)
    """
    if ieta is not None and (wrong := [i for i in ieta if not 1 <= abs(i) <= 124]):
        raise ValueError(f"no ring has ieta {wrong[0]}; allowed: 1 to 85 in the barrel, 86 to 124 in the endcap, negative at -z")
    wanted = None if ieta is None else {int(i) for i in ieta}
    phi = np.arange(360)
    n_in_ring = _endcap_ring_sizes()
    first_in_ring = np.concatenate([[0], np.cumsum(n_in_ring)])
    parts = []
    for side in (-1, 1):
        for n in range(1, 125):
            if wanted is not None and side * n not in wanted:
                continue
            plus = int(side > 0)
            if n <= 85:
                xtal_id = _N_BARREL // 2 * plus + 360 * (n - 1) + phi
                parts.append((xtal_id, np.full(360, side * n), phi + 1, 36 * plus + phi // 10))
            else:
                size = n_in_ring[n - 86]
                iphi = (np.arange(size) + 0.5) * 360 // size
                xtal_id = _N_BARREL + _N_ENDCAP * plus + first_in_ring[n - 86] + np.arange(size)
                parts.append((xtal_id, np.full(size, side * n), iphi.astype(np.int64) + 1, 72 + 10 * plus + iphi.astype(np.int64) // 36))
    xtal_id, ring, iphi, region = (np.concatenate(column).astype(np.int64) for column in zip(*parts, strict=True))
    return Crystals(xtal_id, ring, iphi, region).at(np.argsort(xtal_id))


def _endcap_ring_sizes() -> IntArray:
    radius = 49.5 - np.arange(39)
    edge = np.rint(_N_ENDCAP * np.concatenate([[0.0], np.cumsum(radius)]) / radius.sum())
    size: IntArray = np.diff(edge).astype(np.int64)
    return size


def select_crystals(n_crystals: int) -> Crystals:
    """Crystals spread over the detector in groups of neighbours, sorted by id.

    Parameters
    ----------
    n_crystals : int
        1 to 75,848. A larger selection contains every smaller one.

    Raises
    ------
    ValueError
        Any other number.

    Notes
    -----
    A group is what one ring and one light-monitoring region have in common, ten crystals in the barrel.
    Groups are taken in golden-ratio steps, which cover the rings evenly for any number; the first is the
    one of crystal 54000, so that small selections begin beside the crystals of the public skim.
    """
    if not 1 <= n_crystals <= N_CRYSTALS:
        raise ValueError(f"n_crystals = {n_crystals}; the detector has 1 to {N_CRYSTALS}")
    crystals = detector_crystals()
    order = np.lexsort((crystals.iphi, crystals.region, crystals.ieta))
    key = crystals.ieta[order] * 1000 + crystals.region[order]
    start = np.flatnonzero(np.r_[True, np.diff(key) != 0])
    n_groups = start.size
    stride = round(n_groups * (np.sqrt(5) - 1) / 2)
    while np.gcd(stride, n_groups) != 1:
        stride += 1
    here = np.searchsorted(start, np.flatnonzero(crystals.xtal_id[order] == 54000)[0])
    group = (here + stride * np.arange(n_groups)) % n_groups
    bounds = np.append(start, order.size)
    taken = np.concatenate([order[bounds[g] : bounds[g + 1]] for g in group[: min(n_groups, n_crystals)]])
    return crystals.at(np.sort(taken[:n_crystals]))
