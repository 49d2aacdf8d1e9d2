"""What stands in front of crystals: electrons radiate, photons convert, a magnetic field bends them apart on their way."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import LayeredCalorimeter
from calolife.showers.splitmix import GOLDEN, next_state, unit_interval
from calolife.simulation.particles import PDG, Particles

if TYPE_CHECKING:
    from calolife.showers.events import Showers

__all__ = ["CURVATURE", "FIELD_TESLA", "barrel_radius_mm", "has_upstream", "local_direction", "through_upstream", "with_incident"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
KeyArray = NDArray[np.uint64]

FIELD_TESLA = 3.8  # source: CMS, JINST 3 (2008) S08004 quotes the design's 4 T; it runs at 3.8 T: CMS, JINST 5 (2010) T03021
CURVATURE = 0.299792458e-3  # pT [GeV] = 0.2998e-3 B [T] radius [mm]: the speed of light; PDG Review, "Kinematics"
# where the material stands, in radii of the barrel's front face; source: CMS, JINST 3 (2008) S08004: silicon from 4.4 to
# 116 cm before crystals at 129 cm. Evenly between: chosen, the true tracker has layers
_INNER, _OUTER = 44.0 / 1290.0, 1160.0 / 1290.0
_SOFTEST_GEV = 0.010  # chosen: softer photons stay with their electron; together they are 4/3 x 10 MeV in one X0
_PAIR_LENGTH = 9.0 / 7.0  # [X0]; source: PDG Review, "Passage of particles through matter", high-energy limit
_GRAZING = 0.05  # chosen: what comes in flatter than 3 degrees to the face counts as curled up
_REMNANT_GEV = 1e-6  # chosen: 1 keV stands for a shower of which nothing arrives; a shower needs a particle
_DEGREE = 2 * math.pi / 360  # one crystal in phi; source: CMS, JINST 3 (2008) S08004
_STRAIGHT = 1e-9  # chosen: a turn by less is no turn; its circle would be too large for floats
_STREAM = 0x7570  # chosen: "up" in ASCII; keeps these numbers apart from those of the gun and the engines
# the share of one of a pair: density 1 - 4/3 x (1 - x), normalised by 7/9; source: PDG Review, ibid.
_PAIR_SHARE = np.linspace(0.0, 1.0, 1025)
_PAIR_CUMULATIVE = _PAIR_LENGTH * (_PAIR_SHARE - 2.0 / 3.0 * _PAIR_SHARE**2 + 4.0 / 9.0 * _PAIR_SHARE**3)


class _Tracks(NamedTuple):
    """Electrons, positrons and photons on their way from the vertex; the gun's particle sets off along the first axis."""

    charge: FloatArray  # (track,) -1, 0, 1
    energy_gev: FloatArray
    x0: FloatArray  # depth passed
    along_mm: FloatArray  # position in the plane across the beam, along the first axis
    across_mm: FloatArray  # and across it
    heading: FloatArray  # [rad] in that plane
    late_mm: FloatArray  # way along the beam, less that of a straight track
    key: KeyArray  # random numbers
    incident: IntArray  # the particle of the gun it comes from
    is_first: NDArray[np.bool_]  # that particle itself

    def at(self, which: NDArray[np.bool_]) -> _Tracks:
        return _Tracks._make(column[which] for column in self)


def has_upstream(detector: LayeredCalorimeter | CrystalCalorimeter) -> bool:
    """Whether a detector describes what stands in front of it."""
    return isinstance(detector, CrystalCalorimeter) and bool(detector.upstream_x0)


def barrel_radius_mm(detector: CrystalCalorimeter) -> float:
    """Distance of the front face from the beam [mm]: where one column is one step in phi.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> round(barrel_radius_mm(load_detector("cms-barrel")))
    1297
    """
    if detector.is_phi_periodic:
        return detector.period_y_mm / (2 * math.pi)
    return detector.size_y_mm / (detector.n_phi * _DEGREE)


