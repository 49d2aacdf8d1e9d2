"""One call for every engine: detector and particles in, showers out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.layers import LayeredCalorimeter
from calolife.simulation.particles import Particles
from calolife.simulation.upstream import has_upstream, through_upstream, with_incident

if TYPE_CHECKING:
    from calolife.showers.events import Showers

__all__ = ["ENGINES", "PHYSICS_LISTS", "check_request", "simulate_showers"]

ENGINES = ("fast", "geant4")
PHYSICS_LISTS = ("FTFP_BERT", "QGSP_BERT")


def check_request(*, engine: str = "fast", physics: str = "FTFP_BERT", cut_mm: float = 0.7, seed: int = 0, first: int = 0) -> None:
    """Nothing, if these are options of `simulate_showers`, whichever engine looks at them.

    Raises
    ------
    ValueError
        Another engine or physics list, a cut that is not > 0, a seed or number that is out of range.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is not one of {', '.join(ENGINES)}")
    if physics not in PHYSICS_LISTS:
        raise ValueError(f"physics list {physics!r} is not one of {', '.join(PHYSICS_LISTS)}")
    if not (math.isfinite(cut_mm) and cut_mm > 0):
        raise ValueError(f"cut_mm = {cut_mm:g}; the production cut must be finite and > 0")
    if not 0 <= seed < 2**63 or first < 0:
        raise ValueError(f"seed = {seed}, first = {first}; both must be >= 0, the seed below 2^63")


def simulate_showers(
    detector: LayeredCalorimeter | CrystalCalorimeter,
    particles: Particles,
    *,
    engine: str = "fast",
    seed: int = 0,
    birks: bool = True,
    first: int = 0,
    physics: str = "FTFP_BERT",
    cut_mm: float = 0.7,
) -> Showers:
    """Shower particles in a calorimeter.

    Parameters
    ----------
    detector : LayeredCalorimeter or CrystalCalorimeter
    particles : Particles
    engine : {"fast", "geant4"}
    seed : int
    birks : bool
        Quench the light by Birks' law, with each material's constant.
    first : int
        Number of the first shower. Shower i depends on the seed, on ``first + i`` and on its particles only: any chunking
        of a sample gives the same showers.
    physics : {"FTFP_BERT", "QGSP_BERT"}
        Physics list of Geant4; the fast engine is tuned to the first and does not look at it.
    cut_mm : float [mm]
        Production cut of Geant4.

    Returns
    -------
    Showers
        Simhits.

    Raises
    ------
    ValueError
        As `check_request`; a detector without active layers; whatever the engine refuses.
    MissingExtraError
        ``geant4`` without calzone or without Geant4's data.

    Notes
    -----
    Crystals with material in front of them are hit by what `through_upstream` lets arrive, in the field of CMS; the truth
    of a shower stays that of the particle that was shot, and what curls up in front counts as leaked.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> from calolife.simulation.particles import sample_particles
    >>> calo = load_detector("pbwo4-5x5")
    >>> showers = simulate_showers(calo, sample_particles(calo, 5, particle="gamma", energy_gev=10.0, seed=1), seed=1)
    >>> showers.n_showers, showers.kind
    (5, 'simhit')
    """
    check_request(engine=engine, physics=physics, cut_mm=cut_mm, seed=seed, first=first)
    detector.require_active()
    arrived = through_upstream(detector, particles, seed=seed, first=first)
    if engine == "fast":
        from calolife.simulation.fast import simulate_fast

        showers = simulate_fast(detector, arrived, seed=seed, birks=birks, first=first)
    else:
        from calolife.simulation.geant4 import simulate_geant4

        showers = simulate_geant4(detector, arrived, seed=seed, birks=birks, first=first, physics=physics, cut_mm=cut_mm)
    return with_incident(showers, particles) if has_upstream(detector) else showers
