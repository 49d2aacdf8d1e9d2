"""What the models see of electrons in crystals: against a slow loop over crystals, and the symmetries of the barrel."""

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import Readout
from calolife.detector.presets import load_detector
from calolife.energy.features import EnergySample, concatenate_samples, sample_of
from calolife.energy.linear import fit_sum
from calolife.energy.objects import (
    CRYSTAL_FEATURES,
    EVENT_INPUTS,
    HIT_INPUTS,
    Objects,
    crystal_features,
    network_inputs,
    objects_of,
    sample_of_objects,
)
from calolife.energy.samples import read_energy_sample
from calolife.showers.cluster_files import write_superclusters
from calolife.showers.clusters import find_superclusters
from calolife.showers.events import Showers
from calolife.showers.files import write_showers
from calolife.showers.superclusters import Superclusters

N = 120


@pytest.fixture(scope="module")
def barrel() -> CrystalCalorimeter:
    found = load_detector("cms-barrel")
    assert isinstance(found, CrystalCalorimeter)
    return found


def toy_electrons(barrel: CrystalCalorimeter, n: int, *, seed: int) -> Showers:
    """Showers of exponential radius, some with photons beside them in phi; over the seams and edges of the barrel, too."""
    rng = np.random.default_rng(seed)
    row, column = rng.uniform(0, barrel.n_eta, n), rng.uniform(0, barrel.n_phi, n)
    row[: n // 6] = rng.uniform(83.0, 87.0, n // 6)  # across eta 0
    row[n // 6 : n // 3] = rng.choice([0.3, 169.6], n // 3 - n // 6)
    column[: n // 3 : 2] = rng.uniform(-1.5, 1.5, column[: n // 3 : 2].size)  # across phi 0
    energy = np.exp(rng.uniform(1.0, 5.0, n))
    shower, cell, deposit = [], [], []
    for i in range(n):
        for k in range(rng.integers(1, 9)):
            at, part = column[i] + (0 if k == 0 else rng.normal(0, 9)), 1.0 if k == 0 else 0.25 * rng.uniform()
            for a in range(-4, 5):
                for b in range(-4, 5):
                    r, c = math.floor(row[i]) + a, math.floor(at) + b
                    if not 0 <= r < barrel.n_eta:
                        continue
                    far = math.hypot(r + 0.5 - row[i], c + 0.5 - at)
                    shower.append(i)
                    cell.append(r * barrel.n_phi + c % barrel.n_phi)
                    deposit.append(200.0 * part * energy[i] * math.exp(-1.7 * far) * rng.lognormal(0.0, 0.2))
    x, y = barrel.x_edges_mm.mean(axis=1), barrel.y_edges_mm.mean(axis=1)
    place = np.column_stack([x[row.astype(int)], y[np.floor(column).astype(int) % barrel.n_phi], np.zeros(n)])
    return Showers.from_hits(
        barrel,
        shower,
        cell,
        deposit,
        pdg_id=11,
        energy_gev=energy,
        position_mm=place,
        kind="rechit",
        readout=Readout(saturation_mev=9000.0),
    )


@pytest.fixture(scope="module")
def showers(barrel: CrystalCalorimeter) -> Showers:
    return toy_electrons(barrel, N, seed=1)


@pytest.fixture(scope="module")
def found(showers: Showers) -> Superclusters:
    rng = np.random.default_rng(2)
    objects = find_superclusters(showers)
    return replace(objects, rho_gev=rng.uniform(0, 30, objects.n_objects), hadronic_gev=rng.uniform(0, 2, objects.n_objects))


def turned(angle: float) -> float:
    return (angle + math.pi) % (2 * math.pi) - math.pi


def plain_features(found: Superclusters, i: int) -> dict[str, float]:
    """Features of one object, crystal by crystal."""
    barrel = found.detector
    hits = slice(found.hit_offsets[i], found.hit_offsets[i + 1])
    energy = {}
    for cell, mev in zip(found.cell[hits].tolist(), found.energy_mev[hits].tolist(), strict=True):
        ieta, iphi = (int(v) for v in barrel.cell_index(cell))
        energy[ieta, iphi] = mev / 1000
    raw = sum(energy.values())
    seed_ieta, seed_iphi = (int(v) for v in barrel.cell_index(found.seed_cell[i]))
    sign = 1 if seed_ieta > 0 else -1

    def at(rows: int, columns: int) -> float:
        ieta = seed_ieta + sign * rows
        if ieta * seed_ieta <= 0:  # there is no row 0
            ieta -= sign
        return energy.get((ieta, (seed_iphi + columns - 1) % 360 + 1), 0.0)

    box = {(a, b): at(a, b) for a in range(-2, 3) for b in range(-2, 3)}
    e55 = sum(box.values())
    weight = {k: max(0.0, 4.7 + math.log(e / e55)) if e > 0 else 0.0 for k, e in box.items()}
    norm = sum(weight.values())
    mean_a, mean_b = (sum(w * k[j] for k, w in weight.items()) / norm for j in (0, 1))
    cov = [
        sum(w * (k[p] - (mean_a, mean_b)[p]) * (k[q] - (mean_a, mean_b)[q]) for k, w in weight.items()) / norm
        for p, q in ((0, 0), (0, 1), (1, 1))
    ]
    eta, phi = float(found.eta[i]), float(found.phi[i])
    width = [0.0, 0.0]
    for (ieta, iphi), e in energy.items():
        there = barrel.eta_phi_at(*barrel.cell_position_mm(barrel.cell_id(ieta, iphi))[:2])
        width[0] += e * (float(there[0]) - eta) ** 2 / raw
        width[1] += e * turned(float(there[1]) - phi) ** 2 / raw
    clusters = range(found.cluster_offsets[i], found.cluster_offsets[i + 1])
    first = clusters[0]

    def strip(rows: list[int], columns: list[int]) -> float:
        return sum(box[a, b] for a in rows for b in columns) / e55

    every = [-2, -1, 0, 1, 2]
    ends = [0, 25, 45, 65, 85]
    k = next(k for k in range(4) if ends[k] < abs(seed_ieta) <= ends[k + 1])
    hottest = sorted(box.values())
    features = {
        "raw_energy_gev": raw, "abs_eta": abs(eta), "rho_gev": found.rho_gev[i], "h_over_e": found.hadronic_gev[i] / raw,
        "n_hits": len(energy), "n_clusters": len(clusters), "n_saturated": sum(e >= 9.0 for e in energy.values()),
        "eta_width": math.sqrt(width[0]), "phi_width": math.sqrt(width[1]),
        "seed_cluster_share": found.cluster_energy_gev[first] / raw,
        "r9": sum(e for (a, b), e in box.items() if max(abs(a), abs(b)) < 2) / raw, "e5x5_share": e55 / raw,
        "delta_eta_seed": sign * (found.cluster_eta[first] - eta), "delta_phi_seed": turned(found.cluster_phi[first] - phi),
        "sigma_ieta_ieta": 0.0174 * math.sqrt(max(cov[0], 0)), "sigma_ieta_iphi": 0.0174 * math.copysign(math.sqrt(abs(cov[1])), cov[1]),
        "sigma_iphi_iphi": 0.0174 * math.sqrt(max(cov[2], 0)), "centre_eta": mean_a, "centre_phi": mean_b,
        "e_max": hottest[-1] / e55, "e_2nd": hottest[-2] / e55, "e_top": at(0, 1) / e55, "e_bottom": at(0, -1) / e55,
        "e_inner": at(-1, 0) / e55, "e_outer": at(1, 0) / e55,
        "e2x5_max": max(strip([-1, 0], every), strip([0, 1], every)), "e2x5_inner": strip([-2, -1], every),
        "e2x5_outer": strip([1, 2], every), "e2x5_top": strip(every, [1, 2]), "e2x5_bottom": strip(every, [-2, -1]),
        "abs_ieta": abs(seed_ieta), "iphi": seed_iphi,
        "place_eta": 2 * (abs(seed_ieta) - ends[k] - 0.5) / (ends[k + 1] - ends[k]) - 1,
        "place_phi": ((seed_iphi - 1) % 20 - 9.5) / 10,
    }  # fmt: skip
    for j in (1, 2, 3):
        is_there = j < len(clusters)
        c = clusters[j] if is_there else first
        features[f"cluster_{j}_share"] = found.cluster_energy_gev[c] / raw if is_there else 0.0
        features[f"cluster_{j}_delta_eta"] = sign * (found.cluster_eta[c] - found.cluster_eta[first])
        features[f"cluster_{j}_delta_phi"] = turned(found.cluster_phi[c] - found.cluster_phi[first])
    return features


def test_the_toys_reach_every_seam(found: Superclusters) -> None:
    ieta, iphi = found.detector.cell_index(found.cell)
    low, high = (np.minimum.reduceat(ieta, found.hit_offsets[:-1]), np.maximum.reduceat(ieta, found.hit_offsets[:-1]))
    assert ((low < 0) & (high > 0)).any()
    assert ((np.minimum.reduceat(iphi, found.hit_offsets[:-1]) == 1) & (np.maximum.reduceat(iphi, found.hit_offsets[:-1]) == 360)).any()
    assert {-85, 85} <= set(found.detector.cell_index(found.seed_cell)[0].tolist())
    assert found.n_clusters.max() > 4
    assert (found.n_saturated > 0).any()


def test_features_are_those_of_a_loop_over_crystals(found: Superclusters) -> None:
    fast = crystal_features(found)
    assert fast.shape == (found.n_objects, len(CRYSTAL_FEATURES))
    for i in range(found.n_objects):
        slow = plain_features(found, i)
        assert tuple(slow) == CRYSTAL_FEATURES
        # roots of what cancels: 1e-16 of a covariance is 1e-8 of its root
        np.testing.assert_allclose(fast[i], list(slow.values()), rtol=1e-7, atol=1e-8, err_msg=f"object {i}")


def test_network_inputs_are_those_of_a_loop_over_crystals(found: Superclusters) -> None:
    hit, count, event = network_inputs(objects_of(found))
    assert (hit.dtype, event.dtype) == (np.float32, np.float32)
    assert count.tolist() == np.diff(found.hit_offsets).tolist()
    features = dict(zip(CRYSTAL_FEATURES, crystal_features(found).T, strict=True))
    wanted = [
        np.log(features["raw_energy_gev"] / 100), features["abs_eta"], features["n_hits"] / 30 - 1, features["rho_gev"] / 20,
        features["h_over_e"] / 0.1,
    ]  # fmt: skip
    np.testing.assert_allclose(event, np.column_stack(wanted), rtol=1e-6, atol=1e-6)
    assert event.shape[1] == len(EVENT_INPUTS)
    for h in range(0, found.n_hits, 7):
        i = found.hit_object[h]
        (ieta, iphi), (seed_ieta, seed_iphi) = ([int(v) for v in found.detector.cell_index(c)] for c in (found.cell[h], found.seed_cell[i]))
        sign = 1 if seed_ieta > 0 else -1
        rows = sign * ((ieta - (ieta > 0)) - (seed_ieta - (seed_ieta > 0)))
        columns = (iphi - seed_iphi + 180) % 360 - 180
        energy = float(found.energy_mev[h]) / 1000
        place = plain_places(ieta, iphi)
        is_beside = found.hit_cluster[h] != found.cluster_offsets[i]
        share = math.sqrt(energy / found.raw_energy_gev[i])
        slow = [rows / 3, columns / 5, math.log(energy) / 3, share, abs(ieta) / 45 - 1, *place, float(is_beside)]
        assert len(slow) == len(HIT_INPUTS)
        np.testing.assert_allclose(hit[h], slow, rtol=1e-6, atol=1e-6)


def plain_places(ieta: int, iphi: int) -> tuple[float, float]:
    low, high = next((low, high) for low, high in ((0, 25), (25, 45), (45, 65), (65, 85)) if low < abs(ieta) <= high)
    return 2 * (abs(ieta) - low - 0.5) / (high - low) - 1, ((iphi - 1) % 20 - 9.5) / 10


def test_the_order_of_showers_is_the_order_of_features(showers: Showers) -> None:
    order = np.random.default_rng(3).permutation(N)
    straight, mixed = sample_of(showers), sample_of(showers.select(order))
    rank = {energy: i for i, energy in enumerate(mixed.energy_gev)}
    again = mixed.select([rank[energy] for energy in straight.energy_gev])
    assert np.array_equal(again.shape, straight.shape)
    assert again.objects is not None
    assert straight.objects is not None
    assert all(np.array_equal(a, b) for a, b in zip(network_inputs(again.objects), network_inputs(straight.objects), strict=True))


def mirrored(showers: Showers) -> Showers:
    """ieta to -ieta."""
    barrel = showers.detector
    assert isinstance(barrel, CrystalCalorimeter)
    ieta, iphi = barrel.cell_index(showers.cell)
    return Showers.from_hits(
        barrel, showers.shower_index, barrel.cell_id(-ieta, iphi), showers.energy_mev, pdg_id=showers.pdg_id,
        energy_gev=showers.energy_gev, position_mm=showers.position_mm * [-1, 1, 1], kind="rechit", readout=showers.readout,
    )  # fmt: skip


def by_raw(found: Superclusters) -> np.ndarray:
    """Order by shower and energy: mirrored objects of the same transverse energy may change places."""
    return np.lexsort((found.raw_energy_gev, found.shower))


def test_features_and_network_inputs_do_not_look_at_the_truth(found: Superclusters) -> None:
    n = found.n_objects
    lied = replace(found, energy_gev=found.energy_gev[::-1], pdg_id=np.full(n, 22), is_matched=np.zeros(n, np.bool_))
    assert_array_equal(crystal_features(lied), crystal_features(found))
    for a, b in zip(network_inputs(objects_of(lied)), network_inputs(objects_of(found)), strict=True):
        assert_array_equal(a, b)


def test_an_object_and_its_mirror_image_have_the_same_features(showers: Showers) -> None:
    straight, mirror = find_superclusters(showers), find_superclusters(mirrored(showers))
    a, b = crystal_features(straight)[by_raw(straight)], crystal_features(mirror)[by_raw(mirror)]
    # positions are sums in another order
    np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7)


def test_a_turn_by_a_module_changes_only_the_column(barrel: CrystalCalorimeter, showers: Showers) -> None:
    ieta, iphi = barrel.cell_index(showers.cell)
    moved = Showers.from_hits(
        barrel, showers.shower_index, barrel.cell_id(ieta, (iphi + 139) % 360 + 1), showers.energy_mev, pdg_id=11,
        energy_gev=showers.energy_gev, kind="rechit", readout=showers.readout,
    )  # fmt: skip
    first, second = find_superclusters(showers), find_superclusters(moved)
    a, b = crystal_features(first)[by_raw(first)], crystal_features(second)[by_raw(second)]
    column = CRYSTAL_FEATURES.index("iphi")
    assert np.array_equal(b[:, column], (a[:, column] + 139) % 360 + 1)
    np.testing.assert_allclose(np.delete(a, column, axis=1), np.delete(b, column, axis=1), rtol=1e-7, atol=1e-7)


def one_hit(barrel: CrystalCalorimeter, ieta: int, iphi: int) -> Superclusters:
    cell = barrel.cell_id([ieta], iphi)
    return Superclusters(
        barrel, 1, [0], [0, 1], cell, [2000.0], [0], [0, 1], cell, [2.0], [0.0087 * np.sign(ieta)], [0.1], [True], [22], [2.5]
    )


@pytest.mark.parametrize(("ieta", "iphi"), [(1, 1), (-1, 360), (85, 20), (-85, 341)])
def test_an_object_of_one_crystal_has_finite_features(barrel: CrystalCalorimeter, ieta: int, iphi: int) -> None:
    one = one_hit(barrel, ieta, iphi)
    features = dict(zip(CRYSTAL_FEATURES, crystal_features(one)[0].tolist(), strict=True))
    assert all(np.isfinite(v) for v in features.values())
    wanted = {"e_max": 1.0, "r9": 1.0, "e5x5_share": 1.0, "e2x5_max": 1.0, "sigma_ieta_ieta": 0.0, "e_2nd": 0.0, "cluster_1_share": 0.0}
    assert {name: features[name] for name in wanted} == wanted
    hit, _, event = network_inputs(objects_of(one))
    assert np.isfinite(hit).all()
    assert np.isfinite(event).all()


def test_what_is_not_known_of_the_event_is_zero(barrel: CrystalCalorimeter) -> None:
    one = one_hit(barrel, 5, 5)
    assert np.isnan(one.rho_gev).all()
    features = dict(zip(CRYSTAL_FEATURES, crystal_features(one)[0].tolist(), strict=True))
    _, _, event = network_inputs(objects_of(one))
    assert (features["rho_gev"], features["h_over_e"]) == (0.0, 0.0)
    assert event[0, 3:].tolist() == [0.0, 0.0]


def test_places_follow_the_modules_of_the_detector(barrel: CrystalCalorimeter) -> None:
    plain = replace(barrel, eta_module_ends=(), phi_module_crystals=0)
    features = crystal_features(replace(one_hit(barrel, 85, 7), detector=plain))[0]
    place = dict(zip(CRYSTAL_FEATURES, features.tolist(), strict=True))
    # one module from -85 to 85, and a ring without gaps
    assert place["place_eta"] == pytest.approx(1 - 1 / 170)
    assert place["place_phi"] == 0.0


def test_objects_are_selected_in_any_order_and_joined(found: Superclusters) -> None:
    objects = objects_of(found)
    index = np.random.default_rng(4).integers(0, objects.n_objects, 50)  # some twice
    picked = objects.select(index)
    hit, _, event = network_inputs(objects)
    some, count, events = network_inputs(picked)
    rows = np.concatenate([np.arange(objects.hit_offsets[i], objects.hit_offsets[i + 1]) for i in index])
    assert np.array_equal(some, hit[rows])
    assert np.array_equal(events, event[index])
    assert np.array_equal(count, objects.n_hits[index])
    joined = Objects.concatenate([objects.select(np.arange(objects.n_objects) < 9), objects.select(range(9, objects.n_objects))])
    assert all(np.array_equal(a, b) for a, b in zip(network_inputs(joined), (hit, objects.n_hits, event), strict=True))
    assert np.array_equal(picked.raw_energy_gev, objects.raw_energy_gev[index])


def test_the_order_of_hits_tells_nothing(found: Superclusters) -> None:
    objects = objects_of(found)
    order = np.concatenate([np.arange(a, b)[::-1] for a, b in zip(objects.hit_offsets, objects.hit_offsets[1:], strict=False)])
    turned_round = replace(objects, cell=objects.cell[order], energy_mev=objects.energy_mev[order], hit_cluster=objects.hit_cluster[order])
    (hit, _, event), (other, _, same) = network_inputs(objects), network_inputs(turned_round)
    np.testing.assert_allclose(other, hit[order], rtol=1e-6)
    np.testing.assert_allclose(same, event, rtol=1e-6)


GOOD = {
    "hit_offsets": [0, 2], "cell": [40, 41], "energy_mev": [900.0, 100.0], "hit_cluster": [0, 0], "seed_cell": [40], "eta": [0.1],
    "rho_gev": [1.0], "hadronic_gev": [np.nan],
}  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"hit_offsets": [0, 0], "cell": [], "energy_mev": [], "hit_cluster": []}, "object 0 has no hits; leave it out"),
        ({"hit_offsets": [0, 3]}, "hit_offsets must run from 0 to the 2 hits"),
        ({"energy_mev": [900.0, np.nan]}, "energy_mev of hit 1 is nan; it must be finite and > 0"),
        ({"energy_mev": [0.0, 100.0]}, "energy_mev of hit 0 is 0.0"),
        ({"energy_mev": [1.0]}, "energy_mev has shape"),
        ({"cell": [40, 61200]}, "cell 61200 is not in 0..61199"),
        ({"seed_cell": [-1]}, "seed_cell -1 is not in"),
        ({"rho_gev": [1.0, 2.0]}, "rho_gev has shape"),
        ({"rho_gev": [np.inf]}, "must be finite, or NaN"),
        ({"eta": [np.nan]}, "eta must be finite"),
    ],
)
def test_objects_that_do_not_fit_are_refused(barrel: CrystalCalorimeter, wrong: dict, told: str) -> None:
    Objects(barrel, **GOOD)
    with pytest.raises(ValueError, match=told):
        Objects(barrel, **{**GOOD, **wrong})


