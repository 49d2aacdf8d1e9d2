"""Synthetic histories: kinetics, noise and numbering come out as asked."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from calolife.errors import FileFormatError
from calolife.transparency.centres import occupancy
from calolife.transparency.crystals import detector_crystals, ring_eta, select_crystals
from calolife.transparency.history import FLAG_LASER_FLIP, FLAG_PRE_BEAM_STEP
from calolife.transparency.schedule import LumiSchedule, lhc_year
from calolife.transparency.synthetic import (
    MEASURED_NOISE,
    NO_NOISE,
    Noise,
    simulate_history,
    simulate_rings,
)
from calolife.transparency.truth import read_truth, write_truth

DAY_S = 86400.0
DIGIT = 0.51e-8  # readings are rounded to 8 decimals, as the release's are


def same_blocks(one, other):
    assert len(one.blocks) == len(other.blocks)
    for a, b in zip(one.blocks, other.blocks, strict=True):
        for name in ("year", "xtal_id", "ieta", "iphi", "time_s", "lumi_ifb", "transparency", "flag"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_without_luminosity_crystals_only_recover():
    plans = [lhc_year(2016, seed=5), replace_lumi(lhc_year(2017, seed=5), 0.0)]
    history, _ = simulate_history(n_crystals=30, n_years=2, seed=5, schedules=plans, noise=NO_NOISE, with_steps=False)
    for block in history.of_year(2017):
        assert (np.diff(block.transparency, axis=1) >= 0).all()
        assert (block.transparency[:, -1] > block.transparency[:, 0]).all()


def test_crystals_never_irradiated_never_change():
    plans = [replace_lumi(lhc_year(2016, seed=5), 0.0)]
    history, truth = simulate_history(n_crystals=10, n_years=1, seed=5, schedules=plans, noise=NO_NOISE, with_steps=False)
    expected = np.repeat(np.exp(truth.ln_r0)[:, None], history.blocks[0].n_readings, axis=1)
    np.testing.assert_allclose(history.blocks[0].transparency, expected, rtol=0, atol=DIGIT)


def replace_lumi(schedule: LumiSchedule, factor: float) -> LumiSchedule:
    return replace(schedule, lumi_ifb=schedule.lumi_ifb * factor)


def test_damage_carries_over_the_winter():
    history, _ = simulate_history(n_crystals=10, n_years=2, seed=1, noise=NO_NOISE, with_steps=False)
    first, second = history.blocks
    assert (second.transparency[:, 0] > first.transparency[:, -1]).all()  # recovery alone in between
    assert (second.transparency[:, 0] < first.transparency[:, 0]).all()


def test_the_truth_reproduces_the_readings_through_the_kinetics():
    history, truth = simulate_history(
        n_crystals=10, n_years=1, seed=2, noise=NO_NOISE, with_steps=False, constant_between_readings=True
    )  # fmt: skip
    (block,) = history.blocks
    F = occupancy(block.time_s, block.lumi_ifb, tau_d=truth.tau_d, b_per_ifb=truth.b_per_ifb[0])
    # nothing is delivered before the first reading, so F starts at 0
    np.testing.assert_allclose(np.log(block.transparency), truth.ln_r0[:, None] - truth.a_per_ifb @ F, rtol=0, atol=1.5 * DIGIT)


def test_following_the_schedule_or_constant_rates_differ_by_less_than_the_noise_of_a_reading():
    whole, _ = simulate_history(n_crystals=10, n_years=1, seed=2, noise=NO_NOISE, with_steps=False)
    constant, _ = simulate_history(n_crystals=10, n_years=1, seed=2, noise=NO_NOISE, with_steps=False, constant_between_readings=True)
    gap = np.abs(np.log(whole.blocks[0].transparency / constant.blocks[0].transparency))
    # a fill that starts inside a 45 min interval is off by part of the fastest component (30 min); rare and small otherwise
    assert np.median(gap) < 0.1 * MEASURED_NOISE.white


def test_luminosity_of_the_readings_adds_up_to_the_schedule():
    history, _ = simulate_history(n_crystals=10, n_years=3, seed=2)
    for block in history.blocks:
        assert block.lumi_ifb.sum() == pytest.approx(lhc_year(block.year, seed=2).total_ifb, rel=1e-9)


def test_the_same_seed_gives_the_same_history_and_another_does_not():
    one, _ = simulate_history(n_crystals=15, n_years=2, seed=7)
    same, _ = simulate_history(n_crystals=15, n_years=2, seed=7)
    other, _ = simulate_history(n_crystals=15, n_years=2, seed=8)
    same_blocks(one, same)
    assert not np.array_equal(one.blocks[0].transparency, other.blocks[0].transparency)


def test_rings_streamed_one_by_one_are_the_whole():
    whole, truth = simulate_history(n_crystals=60, n_years=1, seed=3)
    streamed = list(simulate_rings(n_crystals=60, n_years=1, seed=3))
    blocks = {b.xtal_id[0]: b for h, _ in streamed for b in h.blocks}
    for block in whole.blocks:
        np.testing.assert_array_equal(block.transparency, blocks[block.xtal_id[0]].transparency)
    assert [int(h.blocks[0].ieta[0]) for h, _ in streamed] == np.unique(truth.crystals.ieta).tolist()


def test_a_crystal_does_not_depend_on_the_others_simulated():
    few, few_truth = simulate_history(n_crystals=3, n_years=2, seed=4)
    many, many_truth = simulate_history(n_crystals=80, n_years=2, seed=4)
    same_blocks(few, many.select(xtal_ids=few.xtal_ids.tolist()))
    at = np.isin(many_truth.crystals.xtal_id, few.xtal_ids)
    np.testing.assert_array_equal(many_truth.a_per_ifb[at], few_truth.a_per_ifb)


def test_truth_follows_the_crystals_of_the_history():
    history, truth = simulate_history(n_crystals=60, n_years=1, seed=3, noise=NO_NOISE, with_steps=False)
    np.testing.assert_array_equal(truth.crystals.xtal_id, history.xtal_ids)
    for block in history.blocks:
        at = np.searchsorted(truth.crystals.xtal_id, block.xtal_id)
        # nothing is lost before the first beam
        np.testing.assert_allclose(np.log(block.transparency[:, 0]), truth.ln_r0[at], rtol=0, atol=1.5 * DIGIT)


def test_amplitudes_spread_as_asked():
    _, truth = simulate_history(n_crystals=360, n_years=1, seed=6, ieta=[66], noise=NO_NOISE, with_steps=False)
    ln_a = np.log(truth.a_per_ifb[~truth.is_sic])
    n = ln_a.shape[0]
    # widths .25 (crystal) and .15 (component): total .2915 each; a width is known to 1/sqrt(2 n) = 3.8 %, 4 sigma allowed
    np.testing.assert_allclose(ln_a.std(axis=0), np.hypot(0.25, 0.15), rtol=4 / np.sqrt(2 * n))
    ln_a = ln_a - ln_a.mean(axis=0)
    own = ln_a - ln_a.mean(axis=1, keepdims=True)  # 3 of 4 degrees of freedom of each crystal are left
    assert np.sqrt((own**2).sum() / (3 * n)) == pytest.approx(0.15, rel=4 / np.sqrt(6 * n))


def test_noise_of_neighbours_comes_out_as_asked():
    noise = Noise(white=0.0002, drift=0.0, drift_d=1.0, common_white=0.0003, common_drift=0.0, common_drift_d=1.0)
    history, truth = simulate_history(n_crystals=10, n_years=1, seed=6, noise=noise, with_steps=False, keep_noise_free=True)
    residual = np.log(history.blocks[0].transparency / truth.noise_free.blocks[0].transparency)
    n = residual.shape[1]
    common = truth.common_mode[2016, int(truth.crystals.region[0])]
    assert common.std() == pytest.approx(0.0003, rel=4 / np.sqrt(2 * n))
    own = residual - common
    assert own.std() == pytest.approx(0.0002, rel=4 / np.sqrt(2 * own.size))
    # a correlation is known to (1 - r^2)/sqrt(n)
    expected = 0.0003**2 / (0.0003**2 + 0.0002**2)
    assert np.corrcoef(residual[0], residual[1])[0, 1] == pytest.approx(expected, abs=4 * (1 - expected**2) / np.sqrt(n))


def test_drift_forgets_with_its_time_constant():
    noise = Noise(white=0.0, drift=0.001, drift_d=0.5, common_white=0.0, common_drift=0.0, common_drift_d=1.0)
    history, truth = simulate_history(n_crystals=40, n_years=1, seed=6, ieta=[66], noise=noise, with_steps=False, keep_noise_free=True)
    drift = np.concatenate([np.log(b.transparency / c.transparency) for b, c in zip(history.blocks, truth.noise_free.blocks, strict=True)])
    time_d = history.blocks[0].time_s / DAY_S
    keep = np.exp(-np.diff(time_d) / 0.5)
    # 40 crystals over 250 d with a memory of 0.5 d: 40 * 250 / (2 * .5) = 10^4 independent values, width to 0.7 %
    assert drift.std() == pytest.approx(0.001, rel=4 / np.sqrt(2 * 1e4))
    fresh = (drift[:, 1:] - keep * drift[:, :-1]) / (0.001 * np.sqrt(1 - keep**2))
    # own noise is drawn in single precision: 6e-8 of ln R ~ 1e-3 is nothing beside it
    assert fresh.std() == pytest.approx(1.0, rel=4 / np.sqrt(2 * fresh.size))
    assert abs(fresh.mean()) < 4 / np.sqrt(fresh.size)


def test_measured_noise_is_what_second_differences_show_on_the_real_crystals():
    history, _ = simulate_history(n_crystals=10, n_years=1, seed=9)
    block = history.blocks[0]
    ln_r, dt = np.log(block.transparency), np.diff(block.time_s)
    quiet = (block.lumi_ifb[:-2] == 0) & (block.lumi_ifb[1:-1] == 0) & (dt[:-1] < 7200) & (dt[1:] < 7200)
    second = (ln_r[:, :-2] - 2 * ln_r[:, 1:-1] + ln_r[:, 2:])[:, quiet] / np.sqrt(6)
    width = 1.4826 * np.median(np.abs(second))
    # .037 (2016) to .048 % (2018) on the two public crystals
    assert 0.00035 < width < 0.00050


def test_cadence_is_that_of_the_real_readings():
    history, _ = simulate_history(n_crystals=1, n_years=3, seed=9)
    for block in history.blocks:
        gap_min = np.diff(block.time_s) / 60
        assert 44 < np.median(gap_min) < 46.5  # measured 44.8-45.0; quantised by the table
        assert 4800 < block.n_readings < 6600  # measured 5544-5846
        assert gap_min.min() > 2
        assert 4 < (gap_min > 1440).sum() < 40  # measured 16-24


def test_crystals_of_a_region_are_read_together_and_regions_within_minutes():
    history, truth = simulate_history(n_crystals=720, n_years=1, seed=1, ieta=[10, 66])
    times = {}
    for block in history.blocks:
        at = np.searchsorted(truth.crystals.xtal_id, block.xtal_id)
        (region,) = np.unique(truth.crystals.region[at])
        if region in times:
            np.testing.assert_array_equal(times[region], block.time_s)
        times[region] = block.time_s
    spread = np.ptp(np.stack(list(times.values())), axis=0)
    assert len(times) == 36
    assert 0 < spread.max() <= 1200


def test_flips_and_steps_are_flagged_and_can_be_left_out():
    seen = 0
    for seed in range(6):
        history, truth = simulate_history(n_crystals=2, n_years=3, seed=seed, noise=NO_NOISE, keep_noise_free=True)
        for block, clean in zip(history.blocks, truth.noise_free.blocks, strict=True):
            offset = np.log(block.transparency / clean.transparency)
            flipped = block.flag & FLAG_LASER_FLIP > 0
            stepped = block.flag & FLAG_PRE_BEAM_STEP > 0
            seen |= int(flipped.any()) * FLAG_LASER_FLIP | int(stepped.any()) * FLAG_PRE_BEAM_STEP
            jump = np.diff(offset, axis=1)
            unexplained = ~stepped[:, 1:] & (flipped[:, 1:] == flipped[:, :-1])
            np.testing.assert_allclose(jump[unexplained], 0.0, atol=3 * DIGIT)
            assert (np.abs(jump[~unexplained]) > 0.002).all()  # the smallest step is .3 %
    assert seen == FLAG_LASER_FLIP | FLAG_PRE_BEAM_STEP
    plain, truth = simulate_history(n_crystals=2, n_years=3, seed=0, noise=NO_NOISE, with_steps=False, keep_noise_free=True)
    assert not any(b.flag.any() for b in plain.blocks)


def test_loss_grows_from_the_barrel_to_the_innermost_endcap():
    lost = []
    for ring in (1, 66, 95, 110, 124):
        history, _ = simulate_history(n_crystals=40, n_years=1, seed=1, ieta=[ring], noise=NO_NOISE, with_steps=False)
        lost.append(np.mean(np.concatenate([1 - b.transparency[:, -1] / b.transparency[:, 0] for b in history.blocks])))
    assert (np.diff(lost) > 0).all()


def test_crystal_ids_are_those_of_the_release():
    crystals = detector_crystals()
    assert crystals.xtal_id.tolist() == list(range(75848))
    at = {int(i): (int(e), int(p)) for i, e, p in zip(crystals.xtal_id, crystals.ieta, crystals.iphi, strict=True)}
    # public skim and metadata of the release
    assert at[54000] == (66, 1)
    assert at[30600] == (1, 1)
    assert at[27005] == (-76, 6)
    assert at[27720] == (-78, 1)
    assert at[61199] == (85, 360)
    assert np.bincount(crystals.region).size == 92


def test_every_crystal_listed_in_the_metadata_has_its_place(cms_data):
    import json

    crystals = detector_crystals()
    for path in sorted((cms_data / "metadata").glob("metadata_*.json")):
        for ring in json.loads(path.read_text()).values():
            info = ring["xtal_info"]
            i = [x["xtal_id"] for x in info]
            assert crystals.ieta[i].tolist() == [x["xtal_ieta"] for x in info]
            assert crystals.iphi[i].tolist() == [x["xtal_iphi"] for x in info]
            # a straight line does not know the gaps between modules: within a third of a crystal
            assert ring_eta(crystals.ieta[i[0]]) == pytest.approx(ring["eta"], abs=0.006)


def test_endcap_crystals_are_unique_within_their_ring():
    crystals = detector_crystals()
    pairs = np.stack([crystals.ieta, crystals.iphi])
    assert np.unique(pairs, axis=1).shape[1] == 75848
    assert crystals.iphi.min() == 1
    assert crystals.iphi.max() <= 360


def test_a_selection_contains_every_smaller_one_and_starts_at_54000():
    sizes = [select_crystals(n).xtal_id for n in (1, 10, 95, 1000)]
    assert sizes[0].tolist() == [54000]
    assert sizes[1].tolist() == list(range(54000, 54010))
    for small, large in pairwise(sizes):
        assert np.isin(small, large).all()
    # golden-ratio steps: the barrel has 81 % of the crystals, of 1000 in groups of ten to within 5 %
    assert (sizes[3] < 61200).mean() == pytest.approx(0.807, abs=0.05)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_crystals": 0}, "at least 1"),
        ({"n_crystals": 75849}, "the detector has 1 to 75848"),
        ({"n_years": 0}, "n_years = 0"),
        ({"ieta": [0]}, "no ring has ieta 0"),
        ({"ieta": [66], "n_crystals": 361}, "the rings asked for have 360"),
        ({"schedules": []}, "0 schedules for 1 years"),
    ],
)
def test_an_impossible_request_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        simulate_history(**{"n_crystals": 2, "n_years": 1, "seed": 0, **wrong})


def test_negative_noise_is_refused():
    with pytest.raises(ValueError, match="white = -1 must be >= 0"):
        replace(NO_NOISE, white=-1)
    with pytest.raises(ValueError, match="drift_d = 0 must be > 0"):
        replace(NO_NOISE, drift_d=0)


def test_truth_beside_a_dataset_comes_back(tmp_path):
    _, truth = simulate_history(n_crystals=30, n_years=2, seed=1)
    write_truth(truth, tmp_path)
    back = read_truth(tmp_path)
    for name in ("xtal_id", "ieta", "iphi", "region"):
        np.testing.assert_array_equal(getattr(back.crystals, name), getattr(truth.crystals, name))
    for name in ("is_sic", "ln_r0", "tau_d", "b_per_ifb", "a_per_ifb"):
        np.testing.assert_array_equal(getattr(back, name), getattr(truth, name))
    assert back.common_mode.keys() == truth.common_mode.keys()
    for key, common in truth.common_mode.items():
        np.testing.assert_array_equal(back.common_mode[key], common)


def test_a_dataset_without_truth_says_so(tmp_path):
    with pytest.raises(FileFormatError, match="holds no truth; only 'calolife transparency simulate' leaves one"):
        read_truth(tmp_path)


def test_a_damaged_truth_says_so(tmp_path):
    _, truth = simulate_history(n_crystals=1, n_years=1, seed=1)
    write_truth(truth, tmp_path)
    (tmp_path / "truth" / "common_mode.parquet").write_bytes(b"PAR1")
    with pytest.raises(FileFormatError, match=r"is damaged .*; simulate the dataset again"):
        read_truth(tmp_path)


def test_the_command_writes_the_same_history_and_its_truth(tmp_path, capsys):
    import json

    from calolife.cli import main
    from calolife.storage import read_history

    out = tmp_path / "toy"
    options = ["--crystals", "12", "--years", "1", "--seed", "3", "--json", "--quiet"]
    assert main(["transparency", "simulate", "--out", str(out), *options]) == 0
    made = json.loads(capsys.readouterr().out)
    history, truth = simulate_history(n_crystals=12, n_years=1, seed=3)
    assert made["n_readings"] == history.n_readings
    same_blocks(read_history(out), history)
    np.testing.assert_array_equal(read_truth(out).a_per_ifb, truth.a_per_ifb)


def test_the_command_refuses_a_ring_that_is_not_there_and_leaves_nothing(tmp_path, capsys):
    from calolife.cli import main

    out = tmp_path / "toy"
    assert main(["transparency", "simulate", "--crystals", "3", "--ring", "125", "--out", str(out)]) == 2
    assert "no ring has ieta 125" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
