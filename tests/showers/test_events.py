"""Showers: what they refuse, and that no operation makes or loses energy."""

import pickle
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import Layer, LayeredCalorimeter, Readout
from calolife.detector.materials import material
from calolife.errors import MissingExtraError
from calolife.showers.events import Showers, rotate90

STACK = LayeredCalorimeter("pair", (), 100.0, 100.0).add_period(2, Layer(material("G4_Si"), 1.0, is_active=True, cells=(4, 4)))
GOOD = {
    "detector": STACK, "offsets": [0, 2, 2, 3], "cell": [3, 17, 0], "energy_mev": [1.0, 2.0, 3.0], "pdg_id": [11, 22, -211],
    "energy_gev": [1.0, 2.0, 3.0], "position_mm": np.zeros((3, 3)), "direction": np.tile([0.0, 0.0, 1.0], (3, 1)),
}  # fmt: skip


def same(a: Showers, b: Showers) -> bool:
    columns = ("offsets", "cell", "energy_mev", "pdg_id", "energy_gev", "position_mm", "direction")
    budget = ("active_mev", "passive_mev", "leaked_mev", "invisible_mev")
    return (a.kind, a.readout, a.detector.digest) == (b.kind, b.readout, b.detector.digest) and all(
        np.array_equal(getattr(a, name), getattr(b, name), equal_nan=name in (*budget, "position_mm", "direction"))
        for name in (*columns, *budget)
    )


def test_layer_sums_hold_all_visible_energy(pions: Showers) -> None:
    # float64 sums of the same float32 numbers in another order: a few times 2^-53
    np.testing.assert_allclose(pions.layer_energy_mev().sum(axis=1), pions.visible_mev, rtol=1e-14)
    assert pions.layer_occupancy().sum() == pions.n_hits


def test_layer_sums_follow_the_cell_numbering() -> None:
    showers = Showers(**GOOD)
    assert showers.layer_energy_mev().tolist() == [[1.0, 2.0], [0.0, 0.0], [3.0, 0.0]]
    assert showers.layer.tolist() == STACK.cell_index(showers.cell)[0].tolist()


def test_crystals_have_one_layer(crystals: CrystalCalorimeter, make_showers: Callable[..., Showers]) -> None:
    showers = make_showers(crystals, 5, seed=1)
    assert showers.layer_energy_mev().shape == (5, 1)
    np.testing.assert_allclose(showers.layer_energy_mev()[:, 0], showers.visible_mev)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_the_order_of_deposits_does_not_matter(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 40))
    numbers = st.floats(1e-6, 1e6)
    shower = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    cell = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    energy = data.draw(st.lists(numbers, min_size=n, max_size=n))
    order = data.draw(st.permutations(range(n)))
    once = Showers.from_hits(STACK, shower, cell, energy, pdg_id=11, energy_gev=[1.0, 2.0, 3.0])
    mixed = [[column[i] for i in order] for column in (shower, cell, energy)]
    assert same(once, Showers.from_hits(STACK, *mixed, pdg_id=11, energy_gev=[1.0, 2.0, 3.0]))
    # each cell is rounded to float32 once
    assert once.visible_mev.sum() == pytest.approx(sum(energy), rel=2**-23)


def test_a_simhit_without_energy_is_no_hit() -> None:
    showers = Showers.from_hits(STACK, [0, 0], [1, 2], [0.0, 1.0], pdg_id=11, energy_gev=[1.0])
    assert showers.cell.tolist() == [2]


def test_selections_concatenate_to_the_whole(pions: Showers) -> None:
    is_odd = np.arange(pions.n_showers) % 2 == 1
    odd, even = pions.select(is_odd), pions.select(~is_odd)
    order = np.concatenate([np.flatnonzero(is_odd), np.flatnonzero(~is_odd)])
    assert same(pions.select(order), Showers.concatenate([odd, even]))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint64])
def test_indices_of_any_width_select_the_same(dtype: type, pions: Showers) -> None:
    wanted = pions.select([7, 3, 3])  # 500 showers: more than 8 bits hold
    assert pions.select(np.array([7, 3, 3], dtype=dtype)).energy_mev.tolist() == wanted.energy_mev.tolist()


def test_a_part_is_the_selection_of_its_indices(pions: Showers) -> None:
    assert same(pions.between(3, 40), pions.select(np.arange(3, 40)))
    assert same(pions.shower(-1), pions.between(499, 500))


