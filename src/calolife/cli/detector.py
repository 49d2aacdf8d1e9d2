"""`calolife detector list | show | check`: what a calorimeter is made of, contains and costs."""

from __future__ import annotations

import re
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calolife.cli.options import Debug, Force, Json, Quiet, print_json, print_table, say

if TYPE_CHECKING:
    from calolife.detector.layers import Section
    from calolife.detector.presets import Detector

__all__ = ["check", "list_detectors", "made_of", "parse_size", "show"]

Described = Annotated[str, typer.Argument(help="Name of a preset, or a TOML file.", show_default=False, metavar="NAME_OR_TOML")]

_PICTURES = (".png", ".pdf", ".svg")


def list_detectors(as_json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Name the detectors that come with calolife."""
    from calolife.detector.presets import load_detector, preset_names

    found = [load_detector(name) for name in preset_names()]
    if as_json:
        print_json({"detectors": [_summary(detector) for detector in found]})
        return
    print_table("detectors", ["name", *_HEADER[2:]], [[d.name, *_row(d.total)[1:]] for d in found])


def show(
    detector: Described,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Draw a side view into this file: png, pdf or svg.", show_default=False)
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Print a detector section by section; draw it."""
    from calolife.detector.presets import load_detector

    loaded = load_detector(detector)
    if out is not None:
        _draw(loaded, out, force=force)
    if as_json:
        sections = [{**asdict(section), "made_of": made_of(loaded, i)} for i, section in enumerate(loaded.sections())]
        print_json({**_summary(loaded), "sections": sections, "readout": asdict(loaded.readout)})
        return
    rows = [[*_row(section)[:1], made_of(loaded, i), *_row(section)[1:]] for i, section in enumerate(loaded.sections())]
    rows.append(["total", f"{loaded.size_x_mm / 10:.6g} x {loaded.size_y_mm / 10:.6g} cm across", *_row(loaded.total)[1:]])
    print_table(f"{loaded.name} (* active, thickness in mm)", _HEADER, rows)
    readout = loaded.readout
    light = readout.light_yield_pe_per_mev
    print(
        f"readout: {f'light yield {light:g} photo-electrons/MeV' if light else 'no photo-statistics'}, "
        f"noise {readout.noise_mev:g} MeV, threshold {readout.threshold_mev:g} MeV, saturation {readout.saturation_mev:g} MeV"
    )
    if loaded.unpriced:
        print(f"no cost: the price of {', '.join(loaded.unpriced)} is not known")
    if out is not None:
        say(f"drawn: {out}", quiet=quiet)


def check(
    detector: Described,
    budget_chf: Annotated[float | None, typer.Option("--budget-chf", help="Most that the materials may cost.", show_default=False)] = None,
    max_length_cm: Annotated[float | None, typer.Option("--max-length-cm", help="Room along the beam.", show_default=False)] = None,
    size_cm: Annotated[str | None, typer.Option("--size-cm", help="Room across: 50x50.", show_default=False)] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Hold a detector against a budget and a space. Exit code 1 if it breaks a limit; advice on containment breaks none."""
    from calolife.detector.limits import check_limits
    from calolife.detector.presets import load_detector

    size = None if size_cm is None else parse_size(size_cm)
    checked = check_limits(load_detector(detector), budget_chf=budget_chf, max_length_cm=max_length_cm, size_cm=size)
    is_limited = not (budget_chf is None and max_length_cm is None and size is None)
    if not is_limited:
        say("no limit given: nothing can be broken; add --budget-chf, --max-length-cm or --size-cm", quiet=quiet)
    if as_json:
        limits = {"budget_chf": budget_chf, "max_length_cm": max_length_cm, "size_cm": None if size is None else list(size)}
        print_json({**asdict(checked), "limits": limits})
    else:
        cost = "cost unknown" if checked.cost_chf is None else f"{checked.cost_chf:.10g} CHF"
        print(
            f"{checked.name}: {cost}, {checked.length_cm:.6g} cm long, {checked.size_x_cm:.6g} x {checked.size_y_cm:.6g} cm across, "
            f"{checked.depth_x0:.1f} X0, {checked.depth_lambda:.2f} lambda_I, sampling fraction {100 * checked.sampling_fraction:.2f} %"
        )
        for line in checked.violations:
            print(f"broken: {line}")
        for line in checked.advice:
            print(f"advice: {line}")
        if is_limited and not checked.violations:
            print("within all limits given")
    if checked.violations:
        raise typer.Exit(1)


_HEADER = [
    "section", "made of", "layers", "active", "cells", "length [cm]", "depth [X0]", "depth [lambda_I]", "cost [CHF]", "sampling [%]",
]  # fmt: skip


def _row(section: Section) -> list[str]:
    return [
        section.name or "-", str(section.n_layers), str(section.n_active), str(section.n_cells), f"{section.length_cm:.6g}",
        f"{section.depth_x0:.2f}", f"{section.depth_lambda:.2f}",
        "unknown" if section.cost_chf is None else f"{section.cost_chf:.10g}", f"{100 * section.sampling_fraction:.2f}",
    ]  # fmt: skip


def _summary(detector: Detector) -> dict[str, Any]:
    from calolife.detector.crystals import CrystalCalorimeter

    total = asdict(detector.total)
    kind = "crystals" if isinstance(detector, CrystalCalorimeter) else "layers"
    return {"kind": kind, **total, "size_x_cm": detector.size_x_mm / 10, "size_y_cm": detector.size_y_mm / 10, "digest": detector.digest}


def made_of(detector: Detector, section: int) -> str:
    """A section in one line: 60 x (Pb 2 + POLYSTYRENE* 2)."""
    from calolife.detector.crystals import CrystalCalorimeter
    from calolife.detector.layers import fold_periods

    if isinstance(detector, CrystalCalorimeter):
        side = f"{detector.crystal_size_mm:g} x {detector.crystal_size_mm:g} x {detector.length_mm:g}"
        return f"{detector.n_eta} x {detector.n_phi} {detector.material.name.removeprefix('G4_')}* {side}"
    layers = [tuple(group) for _, group in groupby(detector.layers, key=lambda layer: layer.section)][section]
    parts = []
    for n, period in fold_periods(layers):
        text = " + ".join(f"{lay.material.name.removeprefix('G4_')}{'*' * lay.is_active} {lay.thickness_mm:.4g}" for lay in period)
        parts.append(f"{n} x ({text})" if n > 1 else text)
    return " + ".join(parts)


def _draw(detector: Detector, out: Path, *, force: bool) -> None:
    from calolife.detector.drawing import plot_detector

    if out.suffix.lower() not in _PICTURES:
        raise ValueError(f"--out {out}: cannot draw a {out.suffix or 'file without an ending'}; use one of {', '.join(_PICTURES)}")
    if out.exists() and not force:
        raise ValueError(f"--out {out} is already there; give another name, or --force to replace it")
    plot_detector(detector).get_figure(root=True).savefig(out)  # type: ignore[union-attr]


def parse_size(text: str) -> tuple[float, float]:
    """Width and height of ``50x50``."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*x\s*(\d+(?:\.\d+)?)\s*", text)
    if match is None:
        raise ValueError(f"--size-cm {text!r} is not a width and a height; write 50x50")
    return float(match[1]), float(match[2])
