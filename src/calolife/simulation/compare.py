"""Two samples of showers side by side: what both measure, and how far apart they are, with uncertainties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import LayeredCalorimeter
from calolife.showers.events import Detector, Showers

__all__ = [
    "QUANTITIES",
    "Comparison",
    "Sample",
    "active_depth_x0",
    "compare_samples",
    "contained_mev",
    "effective_sigma",
    "layer_width_mm",
    "profile_max_x0",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# what `compare_samples` knows, in the order in which it gives it back
QUANTITIES = ("mean", "resolution", "shower-max", "layers", "containment", "spectrum", "occupancy")

_CONTAINED = 0.683  # source: one standard deviation of a Gaussian to either side; the usual effective sigma
_QUANTILES = (0.10, 0.25, 0.50, 0.75, 0.90, 0.99)  # chosen: from the softest tenth to the cells that carry the energy
_LEAST_SHARE = 0.02  # source: the target of the layer profile is set for layers above 2 % of the energy
_PEAK = 0.4  # chosen: the gamma shape holds around the maximum; front and tail of a shower are another matter
_PEAK_LAYERS = 5  # chosen: two more than the three parameters, where layers are thick


@dataclass(frozen=True)
class Comparison:
    """One number of two samples.

    Parameters
    ----------
    quantity : str
    reference, reference_error, trial, trial_error : float [`unit`]
        Value and uncertainty in either sample.
    difference, difference_error : float
        Trial over reference minus one; trial minus reference where `is_absolute`.
    unit : str
    is_absolute : bool
    by_chance : float
        For the worst of several: how far apart the worst would be, on average, if the samples differed by their
        uncertainties only. NaN elsewhere.
    where : str
        For the worst of several: which.
    """

    quantity: str
    reference: float
    reference_error: float
    trial: float
    trial_error: float
    difference: float
    difference_error: float
    unit: str
    is_absolute: bool = False
    by_chance: float = float("nan")
    where: str = ""


@dataclass(frozen=True, eq=False)
class Sample:
    """What a comparison takes from showers of one particle and energy; each array is made when it is first asked for.

    Parameters
    ----------
    showers : Showers

    Raises
    ------
    ValueError
        Fewer than two showers.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> showers = Showers.from_hits(load_detector("cu-scint-24x24"), [0, 1], [300, 300], [1.0, 3.0], pdg_id=11, energy_gev=[1.0, 1.0])
    >>> Sample(showers).layer_mev.sum(axis=0).tolist()[:2]
    [4.0, 0.0]
    """

    showers: Showers

    def __post_init__(self) -> None:
        if self.showers.n_showers < 2:
            raise ValueError(f"{self.showers.n_showers} showers make no sample to compare; simulate at least two, better hundreds")

    @property
    def n(self) -> int:
        return self.showers.n_showers

    @cached_property
    def visible_mev(self) -> FloatArray:
        """(shower,) [MeV]"""
        return np.asarray(self.showers.visible_mev)

    @cached_property
    def layer_mev(self) -> FloatArray:
        """(shower, layer) [MeV]"""
        return self.showers.layer_energy_mev()

    @cached_property
    def layer_width_mm(self) -> FloatArray:
        """As `layer_width_mm`, (shower, layer) [mm]."""
        return layer_width_mm(self.showers)


def compare_samples(
    reference: Sample,
    trial: Sample,
    *,
    quantities: Sequence[str] = ("mean", "resolution", "layers"),
    threshold_mev: float = 0.0,
    n_resamples: int = 200,
    seed: int = 0,
) -> tuple[Comparison, ...]:
    """What differs between two samples of the same particles in the same detector.

    Parameters
    ----------
    reference, trial : Sample
        The trial may hold more showers; blocks of the size of the reference are then compared where a bias depends on size.
    quantities : sequence of `QUANTITIES`
        ``mean`` visible energy; ``resolution`` (effective sigma over mean, and standard deviation over mean);
        ``shower-max`` in X0; ``layers``, the layer whose mean differs most among those with more than 2 % of the energy;
        ``containment`` in 1 and 2 Moliere radii of the detector taken as one mixture; ``spectrum``, quantiles of the
        energies of single cells; ``occupancy``, the layer whose number of cells differs most among those with more than 2 % of them.
    threshold_mev : float [MeV]
        Cells below it are left out of ``spectrum`` and ``occupancy``.
    n_resamples : int
        Bootstrap resamples of the showers, for the uncertainties.
    seed : int

    Returns
    -------
    tuple of Comparison

    Raises
    ------
    ValueError
        An unknown quantity, two detectors, or a sample without any cell above the threshold.

    Notes
    -----
    Uncertainties are statistical. The bootstrap knows only what the sample holds: where a few rare showers make the
    standard deviation (photonuclear reactions in a crystal), its uncertainty comes out too small.
    """
    if unknown := [q for q in quantities if q not in QUANTITIES]:
        raise ValueError(f"quantity {unknown[0]!r} is not one of {', '.join(QUANTITIES)}")
    if reference.showers.detector.digest != trial.showers.detector.digest:
        names = f"{reference.showers.detector.name!r} and {trial.showers.detector.name!r}"
        raise ValueError(f"the samples were made in two detectors, {names}; compare showers of one")
    for name, sample in (("reference", reference), ("trial", trial)):
        if not (sample.showers.energy_mev > threshold_mev).any():
            raise ValueError(f"the {name} has no cell above {threshold_mev:g} MeV; there is nothing to compare")
    rng = np.random.default_rng(seed)
    draws = tuple(rng.integers(s.n, size=(n_resamples, s.n)) for s in (reference, trial))
    weights = tuple(np.stack([np.bincount(d, minlength=d.size) for d in draw]).astype(np.float64) for draw in draws)
    found: list[Comparison] = []
    if "mean" in quantities:
        found.append(_mean(reference, trial))
    if "resolution" in quantities:
        found.extend(_resolution(reference, trial, draws))
    if "shower-max" in quantities:
        found.append(_shower_max(reference, trial, weights))
    if "layers" in quantities:
        found.extend(_layers(reference, trial, weights))
    if "containment" in quantities:
        found.extend(_containment(reference, trial))
    if "spectrum" in quantities:
        found.extend(_spectrum(reference, trial, weights, threshold_mev=threshold_mev))
    if "occupancy" in quantities:
        found.extend(_occupancy(reference, trial, weights, threshold_mev=threshold_mev))
    return tuple(found)


def effective_sigma(values: ArrayLike) -> FloatArray:
    """Half the shortest interval that holds 68.3 % of the values.

    Parameters
    ----------
    values : float array, (..., value)
        Not empty.

    Returns
    -------
    float array, (...)

    Notes
    -----
    One standard deviation for a Gaussian; tails hardly move it. It is biased low in small samples, by some percent for a
    few hundred values: compare samples of one size.

    Examples
    --------
    >>> float(effective_sigma(np.arange(1001.0)))
    341.5
    """
    ordered = np.sort(np.asarray(values, np.float64), axis=-1)
    n = ordered.shape[-1]
    span = min(n - 1, max(1, round(_CONTAINED * (n - 1)))) if n > 1 else 0
    return np.asarray((ordered[..., span:] - ordered[..., : n - span]).min(axis=-1) / 2)


def active_depth_x0(detector: Detector) -> FloatArray:
    """Depth of the middle of each active layer, (layer,) [X0].

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> active_depth_x0(load_detector("pb-scint-60"))[:2].round(2).tolist()
    [0.36, 0.72]
    """
    if isinstance(detector, CrystalCalorimeter):
        return np.array([detector.depth_x0 / 2])
    thick = np.array([layer.thickness_mm / (10.0 * layer.material.x0_cm) for layer in detector.layers])
    return np.asarray((np.cumsum(thick) - thick / 2)[detector.active_layer])


def profile_max_x0(depth_x0: ArrayLike, profile: ArrayLike) -> float:
    """Depth of the maximum of a longitudinal profile, from a fit of a gamma distribution around it.

    Parameters
    ----------
    depth_x0 : float array, (layer,) [X0]
    profile : float array, (layer,)
        Energy per depth, in any unit.

    Returns
    -------
    float [X0]
        NaN where fewer than three layers around the highest one hold energy, or the profile has no maximum.

    Notes
    -----
    ln y = a + b ln t + c t has its maximum at t = -b/c. It is fitted to the layers above 40 % of the highest, five at the
    least, with weights y^2. The shape is that of E. Longo and I. Sestili, Nucl. Instrum. Meth. 128 (1975) 283.

    Examples
    --------
    >>> t = np.arange(0.5, 25)
    >>> round(profile_max_x0(t, t**2.5 * np.exp(-0.5 * t)), 6)
    5.0
    """
    t, y = np.asarray(depth_x0, np.float64), np.asarray(profile, np.float64)
    top = int(np.argmax(y))
    low = high = top
    while low > 0 and y[low - 1] > _PEAK * y[top]:
        low -= 1
    while high < y.size - 1 and y[high + 1] > _PEAK * y[top]:
        high += 1
    while high - low + 1 < min(_PEAK_LAYERS, y.size):
        low, high = max(0, low - 1), min(y.size - 1, high + 1)
    here = np.arange(low, high + 1)
    here = here[y[here] > 0]
    if here.size < 3:
        return float("nan")
    t, y = t[here], y[here] / y[top]
    terms = np.stack([np.ones_like(t), np.log(t), t], axis=1) * y[:, None]
    _, rise, fall = np.linalg.lstsq(terms, y * np.log(y), rcond=None)[0]
    return float(-rise / fall) if rise > 0 > fall else float("nan")


def contained_mev(showers: Showers, *, radius_mm: ArrayLike) -> FloatArray:
    """Visible energy in cells whose centre lies within a radius of the particle's line of flight.

    Parameters
    ----------
    showers : Showers
        With known impact points and directions.
    radius_mm : float array, (radius,) [mm]

    Returns
    -------
    float array, (shower, radius) [MeV]

    Raises
    ------
    ValueError
        Showers whose impact points or directions are not known.
    """
    if not (np.isfinite(showers.position_mm).all() and np.isfinite(showers.direction).all()):
        raise ValueError("the showers' impact points or directions are not known; containment about the axis needs both")
    at, of = showers.detector.cell_position_mm(showers.cell), showers.shower_index
    slope = showers.direction[:, :2] / showers.direction[:, 2:]
    axis = showers.position_mm[of, :2] + slope[of] * at[:, 2:]
    off = at[:, :2] - axis
    if isinstance(showers.detector, CrystalCalorimeter) and showers.detector.is_phi_periodic:
        way_around = showers.detector.period_y_mm
        off[:, 1] = (off[:, 1] + way_around / 2) % way_around - way_around / 2
    distance = np.hypot(*off.T)
    within = [np.bincount(of, showers.energy_mev * (distance < r), showers.n_showers) for r in np.atleast_1d(radius_mm)]
    return np.stack(within, axis=1)


def layer_width_mm(showers: Showers) -> FloatArray:
    """Energy-weighted rms distance of each layer's cells from the shower's centre of gravity.

    Parameters
    ----------
    showers : Showers

    Returns
    -------
    float array, (shower, layer) [mm]
        0 where a layer is empty.
    """
    n_layers = showers.detector.n_active
    n, of, energy = showers.n_showers, showers.shower_index, np.asarray(showers.energy_mev, np.float64)
    at = showers.detector.cell_position_mm(showers.cell)[:, :2]
    total = np.maximum(np.bincount(of, energy, n), np.finfo(float).tiny)
    centre = np.stack([np.bincount(of, energy * at[:, k], n) / total for k in range(2)], axis=1)
    square = ((at - centre[of]) ** 2).sum(axis=1)
    key = of * n_layers + showers.layer
    held = np.bincount(key, energy, n * n_layers)
    moment = np.bincount(key, energy * square, n * n_layers)
    return np.sqrt(np.divide(moment, held, out=np.zeros_like(held), where=held > 0)).reshape(n, n_layers)


def _relative(quantity: str, reference: tuple[float, float], trial: tuple[float, float], unit: str) -> Comparison:
    (a, da), (b, db) = reference, trial
    ratio = b / a if a else float("nan")
    error = abs(ratio) * np.hypot(da / a, db / b) if a and b else float("nan")
    return Comparison(quantity, a, da, b, db, ratio - 1, float(error), unit)


def _absolute(quantity: str, reference: tuple[float, float], trial: tuple[float, float], unit: str) -> Comparison:
    (a, da), (b, db) = reference, trial
    return Comparison(quantity, a, da, b, db, b - a, float(np.hypot(da, db)), unit, is_absolute=True)


def _mean_and_error(values: FloatArray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size))


def _mean(reference: Sample, trial: Sample) -> Comparison:
    return _relative("mean visible energy", _mean_and_error(reference.visible_mev), _mean_and_error(trial.visible_mev), "MeV")


def _resolution(reference: Sample, trial: Sample, draws: Sequence[IntArray]) -> list[Comparison]:
    def effective(values: FloatArray) -> FloatArray:
        return np.asarray(100 * effective_sigma(values) / values.mean(axis=-1))

    def rms(values: FloatArray) -> FloatArray:
        return np.asarray(100 * values.std(axis=-1, ddof=1) / values.mean(axis=-1))

    found = []
    for name, statistic in (("resolution, effective sigma", effective), ("resolution, rms", rms)):
        pairs = []
        for sample, draw in zip((reference, trial), draws, strict=True):
            # small samples give small widths (effective sigma; rms, where rare showers make it): blocks as large as the reference
            blocks = np.array_split(sample.visible_mev, max(1, sample.n // reference.n))
            value = float(np.mean([statistic(block) for block in blocks]))
            pairs.append((value, float(statistic(sample.visible_mev[draw]).std(ddof=1))))
        found.append(_relative(name, pairs[0], pairs[1], "%"))
    return found


def _shower_max(reference: Sample, trial: Sample, weights: Sequence[FloatArray]) -> Comparison:
    detector = reference.showers.detector
    depth = active_depth_x0(detector)
    thick = np.array([1.0]) if isinstance(detector, CrystalCalorimeter) else _thickness_mm(detector)
    pairs = []
    for sample, weight in zip((reference, trial), weights, strict=True):
        resampled = [profile_max_x0(depth, profile) for profile in weight @ sample.layer_mev / thick]
        pairs.append((profile_max_x0(depth, sample.layer_mev.sum(axis=0) / thick), float(np.nanstd(resampled, ddof=1))))
    return _absolute("longitudinal maximum", pairs[0], pairs[1], "X0")


def _thickness_mm(detector: Detector) -> FloatArray:
    assert not isinstance(detector, CrystalCalorimeter)
    return np.array([detector.layers[i].thickness_mm for i in detector.active_layer])


def _layers(reference: Sample, trial: Sample, weights: Sequence[FloatArray]) -> list[Comparison]:
    share = reference.layer_mev.mean(axis=0) / reference.visible_mev.mean()
    is_large = share > _LEAST_SHARE
    found = []
    if is_large.any():
        names = [f"layer {i} ({100 * s:.1f} % of the energy)" for i, s in enumerate(share)]
        worst = _worst("layer mean, worst", reference.layer_mev, trial.layer_mev, weights, names=names, use=is_large, unit="MeV")
        found.append(worst)
    if share[is_large].sum() < 0.5:
        # chosen: where layers are so thin that less than half of the energy is looked at, neighbours are taken together
        group = _groups(share)
        kept = np.flatnonzero(np.bincount(group, share) > _LEAST_SHARE)
        names = [f"layers {np.flatnonzero(group == g)[0]} to {np.flatnonzero(group == g)[-1]}" for g in range(group.max() + 1)]
        sums = [np.stack([s.layer_mev[:, group == g].sum(axis=1) for g in range(group.max() + 1)], axis=1) for s in (reference, trial)]
        use = np.isin(np.arange(group.max() + 1), kept)
        found.append(_worst("layer group mean, worst", sums[0], sums[1], weights, names=names, use=use, unit="MeV"))
    return found


def _groups(share: FloatArray) -> IntArray:
    """Neighbouring layers joined from the front until each group holds more than the least share; (layer,)."""
    group, now, held = np.zeros(share.size, np.int64), 0, 0.0
    for i, s in enumerate(share):
        group[i] = now
        held += s
        if held > _LEAST_SHARE:
            now, held = now + 1, 0.0
    return group


def _worst(
    quantity: str, reference: FloatArray, trial: FloatArray, weights: Sequence[FloatArray], *,
    names: Sequence[str], use: NDArray[np.bool_], unit: str,
) -> Comparison:  # fmt: skip
    """The column whose mean differs most, (shower, column) each."""
    a, b = reference.mean(axis=0), trial.mean(axis=0)
    noise_a = (weights[0] @ reference / len(reference))[:, use] / a[use]
    noise_b = (weights[1] @ trial / len(trial))[:, use] / np.maximum(b[use], np.finfo(float).tiny)
    chance = float(np.abs(noise_b - noise_a).max(axis=1).mean())
    index = np.flatnonzero(use)
    k = int(np.argmax(np.abs(b[use] / a[use] - 1)))
    i = int(index[k])
    made = _relative(quantity, _mean_and_error(reference[:, i]), _mean_and_error(trial[:, i]), unit)
    return replace(made, by_chance=chance, where=names[i])


def _containment(reference: Sample, trial: Sample) -> list[Comparison]:
    detector = reference.showers.detector
    if isinstance(detector, LayeredCalorimeter) and len({layer.material for layer in detector.layers}) == 1:
        of = detector.layers[0].material  # the table's own numbers, where a mixture of one would compute them
    else:
        of = detector.effective_material()
    radius_mm = 10.0 * of.moliere_cm * np.array([1.0, 2.0])
    within = [
        contained_mev(s.showers, radius_mm=radius_mm) / np.where(s.visible_mev > 0, s.visible_mev, np.nan)[:, None]
        for s in (reference, trial)
    ]
    names = ("containment in 1 Moliere radius", "containment in 2 Moliere radii")
    return [_absolute(name, _percent(within[0][:, k]), _percent(within[1][:, k]), "%") for k, name in enumerate(names)]


def _percent(values: FloatArray) -> tuple[float, float]:
    value, error = _mean_and_error(values[np.isfinite(values)])
    return 100 * value, 100 * error


def _above(sample: Sample, threshold_mev: float) -> tuple[FloatArray, IntArray]:
    """Energies of cells above the threshold, rising, and the shower of each."""
    energy = np.asarray(sample.showers.energy_mev, np.float64)
    kept = np.flatnonzero(energy > threshold_mev)
    order = kept[np.argsort(energy[kept], kind="stable")]
    return energy[order], sample.showers.shower_index[order]


def _spectrum(reference: Sample, trial: Sample, weights: Sequence[FloatArray], *, threshold_mev: float) -> list[Comparison]:
    values, errors = [], []
    for sample, weight in zip((reference, trial), weights, strict=True):
        energy, of = _above(sample, threshold_mev)
        values.append(np.quantile(energy, _QUANTILES))
        errors.append(np.std([_weighted_quantiles(energy, w[of]) for w in weight], axis=0, ddof=1))
    (a, b), (da, db) = values, errors
    return [
        _relative(f"cell energy, {100 * q:g} % quantile", (float(a[k]), float(da[k])), (float(b[k]), float(db[k])), "MeV")
        for k, q in enumerate(_QUANTILES)
    ]


def _weighted_quantiles(ordered: FloatArray, weight: FloatArray) -> FloatArray:
    passed = np.cumsum(weight)
    return np.asarray(ordered[np.minimum(np.searchsorted(passed, np.asarray(_QUANTILES) * passed[-1]), ordered.size - 1)])


def _occupancy(reference: Sample, trial: Sample, weights: Sequence[FloatArray], *, threshold_mev: float) -> list[Comparison]:
    hits = []
    for sample in (reference, trial):
        n_layers = sample.showers.detector.n_active
        lit = sample.showers.energy_mev > threshold_mev
        key = (sample.showers.shower_index * n_layers + sample.showers.layer)[lit]
        hits.append(np.bincount(key, minlength=sample.n * n_layers).reshape(sample.n, n_layers).astype(np.float64))
    share = hits[0].mean(axis=0) / hits[0].sum(axis=1).mean()
    names = [f"layer {i} ({100 * s:.1f} % of the cells)" for i, s in enumerate(share)]
    total = _relative("cells per shower", _mean_and_error(hits[0].sum(axis=1)), _mean_and_error(hits[1].sum(axis=1)), "")
    if not (share > _LEAST_SHARE).any():
        return [total]
    return [total, _worst("occupancy of a layer, worst", hits[0], hits[1], weights, names=names, use=share > _LEAST_SHARE, unit="")]
