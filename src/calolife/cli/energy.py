"""`calolife energy train | evaluate`: showers in, a fitted model out; models and other showers in, how well they measure out."""

from __future__ import annotations

import itertools
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calolife.cli import energy_crystals, energy_tables
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
    as_typed,
    is_typed,
    must_be_apart,
    pick_device,
    print_json,
    progress_bar,
    say,
    used_options,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from calolife.energy.features import EnergySample
    from calolife.training import Epoch

__all__ = ["evaluate", "must_be_model", "names_of_runs", "train"]

_FEW_HELD_OUT = 10  # chosen: as many as a comparison of two models needs
_CRYSTAL_DEFAULT = "drn"  # chosen: blend resolves 1 % better, and takes the time of drn and bdt together
# the models that have an option
_SETTINGS = {
    "layers": ("dnn",), "dropout": ("dnn",), "epochs": ("dnn", "drn", "blend"), "width": ("drn", "blend"), "k": ("drn", "blend"),
    "blocks": ("drn", "blend"), "hits_only": ("drn",),
}  # fmt: skip
_READING = {
    "unknown particle": "--particle: unknown particle", "name particles that are there": "give --particle some that are",
    "; leave it out": "; leave --detector out",
}  # fmt: skip
_MOST_WIDE = 4096  # chosen: three hidden layers of it still fit into memory
_WANTED = "a run of 'calolife energy train'"
_SHOWERS = "Runs with showers or objects, files of them (.h5, .root) or files of layer sums; several are joined."

Particle = Annotated[
    str | None, typer.Option("--particle", help="Particles to keep: gamma, or gamma,pi-; all when left out.", show_default=False)
]
DetectorName = Annotated[
    str | None,
    typer.Option("--detector", help="Preset or TOML file; needed where the file does not tell (CaloChallenge).", show_default=False),
]


