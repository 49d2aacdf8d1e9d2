"""Scores of the energy models: closed forms, errors that are right, and pairs that are told apart."""

import json
import time

import numpy as np
import pytest

from calolife.energy import scores
from calolife.energy.scores import FIGURES, EnergyScore, compare_energy, particle_masks, score_energy

ISSUE_KEYS = [
    "model", "particle", "mean_rel_percent", "sigma_rel_percent", "mae_gev", "rmse_gev", "rel_loss", "sigma_eff_percent", "n"
]  # fmt: skip


def toy(seed: int, n: int = 600) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """True energies, particles, and two predictions that share most of their fluctuation, as models of one shower do."""
    rng = np.random.default_rng(seed)
    energy = rng.uniform(1, 100, n)
    common = 0.3 * np.sqrt(energy) * rng.standard_t(5, n)
    one, two = (energy + common + 0.1 * np.sqrt(energy) * rng.standard_normal(n) for _ in range(2))
    return energy, rng.choice([22, -211], n), one, two


def of(found: tuple[EnergyScore, ...], model: str, particle: str = "all") -> EnergyScore:
    return next(s for s in found if (s.model, s.particle) == (model, particle))


def test_a_common_factor_gives_the_closed_forms() -> None:
    energy = np.array([1.0, 4.0, 10.0, 25.0])
    (score, _) = score_energy({"low": 0.9 * energy}, energy, np.full(4, 22), n_bootstrap=20)
    assert score.mean_rel_percent == pytest.approx(-10)
    assert score.sigma_rel_percent == pytest.approx(0, abs=1e-9)
    assert score.sigma_eff_percent == pytest.approx(0, abs=1e-9)
    assert score.mae_gev == pytest.approx(0.1 * energy.mean())
    assert score.rmse_gev == pytest.approx(0.1 * np.sqrt((energy**2).mean()))
    assert score.rel_loss == pytest.approx(0.01 * energy.mean())  # (0.1 E)^2 / E


def test_figures_are_those_of_the_issue() -> None:
    energy, pdg, one, _ = toy(1)
    rel = 100 * (one - energy) / energy
    score = score_energy({"one": one}, energy, pdg, n_bootstrap=10)[0]
    by_hand = {
        "mean_rel_percent": rel.mean(), "sigma_rel_percent": rel.std(), "mae_gev": np.abs(one - energy).mean(),
        "rmse_gev": np.sqrt(((one - energy) ** 2).mean()), "rel_loss": ((one - energy) ** 2 / energy).mean(),
    }  # fmt: skip
    for name, value in by_hand.items():
        assert getattr(score, name) == pytest.approx(value, rel=1e-12)


def test_an_uncalibrated_sum_keeps_its_spread() -> None:
    # -90 % with a spread of 1e-7 %: the difference of squares would have lost it
    energy = np.linspace(1, 100, 500)
    rel = -0.9 + 1e-9 * np.random.default_rng(1).standard_normal(500)
    score = score_energy({"raw": energy * (1 + rel)}, energy, np.full(500, 22), n_bootstrap=50)[0]
    assert score.sigma_rel_percent == pytest.approx(100 * rel.std(), rel=1e-4)


def test_standard_errors_are_the_scatter_of_other_samples() -> None:
    n_samples = 150
    found = []
    for seed in range(n_samples):
        rng = np.random.default_rng(seed)
        energy = rng.uniform(10, 100, 400)
        predicted = energy + 0.3 * np.sqrt(energy) * rng.standard_normal(400)
        found.append(score_energy({"m": predicted}, energy, np.full(400, 22), n_bootstrap=100)[0])
    for name in FIGURES:
        scatter = np.std([getattr(s, name) for s in found], ddof=1)
        said = np.mean([getattr(s, f"{name}_error") for s in found])
        # scatter of 150 samples: 6 %, three of them; the bootstrap of an interval's length is 5 % too large
        assert said == pytest.approx(scatter, rel=0.18 + 0.05 * (name == "sigma_eff_percent")), name


