"""Ours: trees and small networks that correct the linear energy by the shape of the shower, weighed by cross-validation.

Loads torch and LightGBM: import it inside the function that needs it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.special import erf
from torch import nn

from calolife.energy.features import EnergySample, FloatArray, Prediction, check_sample, check_training
from calolife.energy.linear import fold_linear
from calolife.energy.trees import WITHIN, Trees, correction_columns, correction_target, fit_trees
from calolife.training import Epoch, find_devices, initialise, limit_threads, train

__all__ = ["Best", "fit_best"]

_N_FOLDS = 5
_N_NETS = 4  # chosen: the average of more gains nothing that cross-validation sees
_N_FOLD_NETS = 2  # of each fold: they only decide how much the networks count
# chosen by 5-fold cross-validation on the training split of Geant4 showers of two stacks
_HIDDEN, _NOISE, _BATCH, _LR, _WEIGHT_DECAY, _CLIP_NORM = 64, 0.3, 128, 1e-3, 1e-2, 1.0
_EPOCHS, _MOST_STEPS = 25, 8000  # chosen: 4,000 showers need 25 passes; large samples fewer
_OUTLIER = 5.0  # chosen: standard deviations beyond which a shape is held; the training tells nothing there
_TILE = 8  # showers per matrix product, as in `dnn`

Weights = tuple[tuple[FloatArray, FloatArray], ...]


@dataclass(frozen=True, eq=False)
class Best:
    """Linear energy, corrected by the weighted mean of trees and networks; `fit_best` makes it.

    Parameters
    ----------
    trees : Trees
        Holds the linear model too.
    mean, width : float array, (column,)
        Of what trees and networks read, in the training: networks get it standardised.
    weights : tuple of (weight, bias) float arrays per layer
        weight (net, in, out), bias (net, 1, out): networks of equal shape whose answers are averaged.
    share_trees, share_nets : float
        How much of each correction is taken, >= 0; what is missing to 1 is left to the linear energy.
    spread_scale : float
        Of the spread of the trees, so that 68.3 % of the showers left out lie within their sigma.
    left_out_gev : float array, (shower,) [GeV]
        Energy of each training shower by a model fitted without it. Kept for what is fitted on top; not stored.
    """

    name: ClassVar[str] = "best"
    trees: Trees
    mean: FloatArray
    width: FloatArray
    weights: Weights
    share_trees: float
    share_nets: float
    spread_scale: float
    left_out_gev: FloatArray

    @property
    def n_layers(self) -> int:
        return self.trees.n_layers

    @property
    def digest(self) -> str:
        return self.trees.digest

    def predict(self, sample: EnergySample) -> Prediction:
        """Energy and its spread for each shower.

        Raises
        ------
        ValueError
            Another number of layers, or another detector, than that of the training; shapes of cells that are not there.
        """
        check_sample(sample, n_layers=self.n_layers, digest=self.digest, shape_names=self.trees.shape_names)
        trees = self.trees.predict(sample)
        base = np.maximum(self.trees.linear.predict(sample).energy_gev, self.trees.lowest_gev)
        columns = correction_columns(sample, base, self.trees.shape_names)
        by_nets = np.sqrt(base) * _answer(self.weights, _standard(columns, self.mean, self.width))
        energy = base + self.share_trees * (trees.energy_gev - base) + self.share_nets * by_nets
        assert trees.sigma_gev is not None
        return Prediction(np.maximum(energy, self.trees.lowest_gev), self.spread_scale * trees.sigma_gev)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and JSON-able rest, for storage."""
        inner, meta = self.trees.state()
        arrays: dict[str, NDArray[Any]] = {f"trees.{k}": v for k, v in inner.items()} | {"mean": self.mean, "width": self.width}
        for k, (weight, bias) in enumerate(self.weights):
            arrays |= {f"net{k}.weight": weight, f"net{k}.bias": bias}
        numbers = {"share_trees": self.share_trees, "share_nets": self.share_nets, "spread_scale": self.spread_scale}
        return arrays, {"trees": meta, "n_matrices": len(self.weights), **numbers}

    @classmethod
    def from_state(cls, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> Best:
        """The model that `state` described."""
        trees = Trees.from_state({k.removeprefix("trees."): v for k, v in arrays.items() if k.startswith("trees.")}, meta["trees"])
        weights = tuple((arrays[f"net{k}.weight"], arrays[f"net{k}.bias"]) for k in range(int(meta["n_matrices"])))
        return cls(
            trees, arrays["mean"], arrays["width"], weights, float(meta["share_trees"]), float(meta["share_nets"]),
            float(meta["spread_scale"]), np.empty(0),
        )  # fmt: skip


def fit_best(
    sample: EnergySample,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[Epoch], None] | None = None,
    checkpoint_dir: Path | None = None,
) -> Best:
    """Fit trees and networks, and weigh them by showers left out.

    Parameters
    ----------
    sample : EnergySample
        Training showers, nothing else.
    seed : int
    device : str
        Of the networks.
    progress : function (Epoch) -> None, optional
        Counts the epochs of all networks as one training.
    checkpoint_dir : path, optional
        Where the networks keep what a killed fit goes on from; the trees are fitted again.

    Returns
    -------
    Best

    Raises
    ------
    ValueError
        Fewer than 20 showers with visible energy.

    Notes
    -----
    Trees and networks learn y = (E - E_lin) / sqrt(E_lin) with weights E_lin / E, which is mean((E - E')^2 / E) itself, with
    y held within five half-widths (see `correction_target`). Networks of 64-64 GELU read what the trees read, standardised and blurred
    by noise in training. Each of five folds has trees and networks that have not seen it; the shares are the non-negative
    least-squares weights of the two corrections on these showers, together at most 1.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> layers = rng.gamma(2.0, 100.0, (60, 3))
    >>> toy = EnergySample(layers, layers @ [0.02, 0.01, 0.04], np.full(60, -211))
    >>> found = fit_best(toy).predict(toy)
    >>> bool(np.allclose(found.energy_gev, toy.energy_gev, rtol=0.05))
    True
    """
    check_training(sample)
    find_devices(device)
    trees, true = fit_trees(sample, seed=seed), sample.energy_gev
    base = np.maximum(fold_linear(sample, seed=seed), trees.lowest_gev)
    root = np.sqrt(base)
    target, weight = correction_target(base, true)
    columns = correction_columns(sample, base, sample.shape_names)
    mean, width = columns.mean(axis=0), columns.std(axis=0)
    width = np.where(width > 0, width, 1.0)
    inputs = _standard(columns, mean, width)
    epochs = int(np.clip(_MOST_STEPS * _BATCH // true.size, 1, _EPOCHS))
    n_trainings, n_done = _N_FOLDS * _N_FOLD_NETS + _N_NETS, 0

    def tell(epoch: Epoch) -> None:
        nonlocal n_done
        n_done += 1
        if progress is not None:
            progress(Epoch(n_done, n_trainings * epochs, epoch.loss, epoch.validation_loss, epoch.is_best))

    def nets(part: NDArray[np.int64], name: str, n: int) -> Weights:
        return _fit_nets(
            inputs[part], target[part], weight[part], n=n, epochs=epochs, seed=seed, device=device, tell=tell,
            checkpoint_dir=None if checkpoint_dir is None else checkpoint_dir / name,
        )  # fmt: skip

    mixed = np.random.default_rng(seed).permutation(true.size)
    left_out = np.empty(true.size)
    for k, held in enumerate(np.array_split(mixed, _N_FOLDS)):
        left_out[held] = _answer(nets(np.setdiff1d(mixed, held), f"fold{k}", _N_FOLD_NETS), inputs[held])
    by_trees = (trees.left_out_gev - base) / root
    share_trees, share_nets = _shares(np.column_stack([by_trees, left_out]), target, weight)
    energy = np.maximum(base + root * (share_trees * by_trees + share_nets * left_out), trees.lowest_gev)
    # spreads left out too: those of showers that the trees know lie too close to their own errors
    scale = float(np.quantile(np.abs(energy - true) / trees.left_out_sigma_gev, WITHIN))
    final = nets(np.arange(true.size), "all", _N_NETS)
    return Best(trees, mean, width, final, share_trees, share_nets, scale, energy)


def _shares(corrections: FloatArray, target: FloatArray, weight: FloatArray) -> tuple[float, float]:
    """Non-negative least-squares weights of the corrections, (shower, 2), with a sum of at most 1."""
    root = np.sqrt(weight)
    found = nnls(corrections * root[:, None], target * root)[0]
    if found.sum() > 1:  # the best on the line between the two
        first, second = corrections.T
        along = first - second
        t = float(np.clip((weight * along) @ (target - second) / max(float((weight * along) @ along), 1e-300), 0.0, 1.0))
        found = np.array([t, 1.0 - t])
    return float(found[0]), float(found[1])


def _standard(columns: FloatArray, mean: FloatArray, width: FloatArray) -> FloatArray:
    standard: FloatArray = np.clip((columns - mean) / width, -_OUTLIER, _OUTLIER)
    return standard


def _answer(weights: Weights, inputs: FloatArray) -> FloatArray:
    """Mean answer of the networks, (shower, column) -> (shower,); of a shower the same whatever stands beside it."""
    n = inputs.shape[0]
    total = np.empty(n)
    for start in range(0, n, 64 * _TILE):
        part = inputs[start : start + 64 * _TILE]
        x = np.zeros((-(-part.shape[0] // _TILE) * _TILE, part.shape[1]))
        x[: part.shape[0]] = part
        x = x.reshape(1, -1, _TILE, part.shape[1])  # one size of matrix product: it rounds every row alike
        for k, (weight, bias) in enumerate(weights):
            x = x @ weight[:, None] + bias[:, None]  # (net, tile, _TILE, out)
            if k < len(weights) - 1:
                x *= 0.5 * (1.0 + erf(x * np.sqrt(0.5)))  # GELU
        total[start : start + 64 * _TILE] = x.mean(axis=0).ravel()[: part.shape[0]]
    # what a product of another size might leave in the last digits is cut off
    return total.astype(np.float32).astype(np.float64)


def _fit_nets(
    inputs: FloatArray, target: FloatArray, weight: FloatArray, *, n: int, epochs: int, seed: int, device: str,
    tell: Callable[[Epoch], None], checkpoint_dir: Path | None,
) -> Weights:  # fmt: skip
    # target and weight in units of their size: the step size and the clipping are in those
    unit = float(np.sqrt((weight * target**2).mean() / weight.mean())) or 1.0
    x, y, w = (torch.from_numpy(a.astype(np.float32)) for a in (inputs, target / unit, weight / weight.mean()))
    identity = hashlib.sha256(b"".join(t.numpy().tobytes() for t in (x, y, w))).hexdigest()
    copies = [(x.to(one), y.to(one), w.to(one)) for one in find_devices(device)]
    data = {x.device: (x, y, w) for x, y, w in copies}  # "cuda" becomes "cuda:0" only on a tensor

    def loss(net: nn.Sequential, which: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        x, y, w = data[which.device]
        noise = torch.randn((which.numel(), x.shape[1]), generator=generator).to(which.device)
        answer = net(x[which] + _NOISE * noise).squeeze(1)  # (B, column) -> (B,)
        mean: torch.Tensor = (w[which] * (answer - y[which]).square()).mean()
        return mean

    layers: list[list[tuple[FloatArray, ...]]] = []
    with limit_threads(1):  # as in `dnn`
        for k in range(n):
            with torch.device("meta"):  # PyTorch's constructors would draw from the global generator
                net = nn.Sequential(
                    nn.Linear(x.shape[1], _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, 1)
                )  # fmt: skip
            net = net.to_empty(device="cpu")
            initialise(net, seed=seed + k)
            train(
                net, loss, n_samples=x.shape[0], epochs=epochs, batch_size=_BATCH, lr=_LR, weight_decay=_WEIGHT_DECAY,
                clip_norm=_CLIP_NORM, schedule="cosine", seed=seed + k, device=device, progress=tell, identity=identity,
                checkpoint_dir=None if checkpoint_dir is None else checkpoint_dir / str(k),
            )  # fmt: skip
            linear = [m for m in net if isinstance(m, nn.Linear)]
            layers.append([tuple(p.detach().cpu().double().numpy() for p in (m.weight.T, m.bias[None])) for m in linear])
    weights = [tuple(np.stack([net[k][i] for net in layers]) for i in (0, 1)) for k in range(len(layers[0]))]
    weights[-1] = tuple(unit * array for array in weights[-1])
    return tuple((weight, bias) for weight, bias in weights)
