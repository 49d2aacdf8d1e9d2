"""Kinetics for more crystals than fit in memory: shared parameters from a sample, the rest ring by ring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from calolife.transparency.history import Block, FloatArray, Forecast, IntArray, TransparencyHistory
from calolife.transparency.kinetics import (
    _MIN_RESIDUAL,
    Kinetics,
    _ring_scale,
    _strands,
    check_origins,
    nonnegative_least_squares,
    occupancy,
)
from calolife.transparency.statefilter import FilterInput, filter_forecast

__all__ = ["extend_kinetics", "forecast_blocks"]

_THIN = 1400  # chosen, as in the fit: readings of a crystal that its amplitudes are fitted to


def extend_kinetics(model: Kinetics, history: TransparencyHistory) -> Kinetics:
    """The same kinetics for other crystals: their dose scale and amplitudes are fitted, nothing else.

    Parameters
    ----------
    model : Kinetics
        tau, b, weights of the hypotheses, filter settings and intervals are kept.
    history : TransparencyHistory
        Training span of the other crystals, some rings of the detector.

    Returns
    -------
    Kinetics
        Of the crystals in `history` alone.

    Notes
    -----
    A ring that the model knows keeps its dose scale. Fitting a sample of rings and extending the model to
    each of the others takes the memory of one ring.
    """
    strands = _strands(history)
    thin = max(1, max(s.time_s.size for s in strands) // _THIN)
    rings = np.unique([s.ieta for s in strands])
    n_hypothesis = model.weight.size
    scale = np.empty(rings.size)
    for k, ring in enumerate(rings):
        at = np.flatnonzero(model.ring_ieta == ring)
        largest = max((s for s in strands if s.ieta == ring), key=lambda s: s.xtal_id.size)
        best = np.stack([model.tau_d[0], model.b_per_ifb[0]])
        scale[k] = model.ring_scale[at[0]] if at.size else _ring_scale([largest.thinned(thin, 4)], best)
    stacks: dict[tuple[int, ...], list[int]] = {}
    coarse = [s.thinned(thin, s.xtal_id.size) for s in strands]
    for k, c in enumerate(coarse):
        starts = np.unique(c.year, return_index=True)[1].tolist()
        stacks.setdefault((*c.log_r.shape, *starts), []).append(k)
    amplitude: dict[int, FloatArray] = {}
    begin: dict[int, FloatArray] = {}
    end: dict[int, FloatArray] = {}
    for (_, _, *starts), members in stacks.items():
        log_r = np.stack([coarse[k].log_r for k in members])
        a, first, last = np.empty((n_hypothesis, *log_r.shape[:2], model.tau_d.shape[1])), [], []
        # a strand may lack a year: its crystals' state there is that of the nearest reading
        begins = np.array([np.minimum(np.searchsorted(coarse[k].year, history.years), log_r.shape[2] - 1) for k in members])
        dose = [scale[np.searchsorted(rings, coarse[k].ieta)] for k in members]
        grids = [(coarse[k].time_s, coarse[k].lumi_ifb) for k in members]
        for h in range(n_hypothesis):
            tau, b = model.tau_d[h], model.b_per_ifb[h]
            F = np.stack([occupancy(t, lumi, tau_d=tau, b_per_ifb=b * d) for (t, lumi), d in zip(grids, dose, strict=True)])
            a[h] = _stacked_amplitudes(F, log_r, starts)
            first.append(np.take_along_axis(F, begins[:, None, :], axis=2))  # (strand, component, year)
            last.append(F[:, :, -1])
        for i, k in enumerate(members):
            amplitude[k] = a[:, i]
            at_start = np.array(first)[:, i].transpose(2, 0, 1)[:, :, None]  # (year, hypothesis, 1, component)
            begin[k] = np.broadcast_to(at_start, (len(history.years), *a[:, i].shape))
            end[k] = np.broadcast_to(np.array(last)[:, i, None], a[:, i].shape)
    order = range(len(strands))
    xtal_id = np.concatenate([s.xtal_id for s in strands])
    by_id = np.argsort(xtal_id)
    return replace(
        model, train_years=history.years, ring_ieta=rings, ring_scale=scale, xtal_id=xtal_id[by_id],
        ieta=np.concatenate([np.full(s.xtal_id.size, s.ieta) for s in strands])[by_id],
        amplitude=np.concatenate([amplitude[k] for k in order], axis=1)[:, by_id],
        start_occupancy=np.concatenate([begin[k] for k in order], axis=2)[:, :, by_id],
        end_occupancy=np.concatenate([end[k] for k in order], axis=1)[:, by_id],
        end_time_s=np.concatenate([np.full(c.xtal_id.size, c.time_s[-1]) for c in coarse])[by_id],
    )  # fmt: skip


def _stacked_amplitudes(F: FloatArray, log_r: FloatArray, starts: list[int], *, n_pass: int = 3) -> FloatArray:
    """Amplitudes as `kinetics._amplitudes` fits them, for many strands of one shape at once.

    Parameters
    ----------
    F : float array, (strand, component, reading) [1/fb]
    log_r : float array, (strand, crystal, reading)
    starts : list of int
        First reading of each year: ln R0 is free in each.

    Returns
    -------
    float array, (strand, crystal, component) [fb]
    """
    n_component, n_reading = F.shape[1:]
    years = [slice(a, b) for a, b in zip(starts, [*starts[1:], n_reading], strict=True)]
    products = (F[:, :, None] * F[:, None]).reshape(F.shape[0], -1, n_reading).swapaxes(1, 2)
    transposed = F.swapaxes(1, 2)
    weight = np.ones_like(log_r)
    for k in range(n_pass):
        weighted = weight * log_r
        gram = (weight @ products).reshape(*log_r.shape[:2], n_component, n_component)
        moment = -(weighted @ transposed)
        means = []
        for year in years:
            total = weight[..., year].sum(axis=2)
            mean_y = weighted[..., year].sum(axis=2) / total
            mean_F = (weight[..., year] @ transposed[:, year]) / total[..., None]
            gram -= total[..., None, None] * mean_F[..., :, None] * mean_F[..., None, :]
            moment += (total * mean_y)[..., None] * mean_F
            means.append((mean_y, mean_F))
        a = nonnegative_least_squares(gram, moment)
        if k == n_pass - 1:
            break
        residual = log_r + a @ F
        for year, (mean_y, mean_F) in zip(years, means, strict=True):
            residual[..., year] -= (mean_y + (a * mean_F).sum(axis=2))[..., None]
        weight = 1.0 / np.maximum(np.abs(residual), _MIN_RESIDUAL)
    return a


def forecast_blocks(model: Kinetics, blocks: Sequence[Block], *, origins: Sequence[IntArray], horizon: int) -> list[Forecast]:
    """`Kinetics.forecast` for many blocks at once: the filter steps through their readings side by side.

    Parameters
    ----------
    model : Kinetics
    blocks : sequence of Block
        Each of one ring.
    origins : sequence of int array, (window,)
        Of each block.
    horizon : int

    Returns
    -------
    list of Forecast
        The same numbers as block by block.
    """
    checked = [check_origins(block, o, horizon) for block, o in zip(blocks, origins, strict=True)]
    inputs, kept = [], []
    for block, at in zip(blocks, checked, strict=True):
        if np.unique(block.ieta).size > 1:
            raise ValueError(f"a block holds crystals of rings {block.ieta.min()} to {block.ieta.max()}; give one ring a block")
        curve, deviation, components = model.curves(block)
        row = at[:, None] + np.arange(horizon)
        inputs.append(FilterInput(block.time_s, block.lumi_ifb, np.log(block.transparency) - curve, components.mean(axis=0), at))
        moved = deviation[:, :, row] - deviation[:, :, at - 1][..., None]
        kept.append((curve[:, row], np.sqrt(np.einsum("h,hcwk->cwk", model.weight, moved**2)), row))
    made = []
    ahead = filter_forecast(inputs, model.settings, horizon=horizon)
    for block, at, (curve, spread, row), rest in zip(blocks, checked, kept, ahead, strict=True):
        level = np.exp(curve + rest)
        horizon_s = block.time_s[row] - block.time_s[at - 1][:, None]
        half68, half95 = model.interval.at(horizon_s)
        made.append(
            Forecast(
                model=model.name, train_years=model.train_years, year=block.year, xtal_id=block.xtal_id, row=row,
                horizon_s=horizon_s, transparency=level,
                half68=np.hypot(half68, level * spread), half95=np.hypot(half95, 1.96 * level * spread),
            )
        )
    return made
