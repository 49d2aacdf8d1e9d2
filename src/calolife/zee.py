"""Z bosons that decay to electron pairs in a barrel of crystals: kinematics, showers, and what two conditions of readout make of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import Readout
from calolife.energy.zline import Z_RANGE_GEV, z_mass_at
from calolife.showers.calibration import BARREL_READOUT, MOST_PERCENT, read_out
from calolife.showers.clusters import find_superclusters
from calolife.showers.events import Showers
from calolife.showers.splitmix import GOLDEN, next_state, scrambled, unit_interval
from calolife.showers.superclusters import Superclusters
from calolife.simulation.engines import check_request, simulate_showers
from calolife.simulation.particles import PDG, Particles

__all__ = [
    "LEAST_PT_GEV",
    "Condition",
    "ZPairs",
    "ZProduction",
    "barrel_eta",
    "both_found",
    "conditions_of",
    "find_electrons",
    "light_left",
    "sample_z",
    "z_particles",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
KeyArray = NDArray[np.uint64]
Report = Callable[[str, float, float], None]

LEAST_PT_GEV = 20.0  # chosen: as in tests of energy regressions; cross sections are taken above 25 GeV (CMS, JHEP 10 (2011) 132)
"""Transverse momentum that both electrons must exceed, the true one and the measured one."""

_PT_SCALE_GEV = 11.0  # chosen: median 11 and mean 17 GeV, about those of Z bosons at the LHC; the true peak is sharper
_MOST_PT_GEV = 300.0  # chosen: one Z in 750 of the spectrum lies above
_ANGLE = math.radians(3.0)  # crystal axes are tilted by 3 degrees off the vertex; source: CMS, JINST 3 (2008) S08004
_STREAM = 0x7A6565  # chosen: "zee" in ASCII; keeps these numbers apart from those of the gun, the engines and the readout
_KINEMATICS, _AZIMUTH, _LIGHT, _ENGINE, _READOUT, _CALIBRATION = range(6)
_MOST_TRIES = 10_000  # chosen: a detector so narrow that it takes more is no barrel
_PART_SHOWERS = {"fast": 400, "geant4": 40}  # chosen: 45 GeV each: seconds of work
_MOST_PAIRS = 10**7  # chosen: ten days of the fast engine
_MOST_LOSS_PERCENT = 50.0  # chosen: the CMS barrel lost less in all its years; more is no matter of calibration
_SPREAD = 0.25  # of a crystal's loss, from one to the next; chosen: crystals of one place differ by that in how hard they are


@dataclass(frozen=True, eq=False)
class ZPairs:
    """Z bosons and the electrons they became, at the vertex; in arrays of pairs column 0 is the electron, 1 the positron.

    Parameters
    ----------
    mass_gev, pt_gev, rapidity, phi : float array, (pair,) [GeV], [rad]
        Of the Z.
    electron_pt_gev, electron_eta, electron_phi : float array, (pair, 2) [GeV], [rad]
    n_tried : int array, (pair,)
        Z bosons drawn until this one had both electrons in the acceptance.
    """

    mass_gev: FloatArray
    pt_gev: FloatArray
    rapidity: FloatArray
    phi: FloatArray
    electron_pt_gev: FloatArray
    electron_eta: FloatArray
    electron_phi: FloatArray
    n_tried: IntArray

    @property
    def n_pairs(self) -> int:
        return self.mass_gev.size

    @property
    def electron_energy_gev(self) -> FloatArray:
        """Energy of each electron, (pair, 2) [GeV]."""
        return np.asarray(self.electron_pt_gev * np.cosh(self.electron_eta))

    @property
    def electron_momentum_gev(self) -> FloatArray:
        """E, px, py and pz of each electron, (pair, 2, 4) [GeV]."""
        pt, eta, phi = self.electron_pt_gev, self.electron_eta, self.electron_phi
        return np.stack([pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], axis=-1)

    @property
    def momentum_gev(self) -> FloatArray:
        """E, px, py and pz of each Z, (pair, 4) [GeV]."""
        transverse = np.hypot(self.mass_gev, self.pt_gev)
        x, y = self.pt_gev * np.cos(self.phi), self.pt_gev * np.sin(self.phi)
        return np.stack([transverse * np.cosh(self.rapidity), x, y, transverse * np.sinh(self.rapidity)], axis=-1)

    def between(self, start: int, stop: int) -> ZPairs:
        """Pairs ``start`` to ``stop - 1``."""
        return ZPairs(*(getattr(self, column.name)[start:stop] for column in fields(self)))


def sample_z(n: int, *, seed: int, first: int = 0, largest_eta: float = 1.479, least_pt_gev: float = LEAST_PT_GEV) -> ZPairs:
    """Z bosons whose electrons both go to the barrel.

    Parameters
    ----------
    n : int
        Pairs wanted, all of them with both electrons in the acceptance.
    seed : int
    first : int
        Number of the first pair. Pair i depends on the seed and on ``first + i`` only: any chunking gives the same pairs.
    largest_eta : float
        abs(eta) below which both electrons must be.
    least_pt_gev : float [GeV]
        Transverse momentum that both must exceed.

    Returns
    -------
    ZPairs

    Raises
    ------
    ValueError
        Numbers out of range, or an acceptance that hardly any pair is in.

    Notes
    -----
    The mass follows the Breit-Wigner of `calolife.energy.zline` within 60 to 120 GeV; the transverse momentum
    dN/dpT = 2 pT a^2 / (a^2 + pT^2)^2 with a = 11 GeV up to 300 GeV; the rapidity is flat where both electrons can be inside,
    as that of the Z lies between those of its electrons. In the rest frame, reached by one boost along the momentum of the
    Z, the electron goes as 1 + cos^2 theta about the beam's direction. Electrons have no mass. A Z whose electrons are not
    both in the acceptance is drawn again, all of it, and counted.

    Left out: the photon beside the Z, photons that the electrons radiate before the detector, the asymmetry between electron
    and positron, the true shape of rapidity and transverse momentum, the spread of the vertex.

    Examples
    --------
    >>> pairs = sample_z(5, seed=1)
    >>> pairs.n_pairs, bool((pairs.electron_pt_gev > 20).all()), bool((abs(pairs.electron_eta) < 1.479).all())
    (5, True, True)
    """
    if n < 1 or first < 0 or not 0 <= seed < 2**63:
        raise ValueError(f"n = {n}, first = {first}, seed = {seed}; n must be >= 1, the others >= 0, the seed below 2^63")
    if not 0 < largest_eta < math.inf:
        raise ValueError(f"largest_eta = {largest_eta:g} must be finite and > 0; the barrel ends at 1.479")
    if not 0 <= least_pt_gev < 0.5 * Z_RANGE_GEV[0]:
        raise ValueError(f"least_pt_gev = {least_pt_gev:g} must be >= 0 and below {0.5 * Z_RANGE_GEV[0]:g}, half of the lightest Z")
    columns: dict[str, NDArray[Any]] = {c.name: np.empty((n, 2) if c.name.startswith("electron") else n) for c in fields(ZPairs)}
    columns["n_tried"] = np.zeros(n, np.int64)
    left = np.arange(n)
    for tried in range(1, _MOST_TRIES + 1):
        drawn = _decayed(_key(seed, _KINEMATICS, first + left, tried), largest_eta, tried)
        is_inside = ((np.abs(drawn.electron_eta) < largest_eta) & (drawn.electron_pt_gev > least_pt_gev)).all(axis=1)
        for name, column in columns.items():
            column[left[is_inside]] = getattr(drawn, name)[is_inside]
        left = left[~is_inside]
        if not left.size:
            return ZPairs(**columns)
    raise ValueError(f"largest_eta = {largest_eta:g}: {_MOST_TRIES} Z bosons and no pair inside; a barrel reaches further")


def _decayed(key: KeyArray, largest_eta: float, tried: int) -> ZPairs:
    """A Z for each key and its electrons, wherever they go."""
    u = _uniform(key, 6)
    mass = z_mass_at(u[:, 0])
    most = _MOST_PT_GEV**2 / (_PT_SCALE_GEV**2 + _MOST_PT_GEV**2)
    pt = _PT_SCALE_GEV * np.sqrt(most * u[:, 1] / (1.0 - most * u[:, 1]))
    rapidity = largest_eta * (2.0 * u[:, 2] - 1.0)
    phi = math.pi * (2.0 * u[:, 3] - 1.0)
    # 3/8 (c + c^3 / 3) + 1/2 = u: Cardano's formula
    q = 4.0 * u[:, 4] - 2.0
    t = np.cbrt(np.abs(q) + np.sqrt(q**2 + 1.0))
    cosine = np.sign(q) * (t - 1.0 / t)
    sine, turn = np.sqrt(np.maximum(1.0 - cosine**2, 0.0)), 2.0 * math.pi * u[:, 5]
    half = 0.5 * mass
    at_rest = half[:, None] * np.stack([sine * np.cos(turn), sine * np.sin(turn), cosine], axis=1)  # the electron
    transverse = np.hypot(mass, pt)
    energy = transverse * np.cosh(rapidity)
    boost = np.stack([pt * np.cos(phi), pt * np.sin(phi), transverse * np.sinh(rapidity)], axis=1)
    along = np.einsum("ij,ij->i", at_rest, boost) / (mass * (energy + mass))
    forward = np.stack([at_rest + (along + 0.5)[:, None] * boost, -at_rest + (0.5 - along)[:, None] * boost], axis=1)  # (pair, 2, 3)
    own_pt = np.hypot(forward[..., 0], forward[..., 1])
    eta = np.arcsinh(forward[..., 2] / own_pt)
    own_phi = np.arctan2(forward[..., 1], forward[..., 0])
    return ZPairs(mass, pt, rapidity, phi, own_pt, eta, own_phi, np.full(mass.size, tried))


def barrel_eta(detector: CrystalCalorimeter) -> float:
    """abs(eta) at which the nearer end of a barrel is.

    Raises
    ------
    ValueError
        A detector that does not close in phi, or stands on one side only: the electrons of a Z go all around.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> round(barrel_eta(load_detector("cms-barrel")), 3)
    1.479
    """
    ends, _ = detector.eta_phi_at(detector.x_edges_mm[[0, -1], [0, 1]], [0.0, 0.0])
    if not (detector.is_phi_periodic and ends[0] < 0 < ends[1]):
        raise ValueError(f"detector {detector.name!r} is no barrel: the electrons of a Z go all around; take one such as cms-barrel")
    return float(min(-ends[0], ends[1]))


def z_particles(detector: CrystalCalorimeter, pairs: ZPairs, *, seed: int, first: int = 0) -> Particles:
    """Electrons of Z bosons on their way into a barrel, each a shower of its own.

    Parameters
    ----------
    detector : CrystalCalorimeter
    pairs : ZPairs
    seed : int
    first : int
        Number of the first pair.

    Returns
    -------
    Particles
        Shower 2 i is the electron of pair i, 2 i + 1 its positron.

    Notes
    -----
    The position is where a straight line from the vertex meets the front face. Crystals with gaps are entered at 3 degrees to
    their axes and a random azimuth, as by the gun of `showers simulate`.
    """
    x, y = detector.xy_mm_at(pairs.electron_eta.ravel(), pairs.electron_phi.ravel())
    number = 2 * first + np.arange(x.size)
    angle = _ANGLE if detector.has_gaps else 0.0
    azimuth = 2.0 * math.pi * _uniform(_key(seed, _AZIMUTH, number, 0), 1)[:, 0]
    direction = np.stack([math.sin(angle) * np.cos(azimuth), math.sin(angle) * np.sin(azimuth), np.full(x.size, math.cos(angle))], axis=1)
    code = np.tile(np.array([PDG["e-"], PDG["e+"]], np.int32), pairs.n_pairs)
    return Particles(code, pairs.electron_energy_gev.ravel(), np.stack([x, y], axis=1), direction)


@dataclass(frozen=True)
class ZProduction:
    """Showers of the electrons of Z bosons, to be simulated by `simulate_parts`; shower 2 i and 2 i + 1 are pair i.

    Parameters
    ----------
    detector : CrystalCalorimeter
        A barrel.
    n_pairs : int
    engine : {"fast", "geant4"}
    seed : int
    birks : bool
    physics : {"FTFP_BERT", "QGSP_BERT"}
    cut_mm : float [mm]

    Raises
    ------
    ValueError
        No pairs or too many, no barrel, or what `check_request` refuses.
    """

    detector: CrystalCalorimeter
    n_pairs: int
    engine: str = "fast"
    seed: int = 0
    birks: bool = True
    physics: str = "FTFP_BERT"
    cut_mm: float = 0.7

    def __post_init__(self) -> None:
        check_request(engine=self.engine, physics=self.physics, cut_mm=self.cut_mm, seed=self.seed)
        if not 1 <= self.n_pairs <= _MOST_PAIRS:
            raise ValueError(f"n_pairs = {self.n_pairs}; ask for at least one pair and at most {_MOST_PAIRS}")
        barrel_eta(self.detector)

    @property
    def n(self) -> int:
        """Showers: two a pair."""
        return 2 * self.n_pairs

    @property
    def part_size(self) -> int:
        """Showers in a part, an even number."""
        return _PART_SHOWERS[self.engine]

    def pairs(self, start: int, stop: int) -> ZPairs:
        """Pairs ``start`` to ``stop - 1``."""
        return sample_z(stop - start, seed=self.seed, first=start, largest_eta=barrel_eta(self.detector))

    def simulate(self, start: int, stop: int) -> Showers:
        """Showers ``start`` to ``stop - 1``, both even."""
        first = start // 2
        particles = z_particles(self.detector, self.pairs(first, stop // 2), seed=self.seed, first=first)
        return simulate_showers(
            self.detector, particles, engine=self.engine, seed=_seed(self.seed, _ENGINE), birks=self.birks, first=start,
            physics=self.physics, cut_mm=self.cut_mm,
        )  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """A state of the detector that reads the electrons.

    Parameters
    ----------
    name : str
    intercalibration_percent : float [%]
        Width of the calibration's error from crystal to crystal, 0 to 20; see `intercalibration`.
    light_loss_percent : float [%]
        Light lost at the end of the barrel, which nobody corrects for, 0 to 50; see `light_left`.

    Raises
    ------
    ValueError
        One of both out of range.
    """

    name: str
    intercalibration_percent: float = 0.0
    light_loss_percent: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("intercalibration_percent", MOST_PERCENT), ("light_loss_percent", _MOST_LOSS_PERCENT)):
            if not 0 <= (value := getattr(self, name)) <= most:
                raise ValueError(f"{name} = {value:g} must be between 0 and {most:g}")


def conditions_of(intercalibration_percent: float, light_loss_percent: float) -> tuple[Condition, ...]:
    """The ideal condition and, if anything is wrong in it, the realistic one.

    Examples
    --------
    >>> [condition.name for condition in conditions_of(0.5, 3.0)], len(conditions_of(0.0, 0.0))
    (['ideal', 'realistic'], 1)
    """
    ideal = Condition("ideal")
    if intercalibration_percent == 0 and light_loss_percent == 0:
        return (ideal,)
    return (ideal, Condition("realistic", intercalibration_percent, light_loss_percent))


def light_left(detector: CrystalCalorimeter, loss_percent: float, *, seed: int) -> FloatArray:
    """Light that radiation left of each crystal of a barrel.

    Parameters
    ----------
    detector : CrystalCalorimeter
        A barrel.
    loss_percent : float [%]
        Mean loss at its end, 0 to 50.
    seed : int
        The loss of a crystal is a hash of the seed and its number; a larger mean stretches the same losses.

    Returns
    -------
    float array, (all cells,)
        Light now over light before, above 0 and never above 1.

    Raises
    ------
    ValueError
        No barrel, or a loss out of range.

    Notes
    -----
    The mean loss at abs(eta) is L/2 (1 + (eta / end)^2): half as much in the middle as at the end, 2/3 L over the barrel.
    Crystals of one place differ by a quarter of it, Gaussian, cut at no loss and at twice the mean. All of this is chosen, to look like the
    loss that a barrel shows before its laser corrections; it follows no dose and no year.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> left = light_left(load_detector("cms-barrel"), 3.0, seed=1)
    >>> round(100 * float(1 - left.mean()), 1), round(100 * float(left.std()), 1)
    (2.0, 0.7)
    """
    if not 0 <= loss_percent <= _MOST_LOSS_PERCENT:
        raise ValueError(
            f"loss_percent = {loss_percent:g} must be between 0 and {_MOST_LOSS_PERCENT:g}; 3 is a loss of 3 % at the barrel's end"
        )
    end = barrel_eta(detector)
    cell = np.arange(detector.n_cells)
    eta, _ = detector.eta_phi_at(*detector.cell_position_mm(cell)[:, :2].T)
    below = ndtr(-1.0 / _SPREAD)  # from no loss to twice the mean: the mean stays
    draw = ndtri(below + (1.0 - 2.0 * below) * _uniform(_key(seed, _LIGHT, cell, 0), 1)[:, 0])
    mean = 0.5e-2 * loss_percent * (1.0 + (eta / end) ** 2)
    return np.asarray(1.0 - mean * np.clip(1.0 + _SPREAD * draw, 0.0, 2.0))


def find_electrons(
    parts: Iterable[Showers],
    detector: CrystalCalorimeter,
    *,
    conditions: tuple[Condition, ...],
    seed: int,
    pileup: Showers | None = None,
    pileup_mean: float | tuple[float, float] = 0.0,
    tell: Report = lambda *_: None,
    n_showers: int = 0,
) -> dict[str, Superclusters]:
    """Electrons of Z bosons as a barrel in several conditions reads and finds them.

    Parameters
    ----------
    parts : iterable of Showers
        Simhits, the sample part by part and in order.
    detector : CrystalCalorimeter
    conditions : tuple of Condition
    seed : int
    pileup, pileup_mean
        As for `digitise`; the same showers are laid over in every condition.
    tell : callable
        Called with ("readout", done, n_showers).
    n_showers : int
        Of the whole sample, for `tell`.

    Returns
    -------
    dict of str to Superclusters
        The matched objects in each condition; showers keep their numbers.

    Raises
    ------
    ValueError
        As `read_out` and `light_left`; a sample without showers.

    Notes
    -----
    Read out with the detector's own readout record, or with `BARREL_READOUT` where that is ideal. Photo-electrons, noise and pileup
    are drawn from the same numbers in every condition: what differs is the condition.
    """
    readout = BARREL_READOUT if detector.readout == Readout() else detector.readout
    left = {c.name: light_left(detector, c.light_loss_percent, seed=seed) if c.light_loss_percent > 0 else None for c in conditions}
    found: dict[str, list[Superclusters]] = {c.name: [] for c in conditions}
    done = 0
    for part in parts:
        for condition in conditions:
            rechits = read_out(
                part, readout, seed=_seed(seed, _READOUT), first=done, signal_fraction=left[condition.name], is_corrected=False,
                intercalibration_percent=condition.intercalibration_percent, calibration_seed=_seed(seed, _CALIBRATION),
                pileup=pileup, pileup_mean=pileup_mean,
            )  # fmt: skip
            found[condition.name].append(find_superclusters(rechits).matched())
        done += part.n_showers
        tell("readout", done, max(n_showers, done))
    return {name: Superclusters.concatenate(of) for name, of in found.items()}


def both_found(found: Superclusters) -> tuple[IntArray, IntArray]:
    """Pairs of which both electrons were found: their numbers, (event,), and the rows of their objects, (event, 2).

    Parameters
    ----------
    found : Superclusters
        At most one object a shower, as `find_electrons` gives them.
    """
    pair = found.shower // 2
    first = np.flatnonzero(pair[1:] == pair[:-1])
    return pair[first], np.stack([first, first + 1], axis=1)


def _key(seed: int, purpose: int, number: IntArray, tried: int) -> KeyArray:
    """A start of random numbers for each of them, a hash of all four."""
    start = next_state(np.array([seed], np.uint64) + np.array([_STREAM + purpose], np.uint64) * np.uint64(GOLDEN))
    return next_state(next_state(start + number.astype(np.uint64)) + np.uint64(tried))


def _uniform(key: KeyArray, n: int) -> FloatArray:
    """n uniform numbers in (0, 1) for each key, (key, n)."""
    return unit_interval(scrambled(key[:, None] + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(GOLDEN)))


def _seed(seed: int, purpose: int) -> int:
    """A seed for one purpose: a training sample of the same seed must not have the same noise."""
    return int(_key(seed, purpose, np.zeros(1, np.int64), 0)[0] >> np.uint64(1))
