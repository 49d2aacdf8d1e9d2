"""What a synthetic history was made from, in memory and beside its dataset."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calolife.errors import FileFormatError
from calolife.transparency.crystals import Crystals
from calolife.transparency.history import FloatArray, TransparencyHistory

__all__ = ["SyntheticTruth", "merge_truths", "read_truth", "write_truth"]

_FOLDER = "truth"
_KEY = b"calolife"


@dataclass(frozen=True, eq=False)
class SyntheticTruth:
    """What a synthetic history was made from.

    Parameters
    ----------
    crystals : Crystals
        Sorted by id.
    is_sic : bool array, (crystal,)
        Of the second, radiation-harder population.
    ln_r0 : float array, (crystal,)
        ln R before the first beam.
    tau_d : float array, (component,) [d]
    b_per_ifb : float array, (crystal, component) [fb]
        The same for all crystals of a ring.
    a_per_ifb : float array, (crystal, component) [fb]
    common_mode : dict of (year, region) to float array, (reading,)
        Noise in ln R shared by the region, steps and flips left out.
    noise_free : TransparencyHistory, optional
        The same readings without noise, steps and flips.
    """

    crystals: Crystals
    is_sic: NDArray[np.bool_]
    ln_r0: FloatArray
    tau_d: FloatArray
    b_per_ifb: FloatArray
    a_per_ifb: FloatArray
    common_mode: dict[tuple[int, int], FloatArray]
    noise_free: TransparencyHistory | None = None


def merge_truths(truths: Sequence[SyntheticTruth]) -> SyntheticTruth:
    """The truth of several rings as one, crystals sorted by id.

    Raises
    ------
    ValueError
        Nothing to merge.
    """
    if not truths:
        raise ValueError("no truth to merge; simulate at least one ring")
    crystals = Crystals(*(np.concatenate([getattr(t.crystals, f.name) for t in truths]) for f in fields(Crystals)))
    order = np.argsort(crystals.xtal_id)
    common: dict[tuple[int, int], FloatArray] = {}
    for t in truths:
        common |= t.common_mode
    clean = [t.noise_free for t in truths if t.noise_free is not None]
    return SyntheticTruth(
        crystals=crystals.at(order),
        is_sic=np.concatenate([t.is_sic for t in truths])[order],
        ln_r0=np.concatenate([t.ln_r0 for t in truths])[order],
        tau_d=truths[0].tau_d,
        b_per_ifb=np.concatenate([t.b_per_ifb for t in truths])[order],
        a_per_ifb=np.concatenate([t.a_per_ifb for t in truths])[order],
        common_mode=common,
        noise_free=TransparencyHistory(tuple(b for h in clean for b in h.blocks)) if clean else None,
    )


def write_truth(truth: SyntheticTruth, dataset: Path) -> None:
    """Write the truth beside a dataset, as ``truth/crystals.parquet`` and ``truth/common_mode.parquet``.

    The noise-free readings are not written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = dataset / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    c = truth.crystals
    columns = {
        "xtal_id": c.xtal_id, "ieta": c.ieta, "iphi": c.iphi, "region": c.region, "is_sic": truth.is_sic, "ln_r0": truth.ln_r0,
        **{f"b_{j}": truth.b_per_ifb[:, j] for j in range(truth.tau_d.size)},
        **{f"a_{j}": truth.a_per_ifb[:, j] for j in range(truth.tau_d.size)},
    }  # fmt: skip
    about = {"tau_d": truth.tau_d.tolist(), "units": {"tau_d": "d", "b": "fb", "a": "fb", "ln_r0": "ln R before the first beam"}}
    pq.write_table(pa.table(columns).replace_schema_metadata({_KEY: json.dumps(about).encode()}), folder / "crystals.parquet")
    keys = sorted(truth.common_mode)
    size = [truth.common_mode[k].size for k in keys]
    common = {
        "year": np.repeat(np.array([y for y, _ in keys]), size),
        "region": np.repeat(np.array([r for _, r in keys]), size),
        "ln_r": np.concatenate([truth.common_mode[k] for k in keys]),
    }
    pq.write_table(pa.table(common), folder / "common_mode.parquet")


def read_truth(dataset: Path) -> SyntheticTruth:
    """The truth that `write_truth` left beside a dataset.

    Raises
    ------
    FileFormatError
        The dataset was not simulated, or its truth is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = dataset / _FOLDER
    if not folder.is_dir():
        raise FileFormatError(f"{dataset} holds no truth; only 'calolife transparency simulate' leaves one")
    try:
        table = pq.read_table(folder / "crystals.parquet")
        common = pq.read_table(folder / "common_mode.parquet")
        tau_d = np.array(json.loads(table.schema.metadata[_KEY])["tau_d"])

        def column(name: str) -> NDArray[np.generic]:
            values: NDArray[np.generic] = table.column(name).to_numpy()
            return values

        crystals = Crystals(*(column(f.name).astype(np.int64) for f in fields(Crystals)))
        component = range(tau_d.size)
        b, a = (np.stack([column(f"{name}_{j}").astype(np.float64) for j in component], axis=1) for name in "ba")
        year, region, ln_r = (common.column(name).to_numpy() for name in ("year", "region", "ln_r"))
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{folder} is damaged ({str(error).splitlines()[0]}); simulate the dataset again") from None
    key = year * 1000 + region
    start = np.flatnonzero(np.r_[True, np.diff(key) != 0])
    shared = {
        (int(year[i]), int(region[i])): part for i, part in zip(start, np.split(ln_r, start[1:]), strict=True)
    }  # fmt: skip
    return SyntheticTruth(crystals, column("is_sic").astype(bool), column("ln_r0").astype(np.float64), tau_d, b, a, shared)
