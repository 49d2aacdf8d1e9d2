"""What to know before two samples are compared: shared events, a shifted beam, dead and hot cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from calolife.ageing.hits import neighbours
from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.presets import Detector
from calolife.showers.events import Showers

__all__ = ["LEAST_EXPECTED_HITS", "LEAST_SHOWERS", "Checks", "Shift", "check_samples"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Numbers = NDArray[np.int64] | NDArray[np.float64]
BoolArray = NDArray[np.bool_]

LEAST_EXPECTED_HITS = 40  # chosen: a healthy cell then has less than a tenth of them once in 1e9 cells
"""A cell is called dead, or hot, only where this many hits are expected, or seen."""
LEAST_SHOWERS = 50  # chosen: below, the error of a width is itself uncertain by more than 10 %
"""Showers that each sample needs before a shift of the beam is looked for."""

_SEEN_SIGMA = 4.0  # chosen: six quantities cross it by chance in 0.04 % of the comparisons
_CLEAN_SIGMA = 5.0  # chosen: noise alone then fires 0.01 cells of 23,040 per shower
_FRONT = 0.25  # chosen: of the layers; deeper ones see the shower's tilt and tails rather than where the beam was
_N_STEPS = 5  # chosen: steps of the robust centre; one more moves it by less than 0.1 mm on average
# chosen: 10 GeV pions in copper and scintillator (fast engine) have 0.75 between 9 and 11 GeV, electrons 0.63 from 5 to 20 GeV
_HITS_EXPONENT = 0.75
_BRIGHT_HITS = 0.2  # chosen: of the hits, in the brightest cells; the peak of single particles stands out there
_LEAST_BRIGHT_HITS = 500  # chosen: the light loss that they tell is then good to 3 %
_CUT_STEP = 0.01  # chosen: what the light loss of the brightest cells, and so the cut, is uncertain by
_PLACES = ("beam position x", "beam position y", "spot width x", "spot width y")
_CLIPPED_AT = 2.5  # chosen: widths; showers whose centre is badly known lie beyond, and would get the largest weights
_LEAST_EFFECTIVE = 0.2  # chosen: below, a few showers carry the reference
_N_BRIGHT = 300  # chosen: the cells that a bias is told for

_N_PROJECTIONS = 64  # chosen: a copy stands eight standard deviations above the other showers
_MOST_PAIRS = 400_000_000  # chosen: 20,000 x 20,000 showers compared, about 10 s
_BLOCK_PAIRS = 20_000_000  # chosen: 80 MB of similarities at a time
_FEWEST_HITS = 4  # chosen: showers with fewer hits look alike by chance
_NULL_QUANTILE = 0.998  # chosen: the few best of independent pairs may be copies within one file

_STARVED = 0.1  # chosen: a beam that moves by a third of its width halves or doubles cells next to each other, not more
_OVERFED = 3.0  # chosen: likewise; a glow in every third shower passes it nearly anywhere


@dataclass(frozen=True)
class Shift:
    """A quantity of the beam in both samples.

    Parameters
    ----------
    quantity, unit : str
    reference, today, difference, uncertainty : float
        The uncertainty is one standard deviation of the difference.
    is_seen : bool
        The difference exceeds four standard deviations.
    """

    quantity: str
    unit: str
    reference: float
    today: float
    difference: float
    uncertainty: float
    is_seen: bool


@dataclass(frozen=True, eq=False)
class Checks:
    """What `check_samples` found.

    Parameters
    ----------
    shared_fraction : float
        Share of today's showers that are in the reference too.
    n_shared : int
    shifts : tuple of Shift
        One for each quantity that both samples tell, seen or not.
    dead, hot : int array, (cell,)
        Cell numbers, rising; dead or hot in either sample.
    reference_weight : float array, (shower,), optional
        Weights of the reference showers, mean 1, that give them the beam of today; None where no shift is seen, or
        where no such weights are of use.
    n_effective : float
        Showers that the weighted reference is worth: (sum w)^2 / sum w^2; all of them without weights.
    remarks : tuple of str
        One line each.
    """

    shared_fraction: float
    n_shared: int
    shifts: tuple[Shift, ...]
    dead: IntArray
    hot: IntArray
    reference_weight: FloatArray | None
    n_effective: float
    remarks: tuple[str, ...]


def check_samples(reference: Showers, today: Showers, *, signal_fraction: float = 1.0, fired_above_mev: float = 0.0) -> Checks:
    """Shared events, shifts of the beam, dead and hot cells of two samples.

    Parameters
    ----------
    reference, today : Showers
        Of one detector, from before and after the ageing.
    signal_fraction : float
        Rough signal fraction of today's cells, so that the same hits count in both samples.
    fired_above_mev : float [MeV]
        A cell counts above this energy in the reference and above `signal_fraction` times it today. It is raised above
        the thresholds of both readouts, and to five standard deviations of their noise.

    Returns
    -------
    Checks

    Raises
    ------
    ValueError
        Another detector, a sample without showers, a signal fraction that is not > 0, a negative energy.

    Notes
    -----
    Shared events are found by their pattern of hits: the most similar reference shower of each shower of today, compared
    with how similar the reference showers are to each other. A scale factor per cell, noise and thresholds change the
    pattern little. The order does not matter.

    The beam is told by cells that fired, not by their energies, which light loss changes: the robust centre of the hits
    in the first quarter of the layers, the spread of that centre over the showers (the resolution of the centre, about a
    third of a cell, included), the number of hits for the energy, and the mean depth of the hits. Hits grow as
    energy^0.75 here unless the reference holds energies that tell; the size of an energy shift is good to 20 % of
    itself. Where most cells fire in every shower, none of this says much, and a remark tells so.

    With thresholds or noise, today's cuts follow the light loss that the spectrum of the brightest cells shows, so that
    hits lost at the cut are not taken for energy; what stays unknown of it is part of the uncertainty.

    The weights are exp(lambda . q) of the centre and its square in x and in y, cut off beyond 2.5 widths of both beams:
    the ones closest to equal weights with which the reference has the means and widths of today. Of what a moved or
    wider beam does to the mean energies of cells they leave about an eighth, of what it does to ln E of a hit a quarter to
    a half (10 GeV pions, 10 mm or 3 to 4 cm). The number of hits is among q only where the energies of the reference
    spread by 20 % or more: at one energy, showers with many hits differ from those of a higher energy, and such weights
    would make things worse.

    Dead and hot cells stand out from how their neighbours changed: a tenth of the hits that these lead to expect, at
    least 40; or three times their rate of firing. Cells that few showers reach cannot be told. A cell that was hot in
    both samples alike is found where it is ten times above all its neighbours.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> calo = load_detector("cu-scint-24x24")
    >>> few = Showers.from_hits(calo, [0, 0], [300, 876], [1.5, 0.5], pdg_id=-211, energy_gev=[10.0])
    >>> check_samples(few, few).remarks
    ('1 and 1 showers are too few to look for a shift of the beam; it takes 50 in each sample',)
    """
    _check_input(reference, today, signal_fraction, fired_above_mev)
    cut_mev = _cut_mev(reference, today, signal_fraction, fired_above_mev)
    above_mev = (cut_mev, cut_mev * signal_fraction)
    remarks = []
    shared_fraction = _shared_fraction(reference, today)
    n_shared = round(shared_fraction * today.n_showers)
    if n_shared:
        remarks.append(
            f"{n_shared} of {today.n_showers} showers of today ({100 * shared_fraction:.3g} %) are in the reference too: their scatter "
            "cancels, so that a ratio of means looks better than it will on independent events, and errors that take the samples as "
            "independent are too large"
        )
    dead, hot, found = _dead_and_hot(reference, today, above_mev)
    remarks += found
    if min(reference.n_showers, today.n_showers) < LEAST_SHOWERS:
        remarks.append(
            f"{reference.n_showers} and {today.n_showers} showers are too few to look for a shift of the beam; it takes {LEAST_SHOWERS} "
            "in each sample"
        )
        return Checks(shared_fraction, n_shared, (), dead, hot, None, float(reference.n_showers), tuple(remarks))

    masked = np.union1d(dead, hot)
    cuts = _cuts_by_dose(reference, today, above_mev, masked)
    beam = [_beam(s, mev, masked) for s, mev in zip((reference, today), cuts[:2], strict=True)]
    # what light loss that is not known cell by cell may do to hits close to the cut
    higher_today = _beam(today, cuts[2], masked) if cut_mev else beam[1]
    exponent = _hits_exponent(reference, beam[0])
    shifts = _shifts(beam, higher_today, exponent or _HITS_EXPONENT)
    occupied = beam[0].n_hits.mean() / (reference.detector.n_cells - masked.size or 1)
    if occupied > 0.5:
        remarks.append(f"{100 * occupied:.0f} % of the cells fire in a shower of the reference: which ones says little about the beam")
    told = [s.energy_gev for s in (reference, today)]
    error_gev = np.hypot(*(e.std() / np.sqrt(e.size) for e in told))
    if abs(told[1].mean() - told[0].mean()) > _SEEN_SIGMA * error_gev + 1e-6 * told[0].mean():
        remarks.append(
            f"the files tell another energy: {told[0].mean():.5g} GeV in the reference and {told[1].mean():.5g} GeV today, on average"
        )
    seen = [shift for shift in shifts if shift.is_seen]
    remarks += [
        f"{s.quantity} differs by {s.difference:+.3g} +- {s.uncertainty:.2g} {s.unit} ({s.reference:.4g} in the reference, "
        f"{s.today:.4g} today)"
        for s in seen
    ]
    weight, n_effective = None, float(reference.n_showers)
    has_energies = exponent is not None
    if any(s.quantity in _PLACES or (s.quantity == "beam energy" and has_energies) for s in seen):
        weight, n_effective, said = _reference_weight(reference, beam, has_energies=has_energies)
        remarks.append(said)
    elif seen:
        remarks.append(
            "reference showers are not weighted: of one energy, those with many hits are not like those of a higher energy; methods that "
            "compare mean energies take the shift for ageing"
        )
    return Checks(shared_fraction, n_shared, shifts, dead, hot, weight, n_effective, tuple(remarks))


def _check_input(reference: Showers, today: Showers, signal_fraction: float, fired_above_mev: float) -> None:
    if reference.detector.digest != today.detector.digest:
        raise ValueError(
            f"the reference was made in detector {reference.detector.name!r} ({reference.detector.digest[:8]}), today in "
            f"{today.detector.name!r} ({today.detector.digest[:8]}); compare samples of one detector"
        )
    for name, sample in (("reference", reference), ("today", today)):
        if sample.n_showers == 0:
            raise ValueError(f"sample {name} has no showers; give at least one")
    if not (np.isfinite(signal_fraction) and signal_fraction > 0):
        raise ValueError(f"signal_fraction = {signal_fraction}; it must be finite and > 0")
    if not (np.isfinite(fired_above_mev) and fired_above_mev >= 0):
        raise ValueError(f"fired_above_mev = {fired_above_mev}; it must be finite and >= 0")


def _cut_mev(reference: Showers, today: Showers, signal_fraction: float, fired_above_mev: float) -> float:
    """Energy that counts in the reference: above thresholds and noise in both samples."""
    floor = [0.0 if s.readout is None else max(s.readout.threshold_mev, _CLEAN_SIGMA * s.readout.noise_mev) for s in (reference, today)]
    return max(fired_above_mev, floor[0], floor[1] / signal_fraction)


# --- shared events


def _shared_fraction(reference: Showers, today: Showers) -> float:
    """Share of today's showers with a copy in the reference; 0 unless it is significant."""
    patterns = [_patterns(s) for s in (reference, today)]
    rng = np.random.default_rng(0)
    n_cells = reference.detector.n_cells
    signs = None if n_cells <= _N_PROJECTIONS else (2 * rng.integers(0, 2, (n_cells, _N_PROJECTIONS)) - 1).astype(np.float32)
    sketches = [_sketch(p, signs) for p in patterns]
    # a copy is found by looking at some of today's showers in all of the reference
    n_looked = max(1, min(today.n_showers, _MOST_PAIRS // reference.n_showers))
    looked = np.sort(rng.permutation(today.n_showers)[:n_looked])
    among = np.sort(rng.permutation(reference.n_showers)[:n_looked])
    similar = _best_similarity(patterns[1], sketches[1], looked, patterns[0], sketches[0], is_same=False)
    null = _best_similarity(patterns[0], sketches[0], among, patterns[0], sketches[0], is_same=True)
    if not (similar.size and null.size):
        return 0.0
    # half as far as the closest independent pair
    least = 1 - 0.5 * (1 - np.quantile(null, _NULL_QUANTILE))
    n_found, n_chance = int((similar > least).sum()), int((null > least).sum()) * similar.size / null.size
    if n_found - n_chance <= 5 * np.sqrt(n_chance + 1):
        return 0.0
    return float((n_found - n_chance) / n_looked)


def _patterns(showers: Showers) -> sparse.csr_array:
    """ln(1 + E / median E) of the hits, (shower, cell): large hits count, but none for all."""
    energy = np.maximum(showers.energy_mev, 0).astype(np.float32)
    positive = energy[energy > 0]
    scale = np.float32(np.median(positive)) if positive.size else np.float32(1)
    return sparse.csr_array((np.log1p(energy / scale), showers.cell, showers.offsets), shape=(showers.n_showers, showers.detector.n_cells))


def _sketch(pattern: sparse.csr_array, signs: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Unit vectors whose products are close to the correlations of the patterns, (shower, cell) -> (shower, projection)."""
    sketch = np.asarray(pattern.toarray() if signs is None else pattern @ signs)
    sketch = sketch - sketch.mean(axis=0)
    length = np.sqrt(np.einsum("ij,ij->i", sketch, sketch))
    return np.asarray(sketch / np.maximum(length, 1e-12)[:, None], dtype=np.float32)


def _best_similarity(
    a: sparse.csr_array, sketch_a: NDArray[np.float32], rows: IntArray, b: sparse.csr_array, sketch_b: NDArray[np.float32], *, is_same: bool
) -> FloatArray:
    """Correlation of the pattern of each of the rows with that of the most similar shower of b, itself left out if it is the same."""
    best = np.zeros(rows.size, dtype=np.int64)
    step = max(1, _BLOCK_PAIRS // sketch_b.shape[0])
    for start in range(0, rows.size, step):
        block = rows[start : start + step]
        similar = sketch_a[block] @ sketch_b.T
        if is_same:
            similar[np.arange(block.size), block] = -np.inf
        best[start : start + step] = similar.argmax(axis=1)
    counted = (np.diff(a.indptr)[rows] >= _FEWEST_HITS) & (np.diff(b.indptr)[best] >= _FEWEST_HITS)
    if is_same:
        counted &= best != rows
    rows, best = rows[counted], best[counted]
    mean_a, mean_b = (np.asarray(p.mean(axis=0)).ravel().astype(np.float64) for p in (a, b))
    left, right = a[rows].astype(np.float64), b[best].astype(np.float64)
    product = np.asarray(left.multiply(right).sum(axis=1)).ravel() - left @ mean_b - right @ mean_a + mean_a @ mean_b
    square_a = np.asarray(left.multiply(left).sum(axis=1)).ravel() - 2 * (left @ mean_a) + mean_a @ mean_a
    square_b = np.asarray(right.multiply(right).sum(axis=1)).ravel() - 2 * (right @ mean_b) + mean_b @ mean_b
    return np.asarray(product / np.sqrt(np.maximum(square_a * square_b, 1e-24)))


# --- the beam


@dataclass(frozen=True, eq=False)
class _Beam:
    """What each shower tells of the beam; NaN where it has no hits for it."""

    x_mm: FloatArray
    y_mm: FloatArray
    n_hits: FloatArray
    depth_mm: FloatArray


def _cuts_by_dose(
    reference: Showers, today: Showers, above_mev: tuple[float, float], masked: IntArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Energy that counts in the reference and today, (cell,) each, and the highest that today's may be.

    Brighter cells lose more light. With one cut for all, hits close to it would go missing there, and the beam would seem to
    have less energy. The brightest cells show the light loss in the shape of their spectrum; the dark ones, whose spectrum
    has no peak, get what a loss linear in the dose and one with its square root leave them: the mean of the two.
    """
    n_cells = reference.detector.n_cells
    first, second = (np.full(n_cells, mev) for mev in above_mev)
    if above_mev[0] == 0:
        return first, second, second
    dose = np.bincount(reference.cell, weights=np.maximum(reference.energy_mev, 0), minlength=n_cells)
    dose[masked] = 0
    n_hits = np.bincount(reference.cell[reference.energy_mev > above_mev[0]], minlength=n_cells)
    order = np.argsort(-dose, kind="stable")
    is_bright = np.zeros(n_cells, dtype=bool)
    is_bright[order[: int(np.searchsorted(np.cumsum(n_hits[order]), _BRIGHT_HITS * n_hits.sum())) + 1]] = True
    is_bright[masked] = False
    spectra = [np.sort(s.energy_mev[is_bright[s.cell]]).astype(np.float64) for s in (reference, today)]
    bright_fraction = _scale(spectra[0], spectra[1], above_mev)
    if bright_fraction is None:
        return first, second, second * (1 + _CUT_STEP)
    share = dose / max(float(dose.max()), 1e-300)
    fraction = []
    for law in (share, np.sqrt(share)):
        loss = (1 - bright_fraction) / np.average(law[is_bright], weights=n_hits[is_bright])
        fraction.append(np.clip(1 - loss * law, 0.1, 2.0))  # chosen: beyond, it is no scale of light any more
    middle, most = 0.5 * (fraction[0] + fraction[1]), np.maximum(*fraction)
    first = np.maximum(first, above_mev[1] / middle)
    return first, first * middle, first * most * (1 + _CUT_STEP)


def _scale(before: FloatArray, now: FloatArray, above_mev: tuple[float, float]) -> float | None:
    """Scale between two sorted spectra of hits: the one with which their shapes above the cut differ least; None for too few hits."""
    grid = np.arange(-0.7, 0.3, 0.01)
    distance = np.full(grid.size, np.inf)
    for k, scale in enumerate(np.exp(grid)):
        low_mev = max(above_mev[0], above_mev[1] / scale)
        first, second = (e[e.searchsorted(cut, side="right") :] for e, cut in ((before, low_mev), (now, low_mev * scale)))
        if min(first.size, second.size) < _LEAST_BRIGHT_HITS:
            continue
        at = low_mev * np.exp(np.linspace(0.0, 2.5, 51)[1:])  # chosen: up to 12 times the cut, past the peak of single particles
        distance[k] = ((first.searchsorted(at) / first.size - second.searchsorted(scale * at) / second.size) ** 2).mean()
    best = int(distance.argmin())
    return float(np.exp(grid[best])) if np.isfinite(distance[best]) else None


def _beam(showers: Showers, above_mev: FloatArray, masked: IntArray) -> _Beam:
    detector = showers.detector
    is_masked = np.zeros(detector.n_cells, dtype=bool)
    is_masked[masked] = True
    counts = (showers.energy_mev > above_mev[showers.cell]) & ~is_masked[showers.cell]
    shower, cell, n = showers.shower_index[counts], showers.cell[counts], showers.n_showers
    position = detector.cell_position_mm(np.arange(detector.n_cells))
    n_hits = np.bincount(shower, minlength=n)
    front = showers.layer[counts] < max(1, round(_FRONT * detector.n_active))
    xy = _centre(shower[front], position[cell[front], :2], n, scale_mm=_cell_mm(detector))
    return _Beam(xy[:, 0], xy[:, 1], n_hits.astype(np.float64), _mean_of(shower, position[cell, 2], np.ones(cell.size), n))


def _cell_mm(detector: Detector) -> float:
    """Width of a cell, the geometric mean of x and y and of all layers."""
    if isinstance(detector, CrystalCalorimeter):
        return detector.crystal_size_mm
    return float(np.sqrt(detector.size_x_mm * detector.size_y_mm) * np.exp(-0.5 * np.log(detector.cell_grid).sum(axis=1).mean()))


def _centre(shower: IntArray, xy_mm: FloatArray, n: int, *, scale_mm: float) -> FloatArray:
    """Centre of the hits of each shower, those far from it (in cells) counting less: (shower, 2) [mm]."""
    weight = np.ones(shower.size)
    centre = np.zeros((n, 2))
    for step in range(_N_STEPS + 1):
        if step:
            # Cauchy's weight: a centre between a mean and the fullest place
            weight = 1 / (1 + ((xy_mm - centre[shower]) ** 2).sum(axis=1) / scale_mm**2)
        centre = np.stack([_mean_of(shower, xy_mm[:, k], weight, n) for k in (0, 1)], axis=1)
    return centre


def _mean_of(shower: IntArray, value: FloatArray, weight: FloatArray, n: int) -> FloatArray:
    total = np.bincount(shower, weights=weight, minlength=n)
    summed = np.bincount(shower, weights=weight * value, minlength=n)
    return np.asarray(np.divide(summed, total, out=np.full(n, np.nan), where=total > 0))


def _hits_exponent(reference: Showers, beam: _Beam) -> float | None:
    """Exponent with which the number of hits grows with the energy; None where the reference has one energy, or does not tell."""
    told = np.log(reference.energy_gev)
    used = beam.n_hits > 0
    if used.sum() < LEAST_SHOWERS or told[used].std() < 0.2:  # chosen: a spread that outweighs the scatter of the hits
        return None
    slope = float(np.polyfit(told[used], np.log(beam.n_hits[used]), 1)[0])
    return slope if slope > 0.1 else None  # chosen: a flatter one tells no energy


def _numbers(beam: _Beam) -> tuple[FloatArray, FloatArray]:
    """Means of x, y, depth and hits and widths of x and y, each with its statistical error."""
    value, error = [], []
    for column in (beam.x_mm, beam.y_mm, beam.depth_mm, beam.n_hits):
        known = column[np.isfinite(column)]
        value.append(known.mean() if known.size > 1 else np.nan)
        error.append(known.std() / np.sqrt(known.size) if known.size > 1 else np.nan)
    for column in (beam.x_mm, beam.y_mm):
        known = column[np.isfinite(column)]
        squared = (known - known.mean()) ** 2 if known.size > 1 else np.full(2, np.nan)
        value.append(width := np.sqrt(squared.mean()))
        error.append(squared.std() / np.sqrt(squared.size) / (2 * width) if width > 0 else 0.0)
    return np.array(value), np.array(error)


def _shifts(beam: list[_Beam], higher_today: _Beam, exponent: float) -> tuple[Shift, ...]:
    (reference, error_r), (today, error_t) = _numbers(beam[0]), _numbers(beam[1])
    if higher_today is not beam[1]:
        error_t = np.hypot(error_t, np.abs(_numbers(higher_today)[0] - today))
    names = ("beam position x", "beam position y", "longitudinal centroid", "beam energy", "spot width x", "spot width y")
    found = {}
    for k, name in enumerate(names):
        values = [float(v) for v in (reference[k], today[k], today[k] - reference[k], np.hypot(error_r[k], error_t[k]))]
        unit = "mm"
        if name == "beam energy":
            unit = "%"
            if not (reference[k] > 0 and today[k] > 0):
                continue
            energy = 100 * (today[k] / reference[k]) ** (1 / exponent)
            error = energy / exponent * np.hypot(error_r[k] / reference[k], error_t[k] / today[k])
            values = [100.0, float(energy), float(energy - 100), float(error)]
        if not np.isfinite(values).all():
            continue
        is_seen = abs(values[2]) > _SEEN_SIGMA * values[3] + 1e-9  # rounding of what does not vary at all
        found[name] = Shift(name, unit, values[0], values[1], values[2], values[3], bool(is_seen))
    order = ("beam energy", "beam position x", "beam position y", "spot width x", "spot width y", "longitudinal centroid")
    return tuple(found[name] for name in order if name in found)


def _reference_weight(reference: Showers, beam: list[_Beam], *, has_energies: bool) -> tuple[FloatArray | None, float, str]:
    """Weights that give the reference the beam of today, how many showers they leave, and a line about them."""
    columns, targets = [], []
    for name in ("x_mm", "y_mm", "n_hits") if has_energies else ("x_mm", "y_mm"):
        own, other = (np.log1p(v) if name == "n_hits" else v for v in (getattr(beam[0], name), getattr(beam[1], name)))
        (centre, width), (centre_own, width_own) = _core(other), _core(own)
        if not (np.isfinite(centre + centre_own) and width > 1e-9 * max(1.0, abs(centre))):
            continue
        lowest = min(centre - _CLIPPED_AT * width, centre_own - _CLIPPED_AT * width_own)
        highest = max(centre + _CLIPPED_AT * width, centre_own + _CLIPPED_AT * width_own)
        own, other = ((np.clip(v, lowest, highest) - centre) / width for v in (own, other))
        for power in (1, 2):
            typical, spread = np.nanmean(own**power), np.nanstd(own**power)
            if spread > 1e-9:
                # showers that do not tell count as typical ones
                columns.append(np.where(np.isfinite(own), (own**power - typical) / spread, 0.0))
                targets.append((np.nanmean(other**power) - typical) / spread)
    n = reference.n_showers
    no_use = "no weights give the reference today's beam, so that methods that compare mean energies may be biased"
    if not columns:
        return None, float(n), f"{no_use}: the cells that fired do not tell where a shower was"
    weight = _tilted(np.stack(columns, axis=1), np.array(targets))
    if weight is None:
        return None, float(n), f"{no_use}: the reference lacks showers like those of today"
    n_effective = float(weight.sum() ** 2 / (weight**2).sum())
    if n_effective < _LEAST_EFFECTIVE * n:
        return None, float(n), f"{no_use}: they would leave {n_effective:.0f} effective showers of {n}"
    return weight, n_effective, (
        f"reference showers are weighted to today's beam, {n_effective:.0f} effective showers of {n}; without it the mean energies of the "
        f"brightest cells would shift by {100 * _moved(reference, weight):.2g} % (median), which is not ageing"
    )  # fmt: skip


def _core(values: FloatArray) -> tuple[float, float]:
    """Median, and the width of a Gaussian with the same median distance from it."""
    known = values[np.isfinite(values)]
    if not known.size:
        return np.nan, np.nan
    centre = float(np.median(known))
    return centre, 1.4826 * float(np.median(np.abs(known - centre)))


def _tilted(quantity: FloatArray, target: FloatArray) -> FloatArray | None:
    """Weights exp(lambda . q), mean 1, with which the quantities, (shower, quantity), have these means; None if there are none."""
    tilt = np.zeros(target.size)
    for _ in range(100):
        exponent = quantity @ tilt
        weight = np.exp(exponent - exponent.max())
        weight /= weight.sum()
        mean = weight @ quantity
        slope = mean - target
        if np.abs(slope).max() < 1e-8:
            return np.asarray(weight * quantity.shape[0])
        curvature = (quantity * weight[:, None]).T @ quantity - np.outer(mean, mean)
        # a quantity may follow from the others, as for cells in one row
        step = np.linalg.lstsq(curvature + 1e-12 * np.eye(target.size), slope, rcond=None)[0]
        value = _dual(quantity, target, tilt)
        size = 1.0
        while size > 1e-6 and _dual(quantity, target, tilt - size * step) > value - 1e-4 * size * float(slope @ step):
            size /= 2
        tilt = tilt - size * step
        if not np.isfinite(tilt).all() or np.abs(tilt).max() > 50:  # chosen: one standard deviation then decides by e^50
            return None
    return None


def _dual(quantity: FloatArray, target: FloatArray, tilt: FloatArray) -> float:
    exponent = (quantity - target) @ tilt
    top = exponent.max()
    return float(top + np.log(np.exp(exponent - top).mean()))


def _moved(reference: Showers, weight: FloatArray) -> float:
    """Median change of the mean energy of the brightest cells under the weights."""
    n_cells = reference.detector.n_cells
    plain = np.bincount(reference.cell, weights=reference.energy_mev, minlength=n_cells)
    tilted = np.bincount(reference.cell, weights=reference.energy_mev * weight[reference.shower_index], minlength=n_cells)
    bright = np.argsort(-plain, kind="stable")[:_N_BRIGHT]
    bright = bright[plain[bright] > 0]
    return float(np.median(np.abs(tilted[bright] / plain[bright] - 1))) if bright.size else 0.0


# --- dead and hot cells


def _dead_and_hot(reference: Showers, today: Showers, above_mev: tuple[float, float]) -> tuple[IntArray, IntArray, list[str]]:
    samples = (reference, today)
    n_cells = reference.detector.n_cells
    count = [np.bincount(s.cell[s.energy_mev > mev], minlength=n_cells) for s, mev in zip(samples, above_mev, strict=True)]
    n = [s.n_showers for s in samples]
    side, tower = neighbours(reference.detector)
    around = np.concatenate([side, tower], axis=1)
    starved, overfed = [], []
    for a, b in ((1, 0), (0, 1)):
        expected, at_most = _expected_rate(count[a], n[a], count[b], n[b], around)
        n_expected = n[b] * -np.expm1(-expected)
        starved.append((np.minimum(n_expected, count[a]) >= LEAST_EXPECTED_HITS) & (count[b] < _STARVED * n_expected))
        overfed.append((count[b] >= LEAST_EXPECTED_HITS) & (_rate(count[b], n[b]) > _OVERFED * at_most))
    # which of the two samples is the odd one, neighbours within it tell
    hole = [_is_hole(c, around) for c in count]
    peak = [_rate(c, m) > _OVERFED * _of_neighbours(_rate(c, m), around, 0.5) for c, m in zip(count, n, strict=True)]
    fell, rose = starved[1] | overfed[0], starved[0] | overfed[1]
    hot_was, hot_now = fell & peak[0] & ~hole[1], rose & peak[1] & ~hole[0]
    spike = [
        (c >= LEAST_EXPECTED_HITS) & (_rate(c, m) > 10 * _of_neighbours(_rate(c, m), around, 1.0)) for c, m in zip(count, n, strict=True)
    ]
    has_neighbours = (around < n_cells).any(axis=1)
    hot_both = spike[0] & spike[1] & has_neighbours & ~(hot_was | hot_now)
    dead_was, dead_now = (rose & ~hot_now) | hole[0], (fell & ~hot_was) | hole[1]
    named = {
        "dead today": dead_now & ~dead_was, "dead in the reference": dead_was & ~dead_now, "dead in both samples": dead_was & dead_now,
        "hot today": hot_now, "hot in the reference": hot_was, "hot in both samples": hot_both,
    }  # fmt: skip
    remarks = [f"{what}: {_listed(np.flatnonzero(those))}" for what, those in named.items() if those.any()]
    dead = dead_was | dead_now
    return np.flatnonzero(dead), np.flatnonzero((hot_was | hot_now | hot_both) & ~dead), remarks


def _rate(count: Numbers, n: int) -> FloatArray:
    """Rate of firing per shower, -ln(1 - occupancy): that of two sources is their sum, also in cells that fire nearly always."""
    return np.asarray(-np.log1p(-np.minimum(count, n - 0.5) / n))


def _expected_rate(count_a: Numbers, n_a: int, count_b: Numbers, n_b: int, around: IntArray) -> tuple[FloatArray, FloatArray]:
    """Rate of each cell in b from its rate in a and how its neighbours changed, and the same with the most that a allows for."""
    rate_a, rate_b = _rate(count_a, n_a), _rate(count_b, n_b)
    overall = rate_b.sum() / max(rate_a.sum(), 1e-300)
    # dead and hot neighbours say nothing of the beam
    n_expected = n_b * -np.expm1(-rate_a * overall)
    is_odd = (np.minimum(n_expected, count_a) >= LEAST_EXPECTED_HITS) & (count_b < 0.02 * n_expected)
    n_expected = n_a * -np.expm1(-rate_b / max(overall, 1e-300))
    is_odd |= (np.minimum(n_expected, count_b) >= LEAST_EXPECTED_HITS) & (count_a < 0.02 * n_expected)
    is_odd |= (count_b >= LEAST_EXPECTED_HITS) & (rate_b > 2 * _OVERFED * overall * _rate(_at_most(count_a), n_a))
    is_odd |= (count_a >= LEAST_EXPECTED_HITS) & (rate_a * overall > 2 * _OVERFED * _rate(_at_most(count_b), n_b))
    pools = [np.where(is_odd, 0, values).astype(np.float64) for values in (count_a, rate_a, rate_b)]
    good = pools[1].sum()
    ratio = np.full(rate_a.size, pools[2].sum() / good if good > 0 else overall)
    is_told = np.zeros(rate_a.size, dtype=bool)
    for _ in range(2):  # next neighbours, then theirs too
        pools = [np.append(p, 0.0)[around].sum(axis=1) for p in pools]
        tells = ~is_told & (pools[0] >= LEAST_EXPECTED_HITS)
        ratio[tells] = pools[2][tells] / pools[1][tells]
        is_told |= tells
    return rate_a * ratio, _rate(_at_most(count_a), n_a) * ratio


def _at_most(count: Numbers) -> FloatArray:
    """The most hits that chance allows for where these were seen."""
    return np.asarray(count + 3 * np.sqrt(count) + 5.0)


def _of_neighbours(value: Numbers, around: IntArray, quantile: float) -> FloatArray:
    """Lower quantile of the values of the neighbours of each cell; infinite where it has none."""
    ordered = np.sort(np.append(value, np.inf)[around], axis=1)
    n_around = (around < value.size).sum(axis=1)
    at = np.floor(quantile * np.maximum(n_around - 1, 0)).astype(np.int64)
    return np.asarray(ordered[np.arange(value.size), at])


def _is_hole(count: Numbers, around: IntArray) -> BoolArray:
    """Cells with a tenth of the hits of nearly all their neighbours."""
    low = _of_neighbours(count.astype(np.float64), around, 0.25)
    return np.asarray(np.isfinite(low) & (low >= LEAST_EXPECTED_HITS) & (count < _STARVED * low))


def _listed(cells: IntArray) -> str:
    shown = ", ".join(str(c) for c in cells[:10])
    return f"{cells.size} cell{'s' if cells.size > 1 else ''} ({shown}{', ...' if cells.size > 10 else ''})"
