"""The published opponent of the network: boosted trees that give the parameters of a double-sided Crystal Ball."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from calolife.energy.ball import ball_half_width, ball_slopes
from calolife.energy.features import EnergySample, FloatArray, Prediction, check_sample, check_training, split_validation
from calolife.energy.peak_scale import AS_IS, PeakScale, fit_peak_scale
from calolife.energy.trees import must_be_whole

if TYPE_CHECKING:
    import lightgbm as lgb

    from calolife.training import Epoch

__all__ = ["ALPHA_LEFT", "ALPHA_RIGHT", "Bdt", "fit_bdt"]

# source: github.com/cms-egamma/EgRegresTrainerLegacy, packages/RegresTrainer/src/HybridGBRMaker.cc: RooDoubleCBFast(target,
# mean, sigma, 2, n1, 1, n2) with target E_true / E_raw; left of the mean are the objects that read too much, right those that lost
ALPHA_LEFT, ALPHA_RIGHT = 2.0, 1.0
_SIGMA = (0.0002, 0.5)  # source: there
# chosen: of n - 1, published 0.01 to 4999. A tail of n < 1.5 holds most of the density and makes sigma(E) any size, for a likelihood
# higher by 0.0015 an object (12,000 electrons); n > 101 is a Gaussian
_N_1 = (0.5, 100.0)
_MEV_PER_GEV = 1000.0
_BELOW = 0.15865525393145707  # standard normal below -1
_LEAST_OBJECTS = 200  # chosen: the tenth that calibrates sigma holds 20
_START_OBJECTS, _START_STEPS, _START_STEP, _START_MOST = 5000, 60, 0.3, 0.5  # chosen: the trees mend what the constants miss
_PATIENCE = 60  # chosen: rounds
_N_FOLDS = 2  # chosen: the fewest; more take longer
_NAMES = ("mean", "width", "n_left", "n_right")
_ALLOWED = {
    "rounds": (1, 100_000), "leaves": (2, 4096), "learning_rate": (1e-4, 1.0), "least_in_leaf": (1, 1_000_000),
    "feature_fraction": (0.01, 1.0), "bagging_fraction": (0.01, 1.0), "l2": (0.0, 1e6), "n_threads": (1, 1024),
}  # fmt: skip

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Bdt:
    """Energy and its spread by LightGBM and a Crystal Ball; `fit_bdt` makes it.

    Parameters
    ----------
    shape_names : tuple of str
        What it reads of `EnergySample.shape`.
    texts : tuple of str
        Trees of the four parameters (mean, ln sigma, ln(n_left - 1), ln(n_right - 1)), as LightGBM writes them.
    start : float array, (4,)
        What the trees add to.
    unit : float
        Of the trees of the mean.
    scale : PeakScale
        Of energy and uncertainty, fitted on the validation objects.
    loss, validation_loss : float array, (round,)
        -ln of the likelihood of ln(E_true / E_raw), mean over the objects, in step 1.
    best_epoch : int
        Round, from 1, with the least validation loss.
    left_out_gev : float array, (object,) [GeV]
        Energy of each validation object among those of the training, NaN for those trained on; not stored.
    digest : str
        Detector it was fitted on; empty where not known.
    """

    name: ClassVar[str] = "bdt"
    n_layers: ClassVar[int] = 1
    shape_names: tuple[str, ...]
    texts: tuple[str, ...]
    start: FloatArray
    unit: float
    scale: PeakScale
    loss: FloatArray
    validation_loss: FloatArray
    best_epoch: int
    left_out_gev: FloatArray
    digest: str = ""

    @cached_property
    def _boosters(self) -> list[lgb.Booster]:
        import lightgbm as lgb

        for text in self.texts:
            must_be_whole(text)
        return [lgb.Booster(model_str=text) for text in self.texts]

    def parameters(self, sample: EnergySample) -> FloatArray:
        """The Crystal Ball of ln(E_true / E_raw) of each object, (object, 4), columns as in `ball.BALL_PARAMETERS`.

        Raises
        ------
        ValueError
            Showers of a layered calorimeter or of another detector than that of the training; features that are not there.
        """
        _check_crystals(sample)
        check_sample(sample, n_layers=1, digest=self.digest, shape_names=self.shape_names)
        columns = _columns(sample, self.shape_names)
        trees = np.column_stack([_answer(booster, columns) for booster in self._boosters])
        return _parameters(self.start, trees, self.unit)

    def predict(self, sample: EnergySample) -> Prediction:
        """Energy, the peak of each object's Crystal Ball, and its spread; raises what `parameters` raises."""
        found = self.parameters(sample)
        energy = np.maximum(sample.visible_mev, 0.0) / _MEV_PER_GEV * np.exp(found[:, 0])
        return self.scale.apply_to(Prediction(energy, energy * _half_width(found)))

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and JSON-able rest, for storage."""
        arrays: dict[str, NDArray[Any]] = {
            name: np.frombuffer(t.encode(), dtype=np.uint8) for name, t in zip(_NAMES, self.texts, strict=True)
        }
        arrays |= {"start": self.start, "loss": self.loss, "validation_loss": self.validation_loss}
        meta = {"shape_names": list(self.shape_names), "unit": self.unit, "best_epoch": self.best_epoch, "digest": self.digest}
        return arrays | self.scale.state(), meta

    @classmethod
    def from_state(cls, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> Bdt:
        """The model that `state` described."""
        return cls(
            tuple(str(name) for name in meta["shape_names"]), tuple(arrays[name].tobytes().decode() for name in _NAMES), arrays["start"],
            float(meta["unit"]), PeakScale.from_state(arrays), arrays["loss"], arrays["validation_loss"],
            int(meta["best_epoch"]), np.empty(0), str(meta["digest"]),
        )  # fmt: skip


def fit_bdt(
    sample: EnergySample,
    *,
    realistic: EnergySample | None = None,
    seed: int = 0,
    rounds: int = 3000,
    leaves: int = 15,
    learning_rate: float = 0.05,
    least_in_leaf: int = 20,
    feature_fraction: float = 0.7,
    bagging_fraction: float = 0.8,
    l2: float = 1.0,
    n_threads: int = 1,
    progress: Callable[[Epoch], None] | None = None,
) -> Bdt:
    """Fit the semi-parametric regression of CMS to objects in crystals.

    Parameters
    ----------
    sample : EnergySample
        Training objects with the features of crystals, nothing else. A tenth, drawn by the seed, stops the boosting and calibrates
        sigma; their order does not matter.
    realistic : EnergySample, optional
        Other objects under the conditions of the data (calibration errors, noise): the widths are fitted to them. Without them the
        widths are those of `sample`.
    seed : int
        Of the validation objects, and of the objects and columns that each tree sees.
    rounds : int
        Most trees of each parameter in each step; 60 without a better validation loss end a step.
    leaves, learning_rate, least_in_leaf, feature_fraction, bagging_fraction, l2
        Of the trees, as LightGBM's num_leaves, learning_rate, min_data_in_leaf, feature_fraction, bagging_fraction, lambda_l2.
    n_threads : int
        Changes the time, not the trees.
    progress : function (Epoch) -> None, optional
        Called each round.

    Returns
    -------
    Bdt

    Raises
    ------
    ValueError
        Layered showers, no features, too few objects, one without energy, a setting out of range, `realistic` unlike `sample`.

    Notes
    -----
    Published (github.com/cms-egamma/EgRegresTrainerLegacy: runSCRegTrainings.py, HybridGBRMaker.cc): trees for mean, sigma, n_left
    and n_right of a double-sided Crystal Ball, alpha fixed at 2 and 1, by its likelihood. Step 1: all four under ideal
    calibration, for the mean. Step 2: that mean is applied to objects under realistic calibration. Step 3: the mean
    fixed, sigma and tails are fitted anew to these. (A fourth, with the tracker's momentum, has no meaning here.)

    Ours in it: the target is ln(E_true / E_raw), minus the network's, and not the ratio itself: no energy below zero, and no
    difference in likelihood or resolution (16,000 electrons). Steps by the expected curvature instead of a line search. At the end of
    step 1 the mean goes on alone, as the likelihood of all four rests before it: about 1 % in the resolution, cross-validated on
    16,000 electrons. Without `realistic`, step 3 looks at means by trees that did
    not see the object (two folds): a width about known objects would be too small. Energy and sigma(E), half of
    q84 - q16 of the Crystal Ball, are brought to scale on the validation objects (`fit_peak_scale`).

    Few objects draw the widths together: where sigma(E) varies by a factor of four, pulls at both ends are 0.9 and 1.1 wide
    with 4,000 objects and within 4 % of 1 with 20,000 (toy).

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> tilt, energy = rng.uniform(-1, 1, 400), rng.uniform(10.0, 100.0, 400)
    >>> raw = 1000 * energy * (0.9 + 0.05 * tilt) * rng.normal(1, 0.01, 400)
    >>> toy = EnergySample(raw[:, None], energy, np.full(400, 11), tilt[:, None], ("tilt",))
    >>> found = fit_bdt(toy).predict(toy)
    >>> bool(np.quantile(np.abs(found.energy_gev / energy - 1), 0.68) < 0.015)
    True
    """
    _check_settings(
        rounds=rounds, leaves=leaves, learning_rate=learning_rate, least_in_leaf=least_in_leaf, feature_fraction=feature_fraction,
        bagging_fraction=bagging_fraction, l2=l2, n_threads=n_threads,
    )  # fmt: skip
    for part in (sample,) if realistic is None else (sample, realistic):
        _check_crystals(part)
        _check_training_objects(part, least_in_leaf)
    if realistic is not None:
        check_sample(realistic, n_layers=1, digest=sample.digest, shape_names=sample.shape_names)
    settings = {
        "num_leaves": leaves, "learning_rate": learning_rate, "min_data_in_leaf": least_in_leaf, "feature_fraction": feature_fraction,
        "bagging_fraction": bagging_fraction, "bagging_freq": 1, "lambda_l2": l2, "metric": "None", "verbosity": -1,
        # each column is summed by one thread, rows in order: the same trees however many threads
        "num_threads": n_threads, "deterministic": True, "force_col_wise": True,
    }  # fmt: skip
    boost = partial(_boost, settings=settings, seed=seed, rounds=rounds, tell=_counted(progress, (3 + _N_FOLDS) * rounds))
    at, checked, fitted = split_validation(sample, seed=seed)
    columns, target = _columns(sample.select(at), sample.shape_names), _target(sample.select(at))
    start = _constants(target[fitted[:_START_OBJECTS]])
    unit = float(np.exp(start[1]))
    base = np.tile(start, (target.size, 1))
    joint = boost(columns, target, fitted=fitted, checked=checked, base=base, unit=unit, free=(0, 1, 2, 3), mean_goes_on=True)

    at_3, checked_3, fitted_3 = at, checked, fitted
    if realistic is None:
        mean, base = joint.parameters[:, 0].copy(), joint.parameters.copy()
        base[:, 0] = start[0]  # the widths of step 1 only weigh
        for held in np.array_split(fitted, _N_FOLDS):
            rest = fitted[~np.isin(fitted, held)]
            fold = boost(columns, target, fitted=rest, checked=checked, base=base, unit=unit, free=(0,), mean_goes_on=False)
            mean[held] = fold.parameters[held, 0]
    else:
        at_3, checked_3, fitted_3 = split_validation(realistic, seed=seed)
        columns, target = _columns(realistic.select(at_3), sample.shape_names), _target(realistic.select(at_3))
        mean = start[0] + unit * _answer(joint.boosters[0], columns)
    centre = _constants((target - mean)[fitted_3[:_START_OBJECTS]])
    base = np.tile([0.0, *centre[1:]], (target.size, 1))
    base[:, 0] = mean
    widths = boost(columns, target, fitted=fitted_3, checked=checked_3, base=base, unit=unit, free=(1, 2, 3), mean_goes_on=False)

    boosters = (joint.boosters[0], *widths.boosters)
    left_out = np.full(sample.n_showers, np.nan)
    model = Bdt(
        sample.shape_names, tuple(_text(b) for b in boosters), np.array([start[0], *centre[1:]]), unit, AS_IS, np.array(joint.loss),
        np.array(joint.validation_loss), joint.n_rounds, left_out, sample.digest,
    )  # fmt: skip
    judged = sample.select(at[checked]) if realistic is None else realistic.select(at_3[checked_3])
    model = replace(model, scale=fit_peak_scale(model.predict(judged), judged.energy_gev))
    left_out[at[checked]] = model.predict(sample.select(at[checked])).energy_gev
    return model


@dataclass(frozen=True, eq=False)
class _Boosted:
    """What one boosting made."""

    boosters: tuple[lgb.Booster, ...]
    n_rounds: int  # of them all, or of the mean where it went on alone
    parameters: FloatArray  # (object, 4), of all objects
    loss: list[float]
    validation_loss: list[float]


def _boost(
    columns: FloatArray, target: FloatArray, *, fitted: IntArray, checked: IntArray, base: FloatArray, unit: float, free: tuple[int, ...],
    mean_goes_on: bool, settings: dict[str, Any], seed: int, rounds: int, tell: Callable[[float, float, bool], None],
) -> _Boosted:  # fmt: skip
    """Boost some of the parameters, one tree each per round, until the validation likelihood rests.

    Parameters
    ----------
    columns : float array, (object, column)
    target : float array, (object,)
    fitted, checked : int array
        Objects that the trees see, and that stop them.
    base : float array, (object, 4)
        Parameters that the trees add to.
    unit : float
        Of the trees of the mean.
    free : tuple of int
        Parameters that have trees.
    mean_goes_on : bool
        Whether the first of them goes on alone when all have come to rest.
    """
    import lightgbm as lgb

    parts = (fitted, checked)
    quiet = {"verbosity": -1, "num_threads": settings["num_threads"], "force_col_wise": True, "deterministic": True}
    data = lgb.Dataset(
        columns[fitted], target[fitted], params=quiet | {"min_data_in_leaf": settings["min_data_in_leaf"]}, free_raw_data=False
    )
    held = lgb.Dataset(columns[checked], target[checked], reference=data, params=quiet, free_raw_data=False)
    boosters = []
    for k in free:
        booster = lgb.Booster({**settings, "objective": "none", "seed": seed + k}, data)
        booster.add_valid(held, "held")
        boosters.append(booster)
    bases, targets = [base[part] for part in parts], [target[part] for part in parts]
    scores = [np.zeros((part.size, 4)) for part in parts]  # of the trees, in the objects of both parts
    loss: list[float] = []
    validation_loss: list[float] = []

    def read(k: int, booster: lgb.Booster) -> None:
        # LightGBM hands its own sums over to a metric: nothing is predicted twice
        def take(which: int) -> Callable[[FloatArray, lgb.Dataset], tuple[str, float, bool]]:
            def metric(preds: FloatArray, _: lgb.Dataset) -> tuple[str, float, bool]:
                scores[which][:, k] = preds
                return "", 0.0, False

            return metric

        booster.eval_train(take(0))
        booster.eval_valid(take(1))

    def slopes(which: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        made = _parameters(bases[which], scores[which], unit)
        return ball_slopes(targets[which], made, alpha_left=ALPHA_LEFT, alpha_right=ALPHA_RIGHT)

    def go_on(which: tuple[int, ...]) -> int:
        """Rounds until there is no better one, taken back to the best; how many are left."""
        first, best, best_loss = len(loss), 0, float(slopes(1)[0].mean())
        now, gradient, curvature = slopes(0)
        for n in range(1, rounds + 1):
            for k, booster in zip(free, boosters, strict=True):
                if k in which:
                    size = unit if k == 0 else 1.0
                    booster.update(fobj=_given(size * gradient[:, k], size**2 * curvature[:, k]))
                    read(k, booster)
            now, gradient, curvature = slopes(0)
            loss.append(float(now.mean()))
            validation_loss.append(float(slopes(1)[0].mean()))
            is_best = validation_loss[-1] < best_loss
            if is_best:
                best, best_loss = n, validation_loss[-1]
            tell(loss[-1], validation_loss[-1], is_best)
            if n - best >= _PATIENCE:
                break
        done = len(loss) - first
        for k, booster in zip(free, boosters, strict=True):
            if k in which:
                for _ in range(done - best):
                    booster.rollback_one_iter()
                read(k, booster)
        del loss[first + best :], validation_loss[first + best :]
        return best

    n_rounds = go_on(free)
    if mean_goes_on:
        n_rounds += go_on(free[:1])
    answers = np.zeros((target.size, 4))
    for k, booster in zip(free, boosters, strict=True):
        answers[:, k] = _answer(booster, columns)
    return _Boosted(tuple(boosters), n_rounds, _parameters(base, answers, unit), loss, validation_loss)


def _given(gradient: FloatArray, curvature: FloatArray) -> Callable[[FloatArray, lgb.Dataset], tuple[FloatArray, FloatArray]]:
    """An objective of LightGBM whose slopes are known already: those of all parameters are found together."""
    return lambda preds, data: (gradient, curvature)


def _parameters(base: FloatArray, scores: FloatArray, unit: float) -> FloatArray:
    """Parameters of the Crystal Balls, (object, 4), held where the likelihood knows them."""
    made = base + scores * [unit, 1.0, 1.0, 1.0]
    made[:, 1] = np.clip(made[:, 1], *np.log(_SIGMA))
    made[:, 2:] = np.clip(made[:, 2:], *np.log(_N_1))
    return made


def _constants(target: FloatArray) -> FloatArray:
    """The one Crystal Ball that fits all, (4,), by scoring."""
    low, middle, high = np.quantile(target, [_BELOW, 0.5, 1.0 - _BELOW])
    found = np.array([[middle, np.log(max(0.5 * (high - low), _SIGMA[0])), np.log(2.0), np.log(2.0)]])
    for _ in range(_START_STEPS):
        made = ball_slopes(target, np.repeat(found, target.size, axis=0), alpha_left=ALPHA_LEFT, alpha_right=ALPHA_RIGHT)
        gradient, curvature = made[1].mean(axis=0), made[2].mean(axis=0)
        step = np.clip(_START_STEP * gradient / curvature, -_START_MOST, _START_MOST)
        found = _parameters(found, -step[None], 1.0)
    constants: FloatArray = found[0]
    return constants


def _half_width(parameters: FloatArray) -> FloatArray:
    sigma, n_left, n_right = np.exp(parameters[:, 1]), 1.0 + np.exp(parameters[:, 2]), 1.0 + np.exp(parameters[:, 3])
    return ball_half_width(sigma, ALPHA_LEFT, n_left=n_left, alpha_right=ALPHA_RIGHT, n_right=n_right)


def _columns(sample: EnergySample, names: tuple[str, ...]) -> FloatArray:
    return sample.shape[:, [sample.shape_names.index(name) for name in names]]


def _target(sample: EnergySample) -> FloatArray:
    target: FloatArray = np.log(sample.energy_gev * _MEV_PER_GEV / sample.visible_mev)
    return target


def _counted(progress: Callable[[Epoch], None] | None, most: int) -> Callable[[float, float, bool], None]:
    """What each round of each step tells; its number runs through all of them."""
    n_done = 0

    def tell(loss: float, validation_loss: float, is_best: bool) -> None:
        nonlocal n_done
        n_done += 1
        if progress is not None:
            from calolife.training import Epoch  # loads torch

            progress(Epoch(n_done, most, loss, validation_loss, is_best))

    return tell


def _check_crystals(sample: EnergySample) -> None:
    if sample.n_layers != 1 or not sample.shape_names:
        seen = f"{sample.n_layers} layers" if sample.n_layers != 1 else "no features"
        raise ValueError(
            f"model bdt reads the features of objects in crystals, and this sample has {seen}; give objects of 'calolife showers "
            "cluster', or use model trees"
        )


def _check_training_objects(sample: EnergySample, least_in_leaf: int) -> None:
    check_training(sample)
    if sample.n_showers < _LEAST_OBJECTS:
        raise ValueError(f"{sample.n_showers} objects are too few for bdt: a tenth of them calibrates sigma; give {_LEAST_OBJECTS} or more")
    if least_in_leaf > (most := sample.n_showers // 5):  # a fold holds 0.45 of them, and a tree two leaves
        raise ValueError(f"least_in_leaf = {least_in_leaf} leaves no tree to {sample.n_showers} objects; it must be <= {most}")
    if not (sample.visible_mev > 0).all():
        at = int(np.argmin(sample.visible_mev > 0))
        raise ValueError(f"object {at} has a raw energy of {sample.visible_mev[at]:g} MeV; it must be > 0: drop the object")


def _check_settings(**settings: float) -> None:
    for name, value in settings.items():
        least, most = _ALLOWED[name]
        if not least <= value <= most:
            raise ValueError(f"{name} = {value} must be between {least:g} and {most:g}")


def _answer(booster: lgb.Booster, columns: FloatArray) -> FloatArray:
    return np.asarray(booster.predict(columns, raw_score=True, num_threads=1), dtype=np.float64)


def _text(booster: lgb.Booster) -> str:
    # the same text however many threads made it
    return re.sub(r"\[num_threads: \d+\]", "[num_threads: 1]", str(booster.model_to_string(num_iteration=-1)))