def train(
    ctx: typer.Context,
    showers: Annotated[list[Path], typer.Argument(help=_SHOWERS, show_default=False)],
    out: Out,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            show_default=False,
            help=f"uncalibrated, sum, linear, trees; layers: dnn, best (default); crystals: bdt, drn, blend (default: {_CRYSTAL_DEFAULT}).",
        ),
    ] = None,
    hold_out: Annotated[float, typer.Option("--hold-out", help="Part of the showers kept from the fit and scored at the end.")] = 0.0,
    split_seed: Annotated[int, typer.Option("--split-seed", min=0, help="Seed of which showers --hold-out keeps away.")] = 1,
    linearise: Annotated[
        bool, typer.Option("--linearise", help="Make the response linear, by a monotone curve fitted to the training showers.")
    ] = False,
    layers: Annotated[
        str | None, typer.Option("--layers", help="dnn: widths of its hidden layers, 256,128,64 or 256,128.", show_default=False)
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="Passes over the training showers; dnn: at most, drn and blend: 30.", show_default=False),
    ] = None,
    dropout: Annotated[
        float | None, typer.Option("--dropout", help="dnn: part of its hidden values left out in training.", show_default=False)
    ] = None,
    width: Annotated[int | None, typer.Option("--width", min=1, help="drn: values per hit, 32; published 64.", show_default=False)] = None,
    k: Annotated[int | None, typer.Option("--k", min=1, help="drn: neighbours of a hit, 8; published 16.", show_default=False)] = None,
    blocks: Annotated[
        int | None, typer.Option("--blocks", min=1, help="drn: times that hits are joined in pairs, 2.", show_default=False)
    ] = None,
    hits_only: Annotated[bool, typer.Option("--hits-only", help="drn: without the features that bdt reads, as published.")] = False,
    particle: Particle = None,
    detector: DetectorName = None,
    seed: Seed = 0,
    device: Device = "cpu",
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Fit a model that measures the energy. A network stopped in training goes on when the command is repeated; trees start over."""
    import shutil
    import time

    from calolife.energy.models import check_model
    from calolife.energy.samples import split_sample, write_training_showers
    from calolife.runs import Metric, log, new_run, write_metrics
    from calolife.storage import save_model

    given = {"layers": layers, "dropout": dropout, "epochs": epochs, "width": width, "k": k, "blocks": blocks}
    given["hits_only"] = hits_only or None
    network = {} if model is None else _network(model, given)
    if not (math.isfinite(hold_out) and 0 <= hold_out < 1):
        raise ValueError(f"--hold-out {hold_out:g} is no part of the showers; give a number from 0 to below 1, such as 0.2")
    if hold_out == 0 and is_typed(ctx, "split_seed"):
        raise ValueError("--split-seed says which showers are held out, and none are; add --hold-out 0.2, or drop it")
    on_device = device if device.startswith("cuda:") else pick_device(device)  # GPUs by number: the network looks for them
    must_be_apart(out, showers)
    sample = _read(showers, particle=particle, detector=detector, quiet=quiet)
    is_crystals = sample.objects is not None
    if model is None:
        model = _CRYSTAL_DEFAULT if is_crystals else "best"
        network = _network(model, given)
    with as_typed({"model": "--model"}):
        check_model(model, sample)
    options = used_options(ctx)
    options["options"]["model"] = model  # a run tells what it fitted, whatever the default is when it is repeated
    training, held_out = (sample, None) if hold_out == 0 else split_sample(sample, hold_out, seed=split_seed)
    what = f"{training.n_showers} objects in crystals" if is_crystals else f"{training.n_showers} showers of {training.n_layers} layers"
    with new_run(out, config=options, seed=seed, inputs=showers, force=force) as run:
        checkpoint = run.path / "checkpoint"
        if run.is_resumed and checkpoint.exists():
            say(f"taking up the training in {checkpoint}", quiet=quiet)
        started = time.perf_counter()
        with progress_bar(quiet=quiet) as report:
            made = _fit(
                model, training, seed=seed, device=on_device, is_linearised=linearise, network=network, checkpoint_dir=checkpoint,
                tell=report,
            )  # fmt: skip
        seconds = time.perf_counter() - started
        save_model(made, run.path)
        write_training_showers(run.path, training)
        metrics = {"fit_seconds": Metric(seconds, math.nan, "s", training.n_showers)}
        metrics |= energy_tables.training_metrics(made, n=training.n_showers)
        scores = () if held_out is None else energy_tables.save_held_out(run, made, held_out, label=_label(showers, sample))
        overtraining = (
            ()
            if held_out is None
            else energy_crystals.save_overtraining(run, made, training, held_out=held_out, label=_label(showers, sample))
        )
        write_metrics(run, metrics | energy_tables.score_metrics(scores) | energy_crystals.overtraining_metrics(overtraining))
        energy_tables.save_curves(run, made)
        log(run, f"fitted {made.name} to {what} in {seconds:.1f} s")
        shutil.rmtree(checkpoint, ignore_errors=True)
    _say_unmatched(sample, quiet=quiet)
    if (remark := energy_tables.energies_remark(made, training)) is not None:
        say(remark, quiet=quiet)
    n_held_out = 0 if held_out is None else held_out.n_showers
    if 0 < n_held_out < _FEW_HELD_OUT:
        say(f"{n_held_out} showers held out: too few to tell how well the model does; --hold-out 0.2 keeps a fifth", quiet=quiet)
    if as_json:
        counts = {"n_training": training.n_showers, "n_held_out": n_held_out, "n_layers": training.n_layers}
        rows = [s.to_json_dict() for s in scores]
        more: dict[str, Any] = {"n_unmatched": sample.n_unmatched, "overtraining": list(overtraining)} if is_crystals else {}
        print_json({"model": made.name, "run": str(out), **counts, "fit_seconds": seconds, "results": rows, **more})
        return
    print(f"{made.name} fitted to {what}: {seconds:.1f} s, in {out}")
    if scores:
        energy_tables.print_scores(f"{n_held_out} {'objects' if is_crystals else 'showers'} held out", scores)
    energy_crystals.print_overtraining(overtraining)


def evaluate(
    ctx: typer.Context,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs of 'calolife energy train'.", show_default=False)],
    on: Annotated[list[Path], typer.Option("--on", metavar="SHOWERS", help=f"{_SHOWERS} Give it again for more.", show_default=False)],
    out: Out,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="Model that the others are compared with; the first run when left out.", show_default=False),
    ] = None,
    bins: Annotated[
        str | None, typer.Option("--bins", help="Edges of the energy bins, GeV: 1,2,5,10,20,50,100.", show_default=False)
    ] = None,
    particle: Particle = None,
    detector: DetectorName = None,
    seed: Seed = 0,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Score models on the same showers, none of which any of them was fitted to."""
    import numpy as np

    from calolife.energy.models import load_energy_model
    from calolife.energy.samples import count_alike, read_training_energies, read_training_showers, unlike_training
    from calolife.runs import log, new_run

    edges = None if bins is None else _edges(bins)
    must_be_apart(out, [*runs, *on])
    if twice := [r for i, r in enumerate(runs) if os.path.realpath(r) in [os.path.realpath(p) for p in runs[:i]]]:
        raise ValueError(f"{twice[0]} is named twice; name each run once")
    for path in runs:
        must_be_model(path)
    models = dict(zip(names_of_runs(runs), (load_energy_model(r) for r in runs), strict=True))
    if reference is not None and reference not in models:
        raise ValueError(f"--reference {reference!r} is not one of {', '.join(models)}")
    trained_on = [read_training_showers(r) for r in runs]
    seen = np.unique(np.concatenate(trained_on))
    energies = np.concatenate([read_training_energies(r) for r in runs])
    sample = _read(on, particle=particle, detector=detector, quiet=quiet)
    is_seen = np.isin(sample.fingerprint, seen)
    n_seen = int(is_seen.sum())
    if is_seen.all():
        raise ValueError(
            f"all {sample.n_showers} showers were used to train one of the models; evaluate on others, or train with --hold-out 0.2"
        )
    kept = sample.select(~is_seen)
    n_own = min(int((~np.isin(sample.fingerprint, t)).sum()) for t in trained_on)  # what the greediest run alone would leave
    remarks = [
        f"{' and '.join(of)}: {what}"
        for what, of in _by_remark({m: unlike_training(kept, r) for m, r in zip(models, runs, strict=True) if m != "uncalibrated"})
    ]
    with new_run(out, config=used_options(ctx), seed=seed, inputs=[*runs, *on], force=force) as run:
        with progress_bar(quiet=quiet) as report:
            found = energy_tables.evaluate_models(
                models, kept, reference=reference or next(iter(models)), edges_gev=edges, seed=seed, label=_label(on, sample), tell=report
            )
        energy_tables.save_evaluation(run, found)
        log(run, f"scored {', '.join(models)} on {kept.n_showers} showers; {n_seen} left out, seen in training")
    _say_unmatched(sample, quiet=quiet)  # said once it is made: bad input is one line
    if n_seen:
        say(f"{n_seen} of {sample.n_showers} showers left out: a model was trained on them", quiet=quiet)
    if 2 * kept.n_showers <= n_own:
        say(
            f"the runs held out different showers: {kept.n_showers} are new to all, {n_own} or more to each; train all with the same "
            "files, --hold-out and --split-seed",
            quiet=quiet,
        )
    for remark in remarks:
        say(remark, quiet=quiet)
    if n_alike := count_alike(kept, energies):
        say(
            f"{n_alike} of the {kept.n_showers} showers scored have the true energy of a training shower: if they are training showers, "
            "read out or aged otherwise, the scores are too good; score showers of another seed",
            quiet=quiet,
        )
    if as_json:
        print_json({"n": kept.n_showers, "n_left_out": n_seen, "run": str(out), **energy_tables.to_json_dict(found)})
        return
    energy_tables.print_evaluation(found)
    print(f"plots and numbers: {out}")