def through_upstream(
    detector: LayeredCalorimeter | CrystalCalorimeter,
    particles: Particles,
    *,
    seed: int,
    first: int = 0,
    field_tesla: float = FIELD_TESLA,
) -> Particles:
    """Particles as they reach the crystals, behind the material and the field in front of them.

    Parameters
    ----------
    detector : LayeredCalorimeter or CrystalCalorimeter
        One without a table of upstream material gives the particles back as they are.
    particles : Particles
        Set off at the vertex; their positions say where on the front face they point to.
    seed : int
    first : int
        Number of the first shower; what becomes of shower i depends on the seed, on ``first + i`` and on its particles only.
    field_tesla : float [T]
        Along the beam; electrons bend towards larger phi.

    Returns
    -------
    Particles
        What arrives, shower by shower; the particle of the gun first where it does. The energies of a shower add up to
        what was shot, less what curls up in the field: electrons of too little transverse momentum to reach the face (0.74
        GeV in the barrel at 3.8 T), dropped. A shower of which nothing arrives is left with a photon of 1 keV.

    Raises
    ------
    ValueError
        A field that is not finite, a seed or number below 0.

    Notes
    -----
    The depth in X0 is that of the table at the eta the particle points to, spread evenly along the radius of the tracker.
    An electron radiates photons of energy k = y E with dN/dk = t/k (4/3 - 4/3 y + y^2) above 10 MeV (softer ones stay with
    it), each sent off along its track; a photon converts with 1 - exp(-7/9 t), its energy shared as 1 - 4/3 x (1 - x)
    says. Tracks are helices between these points. No step length: the next point is drawn, and some are rejected.
    Source: PDG Review, "Passage of particles through matter".

    Left out: ionisation, multiple scattering, Compton scattering and the fall of both cross sections below 100 MeV, what a
    curling electron still radiates, the mass of the electron, the slant of bent tracks through the material. Hadrons and
    muons go straight through: neither field nor material acts on them.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> from calolife.simulation.particles import sample_particles
    >>> barrel = load_detector("cms-barrel")
    >>> arrived = through_upstream(barrel, sample_particles(barrel, 200, particle="e-", energy_gev=50.0, seed=1), seed=1)
    >>> arrived.n_showers, arrived.n_particles > 500
    (200, True)
    """
    if not math.isfinite(field_tesla):
        raise ValueError(f"field_tesla = {field_tesla:g} must be finite; 0 switches it off")
    if not 0 <= seed < 2**63 or first < 0:
        raise ValueError(f"seed = {seed}, first = {first}; both must be >= 0, the seed below 2^63")
    if not has_upstream(detector):
        return particles
    assert isinstance(detector, CrystalCalorimeter)
    assert particles.shower is not None
    radius_mm = barrel_radius_mm(detector)
    eta, phi = detector.eta_phi_at(*particles.position_mm.T)
    depth = detector.upstream_x0_at(eta)
    charge_of = {PDG["e-"]: -1.0, PDG["e+"]: 1.0, PDG["gamma"]: 0.0}
    is_electromagnetic = np.isin(particles.pdg_id, list(charge_of))
    begin = np.searchsorted(particles.shower, particles.shower)
    place = np.arange(particles.n_particles) - begin
    key = next_state(
        next_state(next_state(np.full(place.shape, seed, np.uint64)) + _wide(particles.shower + first)) + _wide(place * 256 + _STREAM)
    )
    nothing = np.zeros(particles.n_particles)
    tracks = _Tracks(
        np.array([charge_of.get(int(code), 0.0) for code in particles.pdg_id]), particles.energy_gev, nothing, nothing, nothing, nothing,
        nothing, key, np.arange(nothing.size), np.ones(nothing.size, np.bool_),
    ).at(is_electromagnetic)  # fmt: skip
    arrived = _transport(tracks, eta, depth, radius_mm, field_tesla)

    of = arrived.incident
    turn = np.arctan2(arrived.across_mm, arrived.along_mm)
    eta_at = np.arcsinh(arrived.late_mm / radius_mm + np.sinh(eta[of]))
    has_moved = ((turn != 0) | (arrived.late_mm != 0))[:, None]  # a photon that met nothing stays where it was, to the last bit
    at_mm = np.stack(detector.xy_mm_at(eta_at, phi[of] + turn), axis=1)
    position = np.where(has_moved, at_mm, particles.position_mm[of])
    direction = _turned(particles.direction[of], local_direction(eta[of], eta_at, arrived.heading - turn))
    direction = np.where(has_moved, direction, particles.direction[of])
    code = np.select([arrived.charge < 0, arrived.charge > 0], [PDG["e-"], PDG["e+"]], PDG["gamma"])

    straight = ~is_electromagnetic
    gone = np.setdiff1d(particles.shower, np.concatenate([particles.shower[straight], particles.shower[of]]))
    left = np.searchsorted(particles.shower, gone)
    all_of = np.concatenate([np.flatnonzero(straight), of, left])
    is_later = np.concatenate([np.zeros(straight.sum()), ~arrived.is_first, np.zeros(left.size)])
    # stable: what one particle became stays in the order in which it came about, whatever else is in the sample
    order = np.lexsort((all_of, is_later, particles.shower[all_of]))
    return Particles(
        np.concatenate([particles.pdg_id[straight], code, np.full(left.size, PDG["gamma"])])[order],
        np.concatenate([particles.energy_gev[straight], arrived.energy_gev, np.minimum(_REMNANT_GEV, particles.energy_gev[left])])[order],
        np.concatenate([particles.position_mm[straight], position, particles.position_mm[left]])[order],
        np.concatenate([particles.direction[straight], direction, particles.direction[left]])[order],
        particles.shower[all_of][order],
    )


