"""`calolife showers cluster`: showers in crystals in, superclusters out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calolife.cli.options import (
    Config,
    Debug,
    Force,
    Json,
    Out,
    Quiet,
    Report,
    as_typed,
    must_be_apart,
    print_json,
    progress_bar,
    say,
    used_options,
)
from calolife.showers.clusters import ClusterSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from calolife.runs import Metric, Run
    from calolife.showers.superclusters import Superclusters

__all__ = ["cluster"]

_HITS_PER_PART = 3_000_000  # chosen: about 300 MB of columns; a shower of the barrel with pileup has thousands
_OPTIONS = {
    "cluster settings: seed_mev": "--seed-mev", "cluster settings: gather_mev": "--gather-mev",
    "cluster settings: least_et_gev": "--least-et", "gather_mev": "--gather-mev",
}  # fmt: skip
_DRAWN_CLUSTERS = 3  # chosen: an object that radiated shows what a supercluster is


@dataclass(frozen=True)
class _Seen:
    """What the figures and the metrics need of a part."""

    n_hits: NDArray[np.int64]  # (object,)
    n_clusters: NDArray[np.int64]
    is_matched: NDArray[np.bool_]
    response: NDArray[np.float64]
    rho_gev: NDArray[np.float64]


def cluster(
    ctx: typer.Context,
    data: Annotated[
        Path,
        typer.Argument(metavar="SHOWERS", help="Run directory with showers of crystals, or a file (.h5, .root).", show_default=False),
    ],
    out: Out,
    only_matched: Annotated[
        bool, typer.Option("--only-matched", help="Keep the object of the incident particle of each shower, drop what pileup makes.")
    ] = False,
    seed_mev: Annotated[float, typer.Option("--seed-mev", help="Least energy of a seed.")] = ClusterSettings.seed_mev,
    gather_mev: Annotated[float, typer.Option("--gather-mev", help="Least energy of a crystal.")] = ClusterSettings.gather_mev,
    least_et: Annotated[
        float, typer.Option("--least-et", help="Least transverse energy of the cluster that starts an object, GeV.")
    ] = ClusterSettings.least_et_gev,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Find electrons and photons: crystals into clusters, clusters into superclusters, each with the truth of its shower."""
    import numpy as np

    from calolife.detector.crystals import CrystalCalorimeter
    from calolife.runs import log, new_run, write_metrics
    from calolife.showers.cluster_files import CLUSTERS_FILE, write_superclusters
    from calolife.showers.clusters import find_superclusters
    from calolife.showers.files import count_showers, iter_showers, read_showers

    with as_typed(_OPTIONS):
        settings = ClusterSettings(seed_mev=seed_mev, gather_mev=gather_mev, least_et_gev=least_et)
    must_be_apart(out, [data])
    calo = read_showers(data, stop=0).detector
    if not isinstance(calo, CrystalCalorimeter):
        raise ValueError(f"{data} was made in {calo.name!r}, which is made of layers; superclusters are made of crystals")
    n_showers = count_showers(data)
    if n_showers == 0:
        raise ValueError(f"{data} has no showers; give a sample that has some")
    first = read_showers(data, stop=min(n_showers, 10))
    size = int(np.clip(_HITS_PER_PART * first.n_showers / max(first.n_hits, 1), 1, 10_000))
    seen: list[_Seen] = []
    counts = {"n_without": 0, "n_unmatched": 0}
    drawn: list[Superclusters] = []

    def parts(report: Report) -> Iterator[Superclusters]:
        done = 0
        for showers in iter_showers(data, chunk=size):
            found = find_superclusters(showers, settings=settings)
            counts["n_without"] += found.n_showers_without
            counts["n_unmatched"] += found.n_showers_unmatched
            kept = found.matched() if only_matched else found
            is_matched = kept.is_matched
            seen.append(
                _Seen(kept.n_object_hits, kept.n_clusters, is_matched, (kept.raw_energy_gev / kept.energy_gev)[is_matched], kept.rho_gev)
            )
            wanted = np.flatnonzero(is_matched & (kept.n_clusters >= _DRAWN_CLUSTERS)) if kept.n_objects else np.zeros(0, np.int64)
            if not drawn and wanted.size:
                drawn.append(kept.select(wanted[:1]))
            yield kept
            done += showers.n_showers
            report("showers", done, n_showers)

    with new_run(out, config=used_options(ctx), inputs=[data], force=force) as run, progress_bar(quiet=quiet, rate=True) as report:
        write_superclusters(run.path / CLUSTERS_FILE, parts(report))
        whole = _Seen(*(np.concatenate([getattr(s, name) for s in seen]) for name in _Seen.__dataclass_fields__))
        metrics = _metrics(whole, n_showers, **counts)
        write_metrics(run, metrics)
        _save_plots(run, whole, drawn, title=f"{calo.name}, {first.kind}s")
        log(run, f"found {whole.n_hits.size} superclusters in {n_showers} showers")
    n_objects, n_matched = whole.n_hits.size, int(whole.is_matched.sum())
    if counts["n_without"]:
        say(f"{counts['n_without']} of {n_showers} showers have no supercluster: they are counted, and skipped", quiet=quiet)
    median_hits = float(np.median(whole.n_hits)) if n_objects else math.nan
    if as_json:
        print_json(
            {"path": str(out), "detector": calo.name, "kind": first.kind, "n_showers": n_showers, "n_objects": n_objects,
             "n_matched": n_matched, **counts, "median_hits": median_hits}
        )  # fmt: skip
        return
    told = f"{n_objects} superclusters, {median_hits:g} crystals in the median" if n_objects else "no supercluster"
    print(
        f"{out}: {told}, in {n_showers} showers in {calo.name}; {n_matched} are the incident particle, "
        f"{counts['n_unmatched']} showers have none that is"
    )


