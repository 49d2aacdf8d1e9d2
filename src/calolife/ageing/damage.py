"""Radiation damage: dose to signal fraction, and the signal fraction laid on showers or taken off them again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from calolife.ageing.coefficients import Ageing
from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import Readout
from calolife.detector.presets import Detector
from calolife.showers.events import Showers, sum_by_key
from calolife.showers.splitmix import GOLDEN, scrambled, unit_interval

__all__ = ["CORRECTED", "LAWS", "age_showers", "correct_showers", "damage_ageing", "dose_gy", "dose_mev", "silent_cells"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

LAWS = ("linear", "saturating", "sqrt")
"""How the loss grows with the dose: u, (1 - exp(-3 u)) / (1 - exp(-3)) and sqrt(u), with u the dose over the largest dose."""

CORRECTED = ("measured", "prior-dominated")
"""Statuses of the cells that a correction changes."""

_SATURATION = 3.0  # chosen: half of the loss has happened at a quarter of the largest dose
_LEAST_FRACTION = 0.01  # chosen: scatter leaves a cell a hundredth of its signal; a signal fraction must be > 0
_JOULE_PER_MEV = 1.602176634e-13  # source: SI Brochure, 9th edition (2019): the elementary charge is exact
_KG_PER_G_MM3_CM3 = 1e-6  # g/cm3 x mm3 to kg
_FEW_NOISE_HITS = 10.0  # chosen: a living cell that should have had ten stays without any once in 20,000 times
_FLOAT32_STEP = 2.0**-22  # rounding of a float32, twice over
_MANY_PHOTONS = 1e5  # chosen: above it a Gaussian stands for the binomial; its skewness is below 1e-2 of a width there
_MOST_OFTEN = 1 - 1e-6  # chosen: a threshold of no noise at all would want endlessly many marks
# one stream of random numbers per purpose; the numbers below these are those of `digitise`, whose seed may be the same
_SCATTER, _THINNING, _NOISE, _LIFTED_NUMBER, _LIFTED_PICK, _LIFTED_ENERGY, _LIFTED_KEPT = range(64, 71)


def dose_mev(showers: Showers) -> FloatArray:
    """Dose of every cell: the energy it saw in all showers together.

    Parameters
    ----------
    showers : Showers

    Returns
    -------
    float array, (all cells,) [MeV]
        Noise may make the sum of a cell that saw nothing negative.

    Notes
    -----
    Hits hold visible energy. Where the material quenches (Birks), that understates the deposited energy, most where the
    ionisation is dense. Doses of parts of a sample add up.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> calo = load_detector("cu-scint-24x24")
    >>> showers = Showers.from_hits(calo, [0, 1], [300, 300], [1.5, 0.5], pdg_id=-211, energy_gev=[10.0, 10.0])
    >>> float(dose_mev(showers)[300])
    2.0
    """
    return np.bincount(showers.cell, weights=showers.energy_mev, minlength=showers.detector.n_cells).astype(np.float64)


def dose_gy(detector: Detector, dose_mev: ArrayLike) -> FloatArray:
    """Dose of every cell as energy over the mass of its active material.

    Parameters
    ----------
    detector : LayeredCalorimeter or CrystalCalorimeter
    dose_mev : float array, (all cells,) [MeV]

    Returns
    -------
    float array, (all cells,) [Gy]

    Raises
    ------
    ValueError
        Not one dose per cell.

    Notes
    -----
    The dose of the sample, averaged over the cell; scale it by particles per sample for a run of the detector. Of visible
    energy it is a lower limit, see `dose_mev`.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> calo = load_detector("cu-scint-24x24")
    >>> float(dose_gy(calo, np.full(calo.n_cells, 1e6))[0].round(9))  # 1 TeV in 4.77 g of polystyrene
    3.3589e-05
    """
    energy = np.asarray(dose_mev, dtype=np.float64)
    if energy.shape != (detector.n_cells,):
        raise ValueError(f"dose_mev has shape {energy.shape}; detector {detector.name!r} has {detector.n_cells} cells: give one dose each")
    return np.asarray(energy * _JOULE_PER_MEV / _cell_mass_kg(detector))


def _cell_mass_kg(detector: Detector) -> FloatArray:
    """Mass of the active material of every cell, (all cells,) [kg]."""
    if isinstance(detector, CrystalCalorimeter):
        volume_mm3 = detector.crystal_size_mm**2 * detector.length_mm
        return np.full(detector.n_cells, detector.material.density_g_cm3 * volume_mm3 * _KG_PER_G_MM3_CM3)
    layers = [layer for layer in detector.layers if layer.is_active]
    area_mm2 = detector.size_x_mm * detector.size_y_mm
    of_layer = [lay.material.density_g_cm3 * area_mm2 * lay.thickness_mm / (lay.cells[0] * lay.cells[1]) for lay in layers]
    return np.repeat(np.array(of_layer) * _KG_PER_G_MM3_CM3, np.diff(detector.cell_offset))


def damage_ageing(
    detector: Detector, dose_mev: ArrayLike, *, law: str = "linear", max_loss: float, scatter: float = 0.0, seed: int = 0
) -> Ageing:
    """Signal fraction of every cell after a dose.

    Parameters
    ----------
    detector : LayeredCalorimeter or CrystalCalorimeter
    dose_mev : float array, (all cells,) [MeV]
        Only its shape matters: the cell with most loses `max_loss`. A negative sum, which noise makes of nothing, is no dose.
    law : {"linear", "saturating", "sqrt"}
        How the loss grows with the dose, see `LAWS`.
    max_loss : float
        Loss of signal at the largest dose, above 0 and below 1, before scatter.
    scatter : float
        Standard deviation of a factor around 1 in each cell, also in cells without dose: quality, not radiation.
    seed : int
        Of the scatter. The draw of a cell is a hash of the seed and its number.

    Returns
    -------
    Ageing
        Of all cells, with no uncertainty: it is known.

    Raises
    ------
    ValueError
        An unknown law, a loss outside (0, 1), a scatter outside [0, 1), doses that are not finite, or none above zero.

    Notes
    -----
    A loss linear in dose is what the published study of ageing coefficients lays on its showers; the two others stand for
    damage that saturates and for damage that begins steeply. The normal deviate of the scatter is cut where it would leave
    less than 0.01 of the signal. Not modelled: dose rate, recovery, self-absorption along a cell.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> calo = load_detector("cu-scint-24x24")
    >>> dose = np.zeros(calo.n_cells)
    >>> dose[[300, 876]] = 4.0, 1.0
    >>> damage_ageing(calo, dose, law="sqrt", max_loss=0.2).at([300, 876, 5]).tolist()
    [0.8, 0.9, 1.0]
    """
    if law not in LAWS:
        raise ValueError(f"law {law!r} is not one of {', '.join(LAWS)}")
    if not 0 < max_loss < 1:
        raise ValueError(f"max_loss = {max_loss:g} must be above 0 and below 1; 0.107 takes 10.7 % of the signal where the dose is largest")
    if not 0 <= scatter < 1:
        raise ValueError(f"scatter = {scatter:g} must be from 0 to below 1; 0.01 is 1 % from cell to cell")
    _check_seed(seed)
    dose = np.asarray(dose_mev, dtype=np.float64)
    if dose.shape != (detector.n_cells,):
        raise ValueError(f"dose_mev has shape {dose.shape}; detector {detector.name!r} has {detector.n_cells} cells: give one dose each")
    if (wrong := ~np.isfinite(dose)).any():
        at = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"dose_mev of cell {at} is {dose[at]:g}; it must be finite")
    if not (dose > 0).any():
        raise ValueError("no cell has any dose, so that none is damaged; take the dose from showers that have hits")
    u = np.maximum(dose, 0.0) / dose.max()
    if law == "saturating":
        loss = np.expm1(-_SATURATION * u) / np.expm1(-_SATURATION)
    else:
        loss = np.sqrt(u) if law == "sqrt" else u
    fraction = 1 - max_loss * loss
    cell = np.arange(detector.n_cells)
    if scatter > 0:
        below = ndtr((_LEAST_FRACTION / fraction - 1) / scatter)
        draw = _uniform(seed, _SCATTER, np.zeros(1, np.int64), cell)
        # rounding may leave a draw at the cut an ulp below it
        fraction = np.maximum(fraction * (1 + scatter * ndtri(below + draw * (1 - below))), _LEAST_FRACTION)
    told = f", scatter {scatter:g}, seed {seed}" if scatter > 0 else ""
    return Ageing(cell, fraction, label=f"{law} in dose, max loss {max_loss:g}{told}", detector_digest=detector.digest)


def age_showers(showers: Showers, ageing: Ageing, *, seed: int = 0, first: int = 0, dead: ArrayLike = ()) -> Showers:
    """The showers as a damaged detector sees them.

    Parameters
    ----------
    showers : Showers
        Simhits, whose light is lost before the readout; or rechits, which are read out again as well as can be.
    ageing : Ageing
        Of the same detector. A cell that is not listed keeps its signal.
    seed : int
        Of what rechits need: photo-statistics and noise. Simhits need none.
    first : int
        Number of the first shower in its sample: a sample aged in parts, each with its own `first`, gives what it gives
        in one go.
    dead : int array
        Cells of rechits that read nothing, see `silent_cells`: no noise is given to them.

    Returns
    -------
    Showers
        Simhits of simhits, every one kept; rechits of rechits. `origin` tells the label of the ageing.

    Raises
    ------
    ValueError
        Ageing of another detector, or of cells that it does not have.

    Notes
    -----
    Light loss belongs to simhits; digitise them afterwards. Rechits are aged in distribution, not shower by shower: with
    r the signal fraction, photo-electrons are thinned (binomial of r), the noise is scaled with the signal and made up to
    its width, the threshold is applied again, and empty cells give the noise rechits that replace those which fell below it.

    What rechits cannot give back: light below the threshold, which noise might have lifted over it (some rechits near the
    threshold are missing); which rechits are noise alone (they are thinned too); energies above the saturation (a saturated
    cell is scaled from its ceiling, and loses more than its light did). Signal fractions above 1 scale light and noise alike,
    up to the saturation. A rechit of a hot cell is aged as if it were light.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> calo = load_detector("cu-scint-24x24")
    >>> showers = Showers.from_hits(calo, [0, 0], [300, 876], [1.5, 0.5], pdg_id=-211, energy_gev=[10.0])
    >>> age_showers(showers, Ageing([300], [0.5])).energy_mev.tolist()
    [0.75, 0.5]
    """
    _check_seed(seed)
    if first < 0 or first != int(first):
        raise ValueError(f"first = {first} must be a whole number >= 0")
    fraction = _fraction_of_all(showers, ageing)
    origin = {**showers.origin, "aged": _then(showers.origin.get("aged"), ageing.label or "unnamed")}
    if showers.kind == "simhit":
        return replace(showers, energy_mev=_scaled(showers, fraction), origin=origin)
    assert showers.readout is not None
    origin |= {"aged_how": "rechits scaled, smeared and thresholded again", "aged_seed": seed}
    number = np.arange(first, first + showers.n_showers)
    is_dead = np.zeros(showers.detector.n_cells, dtype=bool)
    is_dead[np.asarray(dead, dtype=np.int64)] = True
    key, energy = _read_again(showers, showers.readout, fraction, number, seed)
    if showers.readout.noise_mev > 0 and showers.readout.threshold_mev > 0:
        lifted, lifted_mev = _lifted(showers, showers.readout, fraction, is_dead, number, seed)
        key, energy = sum_by_key(np.concatenate([key, lifted]), np.concatenate([energy, lifted_mev]))
    n_hit = np.bincount(key // showers.detector.n_cells, minlength=showers.n_showers)
    return replace(
        showers, offsets=np.concatenate([[0], np.cumsum(n_hit)]), cell=(key % showers.detector.n_cells).astype(np.int32),
        energy_mev=energy.astype(np.float32), origin=origin,
    )  # fmt: skip


def correct_showers(showers: Showers, ageing: Ageing) -> Showers:
    """The showers with the energy of every cell divided by its signal fraction.

    Parameters
    ----------
    showers : Showers
        Simhits or rechits of an aged detector.
    ageing : Ageing
        Of the same detector. Cells that it does not list, and dead, hot and masked ones, are left as they are.

    Returns
    -------
    Showers

    Raises
    ------
    ValueError
        Ageing of another detector, or of cells that it does not have.

    Notes
    -----
    The mean comes back. What a threshold has cut does not, and noise and photo-statistics stay those of the aged light,
    so that the readout in the result is the one that made the rechits, not what they look like now.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> calo = load_detector("cu-scint-24x24")
    >>> showers = Showers.from_hits(calo, [0, 0], [300, 876], [1.5, 0.5], pdg_id=-211, energy_gev=[10.0])
    >>> ageing = Ageing([300], [0.5])
    >>> correct_showers(age_showers(showers, ageing), ageing).energy_mev.tolist()
    [1.5, 0.5]
    """
    used = ageing.only(ageing.cell[np.isin(ageing.status, CORRECTED)])
    origin = {**showers.origin, "corrected": _then(showers.origin.get("corrected"), ageing.label or "unnamed")}
    return replace(showers, energy_mev=_scaled(showers, 1 / _fraction_of_all(showers, used)), origin=origin)


def silent_cells(readout: Readout, n_rechits: ArrayLike, n_showers: int) -> IntArray:
    """Cells that never read anything although their noise alone should have.

    Parameters
    ----------
    readout : Readout
        The one that made the rechits.
    n_rechits : int array, (all cells,)
        Rechits of each cell in the sample.
    n_showers : int

    Returns
    -------
    int array, (cell,)
        None where noise would give a cell fewer than ten rechits: a quiet cell is not a dead one.
    """
    if readout.noise_mev == 0:
        return np.zeros(0, np.int64)
    if n_showers * ndtr(-readout.threshold_mev / readout.noise_mev) < _FEW_NOISE_HITS:
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.asarray(n_rechits) == 0)


def _check_seed(seed: int) -> None:
    if not (0 <= seed < 2**63 and seed == int(seed)):
        raise ValueError(f"seed = {seed} must be a whole number >= 0 and below 2^63")


def _then(before: object, label: str) -> str:
    return label if before is None else f"{before} then {label}"


def _fraction_of_all(showers: Showers, ageing: Ageing) -> FloatArray:
    """Signal fraction of every cell, (all cells,)."""
    detector = showers.detector
    if ageing.detector_digest not in ("", detector.digest):
        raise ValueError(
            f"the ageing is of detector {ageing.detector_digest[:8]}, the showers were made in {detector.name!r} "
            f"({detector.digest[:8]}); take both from one detector"
        )
    if ageing.n_cells and ageing.cell[-1] >= detector.n_cells:
        raise ValueError(
            f"the ageing lists cell {ageing.cell[-1]}, detector {detector.name!r} has cells 0 to {detector.n_cells - 1}; "
            "take both from one detector"
        )
    return ageing.at(np.arange(detector.n_cells))


def _scaled(showers: Showers, factor: FloatArray) -> NDArray[np.float32]:
    return (showers.energy_mev.astype(np.float64) * factor[showers.cell]).astype(np.float32)


def _read_again(showers: Showers, readout: Readout, fraction: FloatArray, number: IntArray, seed: int) -> tuple[IntArray, FloatArray]:
    """Key (shower x cells + cell) and energy of what is left of the rechits."""
    energy = showers.energy_mev.astype(np.float64)
    key = showers.shower_index * showers.detector.n_cells + showers.cell
    hit = np.flatnonzero(fraction[showers.cell] != 1)  # the others must not change by a bit
    r, shower, cell, before = fraction[showers.cell[hit]], number[showers.shower_index[hit]], showers.cell[hit], energy[hit]
    aged = r * before
    if (light_yield := readout.light_yield_pe_per_mev) > 0:
        n_photons = np.maximum(np.round(light_yield * before), 0.0)
        noise = before - n_photons / light_yield
        # whole photo-electrons stored in float32 must stay whole: a threshold may lie right on them
        noise[np.abs(noise) < _FLOAT32_STEP * np.abs(before)] = 0.0
        aged = r * noise + _thinned(_uniform(seed, _THINNING, shower, cell), n_photons, r) / light_yield
    is_grown = r > 1
    aged[is_grown] = np.minimum(aged[is_grown], np.maximum(readout.saturation_mev, before[is_grown]))
    has_fired = np.ones(hit.size, dtype=bool)
    if readout.noise_mev > 0:
        # the rest of a stationary sequence: r times the old noise and this have the old width
        aged += readout.noise_mev * np.sqrt(np.maximum(1 - r**2, 0.0)) * ndtri(_uniform(seed, _NOISE, shower, cell))
    elif light_yield > 0:
        has_fired = aged > 0  # a cell whose light gave no photo-electron is an empty cell to the electronics
    if readout.threshold_mev > 0:
        has_fired &= aged >= readout.threshold_mev
    energy[hit] = aged
    is_kept = np.ones(energy.size, dtype=bool)
    is_kept[hit] = has_fired
    return key[is_kept], energy[is_kept]


def _thinned(draw: FloatArray, n: FloatArray, r: FloatArray) -> FloatArray:
    """Binomial numbers: how many of n are left, each with probability r; r n where r > 1."""
    from scipy.stats import binom

    left = np.asarray(r * n)
    is_small = (r < 1) & (n > 0) & (n < _MANY_PHOTONS)
    left[is_small] = binom.ppf(draw[is_small], n[is_small], r[is_small])
    is_large = (r < 1) & (n >= _MANY_PHOTONS)
    left[is_large] += np.round(np.sqrt(n * r * (1 - r))[is_large] * ndtri(draw[is_large]))
    return left


def _lifted(
    showers: Showers, readout: Readout, fraction: FloatArray, is_dead: NDArray[np.bool_], number: IntArray, seed: int
) -> tuple[IntArray, FloatArray]:
    """Key and energy of rechits of noise alone in cells that had none.

    In an empty cell the old noise was below the threshold t, and the new one, y, is above it. The two are correlated by
    r, so of all new noise above t the part Phi((t - r y) / sqrt(1 - r^2)) belongs to an old one below t.
    """
    from scipy.stats import poisson

    threshold = readout.threshold_mev / readout.noise_mev
    tail = float(ndtr(-threshold))
    cells = np.flatnonzero((fraction < 1) & ~is_dead)
    # a cell is known to have been below t: its chance to be above is tail / (1 - tail); Poisson marks hit it at least once so often
    rate = -np.log1p(-min(tail / (1 - tail), _MOST_OFTEN))
    if not (cells.size and rate > 0):
        return np.zeros(0, np.int64), np.zeros(0)
    n_marks = poisson.ppf(_uniform(seed, _LIFTED_NUMBER, number, np.zeros(1, np.int64)), cells.size * rate).astype(np.int64)
    shower = np.repeat(np.arange(showers.n_showers), n_marks)
    turn = np.arange(shower.size) - np.repeat(np.cumsum(n_marks) - n_marks, n_marks)
    cell = cells[(_uniform(seed, _LIFTED_PICK, number[shower], turn) * cells.size).astype(np.int64)]
    marked = np.unique(shower * showers.detector.n_cells + cell)
    marked = marked[~np.isin(marked, showers.shower_index * showers.detector.n_cells + showers.cell)]
    shower, cell = np.divmod(marked, showers.detector.n_cells)
    noise = np.maximum(-ndtri(tail * _uniform(seed, _LIFTED_ENERGY, number[shower], cell)), threshold)
    r = fraction[cell]
    is_kept = _uniform(seed, _LIFTED_KEPT, number[shower], cell) < ndtr((threshold - r * noise) / np.sqrt(1 - r**2))
    return marked[is_kept], np.maximum(readout.noise_mev * noise[is_kept], readout.threshold_mev)


def _uniform(seed: int, purpose: int, number: IntArray, index: NDArray[np.integer]) -> FloatArray:
    """Uniform numbers in (0, 1), a hash of their four coordinates; number and index are broadcast."""
    golden = np.uint64(GOLDEN)
    start = scrambled(np.array([seed], dtype=np.uint64) + np.array([purpose + 1], dtype=np.uint64) * golden)
    stream = scrambled(start + number.astype(np.uint64) * golden)
    return unit_interval(scrambled(stream + (index.astype(np.uint64) + np.uint64(1)) * golden))
