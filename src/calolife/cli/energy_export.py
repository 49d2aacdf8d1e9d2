"""`calolife energy export`: a fitted network in, a file that runs without calolife out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calolife.cli.energy import must_be_model
from calolife.cli.options import Config, Debug, Force, Json, Out, Quiet, must_be_apart, print_json, say, used_options

__all__ = ["export"]

_FILE = "model.onnx"
_MOST_APART = 0.05  # chosen: one or two of 64 objects, where two pairs of hits are equally far apart but for the last digit


def export(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run of 'calolife energy train --model drn'.", show_default=False)],
    out: Out,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Write a network as an ONNX file, and run it in onnxruntime on objects that the model keeps for it."""
    import math

    from calolife.energy.models import load_energy_model
    from calolife.energy.onnx import check_onnx, export_onnx, model_digest
    from calolife.errors import NotConvergedError
    from calolife.runs import Metric, log, new_run, write_metrics

    must_be_apart(out, [run])
    must_be_model(run)
    model = load_energy_model(run)
    if model.name != "drn":
        raise ValueError(f"{run} holds a model {model.name!r}; only drn, not linearised, has an ONNX form")
    say("writing the file takes about 10 s", quiet=quiet)
    with new_run(out, config=used_options(ctx), inputs=[run], force=force) as made:
        export_onnx(model, made.path / _FILE)
        found = check_onnx(model, made.path / _FILE)
        if found.n_apart > _MOST_APART * found.n_objects:
            raise NotConvergedError(
                f"{found.n_apart} of {found.n_objects} objects have another energy in onnxruntime, by up to {found.worst:.1e} of it; "
                "try another version of onnxruntime or PyTorch"
            )
        write_metrics(made, {"worst_difference": Metric(found.worst, math.nan, "", found.n_objects)})
        log(made, f"wrote {_FILE} of model {model_digest(model)[:8]}: {found.n_objects} objects within {found.worst:.1e} of PyTorch")
    if as_json:
        answer = {"run": str(out), "file": str(out / _FILE), "model": model_digest(model), "detector": model.digest}
        print_json(answer | {"n_checked": found.n_objects, "n_apart": found.n_apart, "worst_difference": found.worst})
        return
    print(f"{out / _FILE}: {found.n_objects} objects within {found.worst:.1e} of PyTorch's energies and uncertainties")
