"""The network as an ONNX file: the same energies in onnxruntime, and no other model's or detector's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from test_drn_model import toy

from calolife.cli import main
from calolife.energy.drn_model import DrnModel, fit_drn
from calolife.energy.features import EnergySample
from calolife.energy.linear import fit_sum
from calolife.energy.onnx import check_onnx, export_onnx, run_onnx
from calolife.energy.peak_scale import PeakScale
from calolife.errors import FileFormatError
from calolife.storage import save_model

SMALL = {"width": 8, "hidden": 8, "k": 4, "epochs": 2, "batch_size": 64}


@pytest.fixture(scope="module")
def sample() -> EnergySample:
    return toy(most=40)


@pytest.fixture(scope="module")
def model(sample: EnergySample) -> DrnModel:
    # of a thousand objects and more it would have several knots
    scale = PeakScale(np.array([[1.0, 2.5, 3.5, 4.5], [-0.02, 0.03, -0.01, 0.0]]), np.array([[2.0, 4.0], [0.2, -0.1]]))
    return replace(fit_drn(sample, seed=3, **SMALL), scale=scale)


@pytest.fixture(scope="module")
def run(model: DrnModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One export for all: it takes seconds."""
    folder = tmp_path_factory.mktemp("onnx")
    save_model(model, folder / "model")
    assert main(["energy", "export", str(folder / "model"), "--out", str(folder / "out"), "--quiet"]) == 0
    return folder / "out"


@pytest.mark.parametrize("most", [40, 3, 2])
def test_onnxruntime_gives_the_energies_of_the_model(model: DrnModel, run: Path, most: int) -> None:
    many = toy(500, seed=8, most=most)  # also fewer hits than neighbours, and one hit alone
    ours, theirs = model.predict(many), run_onnx(run / "model.onnx", many, model=model)
    for a, b in ((ours.energy_gev, theirs.energy_gev), (ours.sigma_gev, theirs.sigma_gev)):
        # 1e-6 of single precision; but one in 1,000 has pairs of hits equally far apart, which may be joined otherwise
        assert np.count_nonzero(np.abs(b / a - 1.0) > 1e-5) <= 3
        assert_allclose(b, a, rtol=0.01)


def test_the_check_compares_the_objects_that_the_model_keeps(model: DrnModel, run: Path) -> None:
    found = check_onnx(model, run / "model.onnx")
    assert found.n_objects == model.probe.count.size == 30
    assert found.n_apart == 0
    assert 0 < found.worst < 1e-5


def test_the_file_of_another_model_is_refused(sample: EnergySample, model: DrnModel, run: Path) -> None:
    other = replace(model, scale=replace(model.scale, sigma=model.scale.sigma + 0.001))
    for refused in (lambda: run_onnx(run / "model.onnx", sample, model=other), lambda: check_onnx(other, run / "model.onnx")):
        with pytest.raises(ValueError, match=r"is of model .*, not of"):
            refused()


def test_objects_of_another_detector_are_refused(sample: EnergySample, run: Path) -> None:
    with pytest.raises(ValueError, match=r"were made in detector .* the model was fitted on"):
        run_onnx(run / "model.onnx", replace(sample, digest="f" * 64))


def test_sums_of_layers_are_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="model drn reads the hits of objects in crystals"):
        run_onnx(run / "model.onnx", EnergySample(np.ones((40, 1)), np.ones(40), np.full(40, 22)))


def test_a_damaged_file_is_refused(tmp_path: Path, sample: EnergySample, run: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes((run / "model.onnx").read_bytes()[:1000])
    with pytest.raises(FileFormatError, match="is no ONNX file that onnxruntime reads"):
        run_onnx(tmp_path / "cut.onnx", sample)


def test_a_file_of_others_is_refused(tmp_path: Path, sample: EnergySample, run: Path) -> None:
    import onnx

    proto = onnx.load(run / "model.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "foreign.onnx")
    with pytest.raises(FileFormatError, match="was not written by this calolife's export"):
        run_onnx(tmp_path / "foreign.onnx", sample)


def test_the_file_names_its_columns_and_no_path_of_this_machine(run: Path) -> None:
    import onnx

    content = (run / "model.onnx").read_bytes()
    props = {p.key: p.value for p in onnx.load(run / "model.onnx").metadata_props}
    assert props["calolife.hit_inputs"].startswith("row,column,log_energy")
    assert b"site-packages" not in content
    assert b"calolife/energy" not in content


def test_a_model_of_another_kind_is_refused(tmp_path: Path, sample: EnergySample, capsys) -> None:
    made = fit_sum(sample)
    with pytest.raises(ValueError, match="model sum has no ONNX form; only drn is exported"):
        export_onnx(made, tmp_path / "model.onnx")
    save_model(made, tmp_path / "sum")
    assert main(["energy", "export", str(tmp_path / "sum"), "--out", str(tmp_path / "out")]) == 2
    assert "only drn, not linearised, has an ONNX form" in capsys.readouterr().err
