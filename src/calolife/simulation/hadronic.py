"""Hadrons and muons: ionising tracks, interactions after lambda_I, pi0 showers, nuclear stars, slow neutrons.

A cascade of few, rough steps whose constants are tuned to Geant4 (`constants`): it is meant to give the right means,
spreads and correlations of cell energies, not to model single interactions.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from calolife.simulation.electromagnetic import deposit, electromagnetic_shower, find_slab
from calolife.simulation.random import exponential, gamma, landau, normal, poisson, uniform

__all__ = ["MUON", "NEUTRON", "PION", "PROTON", "WAITING", "hadronic_shower"]

PION, PROTON, NEUTRON, MUON = 0, 1, 2, 3
_PION_MEV, _PROTON_MEV, _MUON_MEV = 139.57, 938.27, 105.66  # PDG
WAITING = 4000  # chosen: particles waiting at once; a 1 TeV pion stays below a tenth of it
_ELECTRON_MEV = 0.511


@njit
def _push(waiting, n, kind, energy, x, y, z, ux, uy, uz):  # type: ignore[no-untyped-def]
    if n >= len(waiting):
        return n
    row = waiting[n]
    row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7] = kind, energy, x, y, z, ux, uy, uz
    return n + 1


@njit
def _turn(state, cosine, ux, uy, uz):  # type: ignore[no-untyped-def]
    # direction at a polar angle about (ux, uy, uz), any azimuth
    sine = math.sqrt(max(1.0 - cosine * cosine, 0.0))
    phi = 2.0 * math.pi * uniform(state)
    a, b = sine * math.cos(phi), sine * math.sin(phi)
    across = math.sqrt(ux * ux + uy * uy)
    if across < 1e-9:
        return a, b, cosine if uz > 0.0 else -cosine
    vx = ux * cosine + (ux * uz * a - uy * b) / across
    vy = uy * cosine + (uy * uz * a + ux * b) / across
    vz = uz * cosine - across * a
    return vx, vy, vz


@njit
def _isotropic(state, forward):  # type: ignore[no-untyped-def]
    # cosine with density (1 + forward * cosine) / 2
    u = uniform(state)
    if forward < 1e-6:
        return 2.0 * u - 1.0
    return (-1.0 + math.sqrt((1.0 - forward) ** 2 + 4.0 * forward * u)) / forward


@njit
def _point(state, cells, z_edges, slabs, needs_hydrogen, forward, grid, touched, n_touched, x, y, z, uz, reach_mm, energy, quench, budget):  # type: ignore[no-untyped-def]
    # a neutral that travels an exponential distance, rather forward, and is seen in the active layer nearest to its end;
    # few arguments instead of the stack: this is called for every other hit
    cosine = (2.0 * uniform(state) ** (1.0 / (1.0 + forward)) - 1.0) * (1.0 if uz > 0.0 else -1.0)
    sine = math.sqrt(max(1.0 - cosine * cosine, 0.0))
    phi = 2.0 * math.pi * uniform(state)
    r = reach_mm * exponential(state)
    z += r * cosine
    if z <= z_edges[0] or z >= z_edges[-1]:
        budget[2] += energy
        return n_touched
    beside = slabs[find_slab(z_edges, z)]
    s = beside.organic_near if needs_hydrogen else beside.active_near
    if s < 0:
        return n_touched
    seen = energy / (1.0 + slabs[s].birks * quench)
    after = deposit(cells, grid, touched, n_touched, slabs[s].active, x + r * sine * math.cos(phi), y + r * sine * math.sin(phi), seen)
    if after < 0:
        budget[2] += energy
        return n_touched
    budget[0] += energy
    return after


@njit
def _star(state, c, st, grid, touched, n_touched, waiting, n, available, s, x, y, z, ux, uy, uz, budget):  # type: ignore[no-untyped-def]
    # break-up of a nucleus with `available` MeV
    size = (st.slabs[s].a / 64.0) ** c.h_a_power
    many = (st.slabs[s].a / 64.0) ** c.h_slow_a
    bound = min(c.h_bind * size**0.5, 0.7) * available
    budget[3] += bound
    left = available - bound
    for kind, share, mean in ((PROTON, c.h_proton / size, c.h_proton_mev), (NEUTRON, c.h_neutron, c.h_neutron_mev)):
        rest = min(share, 0.9) * left
        while rest > 5.0:
            t = mean * exponential(state)
            if t > rest:
                if uniform(state) > rest / t:
                    break
                t = rest
            rest -= t
            cosine = _isotropic(state, min(c.h_forward * math.sqrt(t / 100.0), 0.98))
            vx, vy, vz = _turn(state, cosine, ux, uy, uz)
            n = _push(waiting, n, kind, t, x, y, z, vx, vy, vz)
    # slow neutrons thermalise and leave recoil protons; nuclear photons leave electrons
    scale = 8.96 / st.slabs[s].density  # reach is fitted in copper
    for _ in range(poisson(state, c.h_slow * st.slabs[s].organic_share * many * available / 100.0)):
        recoil = c.h_slow_mev * math.exp(c.h_slow_shape * normal(state))
        n_touched = _point(
            state, st.cells, st.z, st.slabs, True, c.h_point_forward, grid, touched, n_touched, x, y, z, uz,
            c.h_slow_mm * scale**0.5, recoil, c.h_slow_quench, budget,
        )  # fmt: skip
    for _ in range(poisson(state, c.h_gamma * st.slabs[s].active_share * available / 100.0)):
        n_touched = _point(
            state, st.cells, st.z, st.slabs, False, c.h_point_forward, grid, touched, n_touched, x, y, z, uz,
            c.h_gamma_mm * scale, c.h_gamma_mev * gamma(state, c.h_gamma_shape), c.em_quench, budget,
        )  # fmt: skip
    return n_touched, n


@njit
def _neutral_pion(state, c, st, grid, touched, n_touched, energy, x, y, z, ux, uy, uz, budget):  # type: ignore[no-untyped-def]
    # two photons; an isotropic decay shares the energy evenly between 0 and 1. Their angle is left to h_pt
    share = uniform(state)
    n_touched = electromagnetic_shower(state, c, st, grid, touched, n_touched, share * energy, True, x, y, z, ux, uy, uz, budget)
    return electromagnetic_shower(state, c, st, grid, touched, n_touched, (1.0 - share) * energy, True, x, y, z, ux, uy, uz, budget)


@njit
def _interact(state, c, st, grid, touched, n_touched, waiting, n, kind, energy, x, y, z, ux, uy, uz, budget):  # type: ignore[no-untyped-def]
    s = find_slab(st.z, z)
    if energy < c.h_low:
        available = energy
        if kind == PION:
            draw = uniform(state)
            if draw < c.h_exchange:  # charge exchange
                part = energy * (0.5 + 0.5 * uniform(state))
                cosine = _isotropic(state, 0.95)
                vx, vy, vz = _turn(state, cosine, ux, uy, uz)
                n_touched = _neutral_pion(state, c, st, grid, touched, n_touched, part + _PION_MEV, x, y, z, vx, vy, vz, budget)
                available = energy - part
            elif draw < c.h_exchange + c.h_scatter:  # the pion comes out again
                part = energy * (0.4 + 0.5 * uniform(state))
                vx, vy, vz = _turn(state, _isotropic(state, 0.9), ux, uy, uz)
                n = _push(waiting, n, PION, part, x, y, z, vx, vy, vz)
                available = energy - part
            else:
                available = energy + _PION_MEV  # absorbed
        if available > 10.0:
            n_touched, n = _star(state, c, st, grid, touched, n_touched, waiting, n, available, s, x, y, z, ux, uy, uz, budget)
        return n_touched, n

    star = min(c.h_star * (st.slabs[s].a / 64.0) ** c.h_star_a * gamma(state, c.h_star_shape) / c.h_star_shape, 0.6 * energy)
    total = energy - star + (_PION_MEV if kind == PION else 0.0)
    n_touched, n = _star(state, c, st, grid, touched, n_touched, waiting, n, star, s, x, y, z, ux, uy, uz, budget)
    count = 2 + poisson(state, c.h_mult * math.log(max(total / 700.0, 1.0)))
    count = min(count, max(int(total / 250.0), 2))
    # the leading particle, then a broken stick
    lead = min(uniform(state) ** c.h_lead, 0.98)
    weights = 0.0
    shares = np.empty(count)
    for i in range(1, count):
        shares[i] = gamma(state, c.h_share)
        weights += shares[i]
    shares[0] = lead
    for i in range(1, count):
        shares[i] *= (1.0 - lead) / weights
    for i in range(count):
        e = shares[i] * total
        p_pi0 = c.h_exchange_high if i == 0 else c.h_pi0
        if i == 0 and kind != PION:
            p_pi0 = 0.0
        pt = c.h_pt * math.sqrt(exponential(state))
        ratio = pt / max(e, 1.0)
        cosine = math.sqrt(1.0 - ratio * ratio) if ratio < 1.0 else _isotropic(state, 0.7)
        vx, vy, vz = _turn(state, cosine, ux, uy, uz)
        draw = uniform(state)
        if draw < p_pi0:
            n_touched = _neutral_pion(state, c, st, grid, touched, n_touched, max(e, 20.0), x, y, z, vx, vy, vz, budget)
            continue
        if i == 0 and kind != PION:
            n = _push(waiting, n, kind if uniform(state) < 0.6 else PROTON + NEUTRON - kind, e, x, y, z, vx, vy, vz)
        elif uniform(state) < c.h_baryon:
            n = _push(waiting, n, PROTON if uniform(state) < 0.5 else NEUTRON, e, x, y, z, vx, vy, vz)
        else:
            n = _push(waiting, n, PION, max(e - _PION_MEV, 5.0), x, y, z, vx, vy, vz)
    return n_touched, n


@njit
def _travel(state, c, st, table, grid, touched, n_touched, waiting, n, kind, energy, x, y, z, ux, uy, uz, budget):  # type: ignore[no-untyped-def]
    mass = _PROTON_MEV if kind in (PROTON, NEUTRON) else (_MUON_MEV if kind == MUON else _PION_MEV)
    to_go = exponential(state)  # interaction lengths
    known_at, beta2, bg, rise, slow = 1e300, 1.0, 1.0, 1.0, 1.0
    last = len(st.z) - 2
    s = find_slab(st.z, z)
    if uz < 0.0 and z <= st.z[s] and s > 0:
        s -= 1
    while True:
        edge = st.z[s + 1] if uz > 0.0 else st.z[s]
        step = (edge - z) / uz if abs(uz) > 1e-6 else 1e6
        step = max(step, 0.0)
        # pions are smaller than nucleons, which matters less in large nuclei: PDG gives 1.35, 1.21 and 1.13 in polystyrene, Cu and Pb
        stretch = c.h_lambda_pion * (64.0 / st.slabs[s].a) ** 0.06 if kind == PION else c.h_lambda_nucleon
        if energy < 100.0 and kind != NEUTRON:
            stretch = 5.0  # the Coulomb barrier: few inelastic collisions below 100 MeV
        mean_free = st.slabs[s].lambda_mm * stretch
        ends = 0  # 1: interacts, 2: stops
        if kind != MUON and to_go * mean_free < step:
            step = to_go * mean_free
            ends = 1
        if kind != NEUTRON:
            if energy < 0.98 * known_at:  # powers are dear; a fast particle keeps its dE/dx over many slabs
                known_at = energy
                beta2 = max(energy * (energy + 2.0 * mass) / ((energy + mass) * (energy + mass)), 1e-4)
                bg = math.sqrt(energy * (energy + 2.0 * mass)) / mass
                rise = beta2 ** (-5.0 / 6.0)
                slow = rise * beta2  # beta^(1/3): what is left of 1 / beta^2 in the most probable loss
                if bg > 4.0:
                    rise *= 1.0 + c.h_rise * math.log(bg / 4.0)
            rate = st.slabs[s].dedx * rise
            if rate * step > 0.25 * energy and energy > 2.0:  # slow: keep the step short
                short = 0.25 * energy / rate
                if short < step:
                    step = short
                    ends = 0
                    edge_reached = False
                else:
                    edge_reached = ends == 0
            else:
                edge_reached = ends == 0
            loss = rate * step
            if energy <= 2.0 or loss >= energy:
                loss = energy
                ends = 2
            k = st.slabs[s].active
            if k >= 0 and loss > 0.0:
                seen = loss
                length = max(step, 1e-4)
                if bg > 1.0 and ends == 0 and edge_reached:
                    # most probable loss of a fast particle: PDG Review, "Passage of particles through matter", high-energy form
                    xi = st.slabs[s].xi * step / beta2
                    plasma = 28.816e-6 * math.sqrt(st.slabs[s].density * 0.5)  # MeV
                    probable = xi * (math.log(2.0 * _ELECTRON_MEV * xi / (plasma * plasma)) + 0.2) * slow
                    seen = max(probable + xi * landau(state, table), 0.2 * probable)
                    if uniform(state) < c.h_delta:  # an electron knocked out of the material before comes along
                        phi, r = 2.0 * math.pi * uniform(state), c.h_delta_mm * exponential(state)
                        extra = st.slabs[s].dedx * step * exponential(state)
                        after = deposit(
                            st.cells, grid, touched, n_touched, k, x + r * math.cos(phi), y + r * math.sin(phi),
                            extra / (1.0 + st.slabs[s].birks * c.em_quench),
                        )  # fmt: skip
                        if after >= 0:
                            n_touched = after
                            budget[0] += extra
                            energy -= min(extra, energy)
                seen = min(seen, energy)
                xm, ym = x + 0.5 * step * ux, y + 0.5 * step * uy
                after = deposit(st.cells, grid, touched, n_touched, k, xm, ym, seen / (1.0 + st.slabs[s].birks * seen / length))
                if after < 0:
                    budget[2] += energy
                    return n_touched, n
                n_touched = after
                budget[0] += seen
                loss = seen
            energy -= min(loss, energy)
        else:
            edge_reached = ends == 0
        x += step * ux
        y += step * uy
        z += step * uz
        if ends == 2 or energy <= 0.0:
            if kind == PION:  # captured: its mass breaks a nucleus
                n_touched, n = _star(
                    state, c, st, grid, touched, n_touched, waiting, n, c.h_capture * _PION_MEV, s, x, y, z, ux, uy, uz, budget
                )
            return n_touched, n
        if ends == 1:
            if kind == NEUTRON and energy < 30.0:
                # too slow for a star: recoils only
                if uniform(state) > st.slabs[s].organic_share:
                    return n_touched, n
                scale = (8.96 / st.slabs[s].density) ** 0.5
                n_touched = _point(
                    state, st.cells, st.z, st.slabs, True, c.h_point_forward, grid, touched, n_touched, x, y, z, uz,
                    0.5 * c.h_slow_mm * scale, 0.5 * energy * uniform(state), c.h_slow_quench, budget,
                )  # fmt: skip
                return n_touched, n
            return _interact(state, c, st, grid, touched, n_touched, waiting, n, kind, energy, x, y, z, ux, uy, uz, budget)
        if kind != MUON:
            to_go -= step / mean_free
        if edge_reached:
            z = edge
            s += 1 if uz > 0.0 else -1
            if s < 0 or s > last:
                budget[2] += energy
                return n_touched, n
        if abs(x) > 4.0 * st.cells.half_x or abs(y) > 4.0 * st.cells.half_y:
            budget[2] += energy
            return n_touched, n


@njit
def hadronic_shower(state, c, st, table, grid, touched, n_touched, waiting, kind, energy, x, y, z, ux, uy, uz, budget):  # type: ignore[no-untyped-def]
    """Deposit one hadron or muon of kinetic `energy` [MeV]; returns the number of touched cells. Arguments as `electromagnetic_shower`."""
    n = _push(waiting, 0, kind, energy, x, y, z, ux, uy, uz)
    while n > 0:
        n -= 1
        row = waiting[n]
        n_touched, n = _travel(
            state, c, st, table, grid, touched, n_touched, waiting, n, int(row[0]), row[1], row[2], row[3], row[4], row[5], row[6], row[7],
            budget,
        )  # fmt: skip
    return n_touched
