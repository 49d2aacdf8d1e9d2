"""Ageing: what radiation left of the signal of each cell."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["STATUSES", "Ageing"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

STATUSES = ("measured", "prior-dominated", "dead", "hot", "masked")
"""What a cell's signal fraction rests on; the last four say that its own hits tell little or nothing."""


@dataclass(frozen=True, eq=False, repr=False)
class Ageing:
    """Signal fraction of cells: aged signal over unaged signal, with one standard deviation.

    Parameters
    ----------
    cell : int array, (cell,)
        Cell numbers of the detector, rising. A cell that is not listed is taken as unaged.
    signal_fraction : float array, (cell,)
        > 0. Estimates scatter and are never clipped: values above 1 are allowed.
    uncertainty : float array, (cell,), optional
        One standard deviation, >= 0; 0 (known) when left out, NaN where none was computed.
    status : str array, (cell,), optional
        One of `STATUSES` each; ``measured`` when left out.
    own_fraction, own_uncertainty : float array, (cell,), optional
        The same from the cell's own hits alone, before any prior; as `signal_fraction` and `uncertainty` when left out.
    label : str
        Where the numbers come from.
    detector_digest : str
        Detector the cells belong to; empty: not told.

    Raises
    ------
    ValueError
        Columns of different lengths, cells out of order or twice, a fraction that is not finite and > 0, a negative
        uncertainty, a status of another name.

    Notes
    -----
    `coefficient` is 1 / signal_fraction, the undamaged over the damaged signal: the A that papers define. Their
    generators multiply undamaged data, so that the weights they learn are the signal fraction.

    Examples
    --------
    >>> ageing = Ageing([3, 7], [0.9, 0.8])
    >>> ageing.compose(ageing).at([3, 5, 7]).round(2).tolist()
    [0.81, 1.0, 0.64]
    """

    cell: IntArray
    signal_fraction: FloatArray
    uncertainty: FloatArray = None  # type: ignore[assignment]
    status: NDArray[np.str_] = None  # type: ignore[assignment]
    own_fraction: FloatArray = None  # type: ignore[assignment]
    own_uncertainty: FloatArray = None  # type: ignore[assignment]
    label: str = ""
    detector_digest: str = ""

    def __post_init__(self) -> None:
        cell = np.asarray(self.cell)
        if cell.ndim != 1 or (cell.size and cell.dtype.kind not in "iu"):
            raise ValueError(f"cell has shape {cell.shape} and type {cell.dtype}; give one row of cell numbers")
        self._set("cell", cell.astype(np.int64))
        if cell.size and (self.cell[0] < 0 or (np.diff(self.cell) <= 0).any()):
            raise ValueError("cell numbers must rise from 0 on, each once; sort them")
        n = self.cell.size
        self._set("signal_fraction", _column(self.signal_fraction, "signal_fraction", n))
        if (wrong := ~(np.isfinite(self.signal_fraction) & (self.signal_fraction > 0))).any():
            at = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"signal_fraction of cell {self.cell[at]} is {self.signal_fraction[at]:g}; it must be finite and > 0")
        self._set("uncertainty", _column(np.zeros(n) if self.uncertainty is None else self.uncertainty, "uncertainty", n))
        self._set("own_fraction", _column(self.signal_fraction if self.own_fraction is None else self.own_fraction, "own_fraction", n))
        own = self.uncertainty if self.own_uncertainty is None else self.own_uncertainty
        self._set("own_uncertainty", _column(own, "own_uncertainty", n))
        for name in ("uncertainty", "own_uncertainty"):
            if (wrong := getattr(self, name) < 0).any():
                at = int(np.flatnonzero(wrong)[0])
                raise ValueError(f"{name} of cell {self.cell[at]} is {getattr(self, name)[at]:g}; it must be >= 0, or NaN")
        status = np.full(n, STATUSES[0]) if self.status is None else np.asarray(self.status, dtype=np.str_)
        if status.shape != (n,) or not np.isin(status, STATUSES).all():
            raise ValueError(f"status must be one of {', '.join(STATUSES)} for each of the {n} cells")
        self._set("status", status)

    def _set(self, name: str, value: NDArray[np.generic]) -> None:
        value.flags.writeable = False
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        about = f", {self.label}" if self.label else ""
        return f"Ageing({self.n_cells} cells, mean signal fraction {self.signal_fraction.mean() if self.n_cells else 1.0:.4g}{about})"

    @property
    def n_cells(self) -> int:
        return self.cell.size

    @cached_property
    def coefficient(self) -> FloatArray:
        """Undamaged over damaged signal, 1 / signal_fraction, (cell,)."""
        return np.asarray(1 / self.signal_fraction)

    def at(self, cell: ArrayLike) -> FloatArray:
        """Signal fraction of any cells; 1 where a cell is not listed."""
        wanted = np.asarray(cell, dtype=np.int64)
        if not self.n_cells:
            return np.ones(wanted.shape)
        place = np.minimum(np.searchsorted(self.cell, wanted), self.n_cells - 1)
        return np.where(self.cell[place] == wanted, self.signal_fraction[place], 1.0)

    def only(self, cell: ArrayLike) -> Ageing:
        """The listed cells among these, with all their columns."""
        is_kept = np.isin(self.cell, np.asarray(cell))
        columns = ("cell", "signal_fraction", "uncertainty", "status", "own_fraction", "own_uncertainty")
        return replace(self, **{name: getattr(self, name)[is_kept] for name in columns})

    def compose(self, then: Ageing) -> Ageing:
        """This ageing and then another one: the product of the signal fractions.

        Returns
        -------
        Ageing
            Of all cells that either lists; relative uncertainties are added in quadrature, the status is the one that
            says less.

        Raises
        ------
        ValueError
            Of another detector.
        """
        if self.detector_digest and then.detector_digest and self.detector_digest != then.detector_digest:
            raise ValueError(
                f"one ageing is of detector {self.detector_digest[:8]}, the other of {then.detector_digest[:8]}; compose those of one"
            )
        cell = np.union1d(self.cell, then.cell)
        fraction, relative, rank = np.ones(cell.size), np.zeros(cell.size), np.zeros(cell.size, dtype=np.int64)
        for part in (self, then):
            place = np.searchsorted(cell, part.cell)
            fraction[place] *= part.signal_fraction
            relative[place] = np.hypot(relative[place], part.uncertainty / part.signal_fraction)
            rank[place] = np.maximum(rank[place], [STATUSES.index(s) for s in part.status])
        label = " then ".join(part.label for part in (self, then) if part.label)
        digest = self.detector_digest or then.detector_digest
        return Ageing(cell, fraction, fraction * relative, np.asarray(STATUSES)[rank], label=label, detector_digest=digest)

    def inverse(self) -> Ageing:
        """What undoes this ageing: 1 / signal_fraction, with the same relative uncertainty."""
        fraction = 1 / self.signal_fraction
        return Ageing(
            self.cell, fraction, fraction**2 * self.uncertainty, self.status, 1 / self.own_fraction,
            self.own_uncertainty / self.own_fraction**2, label=f"inverse of {self.label}" if self.label else "",
            detector_digest=self.detector_digest,
        )  # fmt: skip


def _column(values: ArrayLike, name: str, n: int) -> FloatArray:
    array = np.array(values, dtype=np.float64)
    if array.shape != (n,):
        raise ValueError(f"{name} has shape {array.shape} for {n} cells; give one number per cell")
    return array
