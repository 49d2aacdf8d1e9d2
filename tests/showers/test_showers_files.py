"""What is written is what is read, in every format; the same showers give the same bytes; damage is told in one line."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import LayeredCalorimeter, Readout
from calolife.detector.presets import load_detector
from calolife.errors import FileFormatError, MissingExtraError
from calolife.showers.digitise import digitise
from calolife.showers.events import Showers
from calolife.showers.files import (
    count_showers,
    iter_showers,
    read_layer_sums,
    read_showers,
    write_calochallenge,
    write_root,
    write_showers,
)

COLUMNS = (
    "offsets", "cell", "energy_mev", "pdg_id", "energy_gev", "position_mm", "direction", "active_mev", "passive_mev", "leaked_mev",
    "invisible_mev",
)  # fmt: skip


def assert_same(got: Showers, want: Showers) -> None:
    assert got.detector == want.detector
    assert (got.kind, got.readout, got.origin) == (want.kind, want.readout, want.origin)
    for name in COLUMNS:
        a, b = getattr(got, name), getattr(want, name)
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.fixture
def stored(tmp_path: Path, pions: Showers) -> Path:
    write_showers(tmp_path / "pions.h5", pions)
    return tmp_path / "pions.h5"


@pytest.mark.parametrize(("name", "write"), [("a.h5", write_showers), ("a.root", write_root)])
@pytest.mark.parametrize("what", ["simhits", "rechits", "crystals", "nothing", "no hits"])
def test_a_round_trip_changes_nothing(
    name: str, write: Callable[..., int], what: str, pions: Showers, crystals: CrystalCalorimeter, make_showers: Callable[..., Showers],
    tmp_path: Path,
) -> None:  # fmt: skip
    if name.endswith(".root"):
        pytest.importorskip("uproot")
    showers = {
        "simhits": pions,
        "rechits": digitise(pions, Readout(8.0, 0.2), seed=1),
        "crystals": digitise(make_showers(crystals, 20, seed=2), seed=1),
        "nothing": pions.between(0, 0),
        "no hits": digitise(pions.between(0, 5), Readout(threshold_mev=1e6), seed=1),
    }[what]
    assert write(tmp_path / name, showers) == showers.n_showers
    assert_same(read_showers(tmp_path / name), showers)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.h5", "a.root"])
def test_a_part_is_read_alone(name: str, pions: Showers, tmp_path: Path) -> None:
    if name.endswith(".root"):
        pytest.importorskip("uproot")
    (write_root if name.endswith(".root") else write_showers)(tmp_path / name, pions)
    assert count_showers(tmp_path / name) == 500
    assert_same(read_showers(tmp_path / name, start=123, stop=321), pions.between(123, 321))
    assert_same(read_showers(tmp_path / name, start=500), pions.between(500, 500))
    parts = list(iter_showers(tmp_path / name, chunk=99, start=7))
    assert [p.n_showers for p in parts] == [99, 99, 99, 99, 97]
    assert_same(Showers.concatenate(parts), pions.between(7, 500))


@given(cuts=st.lists(st.integers(0, 3000), max_size=6))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_bytes_do_not_show_how_the_sample_was_cut(cuts: list[int], pions: Showers, tmp_path: Path) -> None:
    many = Showers.concatenate([pions] * 6)  # more than two chunks of showers and one of hits
    if not (tmp_path / "whole.h5").exists():
        write_showers(tmp_path / "whole.h5", many)
    edges = [0, *sorted(cuts), 3000]
    write_showers(tmp_path / "parts.h5", (many.between(a, b) for a, b in pairwise(edges)))
    assert (tmp_path / "parts.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_the_bytes_hold_no_date(pions: Showers, tmp_path: Path) -> None:
    write_showers(tmp_path / "a.h5", pions)
    time.sleep(1.1)  # HDF5 dates to the second
    write_showers(tmp_path / "b.h5", pions)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_file_is_replaced_only_by_a_whole_one(stored: Path, pions: Showers) -> None:
    def broken() -> object:
        yield pions
        raise RuntimeError("the engine stopped")

    with pytest.raises(RuntimeError, match="the engine stopped"):
        write_showers(stored, broken())
    assert_same(read_showers(stored), pions)
    assert [p.name for p in stored.parent.iterdir()] == ["pions.h5"]


def test_parts_that_do_not_belong_together_are_refused(pions: Showers, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sample 1 holds rechits"):
        write_showers(tmp_path / "a.h5", [pions, digitise(pions, Readout(), seed=1)])
    with pytest.raises(ValueError, match="give at least one part"):
        write_showers(tmp_path / "a.h5", [])
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_stands_for_its_showers(pions: Showers, tmp_path: Path) -> None:
    write_showers(tmp_path / "showers.h5", pions)
    assert_same(read_showers(tmp_path), pions)


@pytest.mark.parametrize("kind", ["stack", "crystals"])
def test_the_calochallenge_layout_keeps_cells_and_energies(
    kind: str, pions: Showers, crystals: CrystalCalorimeter, make_showers: Callable[..., Showers], tmp_path: Path
) -> None:
    showers = pions if kind == "stack" else make_showers(crystals, 30, seed=3)
    write_calochallenge(tmp_path / "c.h5", [showers.between(0, 11), showers.between(11, showers.n_showers)])
    with h5py.File(tmp_path / "c.h5") as file:
        assert file["incident_energies"].shape == (showers.n_showers, 1)
        assert file["showers"].shape == (showers.n_showers, showers.detector.n_cells)
        np.testing.assert_allclose(file["showers"][()].sum(axis=1, dtype=float), showers.visible_mev)
    back = read_showers(tmp_path / "c.h5", detector=showers.detector, start=3)
    want = showers.between(3, showers.n_showers)
    for name in ("offsets", "cell", "energy_mev"):
        np.testing.assert_array_equal(getattr(back, name), getattr(want, name))
    np.testing.assert_allclose(back.energy_gev, want.energy_gev, rtol=1e-15)  # GeV to MeV and back


def test_a_sparse_file_of_a_regular_grid_is_read(tmp_path: Path) -> None:
    calo = load_detector("cu-scint-24x24")
    sparse(tmp_path / "s.h5")
    showers = read_showers(tmp_path / "s.h5")
    assert (showers.detector, showers.offsets.tolist(), showers.energy_mev.tolist()) == (calo, [0, 1, 3], [1.0, 2.0, 3.0])
    assert showers.cell.tolist() == calo.cell_id([0, 1, 39], [0, 0, 23], [5, 1, 23]).tolist()
    assert showers.pdg_id.tolist() == [-211, -211]
    assert showers.origin == {"seed": 7, "what": "10 GeV pi- showers"}
    assert np.isnan(showers.position_mm).all()


def sparse(path: Path, **attributes: float) -> None:
    with h5py.File(path, "w") as file:
        columns = {"offsets": [0, 1, 3], "cell": [5, 577, 23039], "energy_mev": [1.0, 2.0, 3.0], "true_energy_gev": [10.0, 10.0]}
        for name, values in columns.items():
            file[name] = values
        file.attrs.update({"n_layers": 40, "n_x": 24, "n_y": 24, "cell_mm": 30.0, "seed": 7, "what": "10 GeV pi- showers", **attributes})


def test_a_grid_that_is_no_preset_needs_its_detector(tmp_path: Path, small_stack: LayeredCalorimeter) -> None:
    sparse(tmp_path / "s.h5", n_layers=20)
    with pytest.raises(FileFormatError, match="20 layers of 24 x 24 cells of 30 mm; the preset cu-scint-24x24 is another"):
        read_showers(tmp_path / "s.h5")
    with pytest.raises(FileFormatError, match="detector 'small' is another"):
        read_showers(tmp_path / "s.h5", detector=small_stack)


def test_layer_sums_come_from_files_with_and_without_cells(stored: Path, pions: Showers, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "sums.h5", "w") as file:
        file["layer_energy_mev"], file["true_energy_gev"], file["pdg_id"] = pions.layer_energy_mev(), pions.energy_gev, pions.pdg_id
    for path in (stored, tmp_path / "sums.h5"):
        found = read_layer_sums(path)
        np.testing.assert_allclose(found.layer_energy_mev, pions.layer_energy_mev(), rtol=1e-15)
        np.testing.assert_array_equal(found.energy_gev, pions.energy_gev)
        np.testing.assert_array_equal(found.pdg_id, pions.pdg_id)
    with pytest.raises(FileFormatError, match="read them with read_layer_sums"):
        read_showers(tmp_path / "sums.h5")


def test_geant4_pions_are_read(geant4_samples: Path) -> None:
    showers = read_showers(geant4_samples / "pions_ref.h5", start=1000, stop=2000)
    assert (showers.detector.name, showers.n_showers) == ("cu-scint-24x24", 1000)
    assert set(showers.pdg_id.tolist()) == {-211}
    # 5,000 of these showers have 276.8 MeV with a spread of 48: 1.5 MeV is the error of 1,000, four of them allowed
    assert showers.visible_mev.mean() == pytest.approx(276.8, abs=6.0)
    # a shower that starts on average one interaction length in is deepest well before the middle of six
    assert 3 <= showers.layer_energy_mev().mean(axis=0).argmax() <= 15


def test_geant4_layer_sums_are_read(geant4_samples: Path) -> None:
    sums = read_layer_sums(geant4_samples / "stack_v2.h5")
    assert sums.layer_energy_mev.shape == (6000, load_detector("pb-scint-fe-v2").n_active)
    assert set(sums.pdg_id.tolist()) == {-211, 22}


def damage_nothing(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_by_text(path: Path) -> None:
    path.write_text("shower,cell,energy\n")


def replace_by_other_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["tracks"] = [1, 2]


def drop_a_column(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["direction"]


def shorten_a_column(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["pdg_id"].resize(12, axis=0)


def shorten_the_hits(path: Path) -> None:
    with h5py.File(path, "a") as file:
        for name in ("cell", "energy_mev"):
            file[name].resize(12, axis=0)


def swap_cells(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["cell"][:2] = file["cell"][:2][::-1]


def flip_a_byte_of_data(path: Path) -> None:
    with h5py.File(path, "r") as file:
        where = file["energy_mev"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[where.byte_offset + where.size // 2] ^= 0xFF
    path.write_bytes(content)


def name_another_digest(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.attrs["detector_digest"] = "0" * 64


def raise_the_version(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.attrs["version"] = 2


def break_the_record(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.attrs["origin"] = "{engine"


def spoil_the_version(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.attrs["version"] = "abc"


def spoil_the_detector(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["detector"]
        file["detector"] = b"\xff\xfe"


def spoil_the_readout(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.attrs["readout"] = '{"noise_mev": -1}'


def make_a_group_of_a_column(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["offsets"]
        file.create_group("offsets")


def make_a_number_of_a_column(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["energy_gev"]
        file["energy_gev"] = 3.0


def replace_by_numbers_of_a_grid(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name in ("offsets", "cell", "energy_mev", "true_energy_gev"):
            file[name] = 3.0
        file.attrs.update({"n_layers": 40, "n_x": 24, "n_y": 24, "cell_mm": 30.0})


def replace_by_groups(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name in ("showers", "incident_energies"):
            file.create_group(name)


def name_two_formats(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["format"] = np.array(["calolife showers", "another"], dtype="S20")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (spoil_the_version, "has version abc of the format"),
        (spoil_the_detector, "is damaged"),
        (spoil_the_readout, "is damaged: readout: "),
        (make_a_group_of_a_column, "is damaged: offsets is missing"),
        (make_a_number_of_a_column, "is damaged: energy_gev is missing"),
        (replace_by_numbers_of_a_grid, "is damaged: offsets is no column"),
        (replace_by_groups, "holds no showers that calolife knows: it has incident_energies, showers"),
        (name_two_formats, "holds no showers that calolife knows"),
        (damage_nothing, "no showers at .*; give a file or a run directory"),
        (truncate, "is truncated: HDF5 cannot read it; make it or get it again"),
        (replace_by_text, "is not HDF5"),
        (replace_by_other_hdf5, "holds no showers that calolife knows: it has tracks"),
        (drop_a_column, "is damaged: direction is missing"),
        (shorten_a_column, "its columns have different lengths"),
        (shorten_the_hits, "its offsets do not fit its hits"),
        (swap_cells, "is damaged: shower 0 has cell"),
        (flip_a_byte_of_data, "is damaged: HDF5 cannot read it"),
        (name_another_digest, "is not the one its digest names"),
        (raise_the_version, "has version 2 of the format, this calolife reads 1; update calolife"),
        (break_the_record, "its record is not JSON"),
    ],
)
def test_damage_is_told_in_one_line(damage: Callable[[Path], None], words: str, stored: Path) -> None:
    damage(stored)
    with pytest.raises(FileFormatError, match=words) as caught:
        read_showers(stored)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("damage", "words"), [(truncate, "no ROOT file|is damaged"), (replace_by_text, "is no ROOT file")])
def test_a_damaged_root_file_is_told_in_one_line(damage: Callable[[Path], None], words: str, pions: Showers, tmp_path: Path) -> None:
    pytest.importorskip("uproot")
    write_root(tmp_path / "a.root", pions)
    damage(tmp_path / "a.root")
    with pytest.raises(FileFormatError, match=words) as caught:
        read_showers(tmp_path / "a.root")
    assert "\n" not in str(caught.value)


def test_a_foreign_root_file_is_told_from_ours(tmp_path: Path) -> None:
    uproot = pytest.importorskip("uproot")
    with uproot.recreate(tmp_path / "a.root") as file:
        file["events"] = {"energy": np.ones(3)}
    with pytest.raises(FileFormatError, match="a TTree 'showers' and the TObjString 'calolife' are needed"):
        read_showers(tmp_path / "a.root")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda path, calo: read_showers(path, start=400, stop=501), "has 500 showers, from 0; there are none from 400 to 501"),
        (lambda path, calo: read_showers(path, start=-1), "there are none from -1"),
        (lambda path, calo: list(iter_showers(path, chunk=0)), "chunk = 0 must be >= 1"),
        (lambda path, calo: read_showers(path, detector=calo), "was made in detector 'small' .*, not in 'cu-scint-24x24'"),
        (lambda path, calo: read_showers(path.parent), "has no showers.h5"),
        (lambda path, calo: read_showers(dense(path)), "does not tell its detector; name it"),
        (lambda path, calo: read_showers(dense(path), detector=calo), "has 144 voxels but detector 'cu-scint-24x24' has 23040 cells"),
    ],
)
def test_a_bad_request_is_told_in_one_line(call: Callable[..., object], words: str, stored: Path) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        call(stored, load_detector("cu-scint-24x24"))
    assert "\n" not in str(caught.value)


def dense(path: Path) -> Path:
    write_calochallenge(path.with_name("dense.h5"), read_showers(path))
    return path.with_name("dense.h5")


def test_a_tree_keeps_the_origin_that_all_parts_share(pions: Showers, tmp_path: Path) -> None:
    pytest.importorskip("uproot")
    origins: tuple[dict[str, str | int], ...] = ({"engine": "fast", "seed": 1}, {"engine": "fast", "seed": 2})
    write_root(tmp_path / "a.root", [replace(pions, origin=origin) for origin in origins])
    assert read_showers(tmp_path / "a.root").origin == {"engine": "fast"}


def test_negative_rechits_do_not_fit_the_calochallenge_layout(pions: Showers, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no negative energies"):
        write_calochallenge(tmp_path / "c.h5", digitise(pions, Readout(noise_mev=0.1), seed=1))


def test_root_without_uproot_names_the_extra(pions: Showers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uproot", None)
    with pytest.raises(MissingExtraError, match=r'pip install "calolife\[root\]"'):
        write_root(tmp_path / "a.root", pions)
    with pytest.raises(MissingExtraError, match=r'pip install "calolife\[root\]"'):
        read_showers(tmp_path / "a.root")
