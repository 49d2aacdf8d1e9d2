"""Soft proton-proton collisions as a barrel of crystals sees them: what pileup is made of."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import LayeredCalorimeter
from calolife.showers.splitmix import GOLDEN, next_state, unit_interval
from calolife.simulation.particles import PDG, Particles
from calolife.simulation.upstream import CURVATURE, FIELD_TESLA, barrel_radius_mm, local_direction

__all__ = ["MINBIAS", "sample_collisions"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
KeyArray = NDArray[np.uint64]

MINBIAS = "minbias"
"""What a collision is called where a particle is asked for."""

_CHARGED_PER_ETA = 5.49  # long-lived charged hadrons of an inelastic collision at 13 TeV, abs(eta) < 0.5: CMS, PLB 751 (2015) 143
_NEUTRAL_PIONS = 0.425  # per charged hadron: half of the charged pions, which are 0.85 of them: CMS, EPJC 72 (2012) 2164
# k; source of the law: ALICE, EPJC 68 (2010) 345: a negative binomial describes 7 TeV fairly well. The number is chosen: the width
# is then 0.93 of the mean, wide as inelastic collisions are
_NEGATIVE_BINOMIAL = 1.2
# (1 + (mT - m) / (n T))^-n; source: CMS, PRL 105 (2010) 022002, 7 TeV: mean pT 0.545 +- 0.016 GeV. At 13 TeV it is some per cent higher
_TSALLIS_GEV, _TSALLIS_POWER = 0.145, 6.6
_PION_GEV, _NEUTRAL_PION_GEV = 0.13957, 0.13498  # source: PDG Review, "Meson summary table"
_MOST_PT_GEV = 100.0  # chosen: beyond it are 10^-8 of the hadrons, and no soft collision
_MOST_HADRONS = 2_000  # chosen: beyond it are 10^-20 of the collisions
_MARGIN = 1.0  # chosen: a pion of 0.1 GeV sends its photons this far
_GRAZING = 0.05  # chosen: what comes in flatter than 3 degrees to the face counts as curled up, as upstream
_REMNANT_GEV = 1e-6  # chosen: 1 keV stands for a collision of which nothing arrives, as upstream
_STREAM = 0x7070  # chosen: "pp" in ASCII; keeps these numbers apart from those of the gun, of upstream and of the engines


def sample_collisions(
    detector: LayeredCalorimeter | CrystalCalorimeter,
    n: int,
    *,
    angle_deg: float | tuple[float, float] = 3.0,
    seed: int,
    first: int = 0,
) -> Particles:
    """Inelastic proton-proton collisions at 13 TeV: one a shower, with all that sets off towards the crystals.

    Parameters
    ----------
    detector : CrystalCalorimeter
        A barrel, closed in phi.
    n : int
        Collisions.
    angle_deg : float or (float, float) [degrees]
        Tilt of the crystals against straight tracks; a pair is a range, flat. The azimuth is random.
    seed : int
    first : int
        Number of the first collision.

    Returns
    -------
    Particles
        Photons, with the positions they point to, and charged pions, with the positions at which they arrive through the
        field of CMS. A collision of which nothing comes is left with a photon of 1 keV. The first particle of a collision
        is any of them. Collision i depends on the seed and on ``first + i`` only.

    Raises
    ------
    ValueError
        Another detector than a closed barrel of crystals; numbers out of range.

    Notes
    -----
    Hadrons: flat in rapidity, 5.49 charged ones per unit of eta at eta 0, and 0.425 neutral pions for each; their number in
    one collision is negative binomial with k = 1.2, charged and neutral together. Transverse momenta follow one Tsallis
    distribution (T = 0.145 GeV, n = 6.6; mean 0.56 GeV at eta 0), charged or neutral. Neutral pions decay at once into two photons. Charged
    hadrons below 0.74 GeV curl up before a barrel of CMS's radius: left out; all others are pions, bent along their helix.
    Sources: CMS, PLB 751 (2015) 143; CMS, PRL 105 (2010) 022002; CMS, EPJC 72 (2012) 2164; ALICE, EPJC 68 (2010) 345.

    Left out: kaons and protons as such, neutral hadrons (a tenth of the energy), eta mesons, jets and all other
    correlations of a collision but its multiplicity, the length of the beam spot, collisions of neighbouring bunches.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> barrel = load_detector("cms-barrel")
    >>> collisions = sample_collisions(barrel, 100, seed=1)
    >>> collisions.n_showers, 10 < collisions.n_particles / 100 < 30
    (100, True)
    """
    if not isinstance(detector, CrystalCalorimeter) or not detector.is_phi_periodic:
        raise ValueError(f"detector {detector.name!r} is no closed barrel of crystals; collisions are seen by one, such as cms-barrel")
    if n < 1 or first < 0 or not 0 <= seed < 2**63:
        raise ValueError(f"n = {n}, first = {first}, seed = {seed}; n must be >= 1, the others >= 0, the seed below 2^63")
    low_deg, high_deg = (float(v) for v in np.broadcast_to(np.asarray(angle_deg, np.float64), 2))
    if not 0 <= low_deg <= high_deg < 90:
        raise ValueError(f"angle_deg = {low_deg:g} to {high_deg:g} degrees; the angle must rise within 0 to below 90")

    ends = detector.eta_phi_at(detector.x_edges_mm[[0, -1], [0, 1]], 0.0)[0]
    low, high = float(ends[0]) - _MARGIN, float(ends[1]) + _MARGIN
    collision = next_state(next_state(np.full(n, seed, np.uint64)) + np.arange(first, first + n).astype(np.uint64))
    collision = next_state(collision + np.uint64(_STREAM))
    cumulative, pt_table, velocity = _transverse_momentum()
    mean = (high - low) * _CHARGED_PER_ETA / velocity * (1.0 + _NEUTRAL_PIONS)
    n_hadrons = np.searchsorted(_negative_binomial(mean), _uniform(collision, 0))
    of = np.repeat(np.arange(n), n_hadrons)  # (hadron,) its collision
    place = np.arange(of.size) - np.repeat(np.cumsum(n_hadrons) - n_hadrons, n_hadrons)
    key = next_state(collision[of] + (place + 1).astype(np.uint64))
    phi = 2 * np.pi * _uniform(key, 1)
    pt_gev = np.interp(_uniform(key, 2), cumulative, pt_table)
    rapidity = low + (high - low) * _uniform(key, 0)
    eta = np.arcsinh(np.hypot(1.0, _PION_GEV / pt_gev) * np.sinh(rapidity))
    kind = _uniform(key, 3) * (1.0 + _NEUTRAL_PIONS)  # below 1/2: negative, below 1: positive, above: neutral
    is_neutral = kind >= 1.0

    radius_mm = barrel_radius_mm(detector)
    curl_gev = 0.5 * CURVATURE * FIELD_TESLA * radius_mm  # a circle of half the radius just reaches the face
    bent = np.flatnonzero(~is_neutral & (pt_gev * math.sqrt(1.0 - _GRAZING**2) > curl_gev))
    charged = _bent(eta[bent], phi[bent], pt_gev[bent], np.where(kind[bent] < 0.5, -1.0, 1.0), curl_gev)
    pions = np.flatnonzero(is_neutral)
    photons = _decayed(eta[pions], phi[pions], pt_gev[pions], _uniform(key[pions], 4), _uniform(key[pions], 5))

    code = np.concatenate([np.where(kind[bent] < 0.5, PDG["pi-"], PDG["pi+"]), np.full(2 * pions.size, PDG["gamma"])])
    hadron = np.concatenate([bent, pions, pions])
    is_second = np.repeat([0, 0, 1], [bent.size, pions.size, pions.size])
    energy, eta, phi = (np.concatenate(columns) for columns in zip(charged[:3], photons, strict=True))
    axis = np.concatenate([charged[3], np.tile([0.0, 0.0, 1.0], (2 * pions.size, 1))])
    theta = np.radians(low_deg + (high_deg - low_deg) * _uniform(key[hadron], 6 + is_second))
    azimuth = 2 * np.pi * _uniform(key[hadron], 8 + is_second)
    shower = of[hadron]

    arrives = np.flatnonzero((eta > ends[0]) & (eta < ends[1]))
    gone = np.setdiff1d(np.arange(n), shower[arrives])
    eta = np.concatenate([eta[arrives], ends[0] + (ends[1] - ends[0]) * _uniform(collision[gone], 1)])
    phi = np.concatenate([phi[arrives], 2 * np.pi * _uniform(collision[gone], 2)])
    shower = np.concatenate([shower[arrives], gone])
    order = np.lexsort((np.concatenate([is_second[arrives], 0 * gone]), np.concatenate([hadron[arrives], 0 * gone]), shower))
    tilt = np.tan(theta)[:, None] * np.stack([np.cos(azimuth), np.sin(azimuth), np.zeros(azimuth.size)], 1)
    direction = (axis + tilt)[arrives]
    direction = np.concatenate([direction / np.linalg.norm(direction, axis=1, keepdims=True), np.tile([0.0, 0.0, 1.0], (gone.size, 1))])
    return Particles(
        np.concatenate([code[arrives], np.full(gone.size, PDG["gamma"])])[order],
        np.concatenate([energy[arrives], np.full(gone.size, _REMNANT_GEV)])[order],
        np.stack(detector.xy_mm_at(eta, phi), 1)[order],
        direction[order],
        shower[order],
    )


@cache
def _negative_binomial(mean: float) -> FloatArray:
    """Cumulative probabilities of 0, 1, 2 ... hadrons."""
    m, k = np.arange(_MOST_HADRONS), _NEGATIVE_BINOMIAL
    log_p = gammaln(m + k) - gammaln(m + 1) - gammaln(k) + m * np.log(mean / (mean + k)) + k * np.log(k / (mean + k))
    cumulative = np.cumsum(np.exp(log_p))
    return np.asarray(cumulative / cumulative[-1], np.float64)


@cache
def _transverse_momentum() -> tuple[FloatArray, FloatArray, float]:
    """Cumulative probability and pT [GeV] of hadrons at one rapidity, and their mean velocity at rapidity 0."""
    pt = np.concatenate([[0.0], np.geomspace(1e-3, _MOST_PT_GEV, 4000)])
    energy = np.hypot(pt, _PION_GEV)
    density = pt * (1.0 + (energy - _PION_GEV) / (_TSALLIS_POWER * _TSALLIS_GEV)) ** -_TSALLIS_POWER
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(pt))])
    velocity = np.trapezoid(density * pt / energy, pt) / cumulative[-1]  # a step in rapidity is one in eta times the velocity
    return cumulative / cumulative[-1], pt, float(velocity)


def _bent(
    eta: FloatArray, phi: FloatArray, pt_gev: FloatArray, charge: FloatArray, curl_gev: float
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Kinetic energy, eta and phi at the face and direction in the crystal's frame of charged pions."""
    turn = np.arcsin(curl_gev / pt_gev)  # half of what the heading turns by
    eta_at = np.arcsinh(np.sinh(eta) * turn / np.sin(turn))
    energy = np.hypot(pt_gev * np.cosh(eta), _PION_GEV) - _PION_GEV
    return energy, eta_at, phi - charge * turn, local_direction(eta, eta_at, -charge * turn)


