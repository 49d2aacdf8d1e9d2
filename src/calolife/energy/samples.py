"""Files of showers as one sample of the energy regressors, which of them are held out, and which a model was fitted to."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calolife.detector.crystals import CrystalCalorimeter
from calolife.detector.presets import Detector
from calolife.energy.features import EnergySample, concatenate_samples, sample_of
from calolife.energy.objects import sample_of_objects
from calolife.errors import FileFormatError
from calolife.showers.cluster_files import is_superclusters, read_superclusters
from calolife.showers.clusters import find_superclusters
from calolife.showers.events import PDG, UNKNOWN_PARTICLE, Showers
from calolife.showers.files import LayerSums, count_showers, holds_layer_sums, iter_showers, read_layer_sums
from calolife.showers.superclusters import Superclusters

__all__ = [
    "TRAINING_ENERGIES_FILE", "TRAINING_RECORD_FILE", "TRAINING_SHOWERS_FILE", "count_alike", "read_energy_sample",
    "read_training_energies", "read_training_record", "read_training_showers", "split_sample", "unlike_training",
    "write_training_showers",
]  # fmt: skip

TRAINING_SHOWERS_FILE = "training_showers.npy"
"""Name of the fingerprints of the training showers in the run directory of a model."""
TRAINING_ENERGIES_FILE = "training_energies.npy"
"""Name of their true energies there."""
TRAINING_RECORD_FILE = "training.json"
"""Name of what else is known of them there: their readout, their particles and their pileup."""
_FAR = 1.05  # chosen: 5 % beyond the last energy trained on, no model leaves its ground


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
        Run directories with showers or superclusters, files that `read_showers` or `read_superclusters` reads, or files that
        keep the sums of layers only.
    particles : sequence of str
        Particles to keep, by name; all when left out.
    detector : LayeredCalorimeter or CrystalCalorimeter, optional
        Where a file does not tell its own, as for `read_showers`.
    tell : function (what, done, total), optional
        Called as the showers come in.

    Returns
    -------
    EnergySample
        In the order of the files. A shower that stands in an earlier file is not taken again. Of crystals the matched
        superclusters; `EnergySample.n_unmatched` tells how many showers of the files have none.

    Raises
    ------
    FileFormatError
        A file that is not there, is damaged, or holds a number that is not finite.
    ValueError
        A file named twice, files of different detectors or readouts, no shower left, an unknown particle.

    Notes
    -----
    Showers are read part by part; memory holds their layer sums and shapes only. Showers of crystals are clustered as they
    come in, with the default settings; of crystals memory holds the hits of the superclusters too.
    """
    if not paths:
        raise ValueError("no file of showers; give one or more")
    if unknown := [name for name in particles if name not in PDG]:
        raise ValueError(f"unknown particle {unknown[0]!r}; allowed: {', '.join(PDG)}")
    resolved = [os.path.realpath(p) for p in paths]
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
    """Write down which showers a model was fitted to, so that it is never scored on them, nor on others unlike them without a word."""
    np.save(Path(folder) / TRAINING_SHOWERS_FILE, np.sort(sample.fingerprint), allow_pickle=False)
    np.save(Path(folder) / TRAINING_ENERGIES_FILE, np.sort(sample.energy_gev.astype(np.float32)), allow_pickle=False)
    record: dict[str, Any] = {"readout": sample.readout, "pdg_id": np.unique(sample.pdg_id).tolist()}
    if (rho := _known_rho(sample)).size:
        record["rho_gev"] = [float(rho.min()), float(rho.max())]
    (Path(folder) / TRAINING_RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_training_showers(folder: str | Path) -> NDArray[np.uint64]:
    """Fingerprints of the showers that the model in a run directory was fitted to, (shower,).

    Raises
    ------
    FileFormatError
        Not there, or damaged.
    """
    return _read_row(Path(folder) / TRAINING_SHOWERS_FILE, np.uint64)


def read_training_energies(folder: str | Path) -> NDArray[np.float32]:
    """True energies of the showers that the model in a run directory was fitted to, (shower,) [GeV].

    Raises
    ------
    FileFormatError
        Not there, or damaged.
    """
    return _read_row(Path(folder) / TRAINING_ENERGIES_FILE, np.float32)


def read_training_record(folder: str | Path) -> tuple[str, tuple[int, ...], tuple[float, ...]]:
    """Readout (as `EnergySample.readout`), particles and ends of rho [GeV] that a run's model was fitted to; empty where not told.

    Raises
    ------
    FileFormatError
        Damaged.
    """
    path = Path(folder) / TRAINING_RECORD_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        rho = tuple(float(end) for end in record.get("rho_gev", ()))
        return str(record["readout"]), tuple(int(code) for code in record["pdg_id"]), rho
    except FileNotFoundError:
        return "", (), ()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FileFormatError(f"{path} is damaged: it must tell readout and pdg_id; train the model again") from None


def unlike_training(sample: EnergySample, folder: str | Path) -> tuple[str, ...]:
    """What sets showers apart from those that the model in a run directory was fitted to, each as the end of a sentence.

    Parameters
    ----------
    sample : EnergySample
        Showers to be scored.
    folder : path
        Run directory of a model.

    Returns
    -------
    tuple of str
        Of readout, particles and ranges of energy and pileup those that differ; what a file does not tell is not compared.

    Raises
    ------
    FileFormatError
        A record of the training that is damaged or missing.

    Notes
    -----
    Held-out showers of the same spectrum reach a little beyond the training showers: remarked are energies (in crystals also
    rho) more than 5 % beyond, and only if there are 1 % of them and five times as many as chance gives.
    """
    readout, particles, ends_rho = read_training_record(folder)
    energy = read_training_energies(folder)
    found = []
    if readout and sample.readout and readout != sample.readout:
        found.append(f"trained on {readout}; these are {sample.readout}: the response may be off")
    names = {code: name for name, code in PDG.items()}
    is_told = particles and UNKNOWN_PARTICLE not in particles
    if is_told and (new := sorted(set(sample.pdg_id.tolist()) - {*particles, UNKNOWN_PARTICLE})):
        told = ", ".join(names.get(code, f"pdg {code}") for code in new)
        known = ", ".join(names.get(code, f"pdg {code}") for code in particles)
        found.append(f"never trained on {told}, only on {known}: what it makes of {'it' if len(new) == 1 else 'them'} is a guess")
    # two in n + 1 fall outside the range of n by chance
    few = sample.n_showers * max(0.01, 10 / (energy.size + 1))
    if energy.size:
        low, high = float(energy.min()), float(energy.max())
        if (n_far := _n_far(sample.energy_gev, low, high)) > few:
            found.append(f"trained on {low:.3g} to {high:.3g} GeV; {n_far} of these {sample.n_showers} showers lie outside")
    if ends_rho:
        low, high = ends_rho[0], ends_rho[-1]
        if (n_far := _n_far(_known_rho(sample), low, high)) > few:
            found.append(f"trained with pileup of rho {low:.3g} to {high:.3g} GeV; {n_far} of these {sample.n_showers} showers lie outside")
    return tuple(found)


def _n_far(values: NDArray[np.float64], low: float, high: float) -> int:
    return int(((values < low / _FAR) | (values > high * _FAR)).sum())


def _known_rho(sample: EnergySample) -> NDArray[np.float64]:
    """Energy density of the showers in crystals where it is known, (some,) [GeV]."""
    rho = np.empty(0) if sample.objects is None else sample.objects.rho_gev
    return rho[np.isfinite(rho)]


def count_alike(sample: EnergySample, training_energy_gev: NDArray[np.float32]) -> int:
    """Showers whose true energy is to the last digit that of a training shower; 0 where that is no wonder.

    Parameters
    ----------
    sample : EnergySample
    training_energy_gev : float32 array, (shower,) [GeV]

    Notes
    -----
    The readout and ageing change the layers, and the fingerprint with them, not the truth. Of a flat spectrum,
    a million showers share 4 % of their energies with another million by chance: below a tenth nothing is counted.

    Examples
    --------
    >>> sample = EnergySample(np.ones((4, 2)), [1.1, 2.3, 3.7, 4.9], [22] * 4)
    >>> count_alike(sample, np.array([2.3, 3.7, 8.0], np.float32)), count_alike(sample, np.array([8.0], np.float32))
    (2, 0)
    """
    energy = sample.energy_gev.astype(np.float32)
    is_alike = np.isin(energy, training_energy_gev)
    n, is_spectrum = int(is_alike.sum()), 2 * np.unique(energy).size > energy.size
    return n if is_spectrum and 10 * n > energy.size else 0


def _read_row(path: Path, kind: type[Any]) -> NDArray[Any]:
    try:
        stored = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise FileFormatError(f"{path} is missing: what the model was fitted to is unknown; train it again") from None
    except (OSError, ValueError, EOFError) as error:
        raise FileFormatError(f"{path} is damaged ({str(error).splitlines()[0]}); train the model again") from None
    if not isinstance(stored, np.ndarray) or stored.dtype != kind or stored.ndim != 1:
        raise FileFormatError(f"{path} is damaged: it must be one row of {np.dtype(kind)} numbers; train the model again")
    return stored


def _read_one(path: Path, *, detector: Detector | None, tell: Callable[[str, float, float], None] | None) -> EnergySample:
    if is_superclusters(path):
        return _sample_of(path, read_superclusters(path, detector=detector))
    try:
        total = count_showers(path, detector=detector)
    except FileFormatError:
        if not holds_layer_sums(path):
            raise
        sums = read_layer_sums(path)
        if sums.energy_gev.size == 0:
            raise ValueError(f"{path} holds no showers; give a file with some") from None
        return _sample_of(path, sums)
    if total == 0:
        raise ValueError(f"{path} holds no showers; give a file with some")

    def parts() -> Iterator[EnergySample | Superclusters]:
        done = 0
        for showers in iter_showers(path, detector=detector):
            done += showers.n_showers
            # a part of crystals may have no object that matches; the whole file may not
            is_crystals = isinstance(showers.detector, CrystalCalorimeter)
            yield find_superclusters(showers).matched() if is_crystals else _sample_of(path, showers)
            if tell is not None:
                tell(f"reading {path.name}", done, total)

    found = list(parts())
    if clusters := [part for part in found if isinstance(part, Superclusters)]:
        return _sample_of(path, Superclusters.concatenate(clusters))
    samples = [part for part in found if isinstance(part, EnergySample)]
    return samples[0] if len(samples) == 1 else concatenate_samples(samples)


def _sample_of(path: Path, showers: Showers | LayerSums | Superclusters) -> EnergySample:
    """What the showers are refused for, with the file's name."""
    try:
        return sample_of_objects(showers) if isinstance(showers, Superclusters) else sample_of(showers)
    except ValueError as error:
        raise FileFormatError(f"{path}: {error}") from error


def _must_fit(sample: EnergySample, path: str | Path, first: EnergySample, first_path: str | Path) -> None:
    if sample.n_layers != first.n_layers:
        raise ValueError(f"{path} has {sample.n_layers} layers, {first_path} has {first.n_layers}; join showers of one detector only")
    if sample.digest != first.digest:
        names = [s.digest[:8] or "one it does not tell" for s in (sample, first)]
        raise ValueError(f"{path} was made in detector {names[0]}, {first_path} in {names[1]}; join showers of one detector only")
    if sample.readout != first.readout:
        raise ValueError(f"{path} holds {sample.readout}, {first_path} {first.readout}; join showers of one readout only")


def _not_in(earlier: Sequence[EnergySample], sample: EnergySample, path: str | Path) -> EnergySample:
    known = np.isin(sample.fingerprint, np.concatenate([s.fingerprint for s in earlier]))
    if known.all():
        raise ValueError(f"all {sample.n_showers} showers of {path} stand in an earlier file too; name each sample once")
    return sample.select(~known) if known.any() else sample