@pytest.mark.parametrize("which", [[[0]], [1], [-1], [0.5], [True, False]])
def test_a_selection_that_is_none_is_refused(barrel: CrystalCalorimeter, which: list) -> None:
    with pytest.raises(ValueError, match=r"selection must be one row|the mask has shape"):
        Objects(barrel, **GOOD).select(which)


def test_objects_of_two_detectors_are_not_joined(barrel: CrystalCalorimeter) -> None:
    other = Objects(replace(barrel, name="other"), **GOOD)
    with pytest.raises(ValueError, match="sample 1 was of detector 'other'"):
        Objects.concatenate([Objects(barrel, **GOOD), other])


def test_objects_of_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="made of layers; objects are made of crystals"):
        Objects(load_detector("cu-scint-24x24"), **GOOD)


def test_the_sample_holds_the_matched_objects(found: Superclusters) -> None:
    sample = sample_of_objects(found)
    matched = found.matched()
    assert sample.shape_names == CRYSTAL_FEATURES
    assert np.array_equal(sample.shape, crystal_features(matched))
    assert np.array_equal(sample.visible_mev, 1000 * matched.raw_energy_gev)
    assert (sample.n_unmatched, sample.n_showers) == (found.n_showers - matched.n_objects, matched.n_objects)
    assert (sample.digest, sample.readout) == (found.detector.digest, found.readout)
    assert sample.readout == "rechits of saturation 9000 MeV"
    assert sample.objects is not None
    assert sample.objects.n_objects == sample.n_showers


