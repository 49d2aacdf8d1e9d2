"""What the energy regressors see of a shower: sums per layer, and shapes where the cells are known; and what they answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calolife.detector.layers import LayeredCalorimeter
from calolife.showers.clusters import find_superclusters
from calolife.showers.events import Showers, readout_text
from calolife.showers.files import LayerSums

if TYPE_CHECKING:
    from calolife.energy.objects import Objects

__all__ = [
    "CELL_FEATURES",
    "SHAPE_FEATURES",
    "EnergySample",
    "Prediction",
    "check_sample",
    "check_training",
    "concatenate_samples",
    "n_validation",
    "sample_of",
    "shape_features",
    "split_validation",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_VALIDATION = 0.1  # published for the network of layers (`calolife.energy.dnn`), chosen for the others

_QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)  # chosen: start, bulk and tail of the profile
_N_GROUPS = 10  # chosen: a tenth of the depth holds some layers of any stack worth a search
SHAPE_FEATURES: tuple[str, ...] = (
    "centroid", "width", "skewness", "first_layer", "last_layer", "maximum_depth", "maximum", "effective_layers", "hit_layers", "roughness",
    *(f"depth_{100 * q:.0f}" for q in _QUANTILES), *(f"group_{i}" for i in range(_N_GROUPS)),
)  # fmt: skip
"""Columns of `shape_features`."""

_ABOVE_MEAN = (3.0, 10.0, 30.0)  # chosen: from hits of one track to the core of an electromagnetic shower, in mean hits
CELL_FEATURES: tuple[str, ...] = (
    "log_n_hits", "log_mean_hit_mev", "hottest_cell", "log_effective_cells", *(f"above_{a:g}_mean" for a in _ABOVE_MEAN),
    "width_mm", "hit_width_mm", "centre_mm", "edge",
)  # fmt: skip
"""Columns of `EnergySample.shape` of showers with cells, as `sample_of` fills them."""

_LEAST_SHOWERS = 20  # chosen: below it a spread cannot be told, whatever the model


@dataclass(frozen=True, eq=False, repr=False)
class EnergySample:
    """Showers as the energy regressors see them, with the truth they are fitted to and scored against.

    Parameters
    ----------
    layer_energy_mev : float array, (shower, layer) [MeV]
        Energy per active layer, 0 nearest the beam.
    energy_gev : float array, (shower,) [GeV]
        True energy; no prediction looks at it.
    pdg_id : int array, (shower,)
        True particle; no prediction looks at it.
    shape : float array, (shower, quantity)
        What the cells tell beyond the layers; no columns where a file keeps layer sums only.
    shape_names : tuple of str
        Name of each column of `shape`.
    digest : str
        Of the detector that saw the showers; empty where a file does not tell.
    readout : str
        ``"simhits"``, or ``"rechits of ..."`` with the numbers of their readout; empty where a file does not tell.
    objects : Objects, optional
        In crystals: the supercluster of each shower with its hits, for the networks.
    n_unmatched : int
        In crystals: showers that are not in the sample, because nothing was found where the particle should be; of the whole
        sample, whatever was selected from it.

    Raises
    ------
    ValueError
        No showers, shapes that do not fit, a number that is not finite, a true energy that is not > 0.

    Examples
    --------
    >>> sample = EnergySample([[20.0, 30.0], [2.0, 1.0]], [1.0, 0.1], [22, -211])
    >>> sample.n_showers, sample.n_layers, sample.visible_mev.tolist()
    (2, 2, [50.0, 3.0])
    """

    layer_energy_mev: FloatArray
    energy_gev: FloatArray
    pdg_id: NDArray[np.int32]
    shape: FloatArray = field(default_factory=lambda: np.empty((0, 0)))
    shape_names: tuple[str, ...] = ()
    digest: str = ""
    readout: str = ""
    objects: Objects | None = None
    n_unmatched: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("layer_energy_mev", np.float64), ("energy_gev", np.float64), ("pdg_id", np.int32), ("shape", np.float64)):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=kind))
        object.__setattr__(self, "shape_names", tuple(self.shape_names))
        if self.layer_energy_mev.ndim != 2 or self.layer_energy_mev.size == 0:
            raise ValueError(
                f"layer_energy_mev has shape {self.layer_energy_mev.shape}; it must be (shower, layer), with at least one of each"
            )
        n = self.n_showers
        if self.shape.size == 0 and not self.shape_names:
            object.__setattr__(self, "shape", np.empty((n, 0)))
        for name, wanted in (("energy_gev", (n,)), ("pdg_id", (n,)), ("shape", (n, len(self.shape_names)))):
            if (got := getattr(self, name).shape) != wanted:
                raise ValueError(f"{name} has shape {got}; {n} showers need {wanted}")
        if self.objects is not None and self.objects.n_objects != n:
            raise ValueError(f"there are {self.objects.n_objects} objects for {n} showers; give one per shower")
        for name in ("layer_energy_mev", "shape"):
            if not np.isfinite(values := getattr(self, name)).all():
                at = int(np.argwhere(~np.isfinite(values))[0][0])
                raise ValueError(f"{name} of shower {at} is not finite; drop the shower or mend the file")
        wrong = ~(np.isfinite(self.energy_gev) & (self.energy_gev > 0))
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"energy_gev of shower {at} is {self.energy_gev[at]}; it must be finite and > 0")

    def __repr__(self) -> str:
        return f"EnergySample({self.n_showers} showers, {self.n_layers} layers, {len(self.shape_names)} shapes)"

    @property
    def n_showers(self) -> int:
        return int(self.layer_energy_mev.shape[0])

    @property
    def n_layers(self) -> int:
        return int(self.layer_energy_mev.shape[1])

    @cached_property
    def visible_mev(self) -> FloatArray:
        """Energy of all layers, (shower,) [MeV]."""
        summed: FloatArray = self.layer_energy_mev.sum(axis=1)
        return summed

    @cached_property
    def fingerprint(self) -> NDArray[np.uint64]:
        """A number per shower, (shower,), that tells whether two samples share it."""
        # float32: a sample that went through a file of single precision is still the same
        rows = np.column_stack([self.layer_energy_mev, self.energy_gev]).astype(np.float32)
        digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
        return np.frombuffer(b"".join(digests), dtype="<u8")

    def select(self, which: ArrayLike) -> EnergySample:
        """Some of the showers, by a mask (shower,) or by indices, in the order asked for."""
        index = np.asarray(which)
        return replace(
            self, layer_energy_mev=self.layer_energy_mev[index], energy_gev=self.energy_gev[index], pdg_id=self.pdg_id[index],
            shape=self.shape[index], objects=None if self.objects is None else self.objects.select(index),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Prediction:
    """Energies that a model gives to the showers of a sample.

    Parameters
    ----------
    energy_gev : float array, (shower,) [GeV]
    sigma_gev : float array, (shower,) [GeV], optional
        Standard deviation of the bulk of E' - E that the model expects for each: 68.3 % of showers lie within; none where it does not know.
    """

    energy_gev: FloatArray
    sigma_gev: FloatArray | None = None


def sample_of(showers: Showers | LayerSums) -> EnergySample:
    """Showers, or sums of layers, as a sample.

    Parameters
    ----------
    showers : Showers or LayerSums

    Returns
    -------
    EnergySample
        With the columns `CELL_FEATURES` where the layers have cells; none for sums of layers and for layers of one cell. Of
        crystals the matched superclusters, as `sample_of_objects`.

    Raises
    ------
    ValueError
        No showers; in crystals, no matched supercluster.

    Notes
    -----
    ``hottest_cell``, ``edge`` (cells along the rim) and ``above_..._mean`` (hits of more than so many mean hits) are
    fractions of the visible energy, ``log_effective_cells`` is -ln of the summed squared fractions of the hits. Lateral widths are
    root mean squares about the shower's own centre, by energy and by hit; ``centre_mm`` is that centre's distance from
    the axis of the detector. Negative hits (noise) count as empty; a shower without energy has zeros.

    Examples
    --------
    >>> from calolife.detector.presets import load_detector
    >>> calo = load_detector("cu-scint-24x24")
    >>> showers = Showers.from_hits(calo, [0, 0], [300, 876], [1.5, 0.5], pdg_id=-211, energy_gev=[10.0])
    >>> sample = sample_of(showers)
    >>> sample.n_layers, sample.layer_energy_mev[0, :3].tolist()
    (40, [1.5, 0.5, 0.0])
    """
    if isinstance(showers, LayerSums):
        return EnergySample(showers.layer_energy_mev, showers.energy_gev, showers.pdg_id)
    detector = showers.detector
    if not isinstance(detector, LayeredCalorimeter):
        from calolife.energy.objects import sample_of_objects

        return sample_of_objects(find_superclusters(showers))
    seen = EnergySample(
        showers.layer_energy_mev(), showers.energy_gev, showers.pdg_id, digest=detector.digest, readout=readout_text(showers)
    )
    if detector.n_cells == detector.n_active:
        return seen
    return replace(seen, shape=_cell_features(showers, detector), shape_names=CELL_FEATURES)


def concatenate_samples(samples: Sequence[EnergySample]) -> EnergySample:
    """One sample after the other.

    Raises
    ------
    ValueError
        Nothing given; another number of layers, other shapes, another detector or another readout among them.

    Examples
    --------
    >>> one = EnergySample([[20.0, 30.0]], [1.0], [22])
    >>> concatenate_samples([one, one, one]).n_showers
    3
    """
    if not samples:
        raise ValueError("no samples to join; give at least one")
    first = samples[0]
    for i, other in enumerate(samples[1:], start=1):
        if other.n_layers != first.n_layers:
            raise ValueError(f"sample {i} has {other.n_layers} layers and sample 0 {first.n_layers}; join showers of one detector only")
        if other.digest != first.digest:
            raise ValueError(
                f"sample {i} was made in detector {_named(other.digest)}, sample 0 in {_named(first.digest)}; join one detector's"
            )
        if other.shape_names != first.shape_names:
            raise ValueError(f"sample {i} has other shapes than sample 0; make both from cells, or both from layer sums")
        if (other.objects is None) != (first.objects is None):
            raise ValueError(f"only one of sample {i} and sample 0 has objects; make both from superclusters")
        if other.readout != first.readout:
            raise ValueError(
                f"sample {i} has {other.readout or 'a readout not told'}, sample 0 {first.readout or 'one not told'}; join alike"
            )
    return replace(
        first,
        layer_energy_mev=np.concatenate([s.layer_energy_mev for s in samples]),
        energy_gev=np.concatenate([s.energy_gev for s in samples]),
        pdg_id=np.concatenate([s.pdg_id for s in samples]),
        shape=np.concatenate([s.shape for s in samples]),
        objects=None if first.objects is None else first.objects.concatenate([s.objects for s in samples if s.objects is not None]),
        n_unmatched=sum(s.n_unmatched for s in samples),
    )


def check_sample(sample: EnergySample, *, n_layers: int, digest: str, shape_names: Sequence[str] = ()) -> None:
    """Check that a model can be used on a sample.

    Parameters
    ----------
    sample : EnergySample
    n_layers : int
        Layers of the sample that the model was fitted on.
    digest : str
        Detector it was fitted on; empty where not known, and then not compared.
    shape_names : sequence of str
        Columns of `EnergySample.shape` that the model reads.

    Raises
    ------
    ValueError
        Another number of layers, another detector, or a shape that is not there.
    """
    if sample.n_layers != n_layers:
        raise ValueError(
            f"the showers have {sample.n_layers} layers, the model was fitted on {n_layers}; use showers of its detector, or fit again"
        )
    if digest and sample.digest and digest != sample.digest:
        raise ValueError(
            f"the showers were made in detector {_named(sample.digest)}, the model was fitted on {_named(digest)}; "
            "use showers of its detector, or fit again"
        )
    if missing := [name for name in shape_names if name not in sample.shape_names]:
        raise ValueError(f"the showers have no {missing[0]}, which the model reads; give showers with cells, or fit again on layer sums")


def check_training(sample: EnergySample) -> None:
    """Check that there is enough in a sample to fit a model to.

    Raises
    ------
    ValueError
        Fewer than 20 showers, or fewer than 20 with visible energy.
    """
    if sample.n_showers < _LEAST_SHOWERS:
        raise ValueError(f"{sample.n_showers} showers are too few to fit a model to; give at least {_LEAST_SHOWERS}")
    n_seen = int(np.count_nonzero(sample.visible_mev > 0))
    if n_seen < _LEAST_SHOWERS:
        raise ValueError(
            f"only {n_seen} of {sample.n_showers} showers left energy in the layers; at least {_LEAST_SHOWERS} must to fit a model"
        )


def n_validation(n_showers: int) -> int:
    """How many of the training showers stop a training and calibrate the errors, and are not trained on."""
    return max(1, round(_VALIDATION * n_showers))


def split_validation(sample: EnergySample, *, seed: int) -> tuple[IntArray, IntArray, IntArray]:
    """The validation showers among those of a training, the same for every model with this seed.

    Parameters
    ----------
    sample : EnergySample
    seed : int

    Returns
    -------
    at : int array, (shower,)
        The showers ordered by what they are, not by their place in the sample.
    checked, fitted : int array
        Validation showers and the rest, in that order: ``at[checked]`` are places in the sample.
    """
    at = np.argsort(sample.fingerprint, kind="stable")
    order = np.random.default_rng(seed).permutation(sample.n_showers)
    n = n_validation(sample.n_showers)
    return at, order[:n], order[n:]


def shape_features(layer_energy_mev: FloatArray) -> FloatArray:
    """Shapes of the longitudinal profile that do not depend on its size.

    Parameters
    ----------
    layer_energy_mev : float array, (shower, layer) [MeV]

    Returns
    -------
    float array, (shower, shape)
        Columns as in `SHAPE_FEATURES`; all zeros for a shower without energy.

    Notes
    -----
    Depths run from 0 to 1 in number of layers. ``centroid``, ``width`` and ``skewness`` are moments of the profile,
    ``depth_q`` the depth of q % of the energy, ``group_i`` the fraction in each tenth of the depth (a layer across
    a border is shared), ``effective_layers`` the reciprocal of the summed squared fractions, ``roughness`` the summed
    change from layer to layer: large for pions. Negative layers (noise) count as empty.

    Examples
    --------
    >>> shapes = shape_features(np.array([[1.0, 2.0, 1.0]]))
    >>> dict(zip(SHAPE_FEATURES, shapes[0].tolist()))["centroid"]
    0.5
    """
    layers = np.maximum(np.asarray(layer_energy_mev, dtype=np.float64), 0.0)
    n_showers, n_layers = layers.shape
    visible = layers.sum(axis=1, keepdims=True)
    fraction = np.divide(layers, visible, out=np.zeros_like(layers), where=visible > 0)
    depth = (np.arange(n_layers) + 0.5) / n_layers
    centroid = (fraction * depth).sum(axis=1)
    away = depth - centroid[:, None]  # (shower, layer)
    width = np.sqrt((fraction * away**2).sum(axis=1))
    skewness = _ratio((fraction * away**3).sum(axis=1), width**3)
    step = np.abs(np.diff(fraction, axis=1)).sum(axis=1)
    # (shower, layer + 1): fraction of the energy before each border
    before = np.concatenate([np.zeros((n_showers, 1)), np.cumsum(fraction, axis=1)], axis=1)
    row = np.arange(n_showers)
    quantiles = []
    for q in _QUANTILES:
        at = np.minimum((before[:, 1:] < q).sum(axis=1), n_layers - 1)
        quantiles.append((at + np.clip(_ratio(q - before[row, at], fraction[row, at]), 0.0, 1.0)) / n_layers)
    border = np.linspace(0.0, n_layers, _N_GROUPS + 1)
    whole = np.minimum(border.astype(np.int64), n_layers - 1)
    at_border = before[:, whole] + (border - whole) * fraction[:, whole]
    columns = [
        centroid, width, skewness, fraction[:, 0], fraction[:, -1], depth[fraction.argmax(axis=1)], fraction.max(axis=1),
        _ratio(np.ones(n_showers), (fraction**2).sum(axis=1)) / n_layers, (layers > 0).mean(axis=1), step,
        *quantiles, *np.diff(at_border, axis=1).T,
    ]  # fmt: skip
    shapes = np.column_stack(columns)
    shapes[visible[:, 0] <= 0] = 0.0
    return shapes


def _cell_features(showers: Showers, detector: LayeredCalorimeter) -> FloatArray:
    n, shower = showers.n_showers, showers.shower_index
    energy = np.maximum(showers.energy_mev.astype(np.float64), 0.0)
    is_hit = energy > 0

    def total(values: FloatArray) -> FloatArray:
        summed: FloatArray = np.bincount(shower, weights=values, minlength=n).astype(np.float64)
        return summed

    visible, n_hits = total(energy), total(is_hit.astype(np.float64))
    fraction = _ratio(energy, visible[shower])
    hottest = np.zeros(n)
    np.maximum.at(hottest, shower, fraction)
    mean_hit = _ratio(visible, n_hits)
    above = [total(fraction * (energy > a * mean_hit[shower])) for a in _ABOVE_MEAN]
    layer, ix, iy = detector.cell_index(showers.cell)
    grid = detector.cell_grid[layer]  # (hit, 2)
    # along an axis with one or two cells every cell is at the rim: it tells nothing
    is_edge = ((grid[:, 0] > 2) & ((ix == 0) | (ix == grid[:, 0] - 1))) | ((grid[:, 1] > 2) & ((iy == 0) | (iy == grid[:, 1] - 1)))
    place = detector.cell_position_mm(showers.cell)[:, :2]
    centre = np.column_stack([total(fraction * place[:, k]) for k in range(2)])  # (shower, 2)
    radius2 = ((place - centre[shower]) ** 2).sum(axis=1)
    squares = total(fraction**2)
    columns = [
        np.log1p(n_hits), np.log(mean_hit, out=np.zeros(n), where=mean_hit > 0), hottest,
        -np.log(squares, out=np.zeros(n), where=squares > 0), *above,
        np.sqrt(total(fraction * radius2)), np.sqrt(_ratio(total(radius2 * is_hit), n_hits)), np.hypot(centre[:, 0], centre[:, 1]),
        total(fraction * is_edge),
    ]  # fmt: skip
    return np.column_stack(columns)


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    """Their ratio, 0 where there is nothing below."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _named(digest: str) -> str:
    return digest[:8] or "of no name"
