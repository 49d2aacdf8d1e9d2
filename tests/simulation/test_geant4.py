"""Geant4 run for real: energy, Birks, cells, and showers that depend on nothing but their number."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import LayeredCalorimeter
from calolife.detector.materials import material, mixture
from calolife.detector.presets import load_detector
from calolife.errors import MissingExtraError
from calolife.showers.events import Showers
from calolife.simulation.engines import simulate_showers
from calolife.simulation.geant4 import geant4_geometry, simulate_geant4
from calolife.simulation.particles import PDG, Particles, sample_particles

# a barrel of 12 columns whose modules end at column 6 and 12, with gaps wide enough to be seen
RING = CrystalCalorimeter(
    "ring", material("G4_PbWO4"), tuple(range(1, 6)), 12, is_phi_periodic=True, gap_mm=0.5, eta_module_ends=(3,),
    eta_module_gap_mm=6.0, phi_module_crystals=6, phi_module_gap_mm=8.0,
)  # fmt: skip


def same(a: Showers, b: Showers) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("offsets", "cell", "energy_mev", "active_mev"))


def straight(name: str, energy_gev: float, x_mm: float, y_mm: float, *, n: int) -> Particles:
    return Particles(np.full(n, PDG[name]), np.full(n, energy_gev), np.tile([x_mm, y_mm], (n, 1)), np.tile([0.0, 0.0, 1.0], (n, 1)))


def check_overlaps(detector: LayeredCalorimeter | CrystalCalorimeter) -> str:
    import calzone

    try:
        calzone.Geometry(geant4_geometry(detector)).check(resolution=200)
    except (calzone.Geant4Exception, ValueError) as error:
        return str(error)
    return ""


def in_another_process(function: object, *arguments: object) -> object:
    # what Geant4 has seen of materials changes its hadronic showers, so such checks stay out of this process
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()  # type: ignore[arg-type]


def check_all_overlaps() -> dict[str, str]:
    steel = mixture("steel", {"G4_Fe": 0.98, "G4_Al": 0.02}, density_g_cm3=7.8)
    stack = load_detector("pb-scint-fe-v2")
    assert isinstance(stack, LayeredCalorimeter)
    detectors = [load_detector(name) for name in ("pbwo4-fe-v1", "triple-fe-v42", "cu-scint-24x24", "pbwo4-5x5")]
    return {d.name: check_overlaps(d) for d in (*detectors, stack.add_layer(steel, 100.0), RING)}


def test_no_detector_overlaps_itself(geant4_data: str) -> None:
    found = in_another_process(check_all_overlaps)
    assert isinstance(found, dict)
    assert len(found) == 6
    assert not any(found.values()), found


def test_a_block_holds_the_energy_of_an_electron(geant4_data: str, block: LayeredCalorimeter) -> None:
    showers = simulate_showers(block, straight("e-", 2.0, 0.0, 0.0, n=40), engine="geant4", seed=1)
    # 25 X0 and 6.8 Moliere radii: 1 to 2 % leak, mostly to the sides and backwards (PDG, "Calorimeters")
    assert 0.97 * 2000 < showers.active_mev.mean() < 2000
    assert showers.active_mev.max() < 2001
    # lead tungstate is not quenched here: all that is deposited is seen, but for rounding to float32
    np.testing.assert_allclose(showers.visible_mev, showers.active_mev, rtol=1e-5)
    assert np.isnan(showers.leaked_mev).all()


def test_a_shower_does_not_depend_on_batch_or_order(geant4_data: str, block: LayeredCalorimeter) -> None:
    beam = {"particle": "pi-", "energy_gev": (1.0, 10.0), "seed": 5}
    whole = simulate_showers(block, sample_particles(block, 24, **beam), engine="geant4", seed=5)
    late = simulate_showers(block, sample_particles(block, 5, first=13, **beam), engine="geant4", seed=5, first=13)
    early = simulate_showers(block, sample_particles(block, 13, **beam), engine="geant4", seed=5)
    assert same(whole.select(np.arange(13, 18)), late)
    assert same(whole.select(np.arange(13)), early)
    other = simulate_showers(block, sample_particles(block, 24, **beam), engine="geant4", seed=6)
    assert not np.array_equal(other.active_mev, whole.active_mev)


def test_another_detector_in_between_changes_nothing(geant4_data: str, block: LayeredCalorimeter, sandwich: LayeredCalorimeter) -> None:
    first = simulate_showers(block, straight("pi-", 5.0, 3.0, 3.0, n=20), engine="geant4", seed=1)
    between = simulate_showers(sandwich, straight("pi-", 5.0, 3.0, 3.0, n=20), engine="geant4", seed=1)
    again = simulate_showers(block, straight("pi-", 5.0, 3.0, 3.0, n=20), engine="geant4", seed=1)
    alone = in_another_process(simulate_geant4_sandwich, sandwich)
    assert isinstance(alone, Showers)
    assert same(first, again)
    assert same(between, alone)


def simulate_geant4_sandwich(sandwich: LayeredCalorimeter) -> Showers:
    return simulate_geant4(sandwich, straight("pi-", 5.0, 3.0, 3.0, n=20), seed=1)


def test_birks_dims_hadrons_more_than_muons(geant4_data: str, sandwich: LayeredCalorimeter) -> None:
    light = {}
    for name, energy, n in (("mu-", 10.0, 60), ("pi-", 5.0, 60)):
        on = simulate_showers(sandwich, straight(name, energy, 3.0, 3.0, n=n), engine="geant4", seed=1)
        off = simulate_showers(sandwich, straight(name, energy, 3.0, 3.0, n=n), engine="geant4", seed=1, birks=False)
        np.testing.assert_array_equal(on.active_mev, off.active_mev)  # quenching changes the light, not the shower
        np.testing.assert_allclose(off.visible_mev, off.active_mev, rtol=1e-5)
        light[name] = on.visible_mev.sum() / on.active_mev.sum()
    # 1 / (1 + 0.126 mm/MeV x 0.2 MeV/mm) = 0.975 for a minimum ionising particle; delta rays keep it near
    assert light["mu-"] == pytest.approx(0.97, abs=0.02)
    assert light["pi-"] < light["mu-"] - 0.03


def test_a_muon_leaves_one_mip_in_each_layer_of_one_cell(geant4_data: str, sandwich: LayeredCalorimeter) -> None:
    n = 60
    showers = simulate_showers(sandwich, straight("mu-", 10.0, 25.0, -175.0, n=n), engine="geant4", seed=1, birks=False)
    layer = showers.layer_energy_mev()
    mip = 5.0 * 0.1 * material("G4_POLYSTYRENE").min_dedx_mev_cm
    # Landau: the median lies within 20 % of the mean loss of a minimum ionising particle (PDG, "Passage of particles")
    assert np.median(layer) == pytest.approx(mip, rel=0.2)
    ix, iy = sandwich.cell_index(showers.cell)[1:]
    hottest = (ix == 5) & (iy == 1)  # cells of 50 mm: 25 mm is in the middle of number 5, -175 mm of number 1
    assert showers.energy_mev[hottest].sum() > 0.9 * showers.energy_mev.sum()


@pytest.mark.parametrize(("ieta", "iphi"), [(1, 1), (3, 6), (4, 12), (5, 7)])
def test_the_crystal_that_is_hit_takes_most(geant4_data: str, ieta: int, iphi: int) -> None:
    x, y = RING.cell_position_mm(RING.cell_id(ieta, iphi)).ravel()[:2]
    showers = simulate_showers(RING, straight("e-", 1.0, x, y, n=5), engine="geant4", seed=1)
    by_cell = np.bincount(showers.cell, weights=showers.energy_mev, minlength=RING.n_cells)
    assert by_cell.argmax() == RING.cell_id(ieta, iphi)
    # in the middle of a crystal of one Moliere radius, 70 to 80 %; source: CMS ECAL TDR (1997)
    assert 0.6 < by_cell.max() / by_cell.sum() < 0.9


def test_a_periodic_matrix_closes_behind_its_last_column(geant4_data: str) -> None:
    x, _ = RING.cell_position_mm(RING.cell_id(2, 1)).ravel()[:2]
    y = float(RING.y_edges_mm[0, 0]) + 2.0  # in column 1, near the gap that closes the ring
    before = simulate_showers(RING, straight("e-", 1.0, x, y, n=20), engine="geant4", seed=1)
    behind = simulate_showers(RING, straight("e-", 1.0, x, y + RING.period_y_mm, n=20), engine="geant4", seed=1)
    for showers in (before, behind):
        column = np.bincount(RING.cell_index(showers.cell)[1], weights=showers.energy_mev, minlength=13)
        assert column.argmax() == 1
        assert column[12] > 0.5 * column[2]  # as near as column 2, but behind a gap of 8 mm


def test_particles_of_one_shower_add_up(geant4_data: str, block: LayeredCalorimeter) -> None:
    pair = Particles([11, 22], [1.0, 2.0], [[0.0, 0.0], [20.0, 0.0]], [[0.0, 0.0, 1.0]] * 2, [0, 0])
    showers = simulate_showers(block, pair, engine="geant4", seed=1)
    assert showers.n_showers == 1
    assert showers.energy_gev.tolist() == [3.0]
    assert 0.95 * 3000 < showers.visible_mev[0] < 3000
    alone = simulate_showers(block, pair.showers(0, 1).incident(), engine="geant4", seed=1)
    assert alone.energy_gev.tolist() == [3.0]


def test_the_physics_list_is_the_one_asked_for(geant4_data: str, block: LayeredCalorimeter) -> None:
    ftfp, qgsp = (
        simulate_showers(block, straight("pi-", 40.0, 0.0, 0.0, n=5), engine="geant4", seed=1, physics=physics)
        for physics in ("FTFP_BERT", "QGSP_BERT")
    )
    assert ftfp.origin["physics"] == "FTFP_BERT"
    assert qgsp.origin["physics"] == "QGSP_BERT"
    assert not np.array_equal(ftfp.active_mev, qgsp.active_mev)


def test_without_calzone_it_says_what_to_install(block: LayeredCalorimeter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "calzone", None)
    with pytest.raises(MissingExtraError) as caught:
        simulate_showers(block, straight("e-", 1.0, 0.0, 0.0, n=1), engine="geant4")
    assert 'pip install "calolife[geant4]"' in str(caught.value)
    assert "python -m calzone download" in str(caught.value)


@pytest.mark.parametrize("is_there", [False, True], ids=["no folder", "an empty folder"])
def test_without_data_it_says_how_to_get_them(tmp_path: Path, is_there: bool) -> None:
    pytest.importorskip("calzone")
    folder = tmp_path / "data"
    if is_there:
        folder.mkdir()
    command = ["showers", "simulate", "pbwo4-5x5", "--engine", "geant4", "-n", "2", "--out", "run"]
    program = f"import sys; from calolife.cli import main; sys.exit(main({command!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "GEANT4_DATA_DIR": str(folder)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "python -m calzone download" in done.stderr
    assert str(folder) in done.stderr
    assert not list(tmp_path.glob("run*"))


def test_a_material_that_geant4_does_not_know_is_named(block: LayeredCalorimeter) -> None:
    from dataclasses import replace

    strange = block.add_layer(replace(material("G4_Fe"), name="unobtainium"), 10.0)
    with pytest.raises(ValueError, match=r"material 'unobtainium' is not in Geant4's table; name one such as G4_Fe"):
        geant4_geometry(strange)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"physics": "FTFP_BERT_HP"}, "physics list 'FTFP_BERT_HP' is not one of FTFP_BERT, QGSP_BERT"),
        ({"cut_mm": 0.0}, "cut_mm = 0; the production cut must be finite and > 0"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_wrong_options_are_refused(block: LayeredCalorimeter, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        simulate_showers(block, straight("e-", 1.0, 0.0, 0.0, n=1), engine="geant4", **options)  # type: ignore[arg-type]
    assert message in str(caught.value)
