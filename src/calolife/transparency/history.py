"""Crystal transparency in time: readings, luminosity between them, and forecasts of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["FLAG_LASER_FLIP", "FLAG_PRE_BEAM_STEP", "FLAG_REORDERED", "Block", "Forecast", "TransparencyHistory"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

FLAG_LASER_FLIP = 1  # the reading sits on the other of two states that the response flips between (two lasers)
FLAG_PRE_BEAM_STEP = 2  # the first reading after a step without beam
FLAG_REORDERED = 4  # the reading came out of time order in its file


def _frozen(values: ArrayLike, dtype: type) -> NDArray[Any]:
    array: NDArray[Any] = np.ascontiguousarray(values, dtype=dtype)
    if array is values:
        array = array.view()
    array.flags.writeable = False
    return array


@dataclass(frozen=True, eq=False)
class Block:
    """Crystals of one year that were read at the same times: the unit every model is vectorised over.

    A crystal with times of its own is a block of one. Arrays are kept as given, not copied: do not change them afterwards.

    Parameters
    ----------
    year : int
        The release's label of the data-taking year: 2018 runs into March 2019.
    xtal_id, ieta, iphi : int array, (crystal,)
    time_s : float array, (reading,) [s]
        Time of each reading since 1970-01-01, strictly increasing.
    lumi_ifb : float array, (reading,) [1/fb]
        ``lumi_ifb[i]`` was delivered BETWEEN reading i and reading i + 1; the last one is what followed
        the last reading, 0 where unknown.
    transparency : float array, (crystal, reading)
        NaN marks a reading that is still to come (the future part of a forecast).
    flag : uint8 array, (crystal, reading), optional
        ``FLAG_*`` bits; zero when left out.

    Raises
    ------
    ValueError
        Shapes that do not fit, times that do not increase, negative luminosity, transparency <= 0.
    """

    year: int
    xtal_id: IntArray
    ieta: IntArray
    iphi: IntArray
    time_s: FloatArray
    lumi_ifb: FloatArray
    transparency: FloatArray
    flag: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        for name in ("xtal_id", "ieta", "iphi"):
            object.__setattr__(self, name, _frozen(np.atleast_1d(getattr(self, name)), np.int64))
        for name in ("time_s", "lumi_ifb", "transparency"):
            object.__setattr__(self, name, _frozen(getattr(self, name), np.float64))
        shape = (self.xtal_id.size, self.time_s.size)
        if 0 in shape:
            raise ValueError(f"a block of {shape[0]} crystals and {shape[1]} readings holds nothing; leave it out")
        if self.transparency.shape != shape:
            raise ValueError(f"transparency has shape {self.transparency.shape} but {shape[0]} crystals were read {shape[1]} times")
        flag = np.broadcast_to(np.uint8(0), shape) if self.flag is None else _frozen(self.flag, np.uint8)
        if flag.shape != shape:
            raise ValueError(f"flag has shape {flag.shape}; it must have transparency's, {shape}")
        object.__setattr__(self, "flag", flag)
        if self.lumi_ifb.shape != self.time_s.shape:
            raise ValueError(f"lumi_ifb has {self.lumi_ifb.size} entries for {self.time_s.size} readings; give one per reading")
        if not np.isfinite(self.time_s).all() or (np.diff(self.time_s) <= 0).any():
            raise ValueError("time_s must be finite and increase from reading to reading; sort the readings first")
        if not np.isfinite(self.lumi_ifb).all() or (self.lumi_ifb < 0).any():
            raise ValueError("lumi_ifb must be finite and >= 0 in every interval")
        if (self.transparency <= 0).any() or np.isinf(self.transparency).any():
            raise ValueError("transparency must be finite and > 0 (NaN for a reading still to come)")

    @property
    def n_crystals(self) -> int:
        return self.xtal_id.size

    @property
    def n_readings(self) -> int:
        return self.time_s.size

    def crystals(self, index: ArrayLike) -> Block:
        """The same readings for some of the crystals (index or mask over crystals)."""
        i = np.asarray(index)
        assert self.flag is not None
        return replace(
            self, xtal_id=self.xtal_id[i], ieta=self.ieta[i], iphi=self.iphi[i],
            transparency=self.transparency[i], flag=self.flag[i],
        )  # fmt: skip

    def readings(self, start: int, stop: int) -> Block:
        """Readings ``start`` to ``stop - 1``; the luminosity after the last one is kept."""
        s = slice(start, stop)
        assert self.flag is not None
        return replace(
            self, time_s=self.time_s[s], lumi_ifb=self.lumi_ifb[s],
            transparency=self.transparency[:, s], flag=self.flag[:, s],
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class TransparencyHistory:
    """Transparency of many crystals over one or more years.

    Each crystal keeps the times it was read at; crystals read at the same times share a `Block`. Nothing
    is interpolated.

    Parameters
    ----------
    blocks : tuple of Block
        Any order; they are kept sorted by year, then by their first crystal.

    Raises
    ------
    ValueError
        No block, or a crystal twice in one year.

    Examples
    --------
    >>> block = Block(2016, [54000], [66], [1], [0.0, 3600.0], [0.01, 0.0], [[0.98, 0.979]])
    >>> history = TransparencyHistory((block,))
    >>> history.years, history.xtal_ids.tolist()
    ((2016,), [54000])
    """

    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        ordered = sorted(self.blocks, key=lambda b: (b.year, int(b.xtal_id.min())))
        object.__setattr__(self, "blocks", tuple(ordered))
        if not ordered:
            raise ValueError("a history needs at least one reading; the selection is empty")
        pairs = np.concatenate([b.xtal_id * 10_000 + b.year for b in ordered])
        unique, count = np.unique(pairs, return_counts=True)
        if (count > 1).any():
            twice = int(unique[count > 1][0])
            raise ValueError(f"crystal {twice // 10_000} appears twice in {twice % 10_000}; give each crystal-year once")

    @property
    def years(self) -> tuple[int, ...]:
        return tuple(sorted({b.year for b in self.blocks}))

    @cached_property
    def xtal_ids(self) -> IntArray:
        """Crystals of the history, (crystal,), sorted, each once."""
        return np.unique(np.concatenate([b.xtal_id for b in self.blocks]))

    @property
    def n_readings(self) -> int:
        """Readings over all crystals and years."""
        return sum(b.transparency.size for b in self.blocks)

    def select(
        self,
        *,
        years: Iterable[int] | None = None,
        xtal_ids: Iterable[int] | None = None,
        ieta: Iterable[int] | None = None,
    ) -> TransparencyHistory:
        """The part of the history in these years, crystals and rings.

        Raises
        ------
        ValueError
            A year, crystal or ring that the history does not have, or nothing left.
        """
        wanted_years = set(self.years) if years is None else {int(y) for y in years}
        if missing := wanted_years - set(self.years):
            raise ValueError(f"no readings of year {min(missing)}; the data has {', '.join(map(str, self.years))}")
        wanted_ids = None if xtal_ids is None else np.unique(np.fromiter((int(x) for x in xtal_ids), np.int64))
        wanted_ieta = None if ieta is None else np.unique(np.fromiter((int(x) for x in ieta), np.int64))
        blocks, seen_ids, seen_ieta = [], set[int](), set[int]()
        for block in self.blocks:
            if block.year not in wanted_years:
                continue
            keep = np.ones(block.n_crystals, dtype=bool)
            if wanted_ids is not None:
                keep &= np.isin(block.xtal_id, wanted_ids)
            if wanted_ieta is not None:
                keep &= np.isin(block.ieta, wanted_ieta)
            seen_ids.update(block.xtal_id[keep].tolist())
            seen_ieta.update(block.ieta[keep].tolist())
            if keep.any():
                blocks.append(block if keep.all() else block.crystals(keep))
        if wanted_ids is not None and (lost := set(wanted_ids.tolist()) - seen_ids):
            raise ValueError(f"no readings of crystal {min(lost)} in {_span(wanted_years)}; the data has {_some(self.xtal_ids)}")
        if wanted_ieta is not None and (lost := set(wanted_ieta.tolist()) - seen_ieta):
            rings = np.unique(np.concatenate([b.ieta for b in self.blocks]))
            raise ValueError(f"no readings of ring {min(lost)} in {_span(wanted_years)}; the data has rings {_some(rings)}")
        return TransparencyHistory(tuple(blocks))

    def before(self, time_s: float) -> TransparencyHistory:
        """Readings taken strictly before a time; the luminosity after the last of them is set to 0.

        Raises
        ------
        ValueError
            No reading before that time.
        """
        blocks = []
        for block in self.blocks:
            n = int(np.searchsorted(block.time_s, time_s, side="left"))
            if n == 0:
                continue
            cut = block.readings(0, n)
            if n < block.n_readings:
                lumi = cut.lumi_ifb.copy()
                lumi[-1] = 0.0
                cut = replace(cut, lumi_ifb=lumi)
            blocks.append(cut)
        return TransparencyHistory(tuple(blocks))

    def series(self, xtal_id: int, year: int) -> Block:
        """The block of one crystal in one year.

        Raises
        ------
        ValueError
            The history does not have it.
        """
        for block in self.blocks:
            if block.year == year and (at := np.flatnonzero(block.xtal_id == xtal_id)).size:
                return block.crystals(at)
        raise ValueError(f"no readings of crystal {xtal_id} in {year}; the data has {_some(self.xtal_ids)} in {_span(self.years)}")

    def of_year(self, year: int) -> Iterator[Block]:
        return (b for b in self.blocks if b.year == year)


def _span(years: Iterable[int]) -> str:
    return ", ".join(str(y) for y in sorted(years))


def _some(values: IntArray, most: int = 4) -> str:
    shown = ", ".join(str(v) for v in values[:most])
    return shown if values.size <= most else f"{shown} ... {values[-1]} ({values.size} in all)"


@dataclass(frozen=True, eq=False)
class Forecast:
    """Forecast transparency of the crystals of one block, from one or more origins.

    Parameters
    ----------
    model : str
    train_years : tuple of int
        Years whose readings the model's parameters were fitted to.
    year : int
    xtal_id : int array, (crystal,)
    row : int array, (window, step)
        Reading of the block that each step forecasts; the origin of window w is row[w, 0].
    horizon_s : float array, (window, step) [s]
        Time since the last reading before the origin.
    transparency : float array, (crystal, window, step)
    half68, half95 : float array, (crystal, window, step)
        Half-widths of the central 68 % and 95 % prediction intervals of a READING, noise included.
    """

    model: str
    train_years: tuple[int, ...]
    year: int
    xtal_id: IntArray
    row: IntArray
    horizon_s: FloatArray
    transparency: FloatArray
    half68: FloatArray
    half95: FloatArray

    def __post_init__(self) -> None:
        shape = (np.size(self.xtal_id), *np.shape(self.row))
        for name in ("transparency", "half68", "half95"):
            got = np.shape(getattr(self, name))
            if got != shape:
                raise ValueError(f"{name} has shape {got}; {shape[0]} crystals x {shape[1]} windows x {shape[2]} steps need {shape}")
