"""Superclusters: against a plain search crystal by crystal, the symmetries of the barrel, and electrons that radiate."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import LayeredCalorimeter, Readout
from calolife.detector.presets import load_detector
from calolife.showers.calibration import BARREL_READOUT
from calolife.showers.clusters import ClusterSettings, energy_density_gev, eta_window, find_superclusters, phi_window
from calolife.showers.digitise import digitise
from calolife.showers.events import Showers
from calolife.showers.superclusters import Superclusters
from calolife.simulation.engines import simulate_showers
from calolife.simulation.particles import Particles, sample_particles

N_PHI = 360


@pytest.fixture(scope="module")
def barrel() -> CrystalCalorimeter:
    found = load_detector("cms-barrel")
    assert isinstance(found, CrystalCalorimeter)
    return found


@pytest.fixture(scope="module")
def small_barrel() -> CrystalCalorimeter:
    """12 x 12 crystals closed in phi: everything happens at an edge."""
    calo = load_detector("pbwo4-5x5")
    assert isinstance(calo, CrystalCalorimeter)
    return replace(calo, ieta=(-6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6), n_phi=12, is_phi_periodic=True)


@pytest.fixture(scope="module")
def electrons(barrel: CrystalCalorimeter) -> Showers:
    """Simhits of 400 electrons all over the barrel."""
    beam = sample_particles(barrel, 400, particle="e-", energy_gev=(5.0, 100.0), angle_deg=3.0, seed=1)
    return simulate_showers(barrel, beam, seed=1)


@pytest.fixture(scope="module")
def found(electrons: Showers) -> Superclusters:
    return find_superclusters(digitise(electrons, BARREL_READOUT, seed=1))


def random_showers(detector: CrystalCalorimeter, n: int, *, seed: int) -> Showers:
    """Every crystal hit, energies that rise steeply: many hills, few above the thresholds."""
    rng = np.random.default_rng(seed)
    n_hits = n * detector.n_cells
    energy = np.exp(rng.normal(3.5, 1.5, n_hits))
    shower, cell = np.divmod(np.arange(n_hits), detector.n_cells)
    return Showers.from_hits(detector, shower, cell, energy, pdg_id=22, energy_gev=np.ones(n), position_mm=np.zeros((n, 3)))


def crystals(detector: CrystalCalorimeter, *hits: tuple[int, int, float], pdg_id: int = 22, energy_gev: float = 50.0) -> Showers:
    """One shower of hits (ieta, iphi, GeV)."""
    ieta, iphi, energy = np.array(hits).T
    cell = detector.cell_id(ieta.astype(int), iphi.astype(int))
    return Showers.from_hits(detector, np.zeros(len(hits), int), cell, 1000 * energy, pdg_id=pdg_id, energy_gev=[energy_gev])


def plain_clusters(energy: dict[int, float], detector: CrystalCalorimeter, used: ClusterSettings) -> dict[int, int]:
    """Seed of each gathered crystal, one crystal at a time."""
    energy = {c: e for c, e in energy.items() if e >= used.gather_mev}

    def around(cell: int) -> list[int]:
        row, column = divmod(cell, detector.n_phi)
        near = [(row + i, (column + j) % detector.n_phi) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
        return [c for i, j in near if 0 <= i < detector.n_eta and (c := i * detector.n_phi + j) in energy]

    seed_of: dict[int, int] = {}
    for cell in energy:
        top = cell
        while True:
            hotter = max([top, *around(top)], key=energy.__getitem__)
            if hotter == top:
                break
            top = hotter
        if energy[top] >= used.seed_mev:
            seed_of[cell] = top
    while True:
        beside = {c: [b for b in around(c) if b in seed_of] for c in energy if c not in seed_of}
        grown = {c: seed_of[max(near, key=energy.__getitem__)] for c, near in beside.items() if near}
        if not grown:
            return seed_of
        seed_of |= grown


def same(one: Superclusters, other: Superclusters) -> bool:
    columns = ("shower", "hit_offsets", "cell", "energy_mev", "hit_cluster", "cluster_offsets", "cluster_seed", "cluster_energy_gev")
    columns += ("cluster_eta", "cluster_phi", "is_matched", "pdg_id", "energy_gev")
    return one.n_showers == other.n_showers and all(np.array_equal(getattr(one, c), getattr(other, c)) for c in columns)


# --- clusters


@pytest.mark.parametrize("seed", range(5))
def test_clusters_are_those_of_a_plain_search(seed: int, small_barrel: CrystalCalorimeter) -> None:
    used = ClusterSettings(seed_mev=300.0, gather_mev=30.0, least_et_gev=1e-3)  # every cluster is in some object
    showers = random_showers(small_barrel, 10, seed=seed)
    objects = find_superclusters(showers, settings=used)
    hit_shower = objects.shower[objects.hit_object]
    for i in range(10):
        of = hit_shower == i
        ours = dict(zip(objects.cell[of].tolist(), objects.cluster_seed[objects.hit_cluster[of]].tolist(), strict=True))
        one = showers.shower(i)
        assert ours == plain_clusters(dict(zip(one.cell.tolist(), one.energy_mev.tolist(), strict=True)), small_barrel, used)


def test_a_crystal_belongs_to_one_object_with_all_its_energy(electrons: Showers) -> None:
    rechits = digitise(electrons, BARREL_READOUT, seed=1)
    objects = find_superclusters(rechits)
    key = objects.shower[objects.hit_object] * rechits.detector.n_cells + objects.cell
    assert np.unique(key).size == key.size
    all_keys = rechits.shower_index * rechits.detector.n_cells + rechits.cell
    np.testing.assert_array_equal(objects.energy_mev, rechits.energy_mev[np.searchsorted(all_keys, key)])


def test_clusters_add_up_to_the_raw_energy(found: Superclusters) -> None:
    summed = np.bincount(found.cluster_object, found.cluster_energy_gev, found.n_objects)
    np.testing.assert_allclose(summed, found.raw_energy_gev, rtol=1e-12)
    per_cluster = np.bincount(found.hit_cluster, found.energy_mev, found.cluster_seed.size) / 1000
    np.testing.assert_allclose(per_cluster, found.cluster_energy_gev, rtol=1e-12)


def test_the_valley_between_two_hills_parts_them(barrel: CrystalCalorimeter) -> None:
    objects = find_superclusters(crystals(barrel, (5, 100, 9.0), (5, 101, 1.0), (5, 102, 0.5), (5, 103, 2.0), (5, 104, 8.0)))
    assert objects.cluster_seed.tolist() == barrel.cell_id(5, [104, 100]).tolist()
    np.testing.assert_allclose(objects.cluster_energy_gev, [10.5, 10.0])  # the crystal of 0.5 GeV falls to the side of 2 GeV


def test_hits_below_the_thresholds_make_nothing(barrel: CrystalCalorimeter) -> None:
    objects = find_superclusters(crystals(barrel, (5, 100, 0.229), (5, 101, 0.2)))
    assert (objects.n_objects, objects.n_showers_without) == (0, 1)


def test_equal_crystals_make_one_seed(barrel: CrystalCalorimeter) -> None:
    objects = find_superclusters(crystals(barrel, (5, 100, 2.0), (5, 101, 2.0), (6, 100, 2.0)))
    assert objects.n_clusters.tolist() == [1]


def test_a_lone_crystal_stands_at_its_centre(barrel: CrystalCalorimeter) -> None:
    objects = find_superclusters(crystals(barrel, (-30, 181, 5.0)))
    eta, phi = barrel.eta_phi_at(*barrel.cell_position_mm(barrel.cell_id(-30, 181))[:2])
    assert (objects.eta[0], objects.phi[0]) == pytest.approx((float(eta), float(phi)), abs=1e-12)


# --- symmetries


@given(turn=st.integers(0, 17), seed=st.integers(0, 3))
@settings(max_examples=10, deadline=None)
def test_a_turn_of_the_barrel_turns_the_objects(turn: int, seed: int, found: Superclusters, electrons: Showers) -> None:
    showers = electrons.between(100 * seed, 100 * seed + 50)
    row, column = np.divmod(showers.cell.astype(int), N_PHI)
    turned = Showers.from_hits(  # by whole supermodules, so that crystals stay as far from the cracks
        showers.detector, showers.shower_index, row * N_PHI + (column + 20 * turn) % N_PHI, showers.energy_mev,
        pdg_id=11, energy_gev=showers.energy_gev,
    )  # fmt: skip
    a, b = find_superclusters(showers), find_superclusters(turned)
    np.testing.assert_array_equal(b.n_object_hits, a.n_object_hits)
    np.testing.assert_allclose(b.raw_energy_gev, a.raw_energy_gev, rtol=1e-12)
    np.testing.assert_allclose(b.eta, a.eta, atol=1e-12)
    away = (b.phi - a.phi - np.radians(20 * turn) + np.pi) % (2 * np.pi) - np.pi
    np.testing.assert_allclose(away, 0.0, atol=1e-12)


def test_the_two_halves_of_the_barrel_are_alike(electrons: Showers) -> None:
    row, column = np.divmod(electrons.cell.astype(int), N_PHI)
    mirrored = Showers.from_hits(
        electrons.detector, electrons.shower_index, (169 - row) * N_PHI + column, electrons.energy_mev, pdg_id=11,
        energy_gev=electrons.energy_gev,
    )  # fmt: skip
    a, b = find_superclusters(electrons), find_superclusters(mirrored)
    np.testing.assert_allclose(b.eta, -a.eta, atol=1e-12)
    np.testing.assert_allclose(b.raw_energy_gev, a.raw_energy_gev, rtol=1e-12)


# --- superclusters


def test_soft_clusters_are_collected_from_further_than_hard_ones(barrel: CrystalCalorimeter) -> None:
    soft = find_superclusters(crystals(barrel, (5, 100, 30.0), (5, 120, 0.5)))  # 0.35 rad away
    hard = find_superclusters(crystals(barrel, (5, 100, 30.0), (5, 120, 10.0)))
    assert (soft.n_clusters.tolist(), hard.n_clusters.tolist()) == ([2], [1, 1])


def test_phi_closes_for_superclusters_too(barrel: CrystalCalorimeter) -> None:
    across = find_superclusters(crystals(barrel, (5, 358, 30.0), (5, 2, 5.0)))
    assert across.n_clusters.tolist() == [2]
    assert abs(across.phi[0]) < np.radians(4)


def test_clusters_beside_in_eta_stay_apart(barrel: CrystalCalorimeter) -> None:
    objects = find_superclusters(crystals(barrel, (5, 100, 30.0), (9, 100, 5.0)))
    assert objects.n_clusters.tolist() == [1, 1]


def test_the_first_cluster_has_the_largest_transverse_energy(barrel: CrystalCalorimeter) -> None:
    objects = find_superclusters(crystals(barrel, (80, 100, 30.0), (1, 200, 20.0)))
    assert objects.seed_cell.tolist() == [int(barrel.cell_id(1, 200)), int(barrel.cell_id(80, 100))]


def test_a_soft_cluster_alone_is_no_object(barrel: CrystalCalorimeter) -> None:
    objects = find_superclusters(crystals(barrel, (5, 100, 0.9)))
    assert (objects.n_objects, objects.n_showers_without) == (0, 1)


def test_the_phi_window_has_its_ends() -> None:
    energy = np.geomspace(0.05, 1e3, 200)
    reach = phi_window(energy, 0.0)
    assert (reach[0], reach[-1]) == (0.6, 0.14)
    assert (np.diff(reach) <= 0).all()


def test_the_mustache_is_a_band_at_eta_0_and_turns_outwards_beyond() -> None:
    bend = [eta_window(2.0, eta, np.array([0.0, 0.3])) for eta in (0.0, 0.7, 1.4)]
    rise = [float(upper[1] - upper[0]) for _, upper in bend]
    assert rise[0] == 0.0
    assert 0 < rise[1] < rise[2]
    assert all((lower < upper).all() for lower, upper in bend)


def test_superclusters_win_back_what_electrons_radiate(electrons: Showers) -> None:
    objects = find_superclusters(electrons).matched()
    seen = np.bincount(electrons.shower_index, electrons.energy_mev * (electrons.energy_mev >= 80.0))[objects.shower] / 1000
    first = objects.cluster_energy_gev[objects.cluster_offsets[:-1]]
    # behind 1 X0 tens of per cent are radiated, a part of it bent apart; what is left out is what soft electrons carry far
    assert (first / seen).mean() < 0.95
    assert (objects.raw_energy_gev / seen).mean() > 0.98
    assert np.median(objects.raw_energy_gev / seen) > 0.995


def test_an_object_has_about_25_hits(barrel: CrystalCalorimeter) -> None:
    beam = sample_particles(barrel, 300, particle="mix:e-=0.5,gamma=0.5", energy_gev=(1.0, 300.0), angle_deg=3.0, seed=2)
    objects = find_superclusters(digitise(simulate_showers(barrel, beam, seed=2), BARREL_READOUT, seed=2)).matched()
    # the hits scatter by 10 around their median: 1.25 x 10 / sqrt(300) is its error, 3 of them on each side
    assert 22 < np.median(objects.n_object_hits) < 30


# --- truth


@pytest.mark.parametrize("particle", ["e-", "e+"])
def test_electrons_are_matched_where_the_field_takes_them(particle: str, barrel: CrystalCalorimeter) -> None:
    bare = replace(barrel, upstream_x0=((0.0, 0.0),))  # the field alone: 0.24 rad at 3 GeV
    position = tuple(float(v) for v in bare.xy_mm_at(0.3, 1.0))
    beam = sample_particles(bare, 50, particle=particle, energy_gev=3.0, position_mm=position, angle_deg=3.0, seed=1)  # type: ignore[arg-type]
    objects = find_superclusters(simulate_showers(bare, beam, seed=1))
    assert objects.is_matched.sum() == 50
    other_way = find_superclusters(simulate_showers(bare, beam, seed=1), settings=ClusterSettings(field_tesla=-3.8))
    assert not other_way.is_matched.any()


def test_nothing_is_matched_far_from_the_particle_or_without_truth(barrel: CrystalCalorimeter) -> None:
    showers = crystals(barrel, (5, 100, 30.0))  # its position is not known
    x, y, _ = barrel.cell_position_mm(barrel.cell_id(5, 100))
    for away_mm, is_near in ((0.0, True), (60.0, True), (70.0, False)):  # 0.05 are 2.9 crystals of 22.4 mm, 64 mm
        at = replace(showers, position_mm=np.array([[x + away_mm, y, 0.0]]))
        assert find_superclusters(at).is_matched.tolist() == [is_near]
    assert find_superclusters(showers).is_matched.tolist() == [False]


def test_only_the_hardest_object_near_the_particle_is_matched(barrel: CrystalCalorimeter) -> None:
    showers = crystals(barrel, (7, 100, 30.0), (3, 100, 5.0))
    x, y, _ = barrel.cell_position_mm(barrel.cell_id(5, 100))
    objects = find_superclusters(replace(showers, position_mm=np.array([[x, y, 0.0]])))
    assert objects.is_matched.tolist() == [True, False]


def test_nearly_all_electrons_are_found(found: Superclusters) -> None:
    matched = found.matched()
    assert matched.n_objects > 0.97 * found.n_showers  # the rest flew into a crack of 6 mm or radiated in full
    assert (matched.pdg_id == 11).all()


# --- pileup


def test_the_energy_density_grows_with_pileup_and_not_with_the_shower(electrons: Showers) -> None:
    rng = np.random.default_rng(1)
    n, n_soft = 4, 20_000  # 111 hits a tile
    soft = Showers.from_hits(
        electrons.detector, np.repeat(np.arange(n), n_soft), rng.integers(0, 61200, n * n_soft), np.full(n * n_soft, 100.0), pdg_id=22,
        energy_gev=np.ones(n),
    )  # fmt: skip
    once = energy_density_gev(digitise(electrons, Readout(), seed=1, pileup=soft, pileup_mean=1.0))
    assert (energy_density_gev(electrons) == 0).all()
    one = once[(once > 0) & (once < 1.5 * once[once > 0].min())]
    at_middle_eta = 2000.0 / (2 * np.pi * 2.958) / np.cosh(0.74)  # half of the barrel lies below abs(eta) 0.74
    assert one.mean() == pytest.approx(at_middle_eta, rel=3 / np.sqrt(111))
    zero = (once == 0).mean()
    assert zero == pytest.approx(np.exp(-1), abs=4 * np.sqrt(0.37 * 0.63 / electrons.n_showers))


def test_a_small_matrix_has_no_room_beside_the_shower(small_barrel: CrystalCalorimeter) -> None:
    with pytest.raises(ValueError, match="has 1 tiles of 17 x 20 crystals; it takes 10"):
        energy_density_gev(random_showers(small_barrel, 1, seed=1))


# --- the type


def test_showers_without_objects_are_skipped_and_counted(barrel: CrystalCalorimeter) -> None:
    showers = Showers.concatenate([crystals(barrel, (5, 100, 0.1)), crystals(barrel, (5, 100, 10.0)), crystals(barrel, (5, 100, 0.1))])
    objects = find_superclusters(showers)
    assert (objects.shower.tolist(), objects.n_showers, objects.n_showers_without) == ([1], 3, 2)


@given(cuts=st.lists(st.integers(0, 400), max_size=4))
@settings(max_examples=10, deadline=None)
def test_the_result_does_not_depend_on_how_the_sample_is_cut(cuts: list[int], found: Superclusters, electrons: Showers) -> None:
    rechits = digitise(electrons, BARREL_READOUT, seed=1)
    parts = [find_superclusters(rechits.between(a, b)) for a, b in pairwise([0, *sorted(cuts), 400])]
    assert same(Superclusters.concatenate(parts), found)


def test_blocks_of_memory_do_not_show(found: Superclusters, electrons: Showers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calolife.showers.clusters._BLOCK_HITS", 500)
    assert same(find_superclusters(digitise(electrons, BARREL_READOUT, seed=1)), found)


def test_a_selection_keeps_whole_objects(found: Superclusters) -> None:
    some = found.select([1, 5, 6])
    hits = [found.cell[found.hit_offsets[i] : found.hit_offsets[i + 1]].tolist() for i in (1, 5, 6)]
    assert [some.cell[a:b].tolist() for a, b in pairwise(some.hit_offsets.tolist())] == hits
    np.testing.assert_array_equal(some.raw_energy_gev, found.raw_energy_gev[[1, 5, 6]])
    np.testing.assert_array_equal(some.seed_cell, found.seed_cell[[1, 5, 6]])
    assert some.n_showers == found.n_showers


def test_no_showers_give_no_objects(electrons: Showers) -> None:
    objects = find_superclusters(electrons.between(0, 0))
    assert (objects.n_objects, objects.n_showers, objects.eta.size) == (0, 0, 0)


def test_a_matrix_that_does_not_close_has_objects_too() -> None:
    calo = load_detector("pbwo4-5x5")
    showers = simulate_showers(calo, sample_particles(calo, 20, particle="gamma", energy_gev=20.0, seed=1), seed=1)
    objects = find_superclusters(showers, settings=ClusterSettings(gather_mev=1e-6))
    assert objects.is_matched.tolist() == [True] * 20
    np.testing.assert_allclose(objects.raw_energy_gev, showers.visible_mev / 1000, rtol=1e-6)  # nothing is too soft, nothing apart


def test_layers_have_no_superclusters(small_stack: LayeredCalorimeter, make_showers: Callable[..., Showers]) -> None:
    with pytest.raises(ValueError, match="is made of layers; superclusters are made of crystals"):
        find_superclusters(make_showers(small_stack, 2, seed=1))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"seed_mev": 50.0}, "seed_mev = 50 is below gather_mev = 80"),
        ({"match_dr": 0.0}, "match_dr = 0 must be finite and > 0"),
        ({"field_tesla": np.nan}, "field_tesla = nan must be finite"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClusterSettings(**wrong)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {"hit_offsets": np.zeros_like(s.hit_offsets)}, "hit_offsets must rise"),
        (lambda s: {"cluster_offsets": s.cluster_offsets[:-1]}, "cluster_offsets must rise"),
        (lambda s: {"shower": s.shower[::-1]}, "shower must never fall"),
        (lambda s: {"n_showers": 1}, "lie in 0 to 0"),
        (lambda s: {"cell": s.cell[::-1]}, "sorted by cell"),
        (lambda s: {"cell": s.cell + 61200}, "is not in 0..61199"),
        (lambda s: {"energy_mev": -s.energy_mev}, "energy_mev must be finite and > 0"),
        (lambda s: {"cluster_eta": s.cluster_eta * np.nan}, "cluster_eta must be finite"),
        (lambda s: {"cluster_phi": s.cluster_phi[:-1]}, "cluster_phi has shape"),
        (lambda s: {"hit_cluster": np.zeros_like(s.hit_cluster)}, "a cluster of another object"),
        (lambda s: {"shower": np.zeros_like(s.shower), "is_matched": np.ones_like(s.is_matched)}, "two objects of one shower are matched"),
    ],
)
def test_wrong_columns_are_refused(change: Callable[[Superclusters], dict[str, object]], words: str, found: Superclusters) -> None:
    with pytest.raises(ValueError, match=words):
        replace(found, **change(found))  # type: ignore[arg-type]


def test_selections_and_joins_that_do_not_fit_are_refused(found: Superclusters, small_barrel: CrystalCalorimeter) -> None:
    for wrong in ([2, 1], [-1], [found.n_objects], [True, False]):
        with pytest.raises(ValueError, match=r"the (selection|mask)"):
            found.select(wrong)
    elsewhere = find_superclusters(random_showers(small_barrel, 1, seed=1))
    with pytest.raises(ValueError, match="join one's only"):
        Superclusters.concatenate([found, elsewhere])
    with pytest.raises(ValueError, match="no superclusters to join"):
        Superclusters.concatenate([])


def test_photons_arrive_where_they_were_aimed(barrel: CrystalCalorimeter) -> None:
    bare = replace(barrel, upstream_x0=())
    eta, phi = np.full(100, 0.2), np.linspace(-3.0, 3.0, 100)
    position = np.stack(bare.xy_mm_at(eta, phi), axis=1)
    beam = Particles(np.full(100, 22), np.full(100, 50.0), position, np.tile([0.0, 0.0, 1.0], (100, 1)))
    objects = find_superclusters(simulate_showers(bare, beam, seed=1)).matched()
    away = objects.phi - phi[objects.shower]
    # a third of a crystal at most: the log weights know it to a few mm; some aim into cracks
    assert np.median(np.abs(away)) < np.radians(0.33)
    assert objects.n_objects >= 90