def with_incident(showers: Showers, incident: Particles) -> Showers:
    """Showers of what arrived, with the truth of what was shot.

    Parameters
    ----------
    showers : Showers
        Made of the particles that `through_upstream` gave.
    incident : Particles
        Those that it was given.

    Returns
    -------
    Showers
        Particle, energy, position and direction are those at the vertex: the position is where a photon would arrive. What
        curled up in front counts as leaked. ``origin`` says ``upstream``.
    """
    truth = incident.incident()
    curled_mev = 1000.0 * (truth.energy_gev - showers.energy_gev)
    assert showers.leaked_mev is not None
    return replace(
        showers, pdg_id=truth.pdg_id, energy_gev=truth.energy_gev, direction=truth.direction,
        position_mm=np.column_stack([truth.position_mm, np.zeros(truth.n_particles)]),
        leaked_mev=showers.leaked_mev + np.maximum(curled_mev, 0.0), origin={**showers.origin, "upstream": True},
    )  # fmt: skip


def _transport(tracks: _Tracks, eta: FloatArray, depth: FloatArray, radius_mm: float, field_tesla: float) -> _Tracks:
    """All tracks to the face: one point of interaction a round, for all that are still on their way."""
    inner, outer = _INNER * radius_mm, _OUTER * radius_mm
    done = []
    while tracks.charge.size:
        is_charged, total = tracks.charge != 0, depth[tracks.incident]
        # above 4/3 x log(E / softest) photons an X0 nothing is radiated: those above the true spectrum are rejected below
        log_range = np.log(np.maximum(tracks.energy_gev / _SOFTEST_GEV, 1.0))
        rate = np.where(is_charged, 4.0 / 3.0 * log_range, 1.0 / _PAIR_LENGTH)
        with np.errstate(divide="ignore"):
            at = tracks.x0 - np.log(_uniform(tracks.key, 0)) / rate
        arrives = at >= total
        share = np.divide(at, total, out=np.zeros_like(at), where=~arrives)
        moved, reaches = _move(tracks, np.where(arrives, radius_mm, inner + (outer - inner) * share), eta, field_tesla)
        done.append(moved.at(arrives & reaches))

        here = ~arrives & reaches
        t, charged, log_range = moved.at(here)._replace(x0=at[here]), is_charged[here], log_range[here]
        u, v = _uniform(t.key, 1), _uniform(t.key, 2)
        y = np.exp(-u * log_range)
        radiates = charged & (v < 1.0 - y + 0.75 * y**2)
        part = t.energy_gev * np.where(charged, np.where(radiates, y, 0.0), np.interp(u, _PAIR_CUMULATIVE, _PAIR_SHARE))
        key = next_state(t.key + np.uint64(1))
        after = t._replace(energy_gev=t.energy_gev - part, key=key, charge=np.where(charged, t.charge, -1.0), is_first=t.is_first & charged)
        born = radiates | ~charged
        new = t._replace(
            energy_gev=part, key=next_state(key ^ np.uint64(0xD1B54A32D192ED03)), charge=np.where(charged, 0.0, 1.0),
            is_first=np.zeros_like(born),
        ).at(born)  # fmt: skip
        tracks = _Tracks._make(np.concatenate(pair) for pair in zip(after, new, strict=True))
        tracks = tracks.at(tracks.energy_gev > 0)
    return _Tracks._make(np.concatenate(columns) for columns in zip(*done, strict=True)) if done else tracks


