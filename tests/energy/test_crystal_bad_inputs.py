"""What no command of electrons and photons in crystals accepts: one line says what is wrong, and nothing half-written stays."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
from test_crystal_commands import TINY, toy_objects

from calolife.cli import main
from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import Readout
from calolife.detector.presets import load_detector
from calolife.energy.models import load_energy_model
from calolife.energy.objects import EVENT_INPUTS, HIT_INPUTS
from calolife.energy.samples import read_energy_sample
from calolife.showers.cluster_files import write_superclusters
from calolife.showers.digitise import digitise
from calolife.showers.events import Showers
from calolife.showers.files import write_showers
from calolife.showers.superclusters import Superclusters

N = 300
TRAIN = "energy train BAD --model sum"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Objects, others to score on, and models fitted to the first: what is bad is made of them."""
    folder = tmp_path_factory.mktemp("good")
    write_superclusters(folder / "objects.h5", toy_objects(N, seed=1))
    write_superclusters(folder / "others.h5", toy_objects(N, seed=2))
    with redirect_stdout(io.StringIO()):
        for name, options in {"sum": ["--model", "sum"], "drn": ["--model", "drn", *TINY]}.items():
            assert main(["energy", "train", str(folder / "objects.h5"), *options, "--out", str(folder / name), "--quiet"]) == 0
    return folder


# --- a file of objects that is damaged, or holds nothing to measure


def stored(name: str, value: float, at: int = 3) -> Callable[[Path, Path], None]:
    """A number of a column is another."""

    def make(good: Path, bad: Path) -> None:
        shutil.copy(good / "objects.h5", bad)
        with h5py.File(bad, "r+") as file:
            file[name][at] = value

    return make


def other_digest(good: Path, bad: Path) -> None:
    shutil.copy(good / "objects.h5", bad)
    with h5py.File(bad, "r+") as file:
        file.attrs["detector_digest"] = "0" * 64


def truncated(good: Path, bad: Path) -> None:
    bad.write_bytes((good / "objects.h5").read_bytes()[:4000])


def empty(good: Path, bad: Path) -> None:
    bad.write_bytes(b"")


def changed(change: Callable[[Superclusters], Superclusters]) -> Callable[[Path, Path], None]:
    def make(good: Path, bad: Path) -> None:
        write_superclusters(bad, change(toy_objects(N, seed=1)))

    return make


def of_no_hits(good: Path, bad: Path) -> None:
    nothing = np.zeros(0, np.int64)
    write_showers(bad, Showers.from_hits(load_detector("cms-barrel"), nothing, nothing, [], pdg_id=11, energy_gev=[5.0, 50.0]))


def the_same_objects(good: Path, bad: Path) -> None:
    shutil.copy(good / "objects.h5", bad)


def of_a_matrix(good: Path, bad: Path) -> None:
    """As many electrons, each in the middle crystal of a beam test."""
    matrix, energy, one = load_detector("pbwo4-5x5"), np.linspace(5.0, 50.0, N), np.arange(N + 1)
    assert isinstance(matrix, CrystalCalorimeter)
    cell, zero = np.full(N, 12), np.zeros(N)
    columns = one, cell, 900 * energy, one[:-1], one, cell, energy, zero, zero, np.ones(N, dtype=bool), np.full(N, 11), energy
    write_superclusters(bad, Superclusters(matrix, N, one[:-1], *columns, readout="simhits"))


def of_layers(good: Path, bad: Path) -> None:
    calo, n = load_detector("cu-scint-24x24"), 40
    write_showers(bad, Showers.from_hits(calo, range(n), [300] * n, [15.0] * n, pdg_id=11, energy_gev=np.linspace(1.0, 40.0, n)))


# --- a model that is damaged


def cut_weights(good: Path, bad: Path) -> None:
    shutil.copytree(good / "drn", bad)
    whole = (bad / "model.safetensors").read_bytes()
    (bad / "model.safetensors").write_bytes(whole[:-8])


