"""Crystals that are not all alike: light lost on the way to the readout, and a calibration that is not perfect."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from calolife.detector.layers import Readout
from calolife.detector.presets import Detector, load_detector
from calolife.showers.digitise import digitise
from calolife.showers.events import Showers
from calolife.showers.splitmix import GOLDEN, scrambled, unit_interval

__all__ = ["BARREL_READOUT", "MOST_PERCENT", "intercalibration", "read_out", "scale_cells"]

FloatArray = NDArray[np.float64]

BARREL_READOUT = load_detector("cms-barrel").readout
"""Readout of the crystals of the CMS barrel, for other crystals such as its; numbers and sources stand in ``cms-barrel.toml``."""

MOST_PERCENT = 20.0  # chosen: beyond it the cut of the Gaussian at zero would show
_STREAM = 0x1CA1  # chosen: keeps the numbers apart from those of `digitise` (0 to 7) and of ageing (64 on), whose seed may be the same


def intercalibration(detector: Detector, width_percent: float, *, seed: int) -> FloatArray:
    """Factors by which the calibration of each cell is wrong.

    Parameters
    ----------
    detector : LayeredCalorimeter or CrystalCalorimeter
    width_percent : float [%]
        Standard deviation from cell to cell, 0 to 20.
    seed : int
        The factor of a cell is a hash of the seed and its number; a larger width stretches the same factors.

    Returns
    -------
    float array, (all cells,)
        Around 1, Gaussian, above 0.

    Raises
    ------
    ValueError
        A width outside 0 to 20 %, a seed that is not 0 to 2^63 - 1.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> factor = intercalibration(load_detector("cms-barrel"), 0.5, seed=1)
    >>> factor.size, round(100 * float(factor.std()), 2)
    (61200, 0.5)
    """
    if not 0 <= width_percent <= MOST_PERCENT:
        raise ValueError(
            f"width_percent = {width_percent:g} must be between 0 and {MOST_PERCENT:g}; 0.5 is half a per cent from cell to cell"
        )
    if not (0 <= seed < 2**63 and seed == int(seed)):
        raise ValueError(f"seed = {seed} must be a whole number >= 0 and below 2^63")
    if width_percent == 0:
        return np.ones(detector.n_cells)
    width = width_percent / 100.0
    cell = np.arange(detector.n_cells, dtype=np.uint64)
    golden = np.uint64(GOLDEN)
    start = scrambled(np.array([seed], np.uint64) + np.array([_STREAM], np.uint64) * golden)
    draw = unit_interval(scrambled(start + (cell + np.uint64(1)) * golden))
    below = ndtr(-1.0 / width)  # no factor below zero
    return np.asarray(1.0 + width * ndtri(below + draw * (1.0 - below)))


def scale_cells(showers: Showers, factor: ArrayLike) -> Showers:
    """The showers with the energy of every hit times its cell's factor.

    Parameters
    ----------
    showers : Showers
        Simhits or rechits.
    factor : float array, (all cells,)
        Finite and > 0.

    Returns
    -------
    Showers
        Every hit kept: no threshold is applied again.

    Raises
    ------
    ValueError
        Not one factor per cell, or one that is not finite and > 0.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> calo = load_detector("pbwo4-5x5")
    >>> showers = Showers.from_hits(calo, [0, 0], [3, 12], [100.0, 900.0], pdg_id=11, energy_gev=[1.0])
    >>> scale_cells(showers, np.full(25, 0.5)).energy_mev.tolist()
    [50.0, 450.0]
    """
    factors = _per_cell("factor", factor, showers.detector)
    return replace(showers, energy_mev=(showers.energy_mev * factors[showers.cell]).astype(np.float32))


def read_out(
    showers: Showers,
    readout: Readout | None = None,
    *,
    seed: int,
    first: int = 0,
    signal_fraction: ArrayLike | None = None,
    is_corrected: bool = True,
    intercalibration_percent: float = 0.0,
    calibration_seed: int | None = None,
    dead: ArrayLike = (),
    hot: ArrayLike = (),
    hot_mev: float = 1.0,
    pileup: Showers | None = None,
    pileup_mean: float | tuple[float, float] = 0.0,
) -> Showers:
    """Rechits of a detector in use: light is lost before the readout, the calibration comes after it.

    Parameters
    ----------
    showers : Showers
        Simhits.
    readout : Readout, optional
        The detector's own when left out.
    seed, first, dead, hot, hot_mev, pileup, pileup_mean
        As for `digitise`.
    signal_fraction : float array, (all cells,), optional
        Light that is left of each cell, finite and > 0; all of it when left out.
    is_corrected : bool
        Divide the rechits by `signal_fraction`, as monitoring allows; no matter where none is given.
    intercalibration_percent : float [%]
        Width of the factors of `intercalibration`, which stay in the rechits.
    calibration_seed : int, optional
        Seed of those; `seed` when left out. Samples of one detector share it: it is the detector, not the shower.

    Returns
    -------
    Showers
        Rechits. `origin` tells what was done.

    Raises
    ------
    ValueError
        As `digitise`, `intercalibration` and `scale_cells`.

    Notes
    -----
    In this order: the light of each cell (of the pileup too) is scaled by its signal fraction; photo-statistics, noise and
    threshold of `digitise`; division by the signal fraction if corrected; the factor of the intercalibration. So a
    corrected cell has the right mean but the photo-statistics of less light, noise / signal fraction and threshold /
    signal fraction. The threshold acts on the energy before both, as the electronics does.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> calo = load_detector("pbwo4-5x5")
    >>> showers = Showers.from_hits(calo, [0, 0], [3, 12], [100.0, 900.0], pdg_id=11, energy_gev=[1.0])
    >>> read_out(showers, Readout(threshold_mev=60.0), seed=1, signal_fraction=np.full(25, 0.5)).energy_mev.tolist()
    [900.0]
    >>> read_out(showers, Readout(threshold_mev=60.0), seed=1, signal_fraction=np.full(25, 0.5), is_corrected=False).energy_mev.tolist()
    [450.0]
    """
    told: dict[str, float | int | str] = {}
    fraction = None if signal_fraction is None else _per_cell("signal_fraction", signal_fraction, showers.detector)
    factor_seed = seed if calibration_seed is None else calibration_seed
    factor = intercalibration(showers.detector, intercalibration_percent, seed=factor_seed)
    if fraction is not None:
        showers = scale_cells(showers, fraction) if showers.kind == "simhit" else showers  # digitise refuses rechits
        if pileup is not None and pileup.detector.digest == showers.detector.digest:  # digitise refuses another detector's
            pileup = scale_cells(pileup, fraction)
        told["light"] = "corrected" if is_corrected else "not corrected"
        told["mean_signal_fraction"] = float(fraction.mean())
    rechits = digitise(
        showers, readout, seed=seed, first=first, dead=dead, hot=hot, hot_mev=hot_mev, pileup=pileup, pileup_mean=pileup_mean
    )
    if fraction is not None and is_corrected:
        factor = factor / fraction
    if intercalibration_percent > 0:
        told |= {"intercalibration_percent": float(intercalibration_percent), "calibration_seed": factor_seed}
    scaled = rechits if (factor == 1.0).all() else scale_cells(rechits, factor)
    return replace(scaled, origin={**rechits.origin, **told})


def _per_cell(name: str, values: ArrayLike, detector: Detector) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (detector.n_cells,):
        raise ValueError(f"{name} has shape {array.shape}; detector {detector.name!r} has {detector.n_cells} cells: give one number each")
    if (wrong := ~(np.isfinite(array) & (array > 0))).any():
        at = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"{name} of cell {at} is {array[at]:g}; it must be finite and > 0")
    return array
