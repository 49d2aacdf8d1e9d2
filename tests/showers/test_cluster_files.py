"""Superclusters on disk: what is written is read, however it was cut, and damage is told in one line."""

import os
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import Readout
from calolife.detector.presets import load_detector, to_toml
from calolife.errors import FileFormatError
from calolife.showers.cluster_files import CLUSTERS_FILE, is_superclusters, read_superclusters, write_superclusters
from calolife.showers.clusters import ClusterSettings, energy_density_gev, find_superclusters
from calolife.showers.events import Showers
from calolife.showers.files import write_showers
from calolife.showers.superclusters import Superclusters

EVERY = ClusterSettings(seed_mev=3.0, gather_mev=0.5, least_et_gev=1e-3)


@pytest.fixture(scope="module")
def barrel() -> CrystalCalorimeter:
    found = load_detector("cms-barrel")
    assert isinstance(found, CrystalCalorimeter)
    return found


@pytest.fixture(scope="module")
def showers(barrel: CrystalCalorimeter, make_showers: Callable[..., Showers]) -> Showers:
    made = make_showers(barrel, 300, seed=5, n_hits=40)
    return replace(made, kind="rechit", readout=Readout(noise_mev=0.1, threshold_mev=1e-9, saturation_mev=9.0))


@pytest.fixture(scope="module")
def found(showers: Showers) -> Superclusters:
    objects = find_superclusters(showers, settings=EVERY)
    # the first object of every other shower matches; what is behind the crystals is known of some
    is_first = np.append(True, np.diff(objects.shower) > 0)
    hadronic = np.where(objects.shower % 3 == 0, np.nan, 0.1 * objects.shower)
    return replace(objects, is_matched=is_first & (objects.shower % 2 == 0), hadronic_gev=hadronic)


def assert_same(a: Superclusters, b: Superclusters) -> None:
    assert a.detector.digest == b.detector.digest
    for field in fields(a):
        if field.name != "detector":
            assert np.array_equal(getattr(a, field.name), getattr(b, field.name), equal_nan="_gev" in field.name), field.name


def test_the_sample_tries_every_column(found: Superclusters) -> None:
    assert found.n_clusters.max() > 1
    assert found.n_showers > np.unique(found.shower).size or found.n_objects > found.n_showers
    assert 0 < found.is_matched.sum() < found.n_objects
    assert (found.n_saturated > 0).any()
    assert np.isnan(found.hadronic_gev).any()
    assert found.readout.startswith("rechits of noise 0.1 MeV")


def test_what_is_written_is_read(found: Superclusters, tmp_path: Path) -> None:
    assert write_superclusters(tmp_path / CLUSTERS_FILE, found) == found.n_objects
    assert_same(read_superclusters(tmp_path / CLUSTERS_FILE), found)
    assert_same(read_superclusters(tmp_path, detector=found.detector), found)
    assert is_superclusters(tmp_path)
    assert is_superclusters(tmp_path / CLUSTERS_FILE)


