"""`calolife ageing estimate | compare`: two samples of showers in, the signal fraction of every cell out."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calolife.cli import ageing_tables
from calolife.cli.options import (
    Config,
    Debug,
    Device,
    Force,
    Json,
    Out,
    Quiet,
    Report,
    Seed,
    must_be_apart,
    parse_numbers,
    pick_device,
    print_json,
    progress_bar,
    say,
    used_options,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from calolife.ageing.coefficients import Ageing
    from calolife.ageing.estimate import AgeingEstimate
    from calolife.ageing.wgan import WganSettings
    from calolife.runs import Run
    from calolife.showers.events import Showers

__all__ = ["compare", "estimate"]

_MOST_APART = 1.5  # chosen: no beam drifts by a factor of 1.5 in energy; that is another beam
_SHARE_APART = 0.1  # chosen: the particles of two runs of one beam agree better than that
_FEWEST_EVENTS = 50  # chosen: with fewer no cell has the hits that a spectrum takes
_VARIANTS: dict[str, dict[str, Any]] = {
    "wgan-published": {"published": True, "penalty": None},
    "wgan-clip": {"published": False, "penalty": "clip"},
    "wgan-spectral": {"published": False, "penalty": "spectral"},
}

Reference = Annotated[
    Path, typer.Argument(metavar="REF", help="Showers in the young detector: a run or a file of them (.h5, .root).", show_default=False)
]
Today = Annotated[
    Path, typer.Argument(metavar="TODAY", help="Showers in the aged detector: other events of the same beam.", show_default=False)
]
Cells = Annotated[
    int | None,
    typer.Option("--cells", help="How many cells, those with the largest summed energy in REF; all when left out.", show_default=False),
]
Mask = Annotated[
    str | None,
    typer.Option("--mask", help="Cells to take out of everything, such as 5,17 or 5-17; they are listed as masked.", show_default=False),
]
DetectorName = Annotated[
    str | None,
    typer.Option("--detector", help="Preset or TOML file; needed where the files do not tell (CaloChallenge).", show_default=False),
]
Bootstrap = Annotated[
    int | None,
    typer.Option(
        "--bootstrap", min=0, show_default=False,
        help="Fits to showers drawn again, from which the errors come; by method when left out. 0: the statistical limit, too small.",
    ),
]  # fmt: skip
_TRUTH = "Parquet or CSV with cell and signal_fraction. Only the scores see it."


def estimate(
    ctx: typer.Context,
    reference: Reference,
    today: Today,
    out: Out,
    method: Annotated[
        str, typer.Option("--method", help="auto, ratio, trimmed, cramer, wasserstein, sinkhorn, likelihood or wgan.")
    ] = "auto",
    prior: Annotated[
        str, typer.Option("--prior", help="dose: the loss follows the dose, as far as the data say so; none: each cell for itself.")
    ] = "dose",
    cells: Cells = None,
    mask: Mask = None,
    bootstrap: Bootstrap = None,
    truth: Annotated[Path | None, typer.Option("--truth", help=_TRUTH, show_default=False)] = None,
    published: Annotated[bool, typer.Option("--published", help="wgan: the published recipe, 100 epochs and the last one kept.")] = False,
    penalty: Annotated[str | None, typer.Option("--penalty", help="wgan: gradient, clip or spectral.", show_default=False)] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="wgan: epochs.", show_default=False)] = None,
    detector: DetectorName = None,
    seed: Seed = 0,
    device: Device = "cpu",
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Find the signal fraction of every cell, with its error. What it rests on is said on stderr and kept in the run."""
    from calolife.ageing.estimate import METHODS, PRIORS, estimate_ageing
    from calolife.runs import log, new_run

    _must_be_one_of(method, METHODS, "--method")
    _must_be_one_of(prior, PRIORS, "--prior")
    settings = _wgan_settings(method, published=published, penalty=penalty, epochs=epochs)
    on_device = pick_device(device)
    inputs = [p for p in (reference, today, truth) if p is not None]
    must_be_apart(out, inputs)
    young, aged = _read_pair(reference, today, detector=detector, quiet=quiet)
    wanted = _cells(young, cells)
    masked = _masked(mask, young, wanted)
    known, told = (None, []) if truth is None else _read_truth(truth, young, wanted)
    with new_run(out, config=used_options(ctx), seed=seed, inputs=inputs, force=force) as run:
        checkpoint = run.path / "checkpoint"
        if run.is_resumed and checkpoint.exists():
            say(f"taking up the training in {checkpoint}", quiet=quiet)
        with progress_bar(quiet=quiet) as report:
            found = estimate_ageing(
                young, aged, method=method, prior=prior, cells=wanted, masked=masked, seed=seed, n_bootstrap=bootstrap, wgan=settings,
                device=on_device, progress=report, checkpoint_dir=checkpoint if method == "wgan" else None,
            )  # fmt: skip
        scores = ageing_tables.score_estimate(found, known)
        left_out = ageing_tables.save_estimate(run, young, aged, found, truth=known, scores=scores)
        log(run, f"{found.method}, prior {found.prior}: {found.ageing.n_cells} cells in {found.seconds:.1f} s")
        shutil.rmtree(checkpoint, ignore_errors=True)
    if known is not None:
        told = _told_of_scores(told, scores["result"].n if scores else 0)
    remarks = [*found.remarks, *told, *left_out]
    for remark in remarks:  # said once it is made: bad input is one line
        say(remark, quiet=quiet)
    if as_json:
        print_json(ageing_tables.to_json_dict(found, scores=scores, remarks=remarks) | {"run": str(out)})
        return
    ageing_tables.print_estimate(found, young, aged, truth=known, scores=scores)
    print(f"plots and numbers: {out}")


