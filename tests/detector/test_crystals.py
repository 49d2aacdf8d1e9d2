"""Crystals: the numbers of the CMS barrel, its gaps, and the way between cells, places and angles."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.materials import material
from calolife.detector.presets import load_detector


@pytest.fixture(scope="module")
def barrel() -> CrystalCalorimeter:
    calo = load_detector("cms-barrel")
    assert isinstance(calo, CrystalCalorimeter)
    return calo


def test_the_barrel_has_61200_crystals_of_26_radiation_lengths(barrel: CrystalCalorimeter) -> None:
    assert barrel.n_cells == 61200
    assert barrel.depth_x0 == pytest.approx(25.8, abs=0.05)  # source: CMS, JINST 3 (2008) S08004, quoted to 3 digits


@given(st.lists(st.integers(0, 61199), min_size=1, max_size=50))
def test_cell_index_inverts_cell_id(cell: list[int]) -> None:
    calo = load_detector("cms-barrel")
    assert isinstance(calo, CrystalCalorimeter)
    assert np.array_equal(calo.cell_id(*calo.cell_index(cell)), cell)


def test_there_is_no_row_zero(barrel: CrystalCalorimeter) -> None:
    assert int(barrel.cell_id(1, 1)) - int(barrel.cell_id(-1, 1)) == 360
    with pytest.raises(ValueError, match="ieta 0"):
        barrel.cell_id(0, 1)


def test_crystals_do_not_overlap(barrel: CrystalCalorimeter) -> None:
    for edges in (barrel.x_edges_mm, barrel.y_edges_mm):
        assert (edges[1:, 0] - edges[:-1, 1] >= 0.35 - 1e-9).all()
        assert np.allclose(edges[:, 1] - edges[:, 0], 22.0)


def test_module_gaps_are_where_modules_end(barrel: CrystalCalorimeter) -> None:
    gap = barrel.x_edges_mm[1:, 0] - barrel.x_edges_mm[:-1, 1]
    assert np.array(barrel.ieta)[np.flatnonzero(gap > 1)].tolist() == [-66, -46, -26, -1, 25, 45, 65]
    gap = barrel.y_edges_mm[1:, 0] - barrel.y_edges_mm[:-1, 1]
    assert (np.flatnonzero(gap > 1) + 1).tolist() == list(range(20, 360, 20))


def test_the_barrel_is_symmetric_in_eta(barrel: CrystalCalorimeter) -> None:
    assert np.allclose(barrel.x_edges_mm, -barrel.x_edges_mm[::-1, ::-1])
    assert np.allclose(barrel.eta_phi_at([-300.0, 300.0, 0.0], np.zeros(3))[0], [-0.231, 0.231, 0.0], atol=0.01)


@given(st.floats(-1900, 1900), st.floats(-4000, 4000))
def test_places_and_angles_invert_each_other(x_mm: float, y_mm: float) -> None:
    calo = load_detector("cms-barrel")
    assert isinstance(calo, CrystalCalorimeter)
    x, y = calo.xy_mm_at(*calo.eta_phi_at(x_mm, y_mm))
    assert float(x) == pytest.approx(x_mm, abs=1e-6)
    assert (float(y) - y_mm + calo.period_y_mm / 2) % calo.period_y_mm - calo.period_y_mm / 2 == pytest.approx(0, abs=1e-6)


def test_a_crystal_is_one_step_in_eta_and_phi(barrel: CrystalCalorimeter) -> None:
    cell = np.arange(barrel.n_cells)
    ieta, iphi = barrel.cell_index(cell)
    position = barrel.cell_position_mm(cell)
    eta, phi = barrel.eta_phi_at(position[:, 0], position[:, 1])
    # beside a module gap the crystal is not in the middle of its step
    assert np.abs(eta - 0.0174 * (ieta - 0.5 * np.sign(ieta))).max() < 0.0174 / 4
    turn = (phi - np.radians(iphi - 0.5) + math.pi) % (2 * math.pi) - math.pi
    assert np.abs(turn).max() < np.radians(1) / 4


def test_phi_closes(barrel: CrystalCalorimeter) -> None:
    _, phi = barrel.eta_phi_at([0.0, 0.0], [100.0, 100.0 + barrel.period_y_mm])
    assert phi[0] == pytest.approx(phi[1])
    gap = barrel.period_y_mm - barrel.size_y_mm
    assert gap == pytest.approx(6.0)  # iphi 360 ends a supermodule


def test_material_in_front_grows_with_eta(barrel: CrystalCalorimeter) -> None:
    depth = barrel.upstream_x0_at(np.linspace(0, 1.4, 20))
    assert (np.diff(depth) > 0).all()
    assert (depth[0], depth[-1]) == pytest.approx((0.4, 1.8))  # source: CMS, JINST 3 (2008) S08004
    assert np.array_equal(barrel.upstream_x0_at(np.linspace(0, -1.4, 20)), depth)


def test_nothing_stands_before_the_test_matrix() -> None:
    calo = load_detector("pbwo4-5x5")
    assert isinstance(calo, CrystalCalorimeter)
    assert calo.upstream_x0_at([0.0, 1.0]).tolist() == [0.0, 0.0]


def test_crystals_are_paid_by_volume(barrel: CrystalCalorimeter) -> None:
    assert barrel.cost_chf == pytest.approx(30000 * 23 * 61200 * 0.022**2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ieta": (-1, 0, 1)}, "no 0"),
        ({"ieta": (1, 3)}, "without a hole"),
        ({"ieta": (2, 1)}, "ascend"),
        ({"ieta": ()}, "at least one row"),
        ({"n_phi": 0}, "n_phi = 0"),
        ({"n_phi": 2, "is_phi_periodic": True}, "close a circle"),
        ({"crystal_size_mm": 0.0}, "crystal_size_mm"),
        ({"length_mm": math.nan}, "length_mm"),
        ({"gap_mm": -0.1}, "gap_mm"),
        ({"upstream_x0": ((1.0, 0.4), (0.5, 1.0))}, "ascending"),
        ({"upstream_x0": ((0.0, -0.4),)}, ">= 0"),
        ({"name": ""}, "name"),
    ],
)
def test_impossible_crystals_are_refused(change: dict[str, object], says: str) -> None:
    good = CrystalCalorimeter("good", material("G4_PbWO4"), (1, 2), 3)
    with pytest.raises(ValueError, match=says):
        replace(good, **change)


def test_crystals_are_printed_in_one_line(barrel: CrystalCalorimeter) -> None:
    assert repr(barrel) == "CrystalCalorimeter('cms-barrel', 170 x 360 crystals, 23 cm, 25.8 X0)"


@pytest.mark.parametrize(
    ("change", "has_gaps"),
    [
        ({}, False),
        ({"gap_mm": 0.35}, True),
        ({"eta_module_gap_mm": 6.0}, False),  # no module ends
        ({"eta_module_gap_mm": 6.0, "eta_module_ends": (1,)}, True),
        ({"phi_module_gap_mm": 6.0, "phi_module_crystals": 3}, False),  # behind the last column
        ({"phi_module_gap_mm": 6.0, "phi_module_crystals": 3, "is_phi_periodic": True}, True),
    ],
)
def test_gaps_are_between_crystals(change: dict[str, object], has_gaps: bool) -> None:
    assert CrystalCalorimeter("small", material("G4_PbWO4"), (1, 2), 3, **change).has_gaps is has_gaps
