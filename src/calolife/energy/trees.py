"""Boosted trees that correct the linear energy by the shape of the shower."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from calolife.energy.features import EnergySample, FloatArray, Prediction, check_sample, check_training, shape_features
from calolife.energy.linear import Linear, fit_linear, fold_linear
from calolife.errors import FileFormatError

if TYPE_CHECKING:
    import lightgbm as lgb

__all__ = ["WITHIN", "Trees", "correction_columns", "correction_target", "fit_trees", "must_be_whole"]

_MEV_PER_GEV = 1000.0
_LEAST_VISIBLE_MEV = 1e-3  # chosen: no cell reads as little, so it stands for nothing at all
WITHIN = 0.683  # one standard deviation of a Gaussian
_N_FOLDS = 5
_MOST_ROUNDS, _PATIENCE = 1500, 100  # chosen: 4,000 Geant4 showers stop near round 300, larger samples later
_SPREAD_ROUNDS = 120  # chosen: coverage per energy and particle no longer moves
# chosen by 5-fold cross-validation on Geant4 showers of two stacks: few leaves and columns, because most of the
# spread is of the shower, not of what its shape tells
_SHARED: dict[str, Any] = {
    "learning_rate": 0.05, "num_leaves": 8, "feature_fraction": 0.3, "bagging_fraction": 0.7, "bagging_freq": 1, "lambda_l2": 1.0,
    # one thread and rows in order: the same bytes on every machine
    "num_threads": 1, "deterministic": True, "force_row_wise": True, "verbosity": -1,
}  # fmt: skip
_LEAST_IN_LEAF = 40  # chosen: as above
# chosen: five times what two thirds of the showers stay within. Pions that pass as one track or decay in flight leave 2 GeV
# whatever they had; no shape tells their energy, and a few of them would hold half of the loss
_CLIP = 5.0


@dataclass(frozen=True, eq=False)
class Trees:
    """Energy of the linear model, corrected by LightGBM on the shape of the shower.

    Parameters
    ----------
    linear : Linear
        What is corrected.
    lowest_gev : float [GeV]
        Half the lowest energy of the training; the linear energy and the answer are not taken below.
    shape_names : tuple of str
        What it reads of `EnergySample.shape`.
    text, spread_text : str
        The trees of the correction and of its spread, as LightGBM writes them.
    spread_scale : float
        Makes 68.3 % of the showers left out lie within their sigma.
    left_out_gev : float array, (shower,) [GeV]
        Energy of each training shower by trees fitted without it. Kept for what is fitted on top; not stored.
    left_out_sigma_gev : float array, (shower,) [GeV]
        Its spread, by trees of the spread fitted without it; not stored.
    digest : str
    """

    name: ClassVar[str] = "trees"
    linear: Linear
    lowest_gev: float
    shape_names: tuple[str, ...]
    text: str
    spread_text: str
    spread_scale: float
    left_out_gev: FloatArray
    left_out_sigma_gev: FloatArray
    digest: str = ""

    @property
    def n_layers(self) -> int:
        return self.linear.n_layers

    @cached_property
    def _boosters(self) -> tuple[lgb.Booster, lgb.Booster]:
        import lightgbm as lgb

        for text in (self.text, self.spread_text):
            must_be_whole(text)
        return lgb.Booster(model_str=self.text), lgb.Booster(model_str=self.spread_text)

    def predict(self, sample: EnergySample) -> Prediction:
        """Energy and its spread for each shower; one without visible energy has about the lowest energy of the training.

        Raises
        ------
        ValueError
            Another number of layers, or another detector, than that of the training; shapes of cells that are not there.
        """
        check_sample(sample, n_layers=self.n_layers, digest=self.digest, shape_names=self.shape_names)
        base = np.maximum(self.linear.predict(sample).energy_gev, self.lowest_gev)
        columns = correction_columns(sample, base, self.shape_names)
        correction, spread = (_of(booster, columns) for booster in self._boosters)
        energy = np.maximum(base + np.sqrt(base) * correction, self.lowest_gev)
        return Prediction(energy, self.spread_scale * np.sqrt(base) * np.exp(spread))

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        arrays, meta = self.linear.state()
        texts = {name: np.frombuffer(getattr(self, name).encode(), dtype=np.uint8) for name in ("text", "spread_text")}
        mine = {"lowest_gev": self.lowest_gev, "shape_names": list(self.shape_names), "spread_scale": self.spread_scale}
        return {f"linear.{k}": v for k, v in arrays.items()} | texts, {"linear": meta, "digest": self.digest, **mine}

    @classmethod
    def from_state(cls, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> Trees:
        linear = Linear.from_state({k.removeprefix("linear."): v for k, v in arrays.items() if k.startswith("linear.")}, meta["linear"])
        text, spread_text = (arrays[name].tobytes().decode() for name in ("text", "spread_text"))
        shape_names = tuple(str(name) for name in meta["shape_names"])
        return cls(
            linear, float(meta["lowest_gev"]), shape_names, text, spread_text, float(meta["spread_scale"]), np.empty(0), np.empty(0),
            str(meta["digest"]),
        )  # fmt: skip


def fit_trees(sample: EnergySample, *, seed: int = 0) -> Trees:
    """Fit the linear model, then trees on what it leaves.

    Parameters
    ----------
    sample : EnergySample
        Training showers.
    seed : int
        Of the folds, and of the showers and columns that each tree sees.

    Returns
    -------
    Trees

    Raises
    ------
    ValueError
        Fewer than 20 showers with visible energy.

    Notes
    -----
    The trees learn y = (E - E_lin) / sqrt(E_lin) by least squares with weights E_lin / E, which is
    mean((E - E')^2 / E) itself; E_lin of a training shower is `fold_linear`'s. They read
    `shape_features`, the linear and the visible energy and the shapes of cells where there are any. How many
    trees: where the loss of showers left out by five folds is least. The spread is the 68.3 % quantile of the
    left-out errors, by trees of their own.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> layers = rng.gamma(2.0, 100.0, (60, 3))
    >>> toy = EnergySample(layers, layers @ [0.02, 0.01, 0.04], np.full(60, -211))
    >>> found = fit_trees(toy).predict(toy)
    >>> bool(np.allclose(found.energy_gev, toy.energy_gev, rtol=0.05))
    True
    """
    import lightgbm as lgb

    check_training(sample)
    linear, true = fit_linear(sample), sample.energy_gev
    lowest = 0.5 * float(true.min())
    base = np.maximum(fold_linear(sample, seed=seed), lowest)
    columns, root = correction_columns(sample, base, sample.shape_names), np.sqrt(base)
    target, weight = correction_target(base, true)
    mixed = np.random.default_rng(seed).permutation(true.size)
    held = np.array_split(mixed, _N_FOLDS)
    folds = [(np.setdiff1d(mixed, h), h) for h in held]
    settings = {**_SHARED, "objective": "regression", "min_data_in_leaf": _per_leaf(true.size), "seed": seed}
    data = lgb.Dataset(columns, target, weight=weight / weight.mean(), params={"verbosity": -1, "num_threads": 1}, free_raw_data=False)
    judged: dict[str, Any] = lgb.cv(
        settings, data, _MOST_ROUNDS, folds=folds, metrics="l2", return_cvbooster=True,
        callbacks=[lgb.early_stopping(_PATIENCE, verbose=False)],
    )  # fmt: skip
    n_rounds = len(judged["valid l2-mean"])
    left_out = np.empty(true.size)
    for booster, h in zip(judged["cvbooster"].boosters, held, strict=True):
        left_out[h] = _of(booster, columns[h], n_rounds=n_rounds)
    left_out = np.maximum(base + root * left_out, lowest)
    trees = lgb.train(settings, data, n_rounds)

    error = np.log(np.maximum(np.abs(true - left_out) / root, 1e-6))
    settings = {**settings, "objective": "quantile", "alpha": WITHIN}
    expected = np.empty(true.size)
    for rest, h in folds:
        expected[h] = _of(lgb.train(settings, lgb.Dataset(columns[rest], error[rest]), _SPREAD_ROUNDS), columns[h])
    spread = lgb.train(settings, lgb.Dataset(columns, error), _SPREAD_ROUNDS)
    scale = float(np.exp(np.quantile(error - expected, WITHIN)))
    sigma = scale * root * np.exp(expected)
    return Trees(linear, lowest, sample.shape_names, _text(trees), _text(spread), scale, left_out, sigma, sample.digest)


def correction_target(base: FloatArray, true_gev: FloatArray) -> tuple[FloatArray, FloatArray]:
    """What a correction of the linear energy learns, and the weights that make its squared error the published loss.

    Parameters
    ----------
    base, true_gev : float array, (shower,) [GeV]
        Linear energy, > 0, and true energy.

    Returns
    -------
    target : float array, (shower,)
        (E - E_lin) / sqrt(E_lin), held within five half-widths.
    weight : float array, (shower,)
        E_lin / E.
    """
    target = (true_gev - base) / np.sqrt(base)
    limit = _CLIP * float(np.quantile(np.abs(target), WITHIN))
    return np.clip(target, -limit, limit), base / true_gev


def _per_leaf(n_showers: int) -> int:
    # a small sample would otherwise grow no tree at all
    return max(1, min(_LEAST_IN_LEAF, n_showers // 10))


def correction_columns(sample: EnergySample, base: FloatArray, shape_names: tuple[str, ...]) -> FloatArray:
    """What a correction of the linear energy reads, (shower, column).

    Parameters
    ----------
    sample : EnergySample
    base : float array, (shower,) [GeV]
        Linear energy, > 0.
    shape_names : tuple of str
        Columns of `EnergySample.shape` to read too.
    """
    visible = np.maximum(sample.visible_mev, _LEAST_VISIBLE_MEV)
    cells = sample.shape[:, [sample.shape_names.index(name) for name in shape_names]]
    log_energy = np.log(base)
    return np.column_stack([log_energy, np.log(visible), log_energy - np.log(visible), shape_features(sample.layer_energy_mev), cells])


def _of(booster: lgb.Booster, columns: FloatArray, *, n_rounds: int | None = None) -> FloatArray:
    return np.asarray(booster.predict(columns, num_iteration=n_rounds, num_threads=1), dtype=np.float64)


def _text(booster: lgb.Booster) -> str:
    return str(booster.model_to_string(num_iteration=-1))


def must_be_whole(text: str) -> None:
    # LightGBM ends the process on a text that is cut; it writes the bytes of each tree in the head
    sizes = re.search(r"^tree_sizes=([\d ]*)$", text, flags=re.MULTILINE)
    start, end = text.find("\nTree=0\n"), text.find("end of trees")
    whole = sizes is not None and text.startswith("tree\n") and (
        end - start - 1 == sum(map(int, sizes[1].split())) if start >= 0 else end >= 0
    )  # fmt: skip
    if not whole:
        raise FileFormatError("the trees of the model are damaged; train the model again")