def test_intervals_hold_the_truth_nineteen_times_of_twenty() -> None:
    hits = {}
    n_samples = 200
    for seed in range(n_samples):
        energy, pdg, one, two = toy(seed, 300)
        for row in compare_energy({"one": one, "two": two}, energy, pdg, baseline="one", n_bootstrap=100)[:5]:
            hits.setdefault(row.figure, []).append(row.difference_low <= 0 <= row.difference_high)
    for figure, hit in hits.items():
        # binomial, three standard deviations; percentiles of 100 replicas and 300 showers miss 2 % more
        assert np.mean(hit) > 0.95 - 3 * np.sqrt(0.05 * 0.95 / n_samples) - 0.02, figure


def test_pairing_sees_what_separate_errors_hide() -> None:
    energy, pdg, one, _ = toy(2, 1200)
    better = energy + 0.98 * (one - energy)
    found = score_energy({"one": one, "better": better}, energy, pdg, baseline="one")
    a, b = of(found, "one"), of(found, "better")
    assert a.rel_loss - b.rel_loss < a.rel_loss_error  # one alone could not tell
    row = next(r for r in compare_energy({"one": one, "better": better}, energy, pdg, baseline="one") if r.figure == "rel_loss")
    assert row.verdict == "better"
    assert row.ratio == pytest.approx(0.98**2)
    assert row.ratio_low == pytest.approx(row.ratio_high)
    assert b.rel_loss_ratio == pytest.approx(row.ratio)
    assert b.rel_loss_ratio_low == pytest.approx(row.ratio_low)


def test_a_model_against_itself_makes_no_difference() -> None:
    energy, pdg, one, _ = toy(3)
    rows = compare_energy({"one": one, "again": one.copy()}, energy, pdg, baseline="one", n_bootstrap=50)
    assert len(rows) == 3 * 5
    assert {r.verdict for r in rows} == {"no difference"}
    assert {(r.difference, r.difference_low, r.difference_high) for r in rows} == {(0.0, 0.0, 0.0)}
    assert {(r.ratio, r.ratio_low, r.ratio_high) for r in rows} == {(1.0, 1.0, 1.0)}


def test_swapping_the_baseline_turns_the_verdict() -> None:
    energy, pdg, one, _ = toy(4)
    models = {"one": one, "worse": energy + 1.2 * (one - energy)}
    ahead, back = (compare_energy(models, energy, pdg, baseline=b, figures=["rel_loss"])[0] for b in models)
    assert (ahead.verdict, back.verdict) == ("worse", "better")
    assert ahead.difference == -back.difference
    assert ahead.difference_low == pytest.approx(-back.difference_high)


def test_all_is_made_of_its_particles() -> None:
    energy, pdg, one, _ = toy(5)
    found = score_energy({"one": one}, energy, pdg, n_bootstrap=20)
    everything, gamma, pion = found
    assert [s.particle for s in found] == ["all", "gamma", "pi-"]
    assert everything.n == gamma.n + pion.n
    for name in ("mean_rel_percent", "mae_gev", "rel_loss"):
        parts = sum(s.n * getattr(s, name) for s in (gamma, pion)) / everything.n
        assert getattr(everything, name) == pytest.approx(parts)


def test_adding_a_model_moves_no_number_of_another() -> None:
    energy, pdg, one, two = toy(6)
    alone = score_energy({"one": one}, energy, pdg, n_bootstrap=50)
    beside = score_energy({"two": two, "one": one}, energy, pdg, n_bootstrap=50)
    for a in alone:
        b = of(beside, "one", a.particle)
        np.testing.assert_allclose([getattr(a, f"{f}_error") for f in FIGURES], [getattr(b, f"{f}_error") for f in FIGURES], rtol=1e-9)


def test_same_seed_same_bytes_and_another_seed_others() -> None:
    energy, pdg, one, two = toy(7)
    rows = [[s.to_json_dict() for s in score_energy({"one": one, "two": two}, energy, pdg, n_bootstrap=40, seed=s)] for s in (1, 1, 2)]
    assert json.dumps(rows[0]) == json.dumps(rows[1]) != json.dumps(rows[2])