def _metrics(whole: _Seen, n_showers: int, *, n_without: int, n_unmatched: int) -> dict[str, Metric]:
    import numpy as np

    from calolife.runs import Metric

    n = whole.n_hits.size
    matched_fraction = int(whole.is_matched.sum()) / n_showers
    found = {
        "objects": Metric(float(n), math.nan, "", n_showers),
        "matched": Metric(100 * matched_fraction, 100 * math.sqrt(matched_fraction * (1 - matched_fraction) / n_showers), "%", n_showers),
        "showers without objects": Metric(float(n_without), math.nan, "", n_showers),
        "showers without a match": Metric(float(n_unmatched), math.nan, "", n_showers),
    }
    if n:
        found["median hits"] = Metric(float(np.median(whole.n_hits)), math.nan, "", n)
        found["mean clusters"] = Metric(float(whole.n_clusters.mean()), float(whole.n_clusters.std() / math.sqrt(n)), "", n)
        if np.isfinite(whole.rho_gev).all():
            found["mean rho"] = Metric(float(whole.rho_gev.mean()), float(whole.rho_gev.std() / math.sqrt(n)), "GeV", n)
    if m := whole.response.size:
        low, middle, high = np.quantile(whole.response, [0.15865, 0.5, 0.84135])
        # of the median of a Gaussian; the raw response has a tail, which the half width leaves out
        error = math.sqrt(math.pi / 2) * 0.5 * float(high - low) / math.sqrt(m)
        found["median raw response"] = Metric(float(middle), error, "", m)
    return found


def _save_plots(run: Run, whole: _Seen, drawn: list[Superclusters], *, title: str) -> None:
    import numpy as np
    import polars as pl

    from calolife.plots_clusters import plot_object_hits, plot_raw_response, plot_supercluster, response_histogram
    from calolife.runs import write_plot

    if whole.n_hits.size:
        count = np.bincount(whole.n_hits)
        numbers = pl.DataFrame({"hits": np.arange(count.size), "objects": count})
        write_plot(run, "hits_per_object", plot_object_hits(whole.n_hits, title=title), numbers)
    if whole.response.size:
        count, edges = response_histogram(whole.response)
        numbers = pl.DataFrame({"from_fraction": edges[:-1], "to_fraction": edges[1:], "objects": count})
        write_plot(run, "raw_response", plot_raw_response(whole.response, title=title), numbers)
    for one in drawn:
        ieta, iphi = one.detector.cell_index(one.cell)
        within = one.hit_cluster - one.cluster_offsets[0]
        numbers = pl.DataFrame({"ieta": ieta, "iphi": iphi, "energy_mev": one.energy_mev, "cluster": within})
        write_plot(run, "object", plot_supercluster(one, 0, title=title), numbers)
