"""Random numbers inside compiled loops: one stream per shower, so that no result depends on batch or worker.

xoshiro256++ seeded through splitmix64 (D. Blackman and S. Vigna, ACM Trans. Math. Softw. 47 (2021) 36).
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numba import njit

__all__ = ["exponential", "gamma", "landau", "landau_table", "normal", "poisson", "start_stream", "uniform"]

_LANDAU_POINTS = 2048  # chosen: the table is linear between quantiles; 2048 keep the bulk exact to 1e-3 of a width
_LANDAU_LAST = 0.992  # chosen: beyond it, 120 xi, a delta ray leaves a layer of some mm


@njit
def start_stream(state, seed, number):  # type: ignore[no-untyped-def]
    """Set `state` ((4,) uint64) to the stream of shower `number` under `seed`."""
    # the seed is mixed first: neighbouring seeds must not share words of their states
    z = _mixed(np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15)) + _mixed(np.uint64(number)) * np.uint64(0xD1B54A32D192ED03)
    for i in range(4):
        z += np.uint64(0x9E3779B97F4A7C15)
        state[i] = _mixed(z)


@njit
def _mixed(x):  # type: ignore[no-untyped-def]
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit
def uniform(state):  # type: ignore[no-untyped-def]
    """One number in (0, 1)."""
    s0, s1, s2, s3 = state[0], state[1], state[2], state[3]
    x = s0 + s3
    result = ((x << np.uint64(23)) | (x >> np.uint64(41))) + s0
    t = s1 << np.uint64(17)
    s2 ^= s0
    s3 ^= s1
    s1 ^= s2
    s0 ^= s3
    s2 ^= t
    s3 = (s3 << np.uint64(45)) | (s3 >> np.uint64(19))
    state[0], state[1], state[2], state[3] = s0, s1, s2, s3
    return (float(result >> np.uint64(12)) + 0.5) * 2.220446049250313e-16  # 2^-52: 52 random bits, never 0 or 1


@njit
def exponential(state):  # type: ignore[no-untyped-def]
    """One number of mean 1."""
    return -math.log(uniform(state))


@njit
def normal(state):  # type: ignore[no-untyped-def]
    """One number of mean 0 and width 1 (Box and Muller)."""
    return math.sqrt(-2.0 * math.log(uniform(state))) * math.cos(2.0 * math.pi * uniform(state))


@njit
def gamma(state, shape):  # type: ignore[no-untyped-def]
    """One number of the gamma distribution of scale 1 (G. Marsaglia and W. Tsang, ACM Trans. Math. Softw. 26 (2000) 363)."""
    boost = 1.0
    if shape < 1.0:
        boost = uniform(state) ** (1.0 / shape)
        shape += 1.0
    d = shape - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    while True:
        x = normal(state)
        v = 1.0 + c * x
        if v <= 0.0:
            continue
        v = v * v * v
        if math.log(uniform(state)) < 0.5 * x * x + d - d * v + d * math.log(v):
            return boost * d * v


@njit
def poisson(state, mean):  # type: ignore[no-untyped-def]
    """One Poisson number: split by gamma waiting times while the mean is large (J. Ahrens and U. Dieter, Computing 12 (1974) 223)."""
    count = 0
    while mean > 25.0:
        order = int(mean * 0.875)
        waited = gamma(state, float(order))
        if waited > mean:  # the order-th arrival comes after the end: those before it are binomial
            p = mean / waited
            for _ in range(order - 1):
                if uniform(state) < p:
                    count += 1
            return count
        count += order
        mean -= waited
    limit = math.exp(-mean)
    product = uniform(state)
    while product > limit:
        count += 1
        product *= uniform(state)
    return count


@cache
def landau_table() -> np.ndarray:
    """Quantiles of the Landau distribution at equal steps of probability up to 0.992.

    Returns
    -------
    float array, (2048,)
        In units of xi, with the most probable value at 0.

    Notes
    -----
    From the density 1/pi int_0^inf exp(-t ln t - x t) sin(pi t) dt, summed numerically.
    Source: L. Landau, J. Phys. USSR 8 (1944) 201.
    """
    x = np.concatenate([np.linspace(-3.4, 8.0, 571), np.geomspace(8.05, 150.0, 300)])  # below -3.4 the density is under 1e-4
    t = np.concatenate([np.geomspace(1e-7, 0.1, 2000), np.linspace(0.1, 40.0, 6000)[1:]])
    kernel = np.sin(np.pi * t)
    density = np.array([np.trapezoid(kernel * np.exp(-t * np.log(t) - v * t), t) / np.pi for v in x])
    density = np.clip(density, 0.0, None)
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(x))])
    cumulative += np.arange(len(x)) * 1e-15  # strictly rising: it is inverted below
    quantiles = np.interp(np.linspace(0.0, _LANDAU_LAST, _LANDAU_POINTS), cumulative, x)
    return np.asarray(quantiles - x[np.argmax(density)])


@njit
def landau(state, table):  # type: ignore[no-untyped-def]
    """One number of the Landau distribution, in units of xi from the most probable value; cut at its 0.992 quantile."""
    place = uniform(state) * (len(table) - 1)
    i = int(place)
    return table[i] + (place - i) * (table[i + 1] - table[i])
