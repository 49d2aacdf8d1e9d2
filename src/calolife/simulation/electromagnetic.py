"""Electromagnetic showers: gamma profile along the axis, core and tail across it, compound-Poisson sampling.

Source of the parametrisation: G. Grindhammer and S. Peters, hep-ex/0001020. What is changed or added to it is in
`constants` and marked there as tuned.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from calolife.simulation.random import exponential, gamma, normal, poisson, uniform

__all__ = ["deposit", "electromagnetic_shower", "find_slab"]

_MOST_SPOTS = 30000  # chosen: spots of a homogeneous shower grow beyond this energy, to bound the time of one shower


@njit
def find_slab(edges, z):  # type: ignore[no-untyped-def]
    """Slab that holds `z`: the largest i with edges[i] <= z, kept inside the stack."""
    i = np.searchsorted(edges, z, side="right") - 1
    return min(max(i, 0), len(edges) - 2)


@njit
def deposit(cells, grid, touched, n_touched, layer, x, y, energy):  # type: ignore[no-untyped-def]
    """Add visible energy at (x, y) of an active layer; returns the new number of touched cells, or -1 - it where nothing is hit."""
    n_x, n_y = cells.n_x[layer], cells.n_y[layer]
    ix = math.floor((x + cells.half_x) * n_x / (2.0 * cells.half_x))
    iy = math.floor((y + cells.half_y) * n_y / (2.0 * cells.half_y))
    if cells.is_wrapped:
        iy %= n_y
    if ix < 0 or iy < 0 or ix >= n_x or iy >= n_y:
        return -1 - n_touched
    cell = cells.offset[layer] + ix * n_y + iy
    if grid[cell] == 0.0:
        touched[n_touched] = cell
        n_touched += 1
    grid[cell] += energy
    return n_touched


@njit
def _profile(t, shape, rate, log_norm):  # type: ignore[no-untyped-def]
    if t <= 0.0:
        return 0.0
    return math.exp((shape - 1.0) * math.log(rate * t) - rate * t + log_norm)


@njit
def electromagnetic_shower(state, c, st, grid, touched, n_touched, energy, is_photon, x, y, z, ux, uy, uz, budget):  # type: ignore[no-untyped-def]
    """Deposit one shower of `energy` [MeV] that starts at (x, y, z) [mm] along (ux, uy, uz); returns the number of touched cells.

    `budget` (4,) gains what went to active material, passive material, out of the calorimeter, nowhere visible [MeV].
    """
    s = find_slab(st.z, z)
    cosine = uz
    if abs(cosine) < 0.15:  # chosen: a slab calorimeter sees a grazing shower as one along its layers; keep the map finite
        cosine = 0.15 if cosine >= 0.0 else -0.15
    origin = st.depth_x0[s] + (z - st.z[s]) / (st.z[s + 1] - st.z[s]) * (st.depth_x0[s + 1] - st.depth_x0[s])
    last = len(st.z) - 1
    if is_photon:
        # pair production after 9/7 X0 on average (PDG Review); what follows starts a little earlier than an electron's shower
        step = (9.0 / 7.0) * exponential(state)
        origin_pair = origin + cosine * step
        if origin_pair >= st.depth_x0[last] or origin_pair < 0.0:
            budget[2] += energy
            return n_touched
        s = find_slab(st.depth_x0, origin_pair)
        z_pair = st.z[s] + (origin_pair - st.depth_x0[s]) / (st.depth_x0[s + 1] - st.depth_x0[s]) * (st.z[s + 1] - st.z[s])
        x += ux / cosine * (z_pair - z)
        y += uy / cosine * (z_pair - z)
        z, origin = z_pair, origin_pair

    critical, charge, frequency = st.slabs[s].critical, st.slabs[s].charge, st.slabs[s].frequency
    log_y = math.log(max(energy / critical, 1.6))
    emip = 1.0 / (1.0 + 0.007 * max(st.slabs[s].contrast, 0.0))
    peak = c.em_t0 + c.em_t1 * log_y
    shape = c.em_a0 + (c.em_a1 + c.em_az / charge) * log_y
    if frequency > 0.0:
        peak += c.em_t_fs / frequency + c.em_t_e * (1.0 - emip)
        shape += c.em_a_fs / frequency
        width_t = 1.0 / max(c.em_st0_s + c.em_st1_s * log_y, 2.0)
        width_a = 1.0 / max(c.em_sa0_s + c.em_sa1_s * log_y, 2.0)
        rho = 0.784 - 0.023 * log_y
    else:
        width_t = 1.0 / max(c.em_st0_h + c.em_st1_h * log_y, 2.0)
        width_a = 1.0 / max(c.em_sa0_h + c.em_sa1_h * log_y, 2.0)
        rho = 0.705 - 0.023 * log_y
    if is_photon:
        peak += c.em_t_photon
        shape += c.em_a_photon
    peak = max(peak, 0.35)
    shape = max(shape, 1.25)
    n1, n2 = normal(state), normal(state)
    up, down = math.sqrt(0.5 * (1.0 + rho)), math.sqrt(0.5 * (1.0 - rho))
    # the published means are of ln T and ln alpha
    t_max = math.exp(math.log(peak) + width_t * (up * n1 + down * n2))
    alpha = max(math.exp(math.log(shape) + width_a * (up * n1 - down * n2)), 1.08)
    rate = (alpha - 1.0) / t_max
    log_norm = math.log(rate) - math.lgamma(alpha)
    deepest = t_max + (8.0 + 6.0 * math.sqrt(alpha)) / rate

    forward = cosine > 0.0
    end = st.depth_x0[last]  # what lies behind a gap that was flown along is missed at the back
    has_gaps, per_x0 = forward and len(st.before_x) > 1, (st.z[last] - st.z[0]) / (st.depth_x0[last] - st.depth_x0[0])
    before_x, before_y, half_x, half_y = st.before_x, st.before_y, st.cells.half_x, st.cells.half_y
    n_x, n_y, is_wrapped = len(before_x) - 1, len(before_y) - 1, st.cells.is_wrapped
    per_crystal, around = 0.5 * n_x / half_x, before_y[n_y]
    gap_loss, axis_x, axis_y, axis_before_x, axis_before_y = 0.0, 0, 0, 0.0, 0.0
    if has_gaps:
        end -= _flown_x0(c, st, x, y, z, ux / cosine, uy / cosine, origin, cosine, t_max)
        if end <= origin:
            budget[2] += energy
            return n_touched
    depth = (end - origin if forward else origin) / abs(cosine)
    inside = _inside(depth, deepest, alpha, rate, log_norm)
    budget[2] += energy * (1.0 - inside)
    # albedo, soft photons through the sides, binding energy: a small share always, a large one after a photonuclear reaction
    order = c.em_loss_order * (energy / 1000.0) ** c.em_loss_growth
    lost = c.em_loss_share * energy * gamma(state, order) / order
    for _ in range(poisson(state, c.em_nuclear_rate * energy)):
        lost += c.em_nuclear_mev * exponential(state)
    lost = min(lost, 0.3 * energy)
    budget[3] += lost * inside  # what leaves at the back does not react here
    energy -= lost

    log_e = math.log(max(energy, 100.0) / 1000.0)
    z1, z2 = 0.0251 + 0.00319 * log_e, 0.1162 - 0.000381 * charge
    k1, k2, k3, k4 = 0.659 - 0.00309 * charge, 0.645, -2.59, 0.3585 + 0.0421 * log_e
    p1, p2, p3 = 2.632 - 0.00094 * charge, 0.401 + 0.00187 * charge, 1.313 - 0.0686 * log_e
    moliere = st.slabs[s].moliere
    scale_core, scale_tail, widening = c.em_core, c.em_tail, 1.0 + c.em_radius_e * log_e
    if frequency == 0.0:
        scale_core, scale_tail = c.em_core_h, c.em_tail_h
        widening = (1.0 + c.em_radius_e_h * log_e) * math.exp(c.em_radius_h * normal(state))
    alone = critical / energy  # an electron ionises before it multiplies
    seen = 0.0
    entered = energy
    n_active = len(st.slab)
    k = np.searchsorted(st.slab, s)
    if not forward and (k == n_active or st.slab[k] > s):
        k -= 1
    while 0 <= k < n_active:
        layer_slab = st.slab[k]
        a = (st.parts[k].t_front - origin) / cosine
        b = (st.parts[k].t_back - origin) / cosine
        if not forward:
            a, b = b, a
        period = (st.parts[k].t_back - st.parts[k].t_start) / abs(cosine)
        if b <= 0.0:
            k += 1 if forward else -1
            continue
        if a > deepest or (forward and st.parts[k].t_front >= end):
            break
        if forward and st.parts[k].t_back > end:
            b = (end - origin) / cosine
        a_in = max(a, 0.0)
        middle = 0.5 * (a_in + b)
        if b - a_in < 0.1:  # thin: the profile is flat across it
            mean_density = _profile(middle, alpha, rate, log_norm)
        else:  # Simpson over two halves
            mean_density = (
                _profile(a_in, alpha, rate, log_norm)
                + 4.0 * _profile(0.5 * (a_in + middle), alpha, rate, log_norm)
                + 2.0 * _profile(middle, alpha, rate, log_norm)
                + 4.0 * _profile(0.5 * (middle + b), alpha, rate, log_norm)
                + _profile(b, alpha, rate, log_norm)
            ) / 12.0
        if not is_photon and middle < 0.5 * t_max and mean_density < alone:
            ahead = energy * (alone - mean_density) * (b - a_in)
            mean_density = alone
            energy -= ahead  # deposited before the profile says so: the rest of the shower has it no more
        is_sampling = st.parts[k].fraction < 0.999999
        if is_sampling:
            mean = energy * mean_density * period * st.parts[k].fraction * st.parts[k].emip
        else:
            mean = energy * mean_density * (b - a_in)
        if is_sampling:
            spot = st.parts[k].spot
            n_spots = poisson(state, mean / spot)
        else:
            spot = max(c.em_spot_homogeneous, energy / _MOST_SPOTS)
            n_spots = int(mean / spot) + 1
        if n_spots == 0:  # most layers of a small shower: nothing to spread
            k += 1 if forward else -1
            continue
        tau = middle / t_max
        core = z1 + z2 * tau
        tail = k1 * (math.exp(k3 * (tau - k2)) + math.exp(k4 * (tau - k2)))
        q = (p2 - tau) / p3
        weight = min(max(p1 * math.exp(q - math.exp(q)), 0.0), 1.0)
        core *= scale_core * widening
        tail *= scale_tail * widening
        quench = 1.0 / (1.0 + st.slabs[layer_slab].birks * c.em_quench)
        z_hit = 0.5 * (st.z[layer_slab] + st.z[layer_slab + 1])
        x_axis, y_axis = x + ux / cosine * (z_hit - z), y + uy / cosine * (z_hit - z)
        rest = mean
        if has_gaps:
            gap_loss = c.em_gap_loss / max((end - st.parts[k].t_front) * per_x0, 1.0)
            axis_x, axis_y = math.floor((x_axis + half_x) * per_crystal), math.floor((y_axis + half_y) * per_crystal)
            turn = math.floor(axis_y / n_y) if is_wrapped else 0
            axis_before_x = before_x[min(max(axis_x, 0), n_x)]
            axis_before_y = before_y[min(max(axis_y - turn * n_y, 0), n_y)] + turn * around
        for i in range(n_spots):
            if is_sampling:
                v = spot * gamma(state, st.parts[k].spot_shape) / st.parts[k].spot_shape
            else:  # a broken stick: exponential shares that add up
                v = rest if i == n_spots - 1 else rest * (1.0 - uniform(state) ** (1.0 / (n_spots - 1 - i)))
                rest -= v
            r_scale = core if uniform(state) < weight else tail
            u = uniform(state)
            r = moliere * r_scale * math.sqrt(u / (1.0 - u))
            phi = 2.0 * math.pi * uniform(state)
            x_spot, y_spot = x_axis + r * math.cos(phi), y_axis + r * math.sin(phi)
            # a soft shower has no width far behind its maximum: an endless radius, that no cell is at
            if has_gaps and r < half_x + half_y:
                i_x, i_y = math.floor((x_spot + half_x) * per_crystal), math.floor((y_spot + half_y) * per_crystal)
                if (i_x != axis_x or i_y != axis_y) and 0 <= i_x < n_x:
                    turn = math.floor(i_y / n_y) if is_wrapped else 0
                    passed_y = before_y[min(max(i_y - turn * n_y, 0), n_y)] + turn * around
                    # what flies along a gap leaves at the back
                    v *= math.exp(-gap_loss * (abs(before_x[i_x] - axis_before_x) + abs(passed_y - axis_before_y)))
            after = deposit(st.cells, grid, touched, n_touched, st.parts[k].layer, x_spot, y_spot, v * quench)
            if after < 0:
                continue
            n_touched = after
            seen += v
        k += 1 if forward else -1
    budget[0] += seen
    energy = entered  # what was moved ahead is still the shower's
    if st.slabs[s].frequency == 0.0 and st.parts[0].fraction > 0.999999:
        budget[2] += energy * inside - seen  # no passive material: what no cell holds left through the sides
    else:
        budget[1] += energy * inside - seen
    return n_touched


@njit
def _flown_x0(c, st, x, y, z, slope_x, slope_y, origin, cosine, t_max):  # type: ignore[no-untyped-def]
    """Depth [X0 along z] that a shower flies through in the gaps which its axis crosses.

    A gap of width g takes a particle of slope s over g / s: along the axis before the shower spreads, less and less after.
    """
    cells = st.cells
    size = 2.0 * cells.half_x / (len(st.before_x) - 1)
    per_mm = (st.depth_x0[-1] - st.depth_x0[0]) / (st.z[-1] - st.z[0])
    flown, length = 0.0, st.z[-1]
    for side in range(2):
        slope = slope_x if side == 0 else slope_y
        if slope == 0.0:
            continue
        before = st.before_x if side == 0 else st.before_y
        n = len(before) - 1
        at = (x + cells.half_x if side == 0 else y + cells.half_y) / size
        place = math.floor(at)
        way = (place + 1 - at if slope > 0.0 else at - place) * size / abs(slope)  # along z to the first border
        behind = place if slope > 0.0 else place - 1
        while z + way + flown / per_mm < length:
            if side == 1 and cells.is_wrapped:
                behind %= n
            if behind < 0 or behind >= n:
                break
            depth = (z + way) * per_mm / cosine - origin / cosine
            spread = c.em_gap_slope * math.exp(min((depth - t_max) / c.em_gap_growth, 2.0))
            flown += (before[behind + 1] - before[behind]) / math.sqrt(slope * slope + spread * spread) * per_mm
            way += size / abs(slope)
            behind += 1 if slope > 0.0 else -1
    return flown


@njit
def _inside(depth, deepest, alpha, rate, log_norm):  # type: ignore[no-untyped-def]
    # integral of the profile to `depth`, Simpson over 64 steps
    if depth <= 0.0:
        return 0.0
    if depth > deepest:
        return 1.0
    h = depth / 64.0
    total = _profile(depth, alpha, rate, log_norm)
    for i in range(1, 64):
        total += (4.0 if i % 2 else 2.0) * _profile(i * h, alpha, rate, log_norm)
    return min(total * h / 3.0, 1.0)