def test_samples_of_objects_are_selected_and_joined(found: Superclusters) -> None:
    sample = sample_of_objects(found)
    picked = sample.select([5, 3, 5])
    assert picked.objects is not None
    np.testing.assert_allclose(1000 * picked.objects.raw_energy_gev, picked.visible_mev, rtol=1e-12)
    both = concatenate_samples([sample, picked])
    assert both.objects is not None
    np.testing.assert_allclose(1000 * both.objects.raw_energy_gev, both.visible_mev, rtol=1e-12)
    with pytest.raises(ValueError, match="only one of sample 1 and sample 0 has objects"):
        concatenate_samples([sample, replace(sample, objects=None)])
    with pytest.raises(ValueError, match="there are 3 objects for"):
        replace(sample, objects=picked.objects)


def test_the_sum_of_layers_is_the_raw_energy_of_an_object(found: Superclusters) -> None:
    sample = sample_of_objects(found)
    scale = fit_sum(sample).predict(sample).energy_gev / sample.visible_mev
    assert np.ptp(scale) < 1e-12 * scale.mean()


def test_nothing_matched_is_said(barrel: CrystalCalorimeter) -> None:
    with pytest.raises(ValueError, match="none of the 1 showers has a matched supercluster"):
        sample_of_objects(one_hit(barrel, 1, 1).select([]))


def test_files_of_objects_and_of_showers_give_one_sample(showers: Showers, tmp_path) -> None:
    write_superclusters(tmp_path / "objects.h5", find_superclusters(showers))
    write_showers(tmp_path / "showers.h5", showers)
    of_objects, of_showers = (read_energy_sample([tmp_path / name]) for name in ("objects.h5", "showers.h5"))
    for name in ("layer_energy_mev", "shape", "energy_gev", "pdg_id", "fingerprint"):
        assert np.array_equal(getattr(of_objects, name), getattr(of_showers, name)), name
    assert of_objects.n_unmatched == of_showers.n_unmatched == N - of_objects.n_showers
    in_folder = read_energy_sample([tmp_path / "objects.h5"], detector=showers.detector)
    assert np.array_equal(in_folder.shape, of_objects.shape)
    with pytest.raises(ValueError, match="stand in an earlier file too"):
        read_energy_sample([tmp_path / "objects.h5", tmp_path / "showers.h5"])


def test_a_sample_without_objects_is_what_it_was() -> None:
    sample = EnergySample(np.ones((3, 2)), np.ones(3), np.full(3, 22))
    assert sample.objects is None
    assert sample.select([0, 1]).objects is None
    assert concatenate_samples([sample, sample]).objects is None
