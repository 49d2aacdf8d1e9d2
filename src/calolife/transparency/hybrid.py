"""Kinetics plus a small network that corrects the next hours from what crystal and neighbours just did."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from calolife.transparency.centres import occupancy
from calolife.transparency.history import Block, FloatArray, Forecast, IntArray, TransparencyHistory
from calolife.transparency.intervals import IntervalTable, interval_table
from calolife.transparency.kinetics import Kinetics, check_origins, fit_with_probe, join_rings, sample_history, split_rings
from calolife.transparency.statefilter import FilterInput, filter_forecast

if TYPE_CHECKING:
    from calolife.training import Epoch

__all__ = ["Hybrid", "fit_hybrid"]

Float32 = NDArray[np.float32]

_STEP = 24  # readings that the network was trained to correct; later ones fade
_FADE_D = 1.0  # chosen: the correction is worth about a day
_DAY_S = 86400.0
_KERNEL_TAU_D = np.array([0.05, 0.2, 0.8, 3.0, 10.0])  # chosen: an hour to days, between the fast centres
_LAG = np.array([1, 2, 3, 5, 8, 12, 18, 24])  # readings before the origin; none older than the published 24
_UNIT = 1e3  # residuals of ln R are of order 1e-3


@dataclass(frozen=True, eq=False)
class Hybrid:
    """Kinetics with a learned correction of ln R; `fit_hybrid` makes it.

    Parameters
    ----------
    kinetics : Kinetics
    interval : IntervalTable
    centre, width : float array, (feature,)
        Of the features in the training span.
    weights : tuple of (weight, bias) float32 arrays per layer
        weight (net, out, in), bias (net, out): networks of equal shape whose outputs are averaged.
    """

    name: ClassVar[str] = "hybrid"

    kinetics: Kinetics
    interval: IntervalTable
    centre: FloatArray
    width: FloatArray
    weights: tuple[tuple[Float32, Float32], ...]

    @property
    def train_years(self) -> tuple[int, ...]:
        return self.kinetics.train_years

    def forecast(self, block: Block, *, origins: IntArray, horizon: int) -> Forecast:
        """Forecast rows o ... o + horizon - 1 of every crystal from each origin o; see `Kinetics.forecast`.

        Notes
        -----
        The correction covers the first 24 readings; after them it fades within days, and the kinetics remain.
        """
        origins = check_origins(block, origins, horizon)
        return join_rings(block, [self._forecast_ring(ring, origins, horizon) for ring in split_rings(block)])

    def _forecast_ring(self, block: Block, origins: IntArray, horizon: int) -> Forecast:
        base = self.kinetics.forecast(block, origins=origins, horizon=horizon)
        near = min(horizon, _STEP)
        curve, _, components = self.kinetics.curves(block)
        kinetic = np.log(base.transparency[:, :, :near]) - curve[:, base.row[:, :near]]
        residual = np.log(block.transparency) - curve
        common = _common_mode(residual, kinetic, origins)
        shift = np.empty((block.n_crystals, origins.size, horizon))
        # chosen: about 100 MB of features at a time
        at_once = max(1, 500_000 // (origins.size * near))
        for start in range(0, block.n_crystals, at_once):
            c = slice(start, start + at_once)
            shift[c, :, :near] = self._correct(_features(block, residual[c], components[c], kinetic[c], origins=origins, common=common))
        if horizon > near:
            ahead_d = (block.time_s[base.row[:, near:]] - block.time_s[base.row[:, near - 1]][:, None]) / _DAY_S
            shift[:, :, near:] = shift[:, :, near - 1 : near] * np.exp(-ahead_d / _FADE_D)
        half68, half95 = self.interval.at(base.horizon_s, ieta=block.ieta)
        inner68, inner95 = self.kinetics.interval.at(base.horizon_s, ieta=block.ieta)
        # the spread of the hypotheses is what the kinetics' own table does not hold
        spread68, spread95 = base.half68**2 - inner68**2, base.half95**2 - inner95**2
        return replace(
            base, model=self.name, transparency=base.transparency * np.exp(shift),
            half68=np.sqrt(half68**2 + np.maximum(spread68, 0)), half95=np.sqrt(half95**2 + np.maximum(spread95, 0)),
        )  # fmt: skip

    def _correct(self, features: Float32) -> FloatArray:
        """Correction of ln R, features (..., feature) -> (...)."""
        flat = features.reshape(-1, features.shape[-1])
        # float64: in float32 the last digit depends on where an array lies in memory, and a window would move with its neighbours
        x = _standard(flat, self.centre, self.width).astype(np.float64)
        total = np.zeros(flat.shape[0])
        n_net = self.weights[0][0].shape[0]
        for net in range(n_net):
            y = x
            for k, (weight, bias) in enumerate(self.weights):
                y = y @ weight[net].T + bias[net]
                if k < len(self.weights) - 1:
                    y = np.where(y > 0, y, np.expm1(np.minimum(y, 0)))  # ELU
            total += y[:, 0]
        mean: FloatArray = total / (n_net * _UNIT)
        return mean.reshape(features.shape[:-1])

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and JSON-able rest, for storage."""
        inner, meta = self.kinetics.state()
        arrays: dict[str, NDArray[Any]] = {f"kinetics.{k}": v for k, v in inner.items()}
        arrays |= self.interval.state() | {"centre": self.centre, "width": self.width}
        for k, (weight, bias) in enumerate(self.weights):
            arrays |= {f"layer{k}.weight": weight, f"layer{k}.bias": bias}
        return arrays, meta | {"n_layers": len(self.weights)}

    @classmethod
    def from_state(cls, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> Hybrid:
        """The model that `state` described."""
        inner = {k.removeprefix("kinetics."): v for k, v in arrays.items() if k.startswith("kinetics.")}
        layers = tuple((arrays[f"layer{k}.weight"], arrays[f"layer{k}.bias"]) for k in range(meta["n_layers"]))
        return cls(Kinetics.from_state(inner, meta), IntervalTable.from_state(arrays), arrays["centre"], arrays["width"], layers)


def _standard(features: Float32, centre: FloatArray, width: FloatArray) -> Float32:
    # beyond 3 widths the training span says nothing: hold the correction there
    return np.clip((features - centre.astype(np.float32)) / width.astype(np.float32), -3, 3)


def _common_mode(residual: FloatArray, kinetic: FloatArray, origins: IntArray) -> FloatArray:
    """Last readings before each origin, averaged over a ring's crystals: laser and reference diode are common to neighbours.

    Parameters
    ----------
    residual : float array, (crystal, reading)
        ln R minus the kinetics.
    kinetic : float array, (crystal, window, step)
        The filter's forecast of it.
    origins : int array, (window,)

    Returns
    -------
    float array, (window, lag)
        Mean of (residual - first forecast) over the crystals read then; NaN where none was.
    """
    past = np.maximum(origins[:, None] - _LAG, 0)
    off = residual[:, past] - kinetic[:, :, :1]
    known = np.isfinite(off)
    total = np.where(known, off, 0.0).sum(axis=0)
    mean: FloatArray = np.divide(total, known.sum(axis=0), out=np.full(total.shape, np.nan), where=known.any(axis=0))
    return mean


def _features(
    block: Block, residual: FloatArray, components: FloatArray, kinetic: FloatArray, *, origins: IntArray, common: FloatArray
) -> Float32:
    """What the network sees of each target: readings before the origin, luminosity and time.

    Parameters
    ----------
    block : Block
        For its times and luminosities.
    residual : float array, (crystal, reading)
        ln R minus the kinetics, of some of the block's crystals.
    components : float array, (crystal, component, reading)
        Their parts of the kinetics.
    kinetic : float array, (crystal, window, step)
        The filter's forecast of their residuals.
    origins : int array, (window,)
    common : float array, (window, lag)
        From all crystals of the block, see `_common_mode`.

    Returns
    -------
    float32 array, (crystal, window, step, feature)
    """
    n_crystal, n_window, n_step = kinetic.shape
    row = origins[:, None] + np.arange(n_step)
    last = origins[:, None] - 1
    time_d = block.time_s / _DAY_S
    delivered = np.concatenate([[0.0], np.cumsum(block.lumi_ifb[:-1])])
    rate = np.concatenate([[0.0], block.lumi_ifb[:-1] / np.diff(time_d)])
    kernel = occupancy(block.time_s, block.lumi_ifb, tau_d=_KERNEL_TAU_D, b_per_ifb=np.zeros(_KERNEL_TAU_D.size))
    shared = [np.log(time_d[row] - time_d[last]), delivered[row] - delivered[last], rate[row], rate[last]]
    for k in kernel:
        shared += [k[row] - k[last], k[last]]
    first = kinetic[:, :, 0]
    past = np.maximum(origins[:, None] - _LAG, 0)  # (window, lag)
    own = residual[:, past] - first[:, :, None]
    neighbours = np.broadcast_to(common, own.shape)
    older = origins[:, None] < _LAG
    # a reading before the year began, or hidden, counts as no deviation
    history = [np.where(older | ~np.isfinite(a), 0.0, a) for a in (own, neighbours)]
    n_feature = len(shared) + 2 * _LAG.size + 1 + components.shape[1]
    out = np.empty((n_crystal, n_window, n_step, n_feature), dtype=np.float32)
    for k, value in enumerate(shared):
        out[..., k] = value
    k = len(shared)
    for part in history:
        out[..., k : k + _LAG.size] = part[:, :, None, :]
        k += _LAG.size
    out[..., k] = kinetic - first[:, :, None]
    moved = components[:, :, row] - components[:, :, origins - 1][..., None]  # (crystal, component, window, step)
    out[..., k + 1 :] = np.moveaxis(moved, 1, -1)
    return out


def fit_hybrid(
    history: TransparencyHistory,
    *,
    seed: int = 0,
    checkpoint_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Hybrid:
    """Fit the kinetics, then the network that corrects them.

    Parameters
    ----------
    history : TransparencyHistory
        The training span, nothing else.
    seed : int
    checkpoint_dir : path, optional
        Where the networks' epochs are kept; a fit that was stopped goes on there, to the same numbers. The
        kinetics, some seconds, are fitted again.
    progress : function (epochs done, epochs in all), optional

    Returns
    -------
    Hybrid

    Raises
    ------
    ValueError
        A span the kinetics cannot be fitted to.

    Notes
    -----
    Next year's crystals will not follow this year's kinetics exactly, and residuals of a fit to the readings it was
    fitted to are too good. So the network learns on forecasts of kinetics whose amplitudes, tau and b were
    multiplied by random factors. Loss: mean absolute residual. Intervals: split conformal on the last 40 %
    of the span, from kinetics and network fitted to the first 60 %.
    """
    kinetics, probe, split = fit_with_probe(history, seed=seed)
    probe_part = sample_history(history.before(split))
    done = 0

    def tell(_: Epoch) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, _EPOCHS * (1 + _N_NET))

    def folder(name: str) -> Path | None:
        return None if checkpoint_dir is None else checkpoint_dir / name

    trial = _train(probe, probe_part, seed=seed, n_net=1, checkpoint_dir=folder("probe"), tell=tell)
    table = interval_table(trial, sample_history(history), start_s=split)
    made = _train(kinetics, sample_history(history), seed=seed, n_net=_N_NET, checkpoint_dir=folder("final"), tell=tell)
    return replace(made, interval=table)


_N_ROW = 500_000  # chosen: targets to learn from; more did not change the score inside the training span
_SPREAD = 0.3  # chosen by rolling origin inside 2016, from 0, 0.15, 0.3, 0.5: spread of the random factors (ln)
_HIDDEN, _DROP, _EPOCHS, _BATCH, _LR = 64, 0.2, 4, 1024, 2e-3  # chosen by the same
_N_NET = 2  # chosen: averages out some of the seed within the fit time we allow; more were not compared
_SPACING = 12  # readings between the origins learned from


def _train(
    kinetics: Kinetics,
    history: TransparencyHistory,
    *,
    seed: int,
    n_net: int,
    checkpoint_dir: Path | None = None,
    tell: Callable[[Epoch], None] | None = None,
) -> Hybrid:
    """Networks on forecasts of disturbed kinetics."""
    import torch
    from torch import nn

    from calolife.training import dropout, initialise, limit_threads, train

    features, target = _examples(kinetics, history, seed=seed)
    # float64 sums: half a million float32 terms lose digits
    centre, width = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64) + 1e-9
    x = torch.from_numpy(_standard(features, centre, width))
    y = torch.from_numpy((target * _UNIT).astype(np.float32))
    identity = hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()
    layers: list[list[tuple[Float32, Float32]]] = []

    def loss(net: nn.Sequential, sample: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        z = x[sample]
        for layer in net:
            z = layer(z)
            if isinstance(layer, nn.ELU):
                z = dropout(z, _DROP, generator)
        return (z[:, 0] - y[sample]).abs().mean()

    with limit_threads(1):
        for k in range(n_net):
            net = nn.Sequential(nn.Linear(x.shape[1], _HIDDEN), nn.ELU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ELU(), nn.Linear(_HIDDEN, 1))
            initialise(net, seed=seed + k)
            train(
                net, loss, n_samples=x.shape[0], epochs=_EPOCHS, batch_size=_BATCH, lr=_LR, seed=seed + k, progress=tell,
                checkpoint_dir=None if checkpoint_dir is None else checkpoint_dir / f"net{k}", identity=identity,
            )  # fmt: skip
            layers.append([(m.weight.detach().numpy().copy(), m.bias.detach().numpy().copy()) for m in net if isinstance(m, nn.Linear)])
    weights = tuple((np.stack([n[k][0] for n in layers]), np.stack([n[k][1] for n in layers])) for k in range(len(layers[0])))
    return Hybrid(kinetics=kinetics, interval=IntervalTable.unknown(), centre=centre, width=width, weights=weights)


def _examples(kinetics: Kinetics, history: TransparencyHistory, *, seed: int) -> tuple[Float32, FloatArray]:
    """Features (row, feature) and residuals of ln R (row,) of forecasts by disturbed kinetics."""
    rng = np.random.default_rng(seed)
    per_copy = sum(b.n_crystals * ((b.n_readings - 2 * _STEP) // _SPACING) * _STEP for b in history.blocks)
    n_copy = int(np.clip(_N_ROW // max(per_copy, 1), 2, 48))
    features, targets = [], []
    for _ in range(n_copy):
        factor = np.exp(_SPREAD * rng.standard_normal((3, kinetics.tau_d.shape[1])))
        other = replace(
            kinetics, amplitude=kinetics.amplitude * factor[0], tau_d=kinetics.tau_d * factor[1], b_per_ifb=kinetics.b_per_ifb * factor[2]
        )  # fmt: skip
        inputs, parts = [], []
        for block in (ring for whole in history.blocks for ring in split_rings(whole)):
            curve, _, components = other.curves(block)
            origins = np.arange(_STEP + rng.integers(_SPACING), block.n_readings - _STEP, _SPACING)
            if not origins.size:
                continue
            residual = np.log(block.transparency) - curve
            inputs.append(FilterInput(block.time_s, block.lumi_ifb, residual, components.mean(axis=0), origins))
            parts.append((block, residual, components, origins))
        for (block, residual, components, origins), kinetic in zip(
            parts, filter_forecast(inputs, kinetics.settings, horizon=_STEP), strict=True
        ):
            common = _common_mode(residual, kinetic, origins)
            made = _features(block, residual, components, kinetic, origins=origins, common=common)
            features.append(made.reshape(-1, made.shape[-1]))
            targets.append((residual[:, origins[:, None] + np.arange(_STEP)] - kinetic).ravel())
    return np.concatenate(features), np.concatenate(targets)