def compare(
    ctx: typer.Context,
    reference: Reference,
    today: Today,
    truth: Annotated[Path, typer.Option("--truth", metavar="AGEING", help=_TRUTH, show_default=False)],
    out: Out,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            show_default=False,
            help="ratio,cramer or the like; all that estimate has when left out. Also wgan-published, wgan-clip and wgan-spectral.",
        ),
    ] = None,
    cells: Cells = None,
    mask: Mask = None,
    bootstrap: Bootstrap = None,
    events: Annotated[
        str | None, typer.Option("--events", help="Also with the first 500,1000,2000 events of each sample.", show_default=False)
    ] = None,
    detector: DetectorName = None,
    seed: Seed = 0,
    device: Device = "cpu",
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Score every method against the truth, on the same hits."""
    from calolife.ageing.estimate import METHODS, estimate_ageing
    from calolife.errors import MissingExtraError
    from calolife.runs import log, new_run

    named = None if methods is None else [m.strip() for m in methods.split(",") if m.strip()]
    if named is not None and not named:
        raise ValueError(f"--methods {methods!r} names nothing; give one or more of {', '.join([*METHODS, *_VARIANTS])}")
    for name in named or ():
        _must_be_one_of(name, [*METHODS, *_VARIANTS], "--methods")
    on_device = pick_device(device)
    inputs = [reference, today, truth]
    must_be_apart(out, inputs)
    young, aged = _read_pair(reference, today, detector=detector, quiet=quiet)
    wanted = _cells(young, cells)
    masked = _masked(mask, young, wanted)
    known, told = _read_truth(truth, young, wanted)
    sizes = () if events is None else _sizes(events, min(young.n_showers, aged.n_showers))
    missing: list[str] = []

    def run_one(
        run: Run, name: str, prior: str, first: Showers, then: Showers, *, n_bootstrap: int | None, report: Report
    ) -> AgeingEstimate | None:
        method = "wgan" if name in _VARIANTS else name
        folder = run.path / "checkpoint" / f"{name}-{first.n_showers}" if method == "wgan" else None
        try:
            settings = _wgan_settings("wgan", epochs=None, **_VARIANTS[name]) if name in _VARIANTS else None
            return estimate_ageing(
                first, then, method=method, prior=prior, cells=wanted, masked=masked, seed=seed, n_bootstrap=n_bootstrap, wgan=settings,
                device=on_device, progress=report, checkpoint_dir=folder,
            )  # fmt: skip
        except MissingExtraError as error:
            if named is not None:  # asked for by name
                raise
            missing.append(f"{name} left out: {error}")
            return None

    with new_run(out, config=used_options(ctx), seed=seed, inputs=inputs, force=force) as run:
        found: dict[tuple[str, str], AgeingEstimate] = {}
        smaller: dict[tuple[str, str], dict[int, AgeingEstimate]] = {}
        # auto first, with and without the prior: what the others are held against
        asked = [("auto", "none"), ("auto", "dose")]
        with progress_bar(quiet=quiet) as report:
            while asked:
                name, prior = asked.pop(0)
                made = run_one(run, name, prior, young, aged, n_bootstrap=bootstrap, report=report)
                if made is None:
                    continue
                found[name, prior] = made
                if (name, prior) == ("auto", "none"):
                    ageing_tables.must_have_scores(made, known)  # before the other methods take their time
                    asked += [(m, "none") for m in dict.fromkeys(named or METHODS) if m not in ("auto", made.method)]
                # the curve of one method: auto could take another one of fewer events
                same = made.method if name == "auto" else name
                for n in sizes:
                    few = run_one(run, same, prior, young.between(0, n), aged.between(0, n), n_bootstrap=0, report=report)
                    if few is not None:
                        smaller.setdefault((name, prior), {})[n] = few
        comparison = ageing_tables.compare_estimates(
            found, known, n_showers=(young.n_showers, aged.n_showers), smaller=smaller, has_errors=bootstrap != 0, seed=seed
        )
        left_out = ageing_tables.save_comparison(run, comparison)
        shutil.rmtree(run.path / "checkpoint", ignore_errors=True)
        log(run, f"compared {', '.join(r.name for r in comparison.rows)} on {comparison.cell.size} cells")
    told = _told_of_scores(told, comparison.cell.size)
    remarks = [*dict.fromkeys(missing), *found["auto", "none"].remarks, *told, *left_out]
    for remark in remarks:
        say(remark, quiet=quiet)
    if as_json:
        print_json(ageing_tables.comparison_json(comparison) | {"remarks": remarks, "run": str(out)})
        return
    ageing_tables.print_comparison(comparison)
    print(f"plots and numbers: {out}")


def _must_be_one_of(value: str, allowed: Sequence[str], option: str) -> None:
    if value not in allowed:
        raise ValueError(f"{option} {value!r} is not one of {', '.join(allowed)}")


def _wgan_settings(method: str, *, published: bool, penalty: str | None, epochs: int | None) -> WganSettings | None:
    given = {"--published": published or None, "--penalty": penalty, "--epochs": epochs}
    if method != "wgan":
        if wrong := [option for option, value in given.items() if value is not None]:
            raise ValueError(f"{wrong[0]} belongs to --method wgan, and the method is {method}; drop it")
        return None
    from calolife.ageing.wgan import WganSettings

    changed: dict[str, Any] = {name: value for name, value in (("penalty", penalty), ("epochs", epochs)) if value is not None}
    if published and changed:
        raise ValueError(f"--published fixes the recipe, and --{next(iter(changed))} changes it; give one of them")
    return WganSettings.published() if published else WganSettings(**changed)


def _read_pair(reference: Path, today: Path, *, detector: str | None, quiet: bool) -> tuple[Showers, Showers]:
    """Both samples, refused where no ageing could be told from them."""
    from calolife.detector.presets import load_detector
    from calolife.showers.files import holds_layer_sums, read_showers

    if os.path.realpath(reference) == os.path.realpath(today):
        raise ValueError(f"REF and TODAY are both {reference}; give two samples, of showers before and after the ageing")
    known = None if detector is None else load_detector(detector)
    pair = []
    with progress_bar(quiet=quiet) as report:
        for k, path in enumerate((reference, today)):
            if holds_layer_sums(path):
                raise ValueError(f"{path} keeps the sums of layers only; ageing is found cell by cell: give showers with cells")
            report("reading showers", k, 2)
            pair.append(read_showers(path, detector=known))
    _must_be_alike(pair[0], pair[1], names=(str(reference), str(today)))
    return pair[0], pair[1]


def _must_be_alike(young: Showers, aged: Showers, *, names: tuple[str, str]) -> None:
    import numpy as np

    for showers, name in zip((young, aged), names, strict=True):
        if not showers.n_showers:
            raise ValueError(f"{name} holds no showers; simulate or take some first")
        if not (showers.energy_mev > 0).any():
            raise ValueError(f"no cell has any energy in the {showers.n_showers} showers of {name}; is its readout switched on?")
    if young.detector.digest != aged.detector.digest:
        raise ValueError(
            f"{names[0]} was made in detector {young.detector.name!r} ({young.detector.digest[:8]}), {names[1]} in "
            f"{aged.detector.name!r} ({aged.detector.digest[:8]}); give two samples of one detector"
        )
    if young.kind != aged.kind:
        simhits = names[0] if young.kind == "simhit" else names[1]
        raise ValueError(
            f"{names[0]} holds {young.kind}s and {names[1]} {aged.kind}s; read both out alike: calolife showers digitise {simhits}"
        )
    if young.readout != aged.readout:
        raise ValueError(f"{names[0]} was read out with {young.readout}, {names[1]} with {aged.readout}; digitise both alike")
    # the same showers in any order have the same sums
    if young.n_showers == aged.n_showers and np.array_equal(np.sort(young.visible_mev), np.sort(aged.visible_mev)):
        raise ValueError(f"{names[0]} and {names[1]} hold the same showers; give two samples, of showers before and after the ageing")
    _must_be_one_beam(young, aged, names=names)


def _must_be_one_beam(young: Showers, aged: Showers, *, names: tuple[str, str]) -> None:
    """Small shifts are told by the checks of the estimate; another beam is refused, where the files tell."""
    import numpy as np

    from calolife.showers.events import PDG, UNKNOWN_PARTICLE

    if not (UNKNOWN_PARTICLE in young.pdg_id or UNKNOWN_PARTICLE in aged.pdg_id):
        name_of = {code: name for name, code in PDG.items()}
        slack = _SHARE_APART + 2 * math.sqrt(1 / young.n_showers + 1 / aged.n_showers)  # four standard deviations of a half
        for code in np.union1d(young.pdg_id, aged.pdg_id).tolist():
            share = [float((s.pdg_id == code).mean()) for s in (young, aged)]
            if abs(share[0] - share[1]) > slack:
                raise ValueError(
                    f"{100 * share[0]:.0f} % of {names[0]} are {name_of.get(code, f'particles {code}')} and {100 * share[1]:.0f} % of "
                    f"{names[1]}; give two samples of one beam"
                )
    mean = [float(s.energy_gev.mean()) for s in (young, aged)]
    if not 1 / _MOST_APART < mean[0] / mean[1] < _MOST_APART:
        raise ValueError(
            f"the particles of {names[0]} have {mean[0]:.3g} GeV on average, those of {names[1]} {mean[1]:.3g} GeV; "
            "give two samples of one beam"
        )


def _cells(young: Showers, n: int | None) -> NDArray[np.int64]:
    from calolife.ageing.hits import brightest_cells

    try:
        return brightest_cells(young, n)
    except ValueError as error:
        raise ValueError(f"--cells: {error}") from None


def _masked(text: str | None, young: Showers, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    import numpy as np

    if text is None:
        return np.zeros(0, np.int64)
    masked = np.array(parse_numbers(text, what="--mask"), dtype=np.int64)
    calo = young.detector
    if (wrong := masked[(masked < 0) | (masked >= calo.n_cells)]).size:
        raise ValueError(f"--mask {text!r}: cell {wrong[0]}; detector {calo.name!r} has cells 0 to {calo.n_cells - 1}")
    if np.isin(wanted, masked).all():
        raise ValueError(f"--mask {text!r} takes out all {wanted.size} cells; mask fewer, or ask for more with --cells")
    return masked


def _told_of_scores(told: list[str], n_scored: int) -> list[str]:
    if not n_scored:
        return [*told, "no cell that the truth lists has a result: there is no score"]
    return [f"{remark}; {n_scored} scored" for remark in told]


def _read_truth(path: Path, young: Showers, wanted: NDArray[np.int64]) -> tuple[Ageing, list[str]]:
    """The truth, and a remark if it does not list all cells."""
    import numpy as np

    from calolife.ageing.files import read_truth

    known = read_truth(path)
    calo = young.detector
    if known.detector_digest and known.detector_digest != calo.digest:
        raise ValueError(
            f"--truth {path} is of detector {known.detector_digest[:8]}, the showers of {calo.name!r} ({calo.digest[:8]}); "
            "give the truth of these showers"
        )
    if known.n_cells and known.cell[-1] >= calo.n_cells:
        raise ValueError(f"--truth {path} lists cell {known.cell[-1]}; detector {calo.name!r} has cells 0 to {calo.n_cells - 1}")
    n_listed = int(np.isin(wanted, known.cell).sum())
    if not n_listed:
        raise ValueError(
            f"--truth {path} lists none of the {wanted.size} cells asked for; give their truth, or ask for others with --cells"
        )
    return known, [f"--truth {path} lists {n_listed} of the {wanted.size} cells"] if n_listed < wanted.size else []


def _sizes(text: str, n_most: int) -> tuple[int, ...]:
    sizes = parse_numbers(text, what="--events")
    if wrong := [n for n in sizes if not _FEWEST_EVENTS <= n <= n_most]:
        raise ValueError(f"--events {text!r}: {wrong[0]} events; the smaller sample has {n_most}: give {_FEWEST_EVENTS} to {n_most}")
    return sizes
