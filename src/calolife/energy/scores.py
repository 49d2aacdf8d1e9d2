"""How well models measured the same showers: scores with errors, and differences that the same resampling of showers decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.energy.resolution import drawn, replica_counts, shortest_half
from calolife.runs import json_number
from calolife.showers.events import PDG

__all__ = ["FIGURES", "EnergyComparison", "EnergyScore", "compare_energy", "particle_masks", "score_energy"]

FloatArray = NDArray[np.float64]

FIGURES = ("mean_rel_percent", "sigma_rel_percent", "mae_gev", "rmse_gev", "rel_loss", "sigma_eff_percent")
_SMALLER_IS_BETTER = FIGURES[1:]
_FEWEST = 10  # chosen: resampled, so few vary too little: intervals of 5 showers miss the truth one time in six
_CHUNK = 1 << 22  # chosen: numbers held at once, 32 MB


@dataclass(frozen=True)
class EnergyScore:
    """How well one model measured showers of one particle; d = E' - E, predicted less true.

    Parameters
    ----------
    model : str
    particle : str
        ``"all"``, or a name as the particle gun has it (``"gamma"``, ``"pi-"``); the number of one it does not have.
    n : int
        Showers.
    mean_rel_percent, sigma_rel_percent : float [%]
        Mean and standard deviation of d/E.
    mae_gev, rmse_gev : float [GeV]
        Mean of abs(d), root of the mean of d^2.
    rel_loss : float [GeV]
        Mean of d^2/E, the published loss.
    sigma_eff_percent : float [%]
        Half of the shortest interval that holds 68.3 % of d/E.
    mean_rel_percent_error ... sigma_eff_percent_error : float
        Standard error of each, from the bootstrap; NaN for a single shower.
    rel_loss_ratio, rel_loss_ratio_low, rel_loss_ratio_high : float
        `rel_loss` over that of the baseline on the same showers, and its paired 95 % interval; NaN without a baseline.
    """

    model: str
    particle: str
    n: int
    mean_rel_percent: float
    sigma_rel_percent: float
    mae_gev: float
    rmse_gev: float
    rel_loss: float
    sigma_eff_percent: float
    mean_rel_percent_error: float
    sigma_rel_percent_error: float
    mae_gev_error: float
    rmse_gev_error: float
    rel_loss_error: float
    sigma_eff_percent_error: float
    rel_loss_ratio: float = np.nan
    rel_loss_ratio_low: float = np.nan
    rel_loss_ratio_high: float = np.nan

    def to_json_dict(self) -> dict[str, Any]:
        """A row of plain numbers; null for what is not known."""
        row: dict[str, Any] = {"model": self.model, "particle": self.particle}
        row |= {name: json_number(getattr(self, name)) for name in FIGURES}
        row["n"] = self.n
        row |= {f"{name}_error": json_number(getattr(self, f"{name}_error")) for name in FIGURES}
        return row | {name: json_number(getattr(self, name)) for name in ("rel_loss_ratio", "rel_loss_ratio_low", "rel_loss_ratio_high")}


@dataclass(frozen=True)
class EnergyComparison:
    """One figure of a model against that of a baseline on the same showers.

    Parameters
    ----------
    model, baseline : str
    particle : str
        As in `EnergyScore`.
    figure : str
        One of `FIGURES` of which smaller is better.
    n : int
        Showers.
    difference, difference_low, difference_high : float
        Model less baseline in the figure's unit, and its paired 95 % interval.
    ratio, ratio_low, ratio_high : float
        Model over baseline; NaN where the baseline is 0.
    verdict : str
        ``"better"``, ``"worse"``, or ``"no difference"`` when the interval of the difference holds zero or there are fewer
        than 10 showers.
    """

    model: str
    baseline: str
    particle: str
    figure: str
    n: int
    difference: float
    difference_low: float
    difference_high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    verdict: str

    def to_json_dict(self) -> dict[str, Any]:
        """A row of plain numbers; null for what is not known."""
        numbers = ("difference", "difference_low", "difference_high", "ratio", "ratio_low", "ratio_high")
        head = {"model": self.model, "baseline": self.baseline, "particle": self.particle, "figure": self.figure, "n": self.n}
        return {**head, **{name: json_number(getattr(self, name)) for name in numbers}, "verdict": self.verdict}


def score_energy(
    models: Mapping[str, ArrayLike],
    energy_gev: ArrayLike,
    pdg_id: ArrayLike,
    *,
    baseline: str | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[EnergyScore, ...]:
    """Scores of several models on the same showers, for all particles together and for each.

    Parameters
    ----------
    models : mapping of str to float array, (shower,) [GeV]
        Predicted energies of each model.
    energy_gev : float array, (shower,) [GeV]
        True energies.
    pdg_id : int array, (shower,)
    baseline : str, optional
        The model that `EnergyScore.rel_loss_ratio` is to.
    n_bootstrap : int
        Resamplings of the showers.
    seed : int
        Of the resampling.

    Returns
    -------
    tuple of EnergyScore
        Model by model, ``"all"`` first.

    Raises
    ------
    ValueError
        No models, arrays that do not fit, a prediction that is not finite, a true energy that is not > 0, a baseline
        that is not among the models.

    Notes
    -----
    Showers are resampled once, for all models; those of each particle among themselves, as the mix of particles is
    set by the beam, not by chance. The errors speak of other showers, not of another training.

    Examples
    --------
    >>> energy = np.linspace(1.0, 100.0, 50)
    >>> sum_, best = score_energy({"sum": 0.9 * energy, "best": energy}, energy, np.full(50, 22), baseline="sum")[::2]
    >>> sum_.particle, round(sum_.mean_rel_percent, 9), round(sum_.rel_loss, 3), best.rel_loss_ratio
    ('all', -10.0, 0.505, 0.0)
    """
    if baseline is not None and baseline not in models:
        raise ValueError(f"baseline {baseline!r} is not among the models {', '.join(models)}; name one of them")
    found = _resampled(models, energy_gev, pdg_id, n_bootstrap=n_bootstrap, seed=seed)
    loss = FIGURES.index("rel_loss")
    scores = []
    for m, model in enumerate(models):
        for particle, (n, value, replicas) in found.items():
            error = replicas[:, m].std(axis=0, ddof=1) if n > 1 else np.full(len(FIGURES), np.nan)
            ratio = np.full(3, np.nan)
            if baseline is not None:
                b = list(models).index(baseline)
                ratio = _with_interval(_over(value[m, loss], value[b, loss]), _over(replicas[:, m, loss], replicas[:, b, loss]))
            scores.append(EnergyScore(model, particle, n, *value[m].tolist(), *error.tolist(), *ratio.tolist()))
    return tuple(scores)


def compare_energy(
    models: Mapping[str, ArrayLike],
    energy_gev: ArrayLike,
    pdg_id: ArrayLike,
    *,
    baseline: str,
    figures: Sequence[str] = _SMALLER_IS_BETTER,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[EnergyComparison, ...]:
    """Every model against one of them on the same showers, with paired 95 % intervals.

    Parameters
    ----------
    models, energy_gev, pdg_id, n_bootstrap, seed
        As for `score_energy`.
    baseline : str
        The model that the others are compared with.
    figures : sequence of str
        Of `FIGURES`, but for ``mean_rel_percent``, of which smaller is not better.

    Returns
    -------
    tuple of EnergyComparison
        Model by model without the baseline, then particle by particle (``"all"`` first), then figure by figure.

    Raises
    ------
    ValueError
        As `score_energy`; no other model, a figure that cannot be compared.

    Notes
    -----
    Percentiles of the bootstrap: both models see the same showers in every replica, so that what they share, above all
    the showers that no model measures well, drops out. One in twenty intervals misses the truth, more of samples so small that
    they may lack the worst showers: of twenty comparisons, one will speak of a difference that is not there.

    Examples
    --------
    >>> energy = np.linspace(1.0, 100.0, 50)
    >>> (row,) = compare_energy(
    ...     {"sum": 0.9 * energy, "half": 0.95 * energy}, energy, np.full(50, 22), baseline="sum", figures=["mae_gev"]
    ... )[:1]
    >>> round(row.difference, 3), round(row.ratio, 9), row.verdict
    (-2.525, 0.5, 'better')
    """
    if baseline not in models or len(models) < 2:
        raise ValueError(f"baseline {baseline!r} with the models {', '.join(models)}; it and at least one other must be among them")
    if wrong := [f for f in figures if f not in _SMALLER_IS_BETTER]:
        raise ValueError(f"figure {wrong[0]!r} cannot be compared; allowed: {', '.join(_SMALLER_IS_BETTER)}")
    names = list(models)
    b = names.index(baseline)
    found = _resampled(models, energy_gev, pdg_id, n_bootstrap=n_bootstrap, seed=seed)
    rows = []
    for m, model in enumerate(names):
        if m == b:
            continue
        for particle, (n, value, replicas) in found.items():
            for figure in figures:
                k = FIGURES.index(figure)
                difference = _with_interval(value[m, k] - value[b, k], replicas[:, m, k] - replicas[:, b, k])
                ratio = _with_interval(_over(value[m, k], value[b, k]), _over(replicas[:, m, k], replicas[:, b, k]))
                verdict = "better" if difference[2] < 0 else "worse" if difference[1] > 0 else "no difference"
                if n < _FEWEST:
                    verdict = "no difference"
                d, d_low, d_high = difference.tolist()
                r, r_low, r_high = ratio.tolist()
                rows.append(EnergyComparison(model, baseline, particle, figure, n, d, d_low, d_high, r, r_low, r_high, verdict))
    return tuple(rows)


def particle_masks(pdg_id: ArrayLike) -> dict[str, NDArray[np.bool_]]:
    """Showers of each particle by its name, in the order of the particle gun's list; unknown ones by their number, last.

    Examples
    --------
    >>> {name: mask.tolist() for name, mask in particle_masks([-211, 22, 9]).items()}
    {'gamma': [False, True, False], 'pi-': [True, False, False], '9': [False, False, True]}
    """
    pdg = np.asarray(pdg_id)
    present = {int(code) for code in np.unique(pdg)}
    named = {name: code for name, code in PDG.items() if code in present}
    named |= {str(code): code for code in sorted(present - set(PDG.values()))}
    return {name: pdg == code for name, code in named.items()}


# of one particle: showers, figures (model, figure), and the same of each replica (replica, model, figure)
_Figures = tuple[int, FloatArray, FloatArray]


def _resampled(
    models: Mapping[str, ArrayLike], energy_gev: ArrayLike, pdg_id: ArrayLike, *, n_bootstrap: int, seed: int
) -> dict[str, _Figures]:
    """Figures of all models for all particles and each, as they are and resampled."""
    energy, pdg = np.asarray(energy_gev, dtype=np.float64), np.asarray(pdg_id)
    predicted = _checked(models, energy, pdg)
    if n_bootstrap < 2:
        raise ValueError(f"n_bootstrap = {n_bootstrap} must be >= 2; 1000 gives intervals to a tenth of their width")
    masks = particle_masks(pdg)
    members = {"all": np.arange(energy.size), **{name: np.flatnonzero(mask) for name, mask in masks.items()}}
    groups = {name: _Group(predicted[:, index], energy[index]) for name, index in members.items()}
    streams = np.random.default_rng(seed).spawn(len(masks))
    parts: dict[str, list[FloatArray]] = {name: [] for name in members}
    at_once = max(1, _CHUNK // energy.size)
    for first in range(0, n_bootstrap, at_once):
        rows = min(at_once, n_bootstrap - first)
        counts = np.empty((rows, energy.size), dtype=np.int64)
        for name, rng in zip(masks, streams, strict=True):
            counts[:, members[name]] = np.concatenate(list(replica_counts(members[name].size, rows, rng)))
        for name, index in members.items():
            parts[name].append(groups[name].figures(counts[:, index]))
    once = {name: group.figures(np.ones((1, members[name].size), dtype=np.int64))[0] for name, group in groups.items()}
    return {name: (members[name].size, once[name], np.concatenate(parts[name])) for name in members}


class _Group:
    """The showers of one particle, ready to be counted many times."""

    def __init__(self, predicted: FloatArray, energy: FloatArray) -> None:
        off = predicted - energy  # (model, shower)
        rel = off / energy
        self.centre = rel.mean(axis=1)  # taken off: squares of numbers close to -1 would lose the spread
        about = rel - self.centre[:, None]
        # (shower, moment, model)
        self.moments = np.stack([about, about**2, np.abs(off), off**2, off**2 / energy]).transpose(2, 0, 1)
        self.order = np.argsort(rel, axis=1, kind="stable")
        self.ordered = np.take_along_axis(rel, self.order, axis=1)

    def figures(self, counts: NDArray[np.int64]) -> FloatArray:
        """`FIGURES` of each replica, (replica, model, figure), from how often it has each shower, (replica, shower)."""
        n, _, n_models = self.moments.shape
        mean = (counts.astype(np.float64) @ self.moments.reshape(n, -1)).reshape(-1, 5, n_models) / n
        shift, square, mae, mse, loss = np.moveaxis(mean, 1, 0)  # each (replica, model)
        spread = np.sqrt(np.maximum(square - shift**2, 0.0))
        half = np.column_stack(
            [shortest_half(drawn(self.ordered[m], counts[:, self.order[m]])) for m in range(n_models)]
        )  # (replica, model)
        return np.stack([100 * (self.centre + shift), 100 * spread, mae, np.sqrt(mse), loss, 100 * half], axis=-1)


def _checked(models: Mapping[str, ArrayLike], energy: FloatArray, pdg: NDArray[Any]) -> FloatArray:
    """Predictions, (model, shower)."""
    if not models:
        raise ValueError("no models to score; give the predictions of at least one")
    if energy.ndim != 1 or energy.size == 0 or pdg.shape != energy.shape:
        raise ValueError(f"energy_gev has shape {energy.shape} and pdg_id {pdg.shape}; both must be (shower,), with at least one shower")
    if not (np.isfinite(energy) & (energy > 0)).all():
        at = int(np.argmin(np.isfinite(energy) & (energy > 0)))
        raise ValueError(f"energy_gev of shower {at} is {energy[at]}; it must be finite and > 0")
    predicted = []
    for name, values in models.items():
        row = np.asarray(values, dtype=np.float64)
        if row.shape != energy.shape:
            raise ValueError(f"predictions of {name} have shape {row.shape}; {energy.size} showers need {energy.shape}")
        if not np.isfinite(row).all():
            at = int(np.argmin(np.isfinite(row)))
            raise ValueError(f"prediction of {name} for shower {at} is {row[at]}; a model must measure every shower")
        predicted.append(row)
    return np.stack(predicted)


def _over(above: ArrayLike, below: ArrayLike) -> FloatArray:
    """Ratio, NaN where the lower one is 0."""
    a, b = np.broadcast_arrays(np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64))
    ratio: FloatArray = np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0)
    return ratio


def _with_interval(value: ArrayLike, replicas: FloatArray) -> FloatArray:
    """Value, low and high end of its 95 % interval; NaN ends where a replica has no value."""
    return np.array([float(np.asarray(value)), *np.quantile(replicas, (0.025, 0.975))])