def test_a_file_does_not_show_how_the_sample_was_cut(showers: Showers, tmp_path: Path) -> None:
    cuts = [0, 3, 3, 150, 300]
    parts = (find_superclusters(showers.between(a, b), settings=EVERY) for a, b in pairwise(cuts))
    write_superclusters(tmp_path / "parts.h5", parts)
    write_superclusters(tmp_path / "whole.h5", find_superclusters(showers, settings=EVERY))
    assert (tmp_path / "parts.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_nothing_found_is_a_file_too(found: Superclusters, tmp_path: Path) -> None:
    write_superclusters(tmp_path / "none.h5", found.select([]))
    assert_same(read_superclusters(tmp_path / "none.h5"), found.select([]))


def test_parts_of_two_readouts_leave_no_file(found: Superclusters, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="join objects of one readout only"):
        write_superclusters(tmp_path / "mixed.h5", [found, replace(found, readout="simhits")])
    with pytest.raises(ValueError, match="no superclusters to write"):
        write_superclusters(tmp_path / "empty.h5", [])
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_no_superclusters(showers: Showers, tmp_path: Path) -> None:
    write_showers(tmp_path / "showers.h5", showers.between(0, 3))
    (tmp_path / "text.txt").write_text("no\n", encoding="utf-8")
    for path in (tmp_path, tmp_path / "showers.h5", tmp_path / "text.txt", tmp_path / "nothing"):
        assert not is_superclusters(path)
    with pytest.raises(FileFormatError, match=r"showers\.h5 holds no superclusters that calolife wrote; give a run of"):
        read_superclusters(tmp_path / "showers.h5")
    with pytest.raises(FileFormatError, match=r"has no objects\.h5; give a file of superclusters, or a run of 'calolife showers cluster'"):
        read_superclusters(tmp_path)
    with pytest.raises(FileFormatError, match="no superclusters at"):
        read_superclusters(tmp_path / "nothing")
    with pytest.raises(FileFormatError, match="is not HDF5"):
        read_superclusters(tmp_path / "text.txt")


def _set(name: str, value: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file.attrs[name] = value

    return change


def _drop(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]

    return change


def _fill(name: str, value: float) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name][3] = value

    return change


def _shorten(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name].resize(file[name].shape[0] - 1, axis=0)

    return change


def _layers(file: h5py.File) -> None:
    other = load_detector("cu-scint-24x24")
    del file["detector"]
    file.create_dataset("detector", data=to_toml(other).encode())
    file.attrs["detector_digest"] = other.digest


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_set("version", 9), "has version 9 of the format"),
        (_set("detector_digest", "0" * 64), "its detector 'cms-barrel' is not the one its digest names"),
        (_set("n_showers", 1), "shower must never fall and lie in 0 to 0"),
        (_drop("cluster_eta"), "cluster_eta is missing"),
        (_drop("detector"), "detector is missing"),
        (_fill("energy_mev", np.nan), "energy_mev must be finite and > 0"),
        (_fill("cell", 10**6), "is not in 0..61199"),
        (_fill("hit_cluster", 999), "names a cluster of another object"),
        (_fill("hit_offsets", 10**6), "damaged"),
        (_fill("rho_gev", np.inf), "rho_gev must be finite"),
        (_shorten("is_matched"), "is_matched has shape"),
        (_shorten("cluster_offsets"), "its offsets do not fit"),
        (_shorten("hit_cluster"), "damaged"),
        (_layers, "is made of layers"),
    ],
)  # fmt: skip
def test_damage_is_told(found: Superclusters, tmp_path: Path, change: Callable[[h5py.File], None], told: str) -> None:
    write_superclusters(tmp_path / CLUSTERS_FILE, found)
    with h5py.File(tmp_path / CLUSTERS_FILE, "r+") as file:
        change(file)
    with pytest.raises(FileFormatError, match=told) as error:
        read_superclusters(tmp_path / CLUSTERS_FILE)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("left", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_told(found: Superclusters, tmp_path: Path, left: float) -> None:
    path = tmp_path / CLUSTERS_FILE
    write_superclusters(path, found)
    os.truncate(path, int(left * path.stat().st_size))
    with pytest.raises(FileFormatError, match=r"truncated|damaged"):
        read_superclusters(path)


def test_a_flipped_byte_is_told(found: Superclusters, tmp_path: Path) -> None:
    path = tmp_path / CLUSTERS_FILE
    write_superclusters(path, found)
    with h5py.File(path) as file:
        at = file["energy_mev"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[at + 100] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(FileFormatError, match="damaged"):
        read_superclusters(path)


def test_another_detector_than_asked_for_is_refused(found: Superclusters, tmp_path: Path) -> None:
    write_superclusters(tmp_path / CLUSTERS_FILE, found)
    with pytest.raises(FileFormatError, match=r"was made in detector 'cms-barrel' .* not in 'pbwo4-5x5'"):
        read_superclusters(tmp_path, detector=load_detector("pbwo4-5x5"))


def test_rho_is_that_of_the_shower(showers: Showers, found: Superclusters) -> None:
    assert np.array_equal(found.rho_gev, energy_density_gev(showers)[found.shower])


def test_rho_follows_what_lies_all_over_the_barrel(barrel: CrystalCalorimeter) -> None:
    # a shower of 10 GeV, alone and on 100 MeV in every other crystal
    cells, of, energy = [5000], [0], [1e4]
    cells += list(range(0, barrel.n_cells, 2))
    of += [1] * (len(cells) - 1)
    energy += [100.0] * (len(cells) - 1)
    cells, of, energy = [*cells, 5000], [*of, 1], [*energy, 1e4]
    found = find_superclusters(Showers.from_hits(barrel, of, cells, energy, pdg_id=22, energy_gev=[10.0, 10.0]))
    quiet, loud = found.rho_gev[found.shower == 0], found.rho_gev[found.shower == 1]
    assert quiet.tolist() == [0.0]
    eta, _ = barrel.eta_phi_at(barrel.x_edges_mm.mean(axis=1), 0.0)
    transverse = np.median((0.05 / np.cosh(eta)).reshape(10, 17).mean(axis=1))  # half of the crystals have 0.1 GeV
    assert loud == pytest.approx(transverse / (0.0174 * 2 * np.pi / 360), rel=1e-6)  # energies are float32


def test_a_small_matrix_has_no_rho(crystals: CrystalCalorimeter, make_showers: Callable[..., Showers]) -> None:
    found = find_superclusters(make_showers(crystals, 20, seed=1), settings=EVERY)
    assert found.n_objects
    assert np.isnan(found.rho_gev).all()
    assert found.readout == "simhits"


def test_saturated_crystals_are_counted(showers: Showers, found: Superclusters) -> None:
    assert np.array_equal(found.n_saturated, np.bincount(found.hit_object, found.energy_mev >= 9.0, found.n_objects))
    assert showers.readout is not None
    assert not find_superclusters(replace(showers, readout=Readout(noise_mev=0.1)), settings=EVERY).n_saturated.any()


def test_new_columns_go_with_their_objects(found: Superclusters) -> None:
    half = found.n_objects // 2
    parts = [found.select(range(half)), found.select(range(half, found.n_objects))]
    # both are of the same showers: joined, the second half is numbered on
    joined = Superclusters.concatenate(parts)
    for name in ("rho_gev", "hadronic_gev", "n_saturated"):
        assert np.array_equal(getattr(joined, name), getattr(found, name), equal_nan=True), name
    assert joined.readout == found.readout
