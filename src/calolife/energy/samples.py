"""Files of showers as one sample of the energy regressors, which of them are held out, and which a model was fitted to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calolife.detector.presets import Detector
from calolife.energy.features import EnergySample, concatenate_samples, sample_of
from calolife.errors import FileFormatError
from calolife.showers.events import PDG, Showers
from calolife.showers.files import LayerSums, count_showers, iter_showers, read_layer_sums

__all__ = ["TRAINING_SHOWERS_FILE", "read_energy_sample", "read_training_showers", "split_sample", "write_training_showers"]

TRAINING_SHOWERS_FILE = "training_showers.npy"
"""Name of the fingerprints of the training showers in the run directory of a model."""


def read_energy_sample(
    paths: Sequence[str | Path],
    *,
    particles: Sequence[str] = (),
    detector: Detector | None = None,
    tell: Callable[[str, float, float], None] | None = None,
) -> EnergySample:
    """Showers of one or several files, as the energy regressors see them.

    Parameters
    ----------
    paths : sequence of path
        Run directories with showers, files that `read_showers` reads, or files that keep the sums of layers only.
    particles : sequence of str
        Particles to keep, by name; all when left out.
    detector : LayeredCalorimeter, optional
        Where a file does not tell its own, as for `read_showers`.
    tell : function (what, done, total), optional
        Called as the showers come in.

    Returns
    -------
    EnergySample
        In the order of the files. A shower that stands in an earlier file is not taken again.

    Raises
    ------
    FileFormatError
        A file that is not there, is damaged, or holds a number that is not finite.
    ValueError
        A file named twice, files of different detectors, no shower left, an unknown particle, crystals.

    Notes
    -----
    Showers are read part by part; memory holds their layer sums and shapes only.
    """
    if not paths:
        raise ValueError("no file of showers; give one or more")
    if unknown := [name for name in particles if name not in PDG]:
        raise ValueError(f"unknown particle {unknown[0]!r}; allowed: {', '.join(PDG)}")
    resolved = [Path(p).resolve() for p in paths]
    if twice := [p for i, p in enumerate(resolved) if p in resolved[:i]]:
        raise ValueError(f"{twice[0]} is named twice; name each file of showers once")
    found: list[EnergySample] = []
    for path in paths:
        sample = _read_one(Path(path), detector=detector, tell=tell)
        if found:
            _must_fit(sample, path, found[0], paths[0])
            sample = _not_in(found, sample, path)
        found.append(sample)
    joined = found[0] if len(found) == 1 else concatenate_samples(found)
    if not particles:
        return joined
    wanted = np.isin(joined.pdg_id, [PDG[name] for name in particles])
    if not wanted.any():
        raise ValueError(f"none of the {joined.n_showers} showers is of {', '.join(particles)}; name particles that are there")
    return joined.select(wanted)


def split_sample(sample: EnergySample, fraction: float, *, seed: int) -> tuple[EnergySample, EnergySample]:
    """Training showers, and those held out.

    Parameters
    ----------
    sample : EnergySample
    fraction : float
        Part to hold out, above 0 and below 1.
    seed : int

    Returns
    -------
    training, held_out : EnergySample
        Held out are the first ``round(fraction * n)`` of a random order of the n showers.

    Raises
    ------
    ValueError
        A fraction that leaves one of the two empty.

    Examples
    --------
    >>> sample = EnergySample(np.ones((10, 2)), np.arange(1.0, 11.0), [22] * 10)
    >>> training, held_out = split_sample(sample, 0.2, seed=1)
    >>> training.n_showers, held_out.n_showers, sorted(set(training.energy_gev) & set(held_out.energy_gev))
    (8, 2, [])
    """
    n = sample.n_showers
    if not (math.isfinite(fraction) and 0 < fraction < 1):
        raise ValueError(f"the part to hold out is {fraction}; it must be above 0 and below 1")
    n_out = round(fraction * n)
    if not 0 < n_out < n:
        raise ValueError(f"a part of {fraction:g} of {n} showers is {n_out}; hold out one at least and keep one to train on")
    order = np.random.default_rng(seed).permutation(n)
    return sample.select(order[n_out:]), sample.select(order[:n_out])


def write_training_showers(folder: str | Path, sample: EnergySample) -> None:
    """Write down which showers a model was fitted to, so that it is never scored on them."""
    np.save(Path(folder) / TRAINING_SHOWERS_FILE, np.sort(sample.fingerprint), allow_pickle=False)


def read_training_showers(folder: str | Path) -> NDArray[np.uint64]:
    """Fingerprints of the showers that the model in a run directory was fitted to, (shower,).

    Raises
    ------
    FileFormatError
        Not there, or damaged.
    """
    path = Path(folder) / TRAINING_SHOWERS_FILE
    try:
        stored = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise FileFormatError(f"{path} is missing: what the model was fitted to is unknown; train it again") from None
    except (OSError, ValueError, EOFError) as error:
        raise FileFormatError(f"{path} is damaged ({str(error).splitlines()[0]}); train the model again") from None
    if not isinstance(stored, np.ndarray) or stored.dtype != np.uint64 or stored.ndim != 1:
        raise FileFormatError(f"{path} is damaged: it must be one row of 64-bit numbers; train the model again")
    return stored


def _read_one(path: Path, *, detector: Detector | None, tell: Callable[[str, float, float], None] | None) -> EnergySample:
    try:
        total = count_showers(path, detector=detector)
    except FileFormatError:
        if path.suffix == ".root":
            raise
        sums = read_layer_sums(path)  # of a file that is neither it says the same
        if sums.energy_gev.size == 0:
            raise ValueError(f"{path} holds no showers; give a file with some") from None
        return _sample_of(path, sums)
    if total == 0:
        raise ValueError(f"{path} holds no showers; give a file with some")

    def parts() -> Iterator[EnergySample]:
        done = 0
        for showers in iter_showers(path, detector=detector):
            done += showers.n_showers
            yield _sample_of(path, showers)
            if tell is not None:
                tell(f"reading {path.name}", done, total)

    found = list(parts())
    return found[0] if len(found) == 1 else concatenate_samples(found)


def _sample_of(path: Path, showers: Showers | LayerSums) -> EnergySample:
    """What the showers are refused for, with the file's name."""
    try:
        return sample_of(showers)
    except ValueError as error:
        raise FileFormatError(f"{path}: {error}") from error


def _must_fit(sample: EnergySample, path: str | Path, first: EnergySample, first_path: str | Path) -> None:
    if sample.n_layers != first.n_layers:
        raise ValueError(f"{path} has {sample.n_layers} layers, {first_path} has {first.n_layers}; join showers of one detector only")
    if sample.digest != first.digest:
        names = [s.digest[:8] or "one it does not tell" for s in (sample, first)]
        raise ValueError(f"{path} was made in detector {names[0]}, {first_path} in {names[1]}; join showers of one detector only")


def _not_in(earlier: Sequence[EnergySample], sample: EnergySample, path: str | Path) -> EnergySample:
    known = np.isin(sample.fingerprint, np.concatenate([s.fingerprint for s in earlier]))
    if known.all():
        raise ValueError(f"all {sample.n_showers} showers of {path} stand in an earlier file too; name each sample once")
    return sample.select(~known) if known.any() else sample
