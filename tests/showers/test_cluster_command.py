"""`calolife showers cluster`: the run is what the functions give, and bad input is one line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from calolife.cli import main
from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import LayeredCalorimeter
from calolife.detector.presets import load_detector
from calolife.energy.samples import read_energy_sample
from calolife.plots_clusters import plot_object_hits, plot_raw_response, plot_supercluster, response_histogram
from calolife.runs import read_run
from calolife.showers.cluster_files import CLUSTERS_FILE, read_superclusters
from calolife.showers.clusters import ClusterSettings, find_superclusters
from calolife.showers.events import Showers
from calolife.showers.files import write_showers
from calolife.showers.superclusters import Superclusters


@pytest.fixture(scope="module")
def barrel() -> CrystalCalorimeter:
    found = load_detector("cms-barrel")
    assert isinstance(found, CrystalCalorimeter)
    return found


@pytest.fixture(scope="module")
def showers(barrel: CrystalCalorimeter) -> Showers:
    """40 photons of a crystal and its neighbours with something beside them in phi, and something far; the last three leave nothing."""
    rng = np.random.default_rng(1)
    n = 40
    row, column, energy = rng.integers(3, 167, n), rng.integers(0, 360, n), rng.uniform(10.0, 90.0, n)
    shower, cell, deposit = [], [], []
    for i in range(n - 3):
        hits = {(0, 0): 0.7, (0, 1): 0.1, (1, 0): 0.05, (0, -1): 0.05, (0, 7): 0.03, (0, -6): 0.04, (0, 130): 0.4}
        for (a, b), part in hits.items():
            shower.append(i)
            cell.append((row[i] + a) * 360 + (column[i] + b) % 360)
            deposit.append(1000 * part * energy[i] * rng.normal(1.0, 0.02))
    at = barrel.cell_position_mm(row * 360 + column) * [1, 1, 0]
    return Showers.from_hits(barrel, shower, cell, deposit, pdg_id=22, energy_gev=energy, position_mm=at)


@pytest.fixture(scope="module")
def stored(showers: Showers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    write_showers(folder / "showers.h5", showers)
    return folder


@pytest.fixture(scope="module")
def clustered(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the defaults."""
    out = tmp_path_factory.mktemp("clustered") / "objects"
    assert main(["showers", "cluster", str(stored), "--out", str(out), "-q"]) == 0
    return out