def _decayed(
    eta: FloatArray, phi: FloatArray, pt_gev: FloatArray, u: FloatArray, v: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Energy, eta and phi of both photons of neutral pions: all first ones, then all second ones."""
    p = np.stack([pt_gev * np.cos(phi), pt_gev * np.sin(phi), pt_gev * np.sinh(eta)], 1)  # (pion, 3)
    energy = np.sqrt(np.sum(p**2, axis=1) + _NEUTRAL_PION_GEV**2)
    cos, azimuth = 2.0 * u - 1.0, 2 * np.pi * v
    sin = np.sqrt(1.0 - cos**2)
    k = 0.5 * _NEUTRAL_PION_GEV * np.stack([sin * np.cos(azimuth), sin * np.sin(azimuth), cos], 1)  # at rest, isotropic
    along = np.sum(p * k, axis=1) / _NEUTRAL_PION_GEV
    photons = []
    for sign in (1.0, -1.0):
        scale = sign * along / (energy + _NEUTRAL_PION_GEV) + 0.5
        q = sign * k + p * scale[:, None]
        pt = np.hypot(q[:, 0], q[:, 1])
        photons.append((np.sqrt(np.sum(q**2, axis=1)), np.arcsinh(q[:, 2] / pt), np.arctan2(q[:, 1], q[:, 0])))
    first, second = photons
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]]), np.concatenate([first[2], second[2]])


def _uniform(key: KeyArray, draw: int | IntArray) -> FloatArray:
    """Numbers in (0, 1) that depend on the key and the draw."""
    return unit_interval(next_state(key + (np.atleast_1d(draw) + 1).astype(np.uint64) * np.uint64(GOLDEN)))
