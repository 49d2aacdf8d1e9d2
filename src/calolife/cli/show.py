"""`calolife show`: what a run was asked, and what came out."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from calolife.cli.options import Config, Debug, Json, Quiet, print_json, print_table

__all__ = ["show"]


def show(
    run: Annotated[Path, typer.Argument(help="Run directory.", show_default=False)],
    as_json: Json = False,
    config: Config = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Print a run: its options, its numbers, its files."""
    from calolife.runs import read_run

    stored = read_run(run)
    if as_json:
        metrics = {name: asdict(m) for name, m in stored.metrics.items()}
        print_json({"config": stored.config, "metrics": metrics, "provenance": stored.provenance, "files": list(stored.files)})
        return
    options = " ".join(f"{name}={value}" for name, value in stored.config.get("options", stored.config).items())
    print(f"{stored.path}: {stored.config.get('command', 'run')} {options}")
    versions = stored.provenance["versions"]
    print(f"calolife {versions['calolife']}, finished {stored.provenance['finished']}, {stored.provenance['wall_s']:.1f} s")
    if stored.metrics:
        rows = [[name, _rounded(m.value, m.uncertainty), m.unit, str(m.n)] for name, m in stored.metrics.items()]
        print_table("metrics", ["name", "value", "unit", "n"], rows)
    for name in stored.files:
        print(stored.path / name)


def _rounded(value: float, uncertainty: float) -> str:
    if math.isfinite(value) and math.isfinite(uncertainty) and uncertainty > 0:
        digits = max(0, 1 - math.floor(math.log10(uncertainty)))
        return f"{value:.{digits}f} +- {uncertainty:.{digits}f}"
    return f"{value:.4g}"
