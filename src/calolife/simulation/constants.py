"""The constants of the fast engine: one table, each with its source; those tuned to Geant4 are marked."""

from __future__ import annotations

import csv
from importlib import resources
from typing import NamedTuple

__all__ = ["Constants", "load_constants"]


class Constants(NamedTuple):
    em_t0: float
    em_t1: float
    em_a0: float
    em_a1: float
    em_az: float
    em_t_fs: float
    em_t_e: float
    em_a_fs: float
    em_st0_h: float
    em_st1_h: float
    em_sa0_h: float
    em_sa1_h: float
    em_st0_s: float
    em_st1_s: float
    em_sa0_s: float
    em_sa1_s: float
    em_t_photon: float
    em_a_photon: float
    em_core: float
    em_tail: float
    em_radius_e: float
    em_core_h: float
    em_tail_h: float
    em_radius_e_h: float
    em_radius_h: float
    em_gap_slope: float
    em_gap_growth: float
    em_gap_loss: float
    em_quench: float
    em_emip: float
    em_emip_z: float
    em_emip_x0: float
    em_emip_mm: float
    em_spot: float
    em_spot_mip: float
    em_spot_x0: float
    em_spot_z: float
    em_spot_shape: float
    em_spot_homogeneous: float
    em_loss_share: float
    em_loss_order: float
    em_loss_growth: float
    em_nuclear_rate: float
    em_nuclear_mev: float
    h_low: float
    h_exchange: float
    h_scatter: float
    h_star: float
    h_star_a: float
    h_star_shape: float
    h_mult: float
    h_lead: float
    h_share: float
    h_exchange_high: float
    h_pi0: float
    h_pt: float
    h_baryon: float
    h_lambda_pion: float
    h_lambda_nucleon: float
    h_rise: float
    h_capture: float
    h_a_power: float
    h_bind: float
    h_proton: float
    h_proton_mev: float
    h_neutron: float
    h_neutron_mev: float
    h_forward: float
    h_slow: float
    h_slow_mm: float
    h_slow_mev: float
    h_slow_quench: float
    h_gamma: float
    h_gamma_mm: float
    h_gamma_mev: float
    h_delta: float
    h_delta_mm: float
    h_slow_shape: float
    h_gamma_shape: float
    h_point_forward: float
    h_slow_a: float


def load_constants() -> Constants:
    """Constants of the packaged table."""
    text = resources.files("calolife.data").joinpath("shower_constants.csv").read_text(encoding="utf-8")
    return Constants(**{row["name"]: float(row["value"]) for row in csv.DictReader(text.splitlines())})