def assert_same(a: Superclusters, b: Superclusters) -> None:
    for name in ("shower", "cell", "energy_mev", "hit_cluster", "cluster_seed", "cluster_eta", "is_matched", "rho_gev"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name


def test_the_run_holds_what_the_function_finds(stored: Path, showers: Showers, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["showers", "cluster", str(stored), "--out", str(tmp_path / "objects")]) == 0
    found = find_superclusters(showers)
    assert_same(read_superclusters(tmp_path / "objects"), found)
    out, err = capsys.readouterr()
    assert f"{found.n_objects} superclusters, {np.median(found.n_object_hits):g} crystals in the median" in out
    assert "in 40 showers in cms-barrel; 37 are the incident particle" in out
    assert "3 of 40 showers have no supercluster: they are counted, and skipped" in err
    run = read_run(tmp_path / "objects")
    metrics = {name: m.value for name, m in run.metrics.items()}
    assert (metrics["objects"], metrics["showers without objects"], metrics["showers without a match"]) == (found.n_objects, 3, 3)
    response = found.matched().raw_energy_gev / found.matched().energy_gev
    assert metrics["median raw response"] == pytest.approx(np.median(response))
    assert {"plots/object.png", "plots/raw_response.csv", "plots/hits_per_object.csv"} <= set(run.files)
    drawn = pl.read_csv(tmp_path / "objects" / "plots" / "object.csv")
    assert drawn["cluster"].max() == 2


def test_only_the_matched_ones_are_kept_when_asked(
    stored: Path, showers: Showers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--only-matched", "--seed-mev", "2000", "--gather-mev", "600", "--least-et", "0.5", "--json", "-q"]
    assert main(["showers", "cluster", str(stored), "--out", str(tmp_path / "objects"), *options]) == 0
    found = find_superclusters(showers, settings=ClusterSettings(seed_mev=2000, gather_mev=600, least_et_gev=0.5))
    assert_same(read_superclusters(tmp_path / "objects"), found.matched())
    told = json.loads(capsys.readouterr().out)
    assert told["n_objects"] == told["n_matched"] == found.is_matched.sum()
    assert (told["n_showers"], told["n_without"], told["n_unmatched"]) == (40, found.n_showers_without, found.n_showers_unmatched)
    assert main(["showers", "cluster", str(stored), "--config", str(tmp_path / "objects"), "--out", str(tmp_path / "again"), "-q"]) == 0
    assert (tmp_path / "again" / CLUSTERS_FILE).read_bytes() == (tmp_path / "objects" / CLUSTERS_FILE).read_bytes()


def test_the_run_does_not_show_the_size_of_parts(stored: Path, clustered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calolife.cli.showers_cluster._HITS_PER_PART", 30)
    assert main(["showers", "cluster", str(stored), "--out", str(tmp_path / "many"), "-q"]) == 0
    for name in (CLUSTERS_FILE, "metrics.json", "plots/object.csv"):
        assert (clustered / name).read_bytes() == (tmp_path / "many" / name).read_bytes(), name


def test_energies_are_measured_from_the_run(stored: Path, clustered: Path) -> None:
    sample = read_energy_sample([clustered])
    assert (sample.n_showers, sample.n_unmatched, sample.n_layers) == (37, 3, 1)
    assert np.array_equal(sample.shape, read_energy_sample([stored]).shape)


def test_showers_in_which_nothing_is_found_make_an_empty_run(
    barrel: CrystalCalorimeter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_showers(tmp_path / "soft.h5", Showers.from_hits(barrel, [0], [77], [10.0], pdg_id=22, energy_gev=[0.01, 1.0]))
    assert main(["showers", "cluster", str(tmp_path / "soft.h5"), "--out", str(tmp_path / "objects"), "-q"]) == 0
    assert "no supercluster, in 2 showers" in capsys.readouterr().out
    assert read_superclusters(tmp_path / "objects").n_showers_without == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("LAYERS --out new", "was made in 'small', which is made of layers; superclusters are made of crystals"),
        ("EMPTY --out new", "has no showers; give a sample that has some"),
        ("nothing --out new", "no showers at nothing; give a file or a run directory"),
        ("GOOD --seed-mev 50 --out new", "--seed-mev = 50 is below --gather-mev = 80"),
        ("GOOD --least-et 0 --out new", "--least-et = 0 must be finite and > 0"),
        ("GOOD --out GOOD/new", "lies inside the input"),
        ("OBJECTS --out new", "has no showers.h5"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(
    stored: Path,
    clustered: Path,
    showers: Showers,
    small_stack: LayeredCalorimeter,
    make_showers: Callable[..., Showers],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_showers("layers.h5", make_showers(small_stack, 3, seed=1))
    write_showers("empty.h5", showers.between(0, 0))
    names = {"LAYERS": "layers.h5", "EMPTY": "empty.h5", "GOOD": str(stored), "OBJECTS": str(clustered)}
    arguments = words
    for name, path in names.items():
        arguments = arguments.replace(name, path)
    assert main(["showers", "cluster", *arguments.split()]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1
    assert told in err[0]
    assert not (tmp_path / "new").exists()


def test_what_is_drawn_are_the_numbers_given(showers: Showers) -> None:
    found = find_superclusters(showers).matched()
    response = found.raw_energy_gev / found.energy_gev
    drawn = plot_raw_response(response, title="100 % of $ and _")
    assert "E_{\\mathrm{raw}} / E" in drawn.get_xlabel()
    count, edges = response_histogram(response)
    assert count.sum() <= response.size
    assert edges[0] < np.median(response) < edges[-1]
    assert f"median {np.median(response):.4f}" in drawn.get_legend_handles_labels()[1][0]
    assert f"median {np.median(found.n_object_hits):g}" in plot_object_hits(found.n_object_hits).get_legend_handles_labels()[1][0]
    which = int(np.argmax(found.n_clusters))
    display = plot_supercluster(found, which)
    mesh = display.collections[0].get_array()
    assert np.sort(mesh.compressed()) == pytest.approx(np.sort(found.select([which]).energy_mev) / 1000)
    for ax in (drawn, display):
        ax.get_figure(root=True).savefig("/dev/null", format="png")


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_objects_are_drawn_or_refused(showers: Showers, n: int) -> None:
    found = find_superclusters(showers).matched().select(range(n))
    response = found.raw_energy_gev / found.energy_gev
    if n:
        plot_raw_response(response)
        plot_object_hits(found.n_object_hits)
        plot_supercluster(found, n - 1)
        return
    for draw in (lambda: plot_raw_response(response), lambda: plot_object_hits(found.n_object_hits), lambda: plot_supercluster(found, 0)):
        with pytest.raises(ValueError, match=r"to draw|is not there"):
            draw()