def _read(paths: Sequence[Path], *, particle: str | None, detector: str | None, quiet: bool) -> EnergySample:
    from calolife.detector.presets import load_detector
    from calolife.energy.samples import read_energy_sample

    with as_typed({}, of="--detector"):
        known = None if detector is None else load_detector(detector)
    names = () if particle is None else tuple(n.strip() for n in particle.split(",") if n.strip())
    if particle is not None and not names:
        raise ValueError(f"--particle {particle!r} names nothing; give one or more, separated by commas")
    with as_typed(_READING), progress_bar(quiet=quiet) as report:
        return read_energy_sample(paths, particles=names, detector=known, tell=report)


def _say_unmatched(sample: EnergySample, *, quiet: bool) -> None:
    if sample.n_unmatched:
        say(f"{sample.n_unmatched} showers left out: nothing was found in the crystals where their particle should be", quiet=quiet)


def _fit(
    model: str, training: EnergySample, *, seed: int, device: str, is_linearised: bool, network: dict[str, Any], checkpoint_dir: Path,
    tell: Report,
) -> Any:  # fmt: skip
    from calolife.energy.models import MODELS, check_linearisable, fit_energy, linearise

    def progress(epoch: Epoch) -> None:
        tell(f"training {model}", epoch.number, epoch.n_epochs)

    if not network:
        return fit_energy(
            model, training, seed=seed, device=device, is_linearised=is_linearised, progress=progress, checkpoint_dir=checkpoint_dir
        )
    if is_linearised:
        check_linearisable(model, training)
    made = MODELS[model](training, seed=seed, device=device, progress=progress, checkpoint_dir=checkpoint_dir, **network)
    return linearise(made, training, seed=seed) if is_linearised else made