def _move(t: _Tracks, target_mm: FloatArray, eta: FloatArray, field_tesla: float) -> tuple[_Tracks, NDArray[np.bool_]]:
    """Tracks on their way out to a distance from the beam, and which of them get there."""
    # charge -1 in a field along +z turns to larger phi: the force is q v x B
    curvature = -t.charge * CURVATURE * field_tesla * np.cosh(eta[t.incident]) / t.energy_gev  # (track,) [1 / mm]
    is_bent = np.abs(curvature) * target_mm > _STRAIGHT
    bent, straight = np.flatnonzero(is_bent), np.flatnonzero(~is_bent)
    along, across, heading, length = t.along_mm.copy(), t.across_mm.copy(), t.heading.copy(), np.zeros_like(target_mm)
    reaches = np.ones(target_mm.shape, np.bool_)

    ux, uy = np.cos(heading[straight]), np.sin(heading[straight])
    x, y, r = along[straight], across[straight], target_mm[straight]
    ahead = x * ux + y * uy
    s = np.sqrt(ahead**2 + r**2 - x**2 - y**2) - ahead
    along[straight], across[straight], length[straight] = x + s * ux, y + s * uy, s

    k, x, y, psi, r = curvature[bent], along[bent], across[bent], heading[bent], target_mm[bent]
    radius = 1.0 / np.abs(k)
    centre_x, centre_y = x - np.sin(psi) / k, y + np.cos(psi) / k
    distance = np.hypot(centre_x, centre_y)
    gap = (distance - radius) ** 2
    # half the angle on the circle from its point nearest to the beam: sin^2 = (r^2 - gap) / (4 distance radius)
    now, then = ((q - gap) / (4 * distance * radius) for q in (x**2 + y**2, r**2))
    angle = np.sign(k) * 2 * (np.arcsin(np.sqrt(np.clip(then, 0, 1))) - np.arcsin(np.sqrt(np.clip(now, 0, 1))))
    heading[bent] = psi + angle
    along[bent], across[bent] = centre_x + np.sin(psi + angle) / k, centre_y - np.cos(psi + angle) / k
    length[bent] = np.abs(angle) * radius
    steepness = np.cos(heading[bent] - np.arctan2(across[bent], along[bent]))
    reaches[bent] = (then < 1) & (steepness > _GRAZING)
    late = np.sinh(eta[t.incident]) * (length - (np.hypot(along, across) - np.hypot(t.along_mm, t.across_mm)))
    late[heading == 0] = 0.0  # straight out of the vertex: no rounding error may move it
    return t._replace(along_mm=along, across_mm=across, heading=heading, late_mm=t.late_mm + late), reaches


def local_direction(eta: FloatArray, eta_at: FloatArray, angle: FloatArray) -> FloatArray:
    """Direction in the frame of the crystal that is hit: along eta, along phi, along its axis.

    Parameters
    ----------
    eta : float array, (track,)
        Of the track at the vertex.
    eta_at : float array, (track,)
        Of the crystal that is hit; another one if a field bent the track.
    angle : float array, (track,) [rad]
        From the radius through the crystal to the track's heading there, across the beam.

    Returns
    -------
    float array, (track, 3)
        Unit vectors.

    Examples
    --------
    >>> local_direction(np.array([1.0]), np.array([1.0]), np.array([0.0])).round(6).tolist()
    [[0.0, 0.0, 1.0]]
    """
    c, flat = np.cos(angle), np.cosh(eta)
    e = (np.sinh(eta) - np.sinh(eta_at) * c) / np.cosh(eta_at)
    axis = (c + np.sinh(eta) * np.sinh(eta_at)) / np.cosh(eta_at)
    return np.stack([e, np.sin(angle), axis], 1) / flat[:, None]


def _turned(direction: FloatArray, axis: FloatArray) -> FloatArray:
    """Directions turned as +z is turned onto `axis`, by the shortest way; kept from grazing the face."""
    ax, ay, az = axis.T
    b = -1.0 / (1.0 + az)  # Rodrigues' formula about z x axis
    x, y, z = direction.T
    turned = np.stack([
        x * (1 + b * ax * ax) + y * b * ax * ay + z * ax,
        x * b * ax * ay + y * (1 + b * ay * ay) + z * ay,
        -x * ax - y * ay + z * az,
    ], 1)  # fmt: skip
    turned[:, 2] = np.maximum(turned[:, 2], _GRAZING)
    return np.asarray(turned / np.linalg.norm(turned, axis=1, keepdims=True))


def _uniform(key: KeyArray, draw: int) -> FloatArray:
    """Numbers in (0, 1) that depend on the key and the draw."""
    return unit_interval(next_state(key + np.uint64((draw + 1) * GOLDEN % 2**64)))


def _wide(values: IntArray) -> KeyArray:
    return np.asarray(values, np.uint64)
