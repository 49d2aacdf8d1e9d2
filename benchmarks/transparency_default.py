"""Which forecaster each mode should use by default: rolling origin inside a training span, and synthetic years.

    python benchmarks/transparency_default.py DATA --train 2016 --out benchmarks/results/transparency_default.json

Nothing after the training span is read. Window mode is judged on what follows 40, 60 and 80 % of the span; free run from the
same points to its end; year to year on synthetic histories, fitted on their first year. The winner of a mode is the model with
the smallest mean over the span's cuts (window) and over the synthetic years (free run).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np

from calolife.storage import read_history
from calolife.transparency.forecasters import MODELS, fit_model
from calolife.transparency.history import TransparencyHistory
from calolife.transparency.intervals import time_at_fraction
from calolife.transparency.synthetic import simulate_history

CUTS = (0.4, 0.6, 0.8)
WINDOW = 24


def score(model, block, first: int) -> dict[str, float]:
    """MAPE [%] of windows from a row on, and of a free run from there to the end."""
    n = (block.n_readings - first) // WINDOW
    made = {
        "window": model.forecast(block, origins=first + WINDOW * np.arange(n), horizon=WINDOW),
        "free-run": model.forecast(block, origins=np.array([first]), horizon=WINDOW * n),
    }
    truth = {mode: block.transparency[:, f.row] for mode, f in made.items()}
    return {mode: float(100 * np.mean(np.abs(f.transparency / truth[mode] - 1))) for mode, f in made.items()}


def inside_span(names: list[str], history: TransparencyHistory, seed: int) -> list[dict]:
    rows = []
    for cut in CUTS:
        start = time_at_fraction(history, cut)
        end = time_at_fraction(history, min(cut + 0.2, 1.0)) if cut + 0.2 < 1 else np.inf
        head = history.before(start)
        for name in names:
            began = time.perf_counter()
            model = fit_model(name, head, seed=seed)
            took = time.perf_counter() - began
            for block in history.blocks:
                first = int(np.searchsorted(block.time_s, start))
                stop = int(np.searchsorted(block.time_s, end))
                near = score(model, block.readings(0, stop), first)
                far = score(model, block, first)
                errors = {"window": near["window"], "free-run": far["free-run"]}
                rows.append({"where": f"{cut:.0%} of span", "model": name, "fit_s": took} | errors)
                print(rows[-1], flush=True)
    return rows


def on_synthetic(names: list[str], seeds: range) -> list[dict]:
    rows = []
    for seed in seeds:
        history, _ = simulate_history(n_crystals=4, n_years=3, seed=seed)
        first, *later = history.years
        for name in names:
            model = fit_model(name, history.select(years=[first]), seed=0)
            for year in later:
                for block in history.of_year(year):
                    rows.append({"where": f"synthetic {seed}, year {year - first + 1}", "model": name} | score(model, block, WINDOW))
                    print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--train", type=int, nargs="+", default=[2016])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--synthetic-seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    history = read_history(options.data, years=options.train)
    span = inside_span(options.models, history, options.seed)
    synthetic = on_synthetic(options.models, range(options.synthetic_seeds))
    mean = {
        where: {
            mode: {name: float(np.mean([r[mode] for r in rows if r["model"] == name])) for name in options.models}
            for mode in ("window", "free-run")
        }
        for where, rows in (("span", span), ("synthetic", synthetic))
        if rows
    }
    best = {"window": min(mean["span"]["window"], key=mean["span"]["window"].get)}
    if synthetic:
        best["free-run"] = min(mean["synthetic"]["free-run"], key=mean["synthetic"]["free-run"].get)
    result = {"train": options.train, "mean_mape_percent": mean, "best": best, "rows": span + synthetic, "machine": platform.platform()}
    print(json.dumps({"mean_mape_percent": mean, "best": best}, indent=2))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