def said_of_the_model(name: str, value: object) -> Callable[[Path, Path], None]:
    def make(good: Path, bad: Path) -> None:
        shutil.copytree(good / "drn", bad)
        record = json.loads((bad / "model.json").read_text(encoding="utf-8"))
        record["meta"][name] = value
        (bad / "model.json").write_text(json.dumps(record), encoding="utf-8")

    return make


def without_a_record(good: Path, bad: Path) -> None:
    shutil.copytree(good / "drn", bad)
    (bad / "training_showers.npy").unlink()


# --- conditions of a readout that cannot be


def read_out_already(good: Path, bad: Path) -> None:
    write_showers(bad, digitise(one_shower(), Readout(noise_mev=40.0, threshold_mev=160.0), seed=1))


def light_of_no_number(good: Path, bad: Path) -> None:
    pl.DataFrame({"cell": [0, 1], "signal_fraction": [0.9, float("nan")]}).write_csv(bad)


def one_shower() -> Showers:
    barrel = load_detector("cms-barrel")
    assert isinstance(barrel, CrystalCalorimeter)
    return Showers.from_hits(barrel, [0], barrel.cell_id(10, [20]), [9000.0], pdg_id=11, energy_gev=[10.0])


BAD: dict[str, tuple[Callable[[Path, Path], None], str, str]] = {
    "an object without hits": (stored("hit_offsets", 10, at=3), TRAIN, "an object without hits is none"),
    "a hit of NaN": (stored("energy_mev", np.nan), TRAIN, "energy_mev must be finite and > 0"),
    "a hit below zero": (stored("energy_mev", -1.0), TRAIN, "energy_mev must be finite and > 0"),
    "a true energy of NaN": (stored("energy_gev", np.nan), TRAIN, "energy_gev must be finite and > 0"),
    "an infinite rho": (stored("rho_gev", np.inf), TRAIN, "rho_gev must be finite, or NaN"),
    "a crystal beyond the detector": (stored("cell", 61200), TRAIN, "cell 61200 is not in 0..61199"),
    "the digest of another detector": (other_digest, TRAIN, "its detector 'cms-barrel' is not the one its digest names"),
    "a truncated file": (truncated, TRAIN, "is truncated"),
    "an empty file": (empty, TRAIN, "is not HDF5"),
    "no objects": (changed(lambda o: o.select([])), TRAIN, f"none of the {N} showers has a matched supercluster"),
    "unmatched objects only": (
        changed(lambda o: replace(o, is_matched=np.zeros(N, dtype=bool))), TRAIN, f"none of the {N} showers has a matched supercluster",
    ),
    "showers without hits": (of_no_hits, TRAIN, "none of the 2 showers has a matched supercluster"),
    "too few objects": (changed(lambda o: o.select(range(5))), "energy train BAD --model bdt", "5 showers are too few"),
    "rechits beside simhits": (
        changed(lambda o: replace(o, readout="rechits of noise 40 MeV")), "energy train GOOD/others.h5 BAD --model drn",
        "BAD holds rechits of noise 40 MeV, GOOD/others.h5 simhits; join showers of one readout only",
    ),
    "the same electrons twice": (the_same_objects, "energy train GOOD/objects.h5 BAD --model sum", "stand in an earlier file too"),
    "two detectors": (of_a_matrix, "energy train GOOD/objects.h5 BAD --model sum", "join showers of one detector only"),
    "layers for a network of crystals": (of_layers, "energy train BAD --model drn", "model drn reads crystals"),
    "the electrons of the training": (the_same_objects, "energy evaluate GOOD/drn --on BAD", "were used to train one of the models"),
    "another detector than the training's": (of_a_matrix, "energy evaluate GOOD/drn --on BAD", "the model was fitted on"),
    "cut weights": (cut_weights, "energy evaluate BAD --on GOOD/others.h5", "model.safetensors is damaged"),
    "a network of other inputs": (
        said_of_the_model("hit_inputs", ["x"]), "energy evaluate BAD --on GOOD/others.h5",
        "BAD holds a model 'drn' that cannot be read: the model reads hit_inputs x",
    ),
    "a network of another width": (
        said_of_the_model("width", 7), "energy evaluate BAD --on GOOD/others.h5", "its weights are not those of a network of width 7",
    ),
    "a network that lacks its width": (said_of_the_model("width", None), "energy evaluate BAD --on GOOD/others.h5", "that cannot be read"),
    "a model of unknown training": (without_a_record, "energy evaluate BAD --on GOOD/others.h5", "training_showers.npy is missing"),
    "cut weights to export": (cut_weights, "energy export BAD", "model.safetensors is damaged"),
    "a sum to export": (lambda good, bad: None, "energy export GOOD/sum", "only drn, not linearised, has an ONNX form"),
    "pileup that is read out": (read_out_already, "showers digitise SHOWER --pileup BAD --pileup-mean 3", "overlay simhits"),
    "light of NaN": (light_of_no_number, "showers digitise SHOWER --signal-fraction BAD", "nan"),
    "objects to be clustered": (the_same_objects, "showers cluster BAD", "holds no showers that calolife knows"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(name: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, words, says = BAD[name]
    bad, out = tmp_path / ("bad.csv" if name == "light of NaN" else "bad"), tmp_path / "out"
    make(good, bad)
    write_showers(tmp_path / "shower.h5", one_shower())
    before = sorted(tmp_path.rglob("*"))
    places = {"BAD": str(bad), "GOOD": str(good), "SHOWER": str(tmp_path / "shower.h5")}
    for word, path in places.items():
        words, says = words.replace(word, path), says.replace(word, path)
    assert main([*words.split(), "--out", str(out)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert says in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("model", ["sum", "drn"])
def test_electrons_of_one_hit_each_are_measured(model: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **options: None)
    n, barrel = 30, load_detector("cms-barrel")
    assert isinstance(barrel, CrystalCalorimeter)
    cell, one, energy, zero = barrel.cell_id(range(1, n + 1), 7), np.arange(n + 1), np.linspace(5.0, 150.0, n), np.zeros(n)
    columns = one, cell, 900 * energy, one[:-1], one, cell, energy, zero, zero, np.ones(n, dtype=bool), np.full(n, 11), energy
    write_superclusters(tmp_path / "one.h5", Superclusters(barrel, n, one[:-1], *columns, readout="simhits"))
    with redirect_stdout(io.StringIO()):
        assert main(["energy", "evaluate", str(good / model), "--on", str(tmp_path / "one.h5"), "--out", str(tmp_path / "ev"), "-q"]) == 0
    found = pl.read_parquet(tmp_path / "ev" / "predictions.parquet")[f"predicted_gev {model}"].to_numpy()
    assert (np.isfinite(found) & (found > 0)).all()


def onnx_file(path: Path, about: dict[str, str]) -> Path:
    """The smallest file that onnxruntime loads, with what an export says of itself."""
    import onnx
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "toy", ends[:1], ends[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(made, {f"calolife.{name}": value for name, value in about.items()})
    onnx.save(made, path)
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "f" * 64}, "is of model ffffffff, not of "),
        ({"detector": "f" * 64}, "the model was fitted on ffffffff"),
        ({"hit_inputs": "x"}, "reads hit_inputs x"),
        ({"format": "another"}, "was not written by this calolife's export"),
    ],
    ids=["another model", "another detector", "other inputs", "another program"],
)
def test_an_onnx_file_of_another_is_refused(change: dict[str, str], says: str, good: Path, tmp_path: Path) -> None:
    for extra in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(extra)
    from calolife.energy.onnx import model_digest, run_onnx

    model: Any = load_energy_model(good / "drn")
    true = {
        "format": "calolife drn onnx 1", "model": model_digest(model), "detector": model.digest, "k": "2",
        "hit_inputs": ",".join(HIT_INPUTS), "event_inputs": ",".join(EVENT_INPUTS),
    }  # fmt: skip
    path = onnx_file(tmp_path / "model.onnx", true | change)
    with pytest.raises(ValueError, match=says):
        run_onnx(path, read_energy_sample([good / "others.h5"]), model=model)