def _network(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the network, those that were given."""
    typed = {option: value for option, value in given.items() if value is not None}
    for option in typed:
        if model not in (owners := _SETTINGS[option]):
            raise ValueError(f"--{option.replace('_', '-')} belongs to --model {_listed(owners)}, and the model is {model}; drop it")
    if model in ("drn", "blend"):
        if typed.get("width", 0) > _MOST_WIDE:
            raise ValueError(f"--width {typed['width']} is above {_MOST_WIDE}; take less, such as the published 64")
        if typed.pop("hits_only", False):
            typed["reads_features"] = False
        # as wide within as between, like the default
        return typed | ({"hidden": typed["width"]} if "width" in typed else {})
    settings: dict[str, Any] = {"epochs": typed["epochs"]} if "epochs" in typed else {}
    layers, dropout = typed.get("layers"), typed.get("dropout")
    if layers is not None:
        widths = [w.strip() for w in layers.split(",")]
        if not all(w.isdecimal() and int(w) > 0 for w in widths):
            raise ValueError(f"--layers {layers!r} is not a list of widths; write 256,128,64")
        settings["layers"] = tuple(int(w) for w in widths)
        if max(settings["layers"]) > _MOST_WIDE:
            raise ValueError(f"--layers {layers!r} has a width above {_MOST_WIDE}; write narrower ones, such as 256,128,64")
        if len(widths) == 2 and dropout is None:
            dropout = 0.0  # published: the first form, of two hidden layers, has none
    if dropout is not None:
        if not 0 <= dropout < 1:
            raise ValueError(f"--dropout {dropout:g} is no part of the hidden values; give a number from 0 to below 1, such as 0.2")
        settings["dropout"] = dropout
    return settings


def _listed(names: Sequence[str]) -> str:
    return " or ".join(x for x in (", ".join(names[:-1]), names[-1]) if x)


def must_be_model(path: Path) -> None:
    """Say what a path is that is no run of `energy train`; what is merely missing or damaged the reader of models says."""
    from calolife.showers.files import SHOWERS_FILE

    if path.is_file():
        is_part = (path.parent / "model.json").is_file()
        raise ValueError(f"{path} is a file; give " + (f"the run directory it is in, {path.parent}" if is_part else _WANTED))
    if not path.is_dir() or (path / "model.json").exists():
        return
    try:
        command = str(json.loads((path / "config.json").read_text(encoding="utf-8"))["command"])
    except (OSError, ValueError, KeyError, TypeError):
        command = ""
    what = f"a run of 'calolife {command}'" if command else "no run of 'calolife energy train'"
    if (path / SHOWERS_FILE).is_file():
        raise ValueError(f"{path} has showers and no model.json: it is {what}; showers go after --on, and before it {_WANTED}")
    raise ValueError(f"{path} has no model.json: it is {what}; give {_WANTED}")


def _label(paths: Sequence[Path], sample: EnergySample) -> str:
    """What figures call the showers: the name of their file or run, and for crystals that of the detector."""
    first = paths[0].resolve().name
    name = first if len(paths) == 1 else f"{first} and {len(paths) - 1} more"
    return name if sample.objects is None else f"{sample.objects.detector.name}, {name}"


def _by_remark(of_model: Mapping[str, Sequence[str]]) -> list[tuple[str, list[str]]]:
    """Remarks with the models that each is true of."""
    found: dict[str, list[str]] = {}
    for name, remarks in of_model.items():
        for remark in remarks:
            found.setdefault(remark, []).append(name)
    return list(found.items())


def names_of_runs(runs: Sequence[Path]) -> list[str]:
    """Name of each run's model; its directory's where models share one, its path where directories do."""
    from calolife.storage import load_model_state

    names = [load_model_state(r)[0] for r in runs]
    for other in ([r.resolve().name for r in runs], [str(r) for r in runs]):
        names = [o if names.count(n) > 1 else n for n, o in zip(names, other, strict=True)]
    return names


def _edges(text: str) -> tuple[float, ...]:
    try:
        edges = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--bins {text!r} is not a list of energies in GeV; write 1,2,5,10,20,50,100") from None
    is_rising = all(a < b for a, b in itertools.pairwise((-1.0, *edges, math.inf)))  # also refuses what is not finite
    if len(edges) < 2 or edges[0] < 0 or not is_rising:
        raise ValueError(f"--bins {text!r} must be two energies or more in GeV, rising from 0 or above; write 1,2,5,10,20,50,100")
    return edges
