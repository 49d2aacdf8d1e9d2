"""What runs of `calolife energy` keep and show: scores, comparisons, resolutions, and figures with the numbers behind them."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calolife.cli import energy_crystals
from calolife.cli.options import Report, print_table

if TYPE_CHECKING:
    import polars as pl

    from calolife.energy.crystal_scores import CruijffScore
    from calolife.energy.features import EnergySample, Prediction
    from calolife.energy.resolution import EnergyBins, Resolution
    from calolife.energy.scores import EnergyComparison, EnergyScore
    from calolife.runs import Metric, Run

__all__ = [
    "Evaluation",
    "energies_remark",
    "evaluate_models",
    "print_evaluation",
    "print_scores",
    "save_curves",
    "save_evaluation",
    "save_held_out",
    "score_metrics",
    "to_json_dict",
    "training_metrics",
]

SPREADS = ("sigma_eff", "resolution")  # what the three terms are fitted to: half the shortest interval, and the standard deviation
_BY_LIKELIHOOD = ("bdt", "drn")  # their loss is -ln L, not the published one
_FEW_ENERGIES = 20  # chosen: as many as the bins of a beam test
_SCALES = (100.0, 1.0, 100.0)  # S, N and C as shown: % sqrt(GeV), GeV, %
_UNITS = {
    "mean_rel_percent": "%", "sigma_rel_percent": "%", "sigma_eff_percent": "%", "mae_gev": "GeV", "rmse_gev": "GeV", "rel_loss": "GeV",
}  # fmt: skip
_HEADER = ["mean [%]", "sigma [%]", "sigma_eff [%]", "MAE [GeV]", "RMSE [GeV]", "rel. loss [GeV]"]
_COLUMNS = ("mean_rel_percent", "sigma_rel_percent", "sigma_eff_percent", "mae_gev", "rmse_gev", "rel_loss")


@dataclass(frozen=True)
class Evaluation:
    """Models on the same showers.

    Parameters
    ----------
    sample : EnergySample
    predictions : mapping of str to Prediction
    reference : str
        Model that the others are compared with.
    scores : tuple of EnergyScore
    comparisons : tuple of EnergyComparison
        None for a single model.
    bins : mapping of (model, particle) to EnergyBins
        Those that have showers enough.
    fits : mapping of (model, particle, spread) to Resolution
        Those that the bins determine.
    unfitted : mapping of (model, particle) to str
        Why there is no fit of the effective sigmas.
    label : str
        What the showers are called in titles.
    crystals : tuple of CruijffScore
        Of objects in crystals; none of layers.
    """

    sample: EnergySample
    predictions: Mapping[str, Prediction]
    reference: str
    scores: tuple[EnergyScore, ...]
    comparisons: tuple[EnergyComparison, ...]
    bins: Mapping[tuple[str, str], EnergyBins]
    fits: Mapping[tuple[str, str, str], Resolution]
    unfitted: Mapping[tuple[str, str], str]
    label: str = ""
    crystals: tuple[CruijffScore, ...] = ()


def evaluate_models(
    models: Mapping[str, Any],
    sample: EnergySample,
    *,
    reference: str,
    edges_gev: Sequence[float] | None = None,
    seed: int = 0,
    label: str = "",
    tell: Report | None = None,
) -> Evaluation:
    """Predict, score, compare and fit; nothing is written. `tell` hears of what takes long.

    Raises
    ------
    ValueError
        A model of another detector, or energy bins given that the showers do not fill.
    """
    from calolife.energy.resolution import TERMS, energy_bins, fit_resolution
    from calolife.energy.scores import compare_energy, particle_masks, score_energy
    from calolife.errors import NotConvergedError

    predictions: dict[str, Prediction] = {}
    for i, (name, model) in enumerate(models.items()):
        if tell is not None:
            tell("measuring", i, len(models))
        try:
            predictions[name] = model.predict(sample)
        except ValueError as error:
            said = str(error)
            raise ValueError(said if said.startswith(f"model {name} ") else f"model {name}: {said}") from error
    energies = {name: made.energy_gev for name, made in predictions.items()}
    truth = sample.energy_gev, sample.pdg_id
    scores = score_energy(energies, *truth, baseline=reference, seed=seed)
    comparisons = compare_energy(energies, *truth, baseline=reference, seed=seed) if len(models) > 1 else ()
    bins: dict[tuple[str, str], EnergyBins] = {}
    fits: dict[tuple[str, str, str], Resolution] = {}
    unfitted: dict[tuple[str, str], str] = {}
    for name, energy_gev in energies.items():
        for particle, of_it in _particles(particle_masks(sample.pdg_id), sample.n_showers).items():
            try:
                found = energy_bins(energy_gev[of_it], sample.energy_gev[of_it], edges_gev=edges_gev, seed=seed)
            except ValueError as error:
                if edges_gev is not None and particle == "all":
                    raise
                unfitted[name, particle] = str(error)
                continue
            bins[name, particle] = found
            if found.n.size <= len(TERMS):  # as many points as terms: a curve through them tests nothing
                n = found.n.size
                unfitted[name, particle] = (
                    f"{n} energy bin{'s' * (n > 1)}, {len(TERMS) + 1} or more are needed; simulate more showers, over a range of energies, "
                    "or give --bins"
                )
                continue
            for spread in SPREADS:
                try:
                    fits[name, particle, spread] = fit_resolution(
                        found.energy_gev, getattr(found, spread), getattr(found, f"{spread}_error")
                    )
                except (ValueError, NotConvergedError) as error:  # a spread of 0, points that bound nothing
                    if spread == SPREADS[0]:
                        unfitted[name, particle] = str(error)
    crystals: tuple[CruijffScore, ...] = ()
    if sample.objects is not None:
        from calolife.energy.crystal_scores import score_crystals

        crystals = score_crystals(predictions, sample, reference=reference, edges_gev=edges_gev, seed=seed, tell=tell)
    return Evaluation(sample, predictions, reference, scores, comparisons, bins, fits, unfitted, label, crystals)


def to_json_dict(found: Evaluation) -> dict[str, Any]:
    """All results as plain numbers."""
    gained = energy_crystals.whole_rows(found.crystals)
    names = {particle for _, particle in gained}
    whole = names.pop() if len(names) == 1 else "all"  # of a single particle "all" stands under its name
    crystals = {"cruijff": [s.to_json_dict() for s in found.crystals]} if found.sample.objects is not None else {}
    return {
        "results": [s.to_json_dict() | gained.get((s.model, whole if s.particle == "all" else s.particle), {}) for s in found.scores],
        **crystals,
        "reference": found.reference,
        "comparison": [c.to_json_dict() for c in found.comparisons],
        "resolution": [{"model": m, "particle": p, "spread": s, **fit.to_json_dict()} for (m, p, s), fit in found.fits.items()],
        "bins": _bin_rows(found.bins),
        "pulls": _pull_rows(found),
    }


def score_metrics(scores: Sequence[EnergyScore], *, is_named: bool = True) -> dict[str, Metric]:
    """Each figure of each model and particle, as a run keeps it."""
    from calolife.runs import Metric

    return {
        " ".join([name, *([s.model] if is_named else []), s.particle]): Metric(getattr(s, name), getattr(s, f"{name}_error"), unit, s.n)
        for s in scores
        for name, unit in _UNITS.items()
    }


def training_metrics(model: Any, *, n: int) -> dict[str, Metric]:
    """What a model tells of its own training: losses and epochs of a network."""
    from calolife.runs import Metric

    net = _network_of(model)
    if net is None:
        return {}
    best, unit = net.best_epoch - 1, "" if net.name in _BY_LIKELIHOOD else "GeV"
    return {
        "validation_loss": Metric(float(net.validation_loss[best]), math.nan, unit, n),
        "training_loss": Metric(float(net.loss[best]), math.nan, unit, n),
        "epochs": Metric(float(net.loss.size), math.nan, "", n),
        "best_epoch": Metric(float(net.best_epoch), math.nan, "", n),
    }


def energies_remark(model: Any, training: EnergySample) -> str | None:
    """What to say of a flexible model that was shown a few energies only; None otherwise."""
    n = np.unique(training.energy_gev).size
    if 2 * n > min(training.n_showers, 2 * _FEW_ENERGIES) or getattr(model, "model", model).name in ("uncalibrated", "sum", "linear"):
        return None
    return (
        f"the showers have {n} true energ{'y' if n == 1 else 'ies'}: {model.name} may answer with what it was shown, not measure, and its "
        "resolution then means nothing; train on a range of energies, or take sum or linear"
    )


def save_evaluation(run: Run, found: Evaluation) -> None:
    """Scores, comparisons, resolutions, predictions and figures."""
    import polars as pl

    from calolife.runs import write_metrics, write_table

    document = to_json_dict(found)
    write_table(run, "scores", pl.DataFrame(document["results"], infer_schema_length=None))
    for name in ("comparison", "bins", "pulls", "cruijff"):
        if document.get(name):
            write_table(run, name, pl.DataFrame(document[name], infer_schema_length=None))
    if found.fits:
        write_table(run, "resolution", _fit_table(found.fits))
    write_table(run, "predictions", _prediction_table(found))
    write_metrics(run, score_metrics(found.scores) | _fit_metrics(found) | energy_crystals.crystal_metrics(found.crystals))
    _draw_curves(run, found)
    if found.sample.objects is None:
        _draw_profiles(run, found.sample, label=found.label)
    else:
        energy_crystals.draw_crystals(
            run, found.crystals, found.sample, found.predictions, reference=found.reference, label=found.label
        )  # fmt: skip
    for name, made in found.predictions.items():
        _draw_predicted(run, name, found.sample, made, label=found.label)
        _draw_residuals(run, name, found.sample, made, label=found.label)


def save_held_out(run: Run, model: Any, held_out: EnergySample, *, label: str = "") -> tuple[EnergyScore, ...]:
    """Score a model on the showers held out, and draw predicted against true."""
    from calolife.energy.scores import score_energy

    made = model.predict(held_out)
    _draw_predicted(run, model.name, held_out, made, label=label)
    return score_energy({model.name: made.energy_gev}, held_out.energy_gev, held_out.pdg_id)


def save_curves(run: Run, model: Any) -> None:
    """Draw how the losses of a network fell; nothing for a model without."""
    import polars as pl

    from calolife.plots_crystals import plot_likelihood
    from calolife.plots_energy import plot_training
    from calolife.runs import write_plot

    net = _network_of(model)
    if net is None:
        return
    unit = "" if net.name in _BY_LIKELIHOOD else "_gev"
    curve = {"epoch": np.arange(1, net.loss.size + 1), f"loss{unit}": net.loss, f"validation_loss{unit}": net.validation_loss}
    if net.name in _BY_LIKELIHOOD:
        step = "Round" if net.name == "bdt" else "Epoch"
        drawn = plot_likelihood(net.loss, net.validation_loss, best_epoch=net.best_epoch, step=step, title=net.name)
    else:
        drawn = plot_training(net.loss, net.validation_loss, best_epoch=net.best_epoch, title=net.name)
    write_plot(run, "training", drawn, pl.DataFrame(curve))


def print_evaluation(found: Evaluation) -> None:
    """Scores of all models and particles, who is better than the reference, and the three terms."""
    kind = "showers" if found.sample.objects is None else "objects"
    print_scores(f"{found.sample.n_showers} {kind} that no model was trained on", found.scores)
    told = _shown_particles(s.particle for s in found.scores)
    if found.comparisons:
        shown = ("rel_loss", "sigma_eff_percent")
        rows = [
            [f"{c.model}, {c.particle}", c.figure, _signed(c.difference, c.difference_low, c.difference_high),
             f"{c.ratio:.3f} [{c.ratio_low:.3f}, {c.ratio_high:.3f}]", c.verdict]
            for c in found.comparisons if c.figure in shown and c.particle in told
        ]  # fmt: skip
        header = ["model, particle", "figure", "difference [95 %]", "ratio [95 %]", "verdict"]
        print_table(f"against {found.reference}, paired", header, rows)
    rows = []
    for (model, particle, spread), fit in found.fits.items():
        if spread != "sigma_eff" or particle not in told:
            continue
        terms = [
            _term(value, error, upper, scale, is_seen=is_seen)
            for value, error, upper, scale, is_seen in zip(
                (fit.stochastic, fit.noise, fit.constant), fit.errors, fit.upper95, _SCALES, fit.is_seen, strict=True
            )
        ]
        rows.append([f"{model}, {particle}", *terms, f"{fit.chi2:.1f} / {fit.ndf}"])
    if rows:
        header = ["model, particle", "S [% sqrt(GeV)]", "N [GeV]", "C [%]", "chi2 / ndf"]
        print_table("effective sigma / E = S/sqrt(E) (+) N/E (+) C", header, rows)
    reasons: dict[tuple[str, str], list[str]] = {}
    for (model, particle), why in found.unfitted.items():
        if particle in told:
            reasons.setdefault((particle, why), []).append(model)
    for (particle, why), models in reasons.items():
        what = particle if len(models) == len(found.predictions) else f"{particle} by {', '.join(models)}"
        print(f"no resolution fit for {what}: {why}")
    if found.sample.objects is not None:
        energy_crystals.print_crystals(found.crystals, n=found.sample.n_showers, reference=found.reference)


def print_scores(title: str, scores: Sequence[EnergyScore]) -> None:
    """Figures of each model and particle with their errors; of a single particle once."""
    told = _shown_particles(s.particle for s in scores)
    rows = [
        [f"{s.model}, {s.particle}", str(s.n), *(with_error(getattr(s, c), getattr(s, f"{c}_error")) for c in _COLUMNS)]
        for s in scores
        if s.particle in told
    ]
    print_table(title, ["model, particle", "n", *_HEADER], rows)


def with_error(value: float, error: float) -> str:
    """A value to two digits of its error."""
    if not (math.isfinite(error) and error > 0):
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} +- {error:.{digits}f}"


def _signed(value: float, low: float, high: float) -> str:
    width = high - low
    digits = max(0, 2 - math.floor(math.log10(width))) if math.isfinite(width) and width > 0 else 3
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _term(value: float, error: float, upper: float, scale: float, *, is_seen: bool) -> str:
    return with_error(scale * value, scale * error) if is_seen else f"< {_two_digits(scale * upper)} (95 %)"


def _shown_particles(particles: Iterable[str]) -> tuple[str, ...]:
    """Particles to show: where all showers are of one, "all" would say the same again."""
    found = tuple(dict.fromkeys(particles))
    return tuple(p for p in found if p != "all") if len(found) == 2 else found


def _titled(what: str, label: str) -> str:
    return f"{what}; {label}" if label else what


def _network_of(model: Any) -> Any:
    """The network of a model that tells how its loss fell, linearised or not; None of another."""
    inner = getattr(model, "model", model)
    return inner if hasattr(inner, "best_epoch") else None


def _two_digits(value: float) -> str:
    """Without an exponent: 140, 2.5, 0.031."""
    if not (math.isfinite(value) and value > 0):
        return f"{value:g}"
    digits = 1 - math.floor(math.log10(value))
    return f"{round(value, digits):.{max(0, digits)}f}"


def _particles(masks: Mapping[str, Any], n: int) -> dict[str, Any]:
    return {"all": np.ones(n, dtype=np.bool_), **masks}


def _bin_rows(bins: Mapping[tuple[str, str], EnergyBins]) -> list[dict[str, Any]]:
    return [{"model": m, "particle": p, **row} for (m, p), b in bins.items() for row in b.to_json_dict()]


def _pull_rows(found: Evaluation) -> list[dict[str, Any]]:
    """Mean and width of (E' - E)/sigma, for models that give a sigma."""
    from calolife.energy.scores import particle_masks

    rows = []
    for model, made in found.predictions.items():
        if made.sigma_gev is None or not (made.sigma_gev > 0).all():
            continue
        pull = (made.energy_gev - found.sample.energy_gev) / made.sigma_gev
        for particle, of_it in _particles(particle_masks(found.sample.pdg_id), pull.size).items():
            here, n = pull[of_it], int(of_it.sum())
            within = float((np.abs(here) < 1).mean())
            width = float(here.std(ddof=1)) if n > 1 else math.nan
            rows.append({"model": model, "particle": particle, "n": n, "mean": float(here.mean()), "width": width,
                         "within_one_sigma": within})  # fmt: skip
    return rows


def _fit_metrics(found: Evaluation) -> dict[str, Metric]:
    from calolife.energy.resolution import TERMS
    from calolife.runs import Metric

    metrics = {}
    for (model, particle, spread), fit in found.fits.items():
        n = int(found.bins[model, particle].n.sum())
        for name, error, scale, unit in zip(TERMS, fit.errors.tolist(), _SCALES, ("% sqrt(GeV)", "GeV", "%"), strict=True):
            metrics[f"{name} of {spread} {model} {particle}"] = Metric(scale * getattr(fit, name), scale * error, unit, n)
    return metrics


def _fit_table(fits: Mapping[tuple[str, str, str], Resolution]) -> pl.DataFrame:
    import polars as pl

    rows = []
    for (model, particle, spread), fit in fits.items():
        row: dict[str, Any] = {"model": model, "particle": particle, "spread": spread}
        for k, (name, unit) in enumerate((("stochastic", "_sqrt_gev"), ("noise", "_gev"), ("constant", ""))):
            row[f"{name}{unit}"] = getattr(fit, name)
            row[f"{name}_error"], row[f"{name}_upper95"] = float(fit.errors[k]), fit.upper95[k]
        for i, j, name in ((0, 1, "stochastic_noise"), (0, 2, "stochastic_constant"), (1, 2, "noise_constant")):
            row[f"covariance_{name}"] = float(fit.covariance[i, j])
        rows.append(row | {"chi2": fit.chi2, "ndf": fit.ndf})
    return pl.DataFrame(rows, infer_schema_length=None)


def _prediction_table(found: Evaluation) -> pl.DataFrame:
    """One row per shower."""
    import polars as pl

    sample = found.sample
    columns: dict[str, Any] = {"pdg_id": sample.pdg_id, "energy_gev": sample.energy_gev, "visible_mev": sample.visible_mev}
    for name, made in found.predictions.items():
        columns[f"predicted_gev {name}"] = made.energy_gev
        if made.sigma_gev is not None:
            columns[f"sigma_gev {name}"] = made.sigma_gev
    return pl.DataFrame(columns)


def _draw_curves(run: Run, found: Evaluation) -> None:
    """Response and resolution of all models, for all particles and for each."""
    import polars as pl

    from calolife.plots_energy import plot_energy_response, plot_resolution_curve
    from calolife.runs import write_plot

    shown = _shown_particles(s.particle for s in found.scores)
    is_several = len(shown) > 1
    for particle in (p for p in dict.fromkeys(p for _, p in found.bins) if p in shown):
        bins = {m: b for (m, p), b in found.bins.items() if p == particle}
        fits = {m: f for (m, p, s), f in found.fits.items() if (p, s) == (particle, "sigma_eff")}
        # of showers of one particle there is one figure, under the plain name
        suffix = "" if particle == "all" or not is_several else f"-{particle}"
        what = _titled("all particles" if particle == "all" else particle, found.label)
        # an uncalibrated sum at a tenth of the energy would flatten all others
        near = {m: b for m, b in bins.items() if 0.5 < float(np.median(b.response)) < 2.0} or bins
        bins = {**near, **bins}  # those left out come last, so that a model has one colour in both figures
        left_out = ", ".join(m for m in bins if m not in near)
        title = f"{what}; off the scale: {left_out}" if left_out else what
        rows = [r for r in _bin_rows(found.bins) if r["particle"] == particle]
        response = pl.DataFrame([{k: v for k, v in r.items() if "sol" not in k and "sigma" not in k} for r in rows])
        write_plot(run, f"response{suffix}", plot_energy_response(near, title=title), response)
        resolution = pl.DataFrame([{k: v for k, v in r.items() if "response" not in k} for r in rows])
        drawn = plot_resolution_curve(bins, fits=fits, is_effective=True, title=what)
        write_plot(run, f"resolution{suffix}", drawn, resolution)


def _draw_profiles(run: Run, sample: EnergySample, *, label: str) -> None:
    import polars as pl

    from calolife.energy.scores import particle_masks
    from calolife.plots_energy import plot_profiles
    from calolife.runs import write_plot

    masks = particle_masks(sample.pdg_id)
    edges = np.unique(np.quantile(sample.energy_gev, [0, 1 / 3, 2 / 3, 1]))
    edges = np.repeat(edges, 2) if edges.size == 1 else edges
    columns: dict[str, Any] = {"layer": np.arange(sample.n_layers)}
    for name, mask in masks.items():
        for low, high in itertools.pairwise(edges.tolist()):
            last = sample.energy_gev <= high if high == edges[-1] else sample.energy_gev < high
            inside = mask & (sample.energy_gev >= low) & last
            if inside.any():
                profile = sample.layer_energy_mev[inside].sum(axis=0) / sample.energy_gev[inside].sum()
                columns[f"{name} {low:.4g}-{high:.4g} gev [mev/gev]"] = profile
    drawn = plot_profiles(sample.layer_energy_mev, sample.energy_gev, of_particle=masks, edges_gev=edges.tolist(), title=label)
    write_plot(run, "profiles", drawn, pl.DataFrame(columns))


def _draw_predicted(run: Run, name: str, sample: EnergySample, made: Prediction, *, label: str) -> None:
    import polars as pl

    from calolife.energy.scores import particle_masks
    from calolife.plots_energy import plot_predicted
    from calolife.runs import write_plot

    drawn = plot_predicted(made.energy_gev, sample.energy_gev, of_particle=particle_masks(sample.pdg_id), title=_titled(name, label))
    columns = {"pdg_id": sample.pdg_id, "energy_gev": sample.energy_gev, "predicted_gev": made.energy_gev}
    write_plot(run, f"predicted-{_file_name(name)}", drawn, pl.DataFrame(columns))


def _draw_residuals(run: Run, name: str, sample: EnergySample, made: Prediction, *, label: str) -> None:
    """Residuals, and pulls where the model gives a sigma, per particle."""
    import polars as pl

    from calolife.energy.scores import particle_masks
    from calolife.plots_energy import plot_pulls, plot_residuals
    from calolife.runs import write_plot

    masks = particle_masks(sample.pdg_id)
    of = "showers" if sample.objects is None else "objects"
    off = made.energy_gev - sample.energy_gev
    residual = off / sample.energy_gev
    drawn = plot_residuals({p: residual[mask] for p, mask in masks.items()}, of=of, title=_titled(name, label))
    write_plot(run, f"residuals-{_file_name(name)}", drawn, pl.DataFrame({"pdg_id": sample.pdg_id, "residual": residual}))
    if made.sigma_gev is not None and (made.sigma_gev > 0).all():
        pull = off / made.sigma_gev
        drawn = plot_pulls({p: pull[mask] for p, mask in masks.items()}, of=of, title=_titled(name, label))
        write_plot(run, f"pulls-{_file_name(name)}", drawn, pl.DataFrame({"pdg_id": sample.pdg_id, "pull": pull}))


def _file_name(model: str) -> str:
    """A model named by its path must not be a path among the plots."""
    return re.sub(r"[^\w.+-]+", "_", model).strip("_.") or "model"
