"""The particle gun: what is shot at a calorimeter, every shower independent of how many others are asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import LayeredCalorimeter
from calolife.showers.events import PDG

__all__ = ["PDG", "Particles", "parse_particle", "sample_particles"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_FRACTION_TOLERANCE = 1e-6  # chosen: thirds written with seven digits add up
_UNIT_TOLERANCE = 1e-6  # chosen: a direction kept in float32 passes
_DRAWS = 8  # numbers kept for one shower: kind, energy, x, y, angle, azimuth, and two to spare
_MOST_SPOT_MM = 1e9  # chosen: wider is a slip of the keyboard, and the cut Gaussian would round to nothing
# what people call them, for the hint of an error
_COMMON_NAMES = {"electron": "e-", "positron": "e+", "photon": "gamma", "pion": "pi-", "muon": "mu-", "p": "proton", "n": "neutron"}
_STREAM = 0x67756E  # chosen: "gun" in ASCII; keeps the gun's numbers apart from those of the engines


@dataclass(frozen=True, eq=False)
class Particles:
    """Particles on their way into the front face (z = 0) of a calorimeter.

    Several may belong to one shower: an electron and the photons it radiated upstream.

    Parameters
    ----------
    pdg_id : int array, (particle,)
    energy_gev : float array, (particle,) [GeV]
        Kinetic energy, finite and > 0.
    position_mm : float array, (particle, 2) [mm]
        x and y on the front face.
    direction : float array, (particle, 3)
        Unit vector with a positive z component.
    shower : int array, (particle,), optional
        Index of the shower each belongs to: rising from 0, none left out. Each its own shower when left out.

    Raises
    ------
    ValueError
        An unknown particle, an energy that is not > 0, a direction away from the calorimeter, shapes that do not fit,
        shower indices that do not rise one by one from 0.

    Examples
    --------
    >>> particles = Particles([11, 22], [9.0, 1.0], [[0.0, 0.0]] * 2, [[0.0, 0.0, 1.0]] * 2, [0, 0])
    >>> particles.n_showers, particles.incident().energy_gev.tolist()
    (1, [10.0])
    """

    pdg_id: NDArray[np.int32]
    energy_gev: FloatArray
    position_mm: FloatArray
    direction: FloatArray
    shower: IntArray | None = None

    def __post_init__(self) -> None:
        for name in ("pdg_id", "shower"):
            given = np.asarray(getattr(self, name))
            if given.size and given.dtype.kind not in "iuO":
                raise ValueError(f"{name} holds {given.dtype} values; it must hold integers")
        object.__setattr__(self, "pdg_id", _frozen(np.atleast_1d(self.pdg_id), np.int32))
        n = self.pdg_id.size
        object.__setattr__(self, "shower", _frozen(np.arange(n) if self.shower is None else self.shower, np.int64))
        for name, shape in (("energy_gev", (n,)), ("position_mm", (n, 2)), ("direction", (n, 3)), ("shower", (n,))):
            if name != "shower":
                object.__setattr__(self, name, _frozen(getattr(self, name), np.float64))
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}; {n} particles need {shape}")
        assert self.shower is not None
        if unknown := sorted(set(self.pdg_id.tolist()) - set(PDG.values())):
            names = ", ".join(f"{code} ({name})" for name, code in PDG.items())
            raise ValueError(f"pdg_id {unknown[0]} is no particle the engines know; allowed: {names}")
        wrong = ~(np.isfinite(self.energy_gev) & (self.energy_gev > 0))
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"energy_gev of particle {at} is {self.energy_gev[at]:g}; a kinetic energy must be finite and > 0")
        if not np.isfinite(self.position_mm).all():
            raise ValueError("position_mm must be finite; give x and y in mm")
        length = np.sqrt(np.einsum("ij,ij->i", self.direction, self.direction))
        wrong = ~((np.abs(length - 1) < _UNIT_TOLERANCE) & (self.direction[:, 2] > 0))
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"direction of particle {at} is {self.direction[at].tolist()}; it must be a unit vector with z > 0")
        step = np.diff(self.shower)
        if n and (self.shower[0] != 0 or ((step != 0) & (step != 1)).any()):
            raise ValueError("shower indices must rise from 0 one by one; keep the particles of a shower side by side")

    @property
    def n_particles(self) -> int:
        return self.pdg_id.size

    @property
    def n_showers(self) -> int:
        assert self.shower is not None
        return int(self.shower[-1]) + 1 if self.shower.size else 0

    def showers(self, start: int, stop: int) -> Particles:
        """Particles of showers ``start`` to ``stop - 1``, numbered from 0 again."""
        assert self.shower is not None
        first, last = np.searchsorted(self.shower, [start, stop])
        s = slice(int(first), int(last))
        return Particles(self.pdg_id[s], self.energy_gev[s], self.position_mm[s], self.direction[s], self.shower[s] - start)

    def incident(self) -> Particles:
        """One particle a shower: the first of each, with the energy of all."""
        assert self.shower is not None
        first = np.searchsorted(self.shower, np.arange(self.n_showers))
        energy: FloatArray = np.bincount(self.shower, weights=self.energy_gev, minlength=self.n_showers).astype(np.float64)
        return replace(
            self, pdg_id=self.pdg_id[first], energy_gev=energy, position_mm=self.position_mm[first],
            direction=self.direction[first], shower=None,
        )  # fmt: skip


def parse_particle(text: str) -> tuple[NDArray[np.int32], FloatArray]:
    """PDG codes and fractions of a particle name or a mixture.

    Parameters
    ----------
    text : str
        ``pi-``, or ``mix:gamma=0.5,pi-=0.5``.

    Returns
    -------
    int array, (kind,)
    float array, (kind,)
        Fractions, adding up to 1.

    Raises
    ------
    ValueError
        An unknown name, a name twice, a fraction that is not > 0, fractions that do not add up to 1.

    Examples
    --------
    >>> codes, fractions = parse_particle("mix:gamma=0.25,pi-=0.75")
    >>> codes.tolist(), fractions.tolist()
    ([22, -211], [0.25, 0.75])
    """
    if not text.startswith("mix:"):
        return np.array([_code(text)], np.int32), np.ones(1)
    codes, fractions = [], []
    for part in text.removeprefix("mix:").split(","):
        name, equals, number = part.rpartition("=")
        try:
            fraction = float(number)
        except ValueError:
            fraction = np.nan
        if not equals or not np.isfinite(fraction) or fraction <= 0:
            raise ValueError(f"particle {text!r}: {part!r} is not a particle with a fraction > 0; write mix:gamma=0.5,pi-=0.5")
        codes.append(_code(name.strip()))
        fractions.append(fraction)
    if len(set(codes)) < len(codes):
        raise ValueError(f"particle {text!r} names a particle twice; add up its fractions")
    total = sum(fractions)
    if abs(total - 1) > _FRACTION_TOLERANCE:
        raise ValueError(f"particle {text!r}: the fractions add up to {total:g}; they must add up to 1")
    return np.array(codes, np.int32), np.array(fractions) / total


def sample_particles(
    detector: LayeredCalorimeter | CrystalCalorimeter,
    n: int,
    *,
    particle: str,
    energy_gev: float | tuple[float, float] | None = None,
    pt_gev: float | tuple[float, float] | None = None,
    position_mm: tuple[float, float] | None = None,
    beam_spot_mm: float | None = None,
    angle_deg: float | tuple[float, float] = 0.0,
    seed: int,
    first: int = 0,
) -> Particles:
    """Particles of a beam, or of a barrel's whole front face.

    Parameters
    ----------
    detector : LayeredCalorimeter or CrystalCalorimeter
    n : int
        Showers wanted.
    particle : str
        As `parse_particle` reads it.
    energy_gev : float or (float, float), optional [GeV]
        Kinetic energy; a pair is a range, flat in energy.
    pt_gev : float or (float, float), optional [GeV]
        Instead of it, for crystals: what of the kinetic energy is transverse, E / cosh(eta) at the eta that the particle
        points to; a pair is a range, flat.
    position_mm : (float, float), optional [mm]
        Centre of the beam on the front face; the centre of the face when left out.
    beam_spot_mm : float, optional [mm]
        Width of the Gaussian beam in x and in y, cut at the edges of the face; 0 when left out.
    angle_deg : float or (float, float) [degrees]
        Angle to the z axis; a pair is a range, flat in the angle. The azimuth is random.
    seed : int
    first : int
        Number of the first shower.

    Returns
    -------
    Particles
        Shower i depends on the seed and on ``first + i`` only: any chunking of a sample gives the same particles.

    Raises
    ------
    ValueError
        Numbers out of range, a range that does not rise, a beam beside the detector, not exactly one of energy and
        transverse momentum, a transverse momentum where there is no eta.

    Notes
    -----
    A barrel (a periodic crystal matrix) without position and spot is hit all over, uniform in eta and phi and gaps
    included; all others are hit in the centre. Crystals stand along the beam here: what comes straight into an empty gap
    leaves no energy, so give a barrel the 3 degrees by which CMS tilts its crystals (CMS, JINST 3 (2008) S08004).

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> calo = load_detector("cu-scint-24x24")
    >>> all_of_them = sample_particles(calo, 5, particle="pi-", energy_gev=(1.0, 100.0), beam_spot_mm=10.0, seed=1)
    >>> last = sample_particles(calo, 1, particle="pi-", energy_gev=(1.0, 100.0), beam_spot_mm=10.0, seed=1, first=4)
    >>> bool(last.energy_gev[0] == all_of_them.energy_gev[4])
    True
    """
    if n < 1 or first < 0 or not 0 <= seed < 2**63:
        raise ValueError(f"n = {n}, first = {first}, seed = {seed}; n must be >= 1, the others >= 0, the seed below 2^63")
    codes, fractions = parse_particle(particle)
    name, given = ("energy_gev", energy_gev) if pt_gev is None else ("pt_gev", pt_gev)
    if given is None or (energy_gev is not None and pt_gev is not None):
        raise ValueError(f"energy_gev = {energy_gev} and pt_gev = {pt_gev}; give exactly one of them")
    if pt_gev is not None and not isinstance(detector, CrystalCalorimeter):
        raise ValueError(f"detector {detector.name!r} is made of layers and has no eta; give energy_gev, not pt_gev")
    low_gev, high_gev = _range(name, given, unit="GeV")
    if low_gev <= 0:
        raise ValueError(f"{name} = {low_gev:g} GeV; a {'kinetic energy' if pt_gev is None else 'transverse momentum'} must be > 0")
    low_deg, high_deg = _range("angle_deg", angle_deg, unit="degrees")
    if low_deg < 0 or high_deg >= 90:
        raise ValueError(f"angle_deg = {low_deg:g} to {high_deg:g} degrees; the angle to the z axis must lie in 0 to below 90")
    # one draw takes one step of PCG64, so shower i starts at step 8 i
    source = np.random.PCG64(np.random.SeedSequence([seed, _STREAM]))
    source.advance(first * _DRAWS)
    u = np.random.Generator(source).random((n, _DRAWS))

    kind = np.minimum(np.searchsorted(np.cumsum(fractions), u[:, 0], side="right"), codes.size - 1)
    theta = np.radians(low_deg + (high_deg - low_deg) * u[:, 4])
    azimuth = 2 * np.pi * u[:, 5]
    direction = np.stack([np.sin(theta) * np.cos(azimuth), np.sin(theta) * np.sin(azimuth), np.cos(theta)], axis=1)
    position = _positions(detector, u[:, 2:4], position_mm=position_mm, beam_spot_mm=beam_spot_mm)
    energy = low_gev + (high_gev - low_gev) * u[:, 1]
    if pt_gev is not None:
        assert isinstance(detector, CrystalCalorimeter)
        energy = energy * np.cosh(detector.eta_phi_at(*position.T)[0])
    return Particles(codes[kind], energy, position, direction)


def _positions(
    detector: LayeredCalorimeter | CrystalCalorimeter,
    u: FloatArray,
    *,
    position_mm: tuple[float, float] | None,
    beam_spot_mm: float | None,
) -> FloatArray:
    high = np.array([detector.size_x_mm, detector.size_y_mm]) / 2
    low = -high
    if isinstance(detector, CrystalCalorimeter) and detector.is_phi_periodic and position_mm is None and beam_spot_mm is None:
        return np.asarray(low + [detector.size_x_mm, detector.period_y_mm] * u)
    centre = np.zeros(2) if position_mm is None else np.asarray(position_mm, np.float64)
    if centre.shape != (2,) or not np.isfinite(centre).all():
        raise ValueError(f"position_mm = {position_mm}; give x and y in mm")
    if (centre < low).any() or (centre > high).any():
        face = f"{low[0]:g} to {high[0]:g} mm in x and {low[1]:g} to {high[1]:g} mm in y"
        raise ValueError(f"position_mm = {tuple(centre.tolist())} is beside the detector; its face is {face}")
    spot = 0.0 if beam_spot_mm is None else float(beam_spot_mm)
    if not 0 <= spot <= _MOST_SPOT_MM:
        raise ValueError(f"beam_spot_mm = {spot:g}; the width of the beam must be finite, >= 0 and at most {_MOST_SPOT_MM:g}")
    if spot == 0:
        return np.broadcast_to(centre, u.shape)
    # quantiles of a Gaussian cut at the edges: a particle beside the detector would be no shower
    below, above = ndtr((low - centre) / spot), ndtr((high - centre) / spot)
    return np.asarray(np.clip(centre + spot * ndtri(below + (above - below) * u), low, high))


def _range(name: str, given: float | tuple[float, float], *, unit: str) -> tuple[float, float]:
    try:
        ends = [float(end) for end in np.atleast_1d(given)]
    except (TypeError, ValueError):
        ends = []
    if len(ends) not in (1, 2):
        raise ValueError(f"{name} = {given!r} is not a number or a pair of them, in {unit}")
    low, high = ends[0], ends[-1]
    if len(ends) == 2 and not low < high:
        raise ValueError(f"{name} = {low:g} to {high:g} {unit}; a range must rise")
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{name} = {low:g} to {high:g} {unit}; it must be finite")
    return low, high


def _code(name: str) -> int:
    if name not in PDG:
        plain = name.strip().lower()
        near = [_COMMON_NAMES[plain]] if plain in _COMMON_NAMES else get_close_matches(plain, PDG, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown particle {name!r}; {hint}allowed: {', '.join(PDG)}, or mix:gamma=0.5,pi-=0.5")
    return PDG[name]


def _frozen(values: ArrayLike, dtype: type) -> NDArray[Any]:
    array: NDArray[Any] = np.ascontiguousarray(values, dtype=dtype)
    if array is values:
        array = array.view()
    array.flags.writeable = False
    return array