def test_parts_that_memory_holds_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    energy, pdg, one, _ = toy(8)
    whole = score_energy({"one": one}, energy, pdg, n_bootstrap=40)
    monkeypatch.setattr(scores, "_CHUNK", 7 * energy.size)
    parts = score_energy({"one": one}, energy, pdg, n_bootstrap=40)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose([getattr(a, f"{f}_error") for f in FIGURES], [getattr(b, f"{f}_error") for f in FIGURES], rtol=1e-9)


def test_rows_have_the_issue_s_keys_first_and_an_error_for_each_figure() -> None:
    energy, pdg, one, _ = toy(9)
    row = score_energy({"one": one}, energy, pdg, n_bootstrap=10)[0].to_json_dict()
    assert list(row)[: len(ISSUE_KEYS)] == ISSUE_KEYS
    assert {f"{f}_error" for f in FIGURES} <= set(row)
    assert row["rel_loss_ratio"] is None
    json.dumps(row, allow_nan=False)


def test_a_single_shower_has_no_error() -> None:
    row = score_energy({"one": [1.1]}, [1.0], [22], baseline="one")[0].to_json_dict()
    assert row["rel_loss_error"] is None
    assert row["rel_loss"] == pytest.approx(0.01)


def test_a_perfect_baseline_has_a_difference_but_no_ratio() -> None:
    energy = np.linspace(1, 100, 50)
    rows = compare_energy({"truth": energy, "low": 0.9 * energy}, energy, np.full(50, 22), baseline="truth", n_bootstrap=20)
    loss = next(r for r in rows if r.figure == "rel_loss")
    assert loss.verdict == "worse"
    assert loss.to_json_dict()["ratio"] is None


def test_particles_have_the_gun_s_names_and_strangers_their_number() -> None:
    assert list(particle_masks([-211, 321, 22, 11, 321])) == ["e-", "gamma", "pi-", "321"]


def test_a_thousand_replicas_of_six_models_take_seconds() -> None:
    energy, pdg, one, _ = toy(10, 1200)
    models = {str(k): one + 0.01 * k for k in range(6)}
    started = time.process_time()
    score_energy(models, energy, pdg, baseline="0", n_bootstrap=1000)
    assert time.process_time() - started < 5  # 0.8 s where this was written


ENERGY = np.ones(3)


@pytest.mark.parametrize(
    ("models", "energy", "pdg", "settings", "says"),
    [
        ({}, ENERGY, [22] * 3, {}, "no models"),
        ({"a": [1.0, 2.0]}, ENERGY, [22] * 3, {}, "predictions of a have shape"),
        ({"a": [1.0, np.nan, 1.0]}, ENERGY, [22] * 3, {}, "prediction of a for shower 1 is nan"),
        ({"a": ENERGY}, [1.0, 0.0, 1.0], [22] * 3, {}, "energy_gev of shower 1 is 0.0"),
        ({"a": ENERGY}, ENERGY, [22], {}, "pdg_id"),
        ({"a": ENERGY}, ENERGY, [22] * 3, {"baseline": "b"}, "baseline 'b' is not among the models a"),
        ({"a": ENERGY}, ENERGY, [22] * 3, {"n_bootstrap": 1}, "n_bootstrap = 1"),
    ],
)
def test_bad_input_is_refused(models: dict, energy: list, pdg: list, settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        score_energy(models, energy, pdg, **settings)


@pytest.mark.parametrize(
    ("models", "settings", "says"),
    [
        ({"a": ENERGY}, {"baseline": "a"}, "at least one other"),
        ({"a": ENERGY, "b": ENERGY}, {"baseline": "c"}, "must be among them"),
        ({"a": ENERGY, "b": ENERGY}, {"baseline": "a", "figures": ["mean_rel_percent"]}, "cannot be compared"),
    ],
)
def test_bad_comparisons_are_refused(models: dict, settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        compare_energy(models, ENERGY, [22] * 3, **settings)
