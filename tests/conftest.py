"""Fixtures of the whole suite: the public CMS data where it is, and a small history with known physics."""

import os
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from calolife.transparency.history import Block, TransparencyHistory

matplotlib.use("Agg")

DAY_S = 86400.0


@pytest.fixture(scope="session")
def cms_data() -> Path:
    """The skimmed CSVs of crystals 54000 and 54001, 2016-2018."""
    root = os.environ.get("CALOLIFE_DATA")
    if not root:
        pytest.skip(
            "set CALOLIFE_DATA to a directory with ecal/df_skimmed_xtal_54000_2016.csv ... (from github.com/FAIR-UMN/FAIR-UMN-ECAL)"
        )
    folder = Path(root) / "ecal"
    if not folder.is_dir():
        pytest.skip(f"CALOLIFE_DATA is {root} but has no ecal/ in it")
    return folder


def toy_block(year: int, *, n_days: int = 60, n_crystals: int = 3, seed: int = 1) -> Block:
    """Two colour centres (half a day, and for good) under fills of 18 h in 24 h, read every hour, noise 2e-4 mostly common."""
    rng = np.random.default_rng([seed, year])
    n = 24 * n_days
    time_s = (year - 1970) * 365.25 * DAY_S + 3600.0 * np.arange(n)
    in_fill = (np.arange(n) % 24 < 18) & (np.arange(n) // 24 % 10 < 7)  # seven days of fills, three of stop
    lumi = np.where(in_fill, 0.02, 0.0)
    fast = np.zeros(n)
    for i in range(1, n):
        fast[i] = (fast[i - 1] + lumi[i - 1]) * np.exp(-1 / 12)
    slow = np.concatenate([[0.0], np.cumsum(lumi)[:-1]])
    spread = 1 + 0.1 * rng.standard_normal((n_crystals, 1))
    truth = 0.97 * np.exp(-spread * (0.03 * fast + 0.002 * slow))
    noise = 1.7e-4 * rng.standard_normal(n) + 1e-4 * rng.standard_normal((n_crystals, n))
    ids = 54000 + np.arange(n_crystals)
    return Block(year, ids, np.full(n_crystals, 66), 1 + np.arange(n_crystals), time_s, lumi, truth + noise)


@pytest.fixture(scope="session")
def toy_history() -> TransparencyHistory:
    """Three crystals of ring 66 in 2016 and 2017, 60 days each."""
    return TransparencyHistory((toy_block(2016), toy_block(2017)))


@pytest.fixture(scope="session")
def toy_csv(tmp_path_factory: pytest.TempPathFactory, toy_history: TransparencyHistory) -> Path:
    """The toy history as skimmed CSVs, one per crystal and year, in the columns and units of the release."""
    folder = tmp_path_factory.mktemp("toy")
    for block in toy_history.blocks:
        stamp = np.datetime_as_string(block.time_s.astype("datetime64[s]"), unit="s")
        total_inv_ub = np.concatenate([[0.0], np.cumsum(block.lumi_ifb)[:-1]]) * 1e9
        step_s = np.append(np.diff(block.time_s), 0.0)
        for xtal_id, transparency in zip(block.xtal_id, block.transparency, strict=True):
            lines = [",xtal_id,time,laser_datetime,int_deliv_inv_ub,deltat,delta_lumi,calibration"]
            columns = zip(stamp, total_inv_ub, step_s, block.lumi_ifb * 1e9, transparency, strict=True)
            for i, (at, total, step, lumi, reading) in enumerate(columns):
                at = at.replace("T", " ")
                lines.append(f"{i},{xtal_id},{at},{at},{total},{step},{lumi},{reading}")
            (folder / f"df_skimmed_xtal_{xtal_id}_{block.year}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
