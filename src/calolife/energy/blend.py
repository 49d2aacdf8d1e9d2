"""Trees and network together: objects in crystals, measured by both.

Loads torch and LightGBM: import it inside the function that needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from calolife.energy.bdt import Bdt, fit_bdt
from calolife.energy.drn_model import DrnModel, fit_drn
from calolife.energy.features import EnergySample, FloatArray, Prediction, split_validation
from calolife.energy.peak_scale import PeakScale, fit_peak_scale
from calolife.training import Epoch

__all__ = ["Blend", "blend_of", "fit_blend"]


@dataclass(frozen=True, eq=False)
class Blend:
    """Geometric mean of the energies that the trees and the network give; `fit_blend` makes it.

    Parameters
    ----------
    bdt : Bdt
    drn : DrnModel
    scale : PeakScale
        Of the mean, fitted on the validation objects.
    left_out_gev : float array, (shower,) [GeV]
        Energy of each validation object among the training objects, NaN for those trained on; not stored.
    """

    name: ClassVar[str] = "blend"
    n_layers: ClassVar[int] = 1
    bdt: Bdt
    drn: DrnModel
    scale: PeakScale
    left_out_gev: FloatArray

    @property
    def digest(self) -> str:
        return self.drn.digest

    def predict(self, sample: EnergySample) -> Prediction:
        """Energy and its uncertainty for each object; raises what both models raise.

        Notes
        -----
        The relative uncertainty is the mean of both, before `scale`. Equal weights: by 1 / sigma^2 of each object the
        resolution of objects left out is the same.
        """
        return self.scale.apply_to(_mean(self.bdt, self.drn, sample))

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and JSON-able rest, for storage."""
        arrays, meta = self.scale.state(), dict[str, Any]()
        for model in (self.bdt, self.drn):
            own, meta[model.name] = model.state()
            arrays |= {f"{model.name}.{name}": value for name, value in own.items()}
        return arrays, meta

    @classmethod
    def from_state(cls, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> Blend:
        """The model that `state` described; raises what those of its models raise."""
        of = {part: {k.removeprefix(part): v for k, v in arrays.items() if k.startswith(part)} for part in ("bdt.", "drn.")}
        models = Bdt.from_state(of["bdt."], meta["bdt"]), DrnModel.from_state(of["drn."], meta["drn"])
        return cls(*models, PeakScale.from_state(arrays), np.empty(0))


def fit_blend(
    sample: EnergySample,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[Epoch], None] | None = None,
    checkpoint_dir: Path | None = None,
    **network: Any,
) -> Blend:
    """Fit the trees and the network to the same objects, and bring their mean to scale.

    Parameters
    ----------
    sample : EnergySample
        Training objects, nothing else; both models leave out the same tenth.
    seed : int
    device, progress, checkpoint_dir, network
        As for `fit_drn`; the trees start over after a kill, the network goes on.

    Returns
    -------
    Blend

    Raises
    ------
    ValueError, NotConvergedError
        As `fit_bdt` and `fit_drn`.
    """
    bdt = fit_bdt(sample, seed=seed, progress=progress)
    drn = fit_drn(sample, seed=seed, device=device, progress=progress, checkpoint_dir=checkpoint_dir, **network)
    return blend_of(bdt, drn, sample)


def blend_of(bdt: Bdt, drn: DrnModel, sample: EnergySample) -> Blend:
    """The mean of two fitted models, brought to scale on the training objects that neither was fitted to.

    Parameters
    ----------
    bdt : Bdt
    drn : DrnModel
    sample : EnergySample
        What both were fitted to, with the seed of the network.
    """
    at, checked, _ = split_validation(sample, seed=drn.seed)
    judged = sample.select(at[checked])
    found = _mean(bdt, drn, judged)
    scale = fit_peak_scale(found, judged.energy_gev)
    left_out = np.full(sample.n_showers, np.nan)
    left_out[at[checked]] = scale.apply_to(found).energy_gev
    return Blend(bdt, drn, scale, left_out)


def _mean(bdt: Bdt, drn: DrnModel, sample: EnergySample) -> Prediction:
    made = [model.predict(sample) for model in (bdt, drn)]
    energy = np.exp(np.mean([np.log(m.energy_gev) for m in made], axis=0))
    relative = np.mean([np.asarray(m.sigma_gev) / m.energy_gev for m in made], axis=0)
    return Prediction(energy, relative * energy)