def test_showers_cannot_be_changed(pions: Showers) -> None:
    for name in ("offsets", "cell", "energy_mev", "energy_gev", "direction", "visible_mev"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(pions, name)[0] = 0


def test_showers_travel_between_processes(pions: Showers) -> None:
    assert same(pions, pickle.loads(pickle.dumps(pions)))


def test_concatenation_keeps_the_origin_that_all_share(small_stack: LayeredCalorimeter, make_showers: Callable[..., Showers]) -> None:
    joined = Showers.concatenate([make_showers(small_stack, 3, seed=1), make_showers(small_stack, 2, seed=2)])
    assert joined.origin == {"engine": "toy"}


def test_a_quarter_turn_turns_cells_as_it_turns_points(pions: Showers) -> None:
    turned = rotate90(pions)
    x, y, z = pions.detector.cell_position_mm(pions.cell).T
    before = sorted(zip(pions.shower_index.tolist(), z, -y, x, pions.energy_mev.tolist(), strict=True))
    x, y, z = turned.detector.cell_position_mm(turned.cell).T
    after = sorted(zip(turned.shower_index.tolist(), z, x, y, turned.energy_mev.tolist(), strict=True))
    # cell centres are multiples of 15 mm; a float of that size is good to 1e-14 mm
    np.testing.assert_allclose(np.array(after), np.array(before), atol=1e-12)
    np.testing.assert_array_equal(turned.position_mm[:, 1], pions.position_mm[:, 0])
    assert same(rotate90(rotate90(rotate90(turned))), pions)


def test_an_empty_sample_is_a_sample(pions: Showers) -> None:
    empty = pions.select([])
    assert (empty.n_showers, empty.n_hits, empty.layer_energy_mev().shape) == (0, 0, (0, 4))
    assert same(Showers.concatenate([empty, pions]), pions)


def test_views_hold_the_same_hits(pions: Showers) -> None:
    ak = pytest.importorskip("awkward")
    pytest.importorskip("pandas")
    view = pions.as_awkward()
    assert np.shares_memory(ak.to_numpy(ak.flatten(view["energy_mev"])), pions.energy_mev)
    np.testing.assert_array_equal(ak.to_numpy(ak.num(view["cell"])), np.diff(pions.offsets))
    hits = pions.as_pandas()
    # pandas sums in float32: 30 terms of 2^-24 each
    visible = pions.visible_mev[np.diff(pions.offsets) > 0]
    np.testing.assert_allclose(hits.groupby("shower")["energy_mev"].sum().to_numpy(), visible, rtol=1e-5)
    assert pions.truth_as_pandas()["z_mm"].eq(0.0).all()


@pytest.mark.parametrize(("view", "package"), [("as_awkward", "awkward"), ("as_pandas", "pandas"), ("truth_as_pandas", "pandas")])
def test_a_view_without_its_package_names_the_extra(view: str, package: str, pions: Showers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r'pip install "calolife\[root\]"'):
        getattr(pions, view)()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"offsets": [1, 2, 2, 3]}, "must start at 0"),
        ({"offsets": [0, 2, 1, 3]}, "fall from 2 to 1 at shower 1"),
        ({"offsets": [0, 2, 2, 4]}, "end at 4 but there are 3 hits"),
        ({"offsets": [0.0, 2.0, 2.0, 3.0]}, "must hold integers"),
        ({"cell": [3, 32, 0]}, "cell 32 is not in the detector; it has cells 0 to 31"),
        ({"cell": [-1, 17, 0]}, "cell -1 is not in the detector"),
        ({"cell": [17, 17, 0]}, "shower 0 has cell 17 twice"),
        ({"cell": [17, 3, 0]}, "shower 0 has cell 3 after 17"),
        ({"energy_mev": [1.0, np.nan, 3.0]}, r"hit 1 \(shower 0, cell 17\) is nan"),
        ({"energy_mev": [1.0, 2.0, np.inf]}, r"hit 2 \(shower 2, cell 0\) is inf"),
        ({"energy_mev": [1.0, -2.0, 3.0]}, "visible energy is >= 0"),
        ({"energy_mev": [1.0, 2.0]}, "give one energy per hit"),
        ({"pdg_id": [11]}, r"pdg_id has shape \(1,\); 3 showers need \(3,\)"),
        ({"energy_gev": [1.0, -2.0, 3.0]}, "energy_gev of shower 1 is -2.0"),
        ({"energy_gev": [1.0, np.nan, 3.0]}, "must be finite and > 0"),
        ({"position_mm": np.zeros((3, 2))}, r"need \(3, 3\)"),
        ({"direction": np.ones((3, 3))}, "must be a unit vector"),
        ({"kind": "hit"}, "not one of simhit, rechit"),
        ({"kind": "rechit"}, "need the readout"),
        ({"readout": Readout()}, "simhits have met no readout"),
        ({"origin": {"seeds": [1]}}, "text, a number or a bool"),
        ({"leaked_mev": [1.0, np.inf, 1.0]}, "leaked_mev must be finite, or NaN"),
    ],
)
def test_a_bad_column_is_named(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        Showers(**{**GOOD, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: Showers.from_hits(s.detector, [2], [0], [1.0], pdg_id=11, energy_gev=[1.0, 1.0]), "belongs to shower 2"),
        (lambda s: Showers.from_hits(s.detector, [0], [144], [1.0], pdg_id=11, energy_gev=[1.0]), "lies in cell 144"),
        (lambda s: Showers.from_hits(s.detector, [0], [1], [1.0, 2.0], pdg_id=11, energy_gev=[1.0]), "three columns of one length"),
        (lambda s: rotate90(replace(s, detector=replace(s.detector, size_x_mm=90.0))), "not the same after a quarter turn"),
        (lambda s: s.select([500]), "shower 500 is not there; the sample has 500"),
        (lambda s: s.select([True]), "give one per shower"),
        (lambda s: s.select([0.5]), "must hold integers"),
        (lambda s: s.select([[0, 1], [2, 3]]), r"has shape \(2, 2\); give one row"),
        (lambda s: s.between(400, 501), "are not all there"),
        (lambda s: Showers.concatenate([]), "give at least one sample"),
        (lambda s: Showers.concatenate([s, Showers(**GOOD)]), "join showers of one detector only"),
        (lambda s: Showers.concatenate([s, replace(s, kind="rechit", readout=Readout())]), "sample 1 holds rechits and sample 0 simhits"),
    ],
)
def test_a_bad_request_is_told_in_one_line(call: Callable[[Showers], object], words: str, pions: Showers) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        call(pions)
    assert "\n" not in str(caught.value)
