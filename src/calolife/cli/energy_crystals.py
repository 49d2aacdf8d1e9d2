"""What runs of `calolife energy` keep and show of electrons and photons in crystals: Cruijff fits in regions and bins, overtraining."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from calolife.cli.options import print_table
from calolife.runs import json_number

if TYPE_CHECKING:
    from calolife.energy.crystal_scores import CruijffScore
    from calolife.energy.features import EnergySample, Prediction
    from calolife.energy.lineshapes import LineFit
    from calolife.runs import Metric, Run

__all__ = [
    "crystal_metrics",
    "draw_crystals",
    "overtraining_metrics",
    "print_crystals",
    "print_overtraining",
    "save_overtraining",
    "whole_rows",
]

_FEW = 100  # objects of each kind; chosen: sigma of fewer is not known to 7 %
_SHORT = {"energy_gev": "energy", "abs_eta": "eta", "rho_gev": "rho"}


def whole_rows(scores: Sequence[CruijffScore]) -> dict[tuple[str, str], dict[str, Any]]:
    """What the row of each model and particle among the results gains, of all regions together."""
    names = ("cruijff_mean", "cruijff_mean_error", "cruijff_sigma_percent", "cruijff_sigma_percent_error")
    return {
        (s.model, s.particle): {"eta_region": "all", **{name: json_number(getattr(s, name)) for name in names}}
        for s in scores
        if s.eta_region == "all" and s.variable == "all"
    }


def crystal_metrics(scores: Sequence[CruijffScore]) -> dict[str, Metric]:
    """Peak, resolution and pull width of each model, particle and region."""
    from calolife.runs import Metric

    return {
        f"{name} {s.model} {s.particle} {s.eta_region}": Metric(getattr(s, name), getattr(s, f"{name}_error"), unit, s.n)
        for s in scores
        for name, unit in (("cruijff_mean", ""), ("cruijff_sigma_percent", "%"), ("pull_width", ""))
        if s.variable == "all" and math.isfinite(getattr(s, name))
    }


def print_crystals(scores: Sequence[CruijffScore], *, n: int, reference: str) -> None:
    """Fits of each model in each region, and in how many bins a model is better than the reference."""
    from calolife.cli.energy_tables import with_error

    whole = [s for s in scores if s.variable == "all"]
    if not whole:
        print(f"no Cruijff fits: {n} objects, {_FEW} or more are needed")
        return
    rows = [
        [", ".join([s.model, *_particle_of(s, whole), s.eta_region]), str(s.n), with_error(s.cruijff_mean, s.cruijff_mean_error),
         with_error(s.cruijff_sigma_percent, s.cruijff_sigma_percent_error),
         with_error(s.sigma_eff_over_median_percent, s.sigma_eff_over_median_percent_error), with_error(s.pull_width, s.pull_width_error),
         f"{s.ratio:.3f} [{s.ratio_low:.3f}, {s.ratio_high:.3f}]" if math.isfinite(s.ratio) else "", s.verdict]
        for s in whole
    ]  # fmt: skip
    header = ["model, region", "n", "Cruijff mean", "sigma/mu [%]", "sigma_eff [%]", "pull width", f"over {reference} [95 %]", "verdict"]
    print_table("Cruijff fits of E'/E, and the width of (E' - E)/sigma(E)", header, rows)
    binned = [s for s in scores if s.variable != "all"]
    for model in dict.fromkeys(s.model for s in binned if s.verdict):
        of_it = [s for s in binned if s.model == model and s.verdict]
        better, worse = ([s for s in of_it if s.verdict == v] for v in ("better", "worse"))
        told = f" ({'; '.join(_bin_text(s, binned) for s in worse[:4])}{' and others' if len(worse) > 4 else ''})" if worse else ""
        print(f"{model} against {reference} in {len(of_it)} bins of energy, eta, rho: {len(better)} better, {len(worse)} worse{told}")
    for why, of in _reasons(scores).items():
        print(f"no fit of {of}: {why}")


def draw_crystals(
    run: Run, scores: Sequence[CruijffScore], sample: EnergySample, predictions: Mapping[str, Prediction], *, reference: str, label: str
) -> None:
    """Distributions with their fits, and mean and resolution against energy, eta and rho, for each particle."""
    import polars as pl

    from calolife.energy.crystal_scores import ETA_REGIONS
    from calolife.energy.scores import particle_masks
    from calolife.plots_crystals import plot_cruijff_curves, plot_ratio_fits
    from calolife.runs import write_plot

    particles = list(dict.fromkeys(s.particle for s in scores))
    assert sample.objects is not None
    eta, masks = np.abs(sample.objects.eta), particle_masks(sample.pdg_id)
    models = list(predictions)
    for particle in particles:
        suffix = "" if particle == particles[0] else f"-{particle}"
        of_it = [s for s in scores if s.particle == particle]
        here = np.ones(eta.size, dtype=np.bool_) if particle == "all" else masks[particle]
        for region in dict.fromkeys(s.eta_region for s in of_it if s.variable == "all"):
            low, high = ETA_REGIONS.get(region, (0.0, math.inf))
            inside = here & (eta >= low) & (eta < high)
            ratio = {m: predictions[m].energy_gev[inside] / sample.energy_gev[inside] for m in models}
            fits = {s.model: s.fit for s in of_it if s.variable == "all" and s.eta_region == region and s.fit is not None}
            title = "; ".join(x for x in (particle, "" if region == "all" else f"{region}, {low:g} \u2264 |\u03b7| < {high:g}", label) if x)
            numbers = pl.DataFrame({"energy_gev": sample.energy_gev[inside], **{f"ratio {m}": r for m, r in ratio.items()}})
            name = f"ratio{suffix}" + ("" if region == "all" else f"-{region}")
            write_plot(run, name, plot_ratio_fits(ratio, fits, title=title), numbers)
            if region == "all":
                write_plot(run, f"{name}-log", plot_ratio_fits(ratio, fits, is_log=True, title=title), numbers)
        for region, variable in dict.fromkeys((s.eta_region, s.variable) for s in of_it if s.variable != "all"):
            rows = [s for s in of_it if (s.eta_region, s.variable) == (region, variable)]
            if not any(math.isfinite(s.cruijff_mean) for s in rows):
                continue
            title = "; ".join(x for x in (particle, "" if region == "all" else region, label) if x)
            told = pl.DataFrame([s.to_json_dict() for s in rows], infer_schema_length=None)
            seen = {s.model for s in rows if math.isfinite(s.cruijff_mean)}
            for figure in ("sigma", "mean"):
                drawn = plot_cruijff_curves(rows, figure=figure, reference=reference if reference in seen else None, title=title)
                name = f"cruijff-{figure}-{_SHORT[variable]}{suffix}" + ("" if region == "all" else f"-{region}")
                write_plot(run, name, drawn, told)


def save_overtraining(
    run: Run, model: Any, training: EnergySample, *, held_out: EnergySample, label: str = ""
) -> tuple[dict[str, Any], ...]:
    """Cruijff fits of objects that a model was trained on and of those held out, as rows, with their figure; none of layers or of few.

    Of the training objects no more are taken than were held out.
    """
    import polars as pl

    from calolife.energy.lineshapes import fit_cruijff
    from calolife.errors import NotConvergedError
    from calolife.plots_crystals import plot_overtraining
    from calolife.runs import write_plot

    n = min(training.n_showers, held_out.n_showers)
    if training.objects is None or n < _FEW:
        return ()
    parts = {"training": training.select(np.arange(n)), "held_out": held_out}  # the split put them in a random order
    ratio = {name: model.predict(part).energy_gev / part.energy_gev for name, part in parts.items()}
    try:
        fits: tuple[LineFit, LineFit] | None = (fit_cruijff(ratio["training"]), fit_cruijff(ratio["held_out"]))
    except (ValueError, NotConvergedError):
        fits = None
    numbers = pl.DataFrame(
        {
            "part": np.repeat(list(ratio), [r.size for r in ratio.values()]),
            "energy_gev": np.concatenate([part.energy_gev for part in parts.values()]),
            "ratio": np.concatenate(list(ratio.values())),
        }
    )
    title = "; ".join(x for x in (model.name, label) if x)
    for name, is_log in (("overtraining", False), ("overtraining-log", True)):
        write_plot(run, name, plot_overtraining(ratio["training"], ratio["held_out"], fits=fits, is_log=is_log, title=title), numbers)
    if fits is None:
        return ()
    return tuple(
        {
            "model": model.name, "part": name, "n": int(r.size),
            "cruijff_mean": fit.mu, "cruijff_mean_error": json_number(fit.errors["mu"]),
            "cruijff_sigma_percent": 100 * fit.sigma_over_mu, "cruijff_sigma_percent_error": json_number(100 * fit.sigma_over_mu_error),
        }
        for (name, r), fit in zip(ratio.items(), fits, strict=True)
    )  # fmt: skip


def overtraining_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    """Resolution on both kinds of objects."""
    from calolife.runs import Metric

    return {
        f"cruijff_sigma_percent {row['part']}": Metric(
            row["cruijff_sigma_percent"], _number(row["cruijff_sigma_percent_error"]), "%", row["n"]
        )
        for row in rows
    }


def print_overtraining(rows: Sequence[Mapping[str, Any]]) -> None:
    """Training and held-out objects side by side; nothing where they were not compared."""
    from calolife.cli.energy_tables import with_error

    if not rows:
        return
    table = [
        [row["part"].replace("_", " "), str(row["n"]), with_error(row["cruijff_mean"], _number(row["cruijff_mean_error"])),
         with_error(row["cruijff_sigma_percent"], _number(row["cruijff_sigma_percent_error"]))]
        for row in rows
    ]  # fmt: skip
    print_table("overtraining", ["objects", "n", "Cruijff mean", "sigma/mu [%]"], table)


def _particle_of(score: CruijffScore, among: Sequence[CruijffScore]) -> tuple[str, ...]:
    """The particle, where there are several."""
    return (score.particle,) if len({s.particle for s in among}) > 1 else ()


def _bin_text(score: CruijffScore, among: Sequence[CruijffScore]) -> str:
    where = [*_particle_of(score, among), score.eta_region, f"{_SHORT[score.variable]} {score.low:.3g} to {score.high:.3g}"]
    return f"{', '.join(where)} ({score.ratio:.3f})"


def _reasons(scores: Sequence[CruijffScore]) -> dict[str, str]:
    """Why there are cells without a fit, each reason with the first of its cells."""
    found: dict[str, str] = {}
    for s in scores:
        if s.why:
            place = "" if s.variable == "all" else f" {_SHORT[s.variable]} {s.low:.3g} to {s.high:.3g}"
            found.setdefault(s.why, f"{s.model}, {s.eta_region}{place}")
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else value
