"""The verbs on AnnData: identify the domains of a section, score them.

The only room that knows both AnnData and the method. It fetches arrays, hands them to the rooms
that do the work, and writes their results into the slots that `keys.py` names.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Hashable
from os import PathLike
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scipy.spatial import cKDTree

from . import keys, metrics, plot
from .config import Config
from .errors import InputError, MissingExtraError, MissingKeyError
from .estimate import Estimate, check_memory, estimate
from .estimator import AMILST, build_graph, check_n_domains
from .preprocess import CountRows, is_on_disk, prepare
from .runtime import peak_memory, resolve_device, spawn_seeds, versions
from .simulate import simulate_tissue
from .train import Callback

__all__ = [
    "coordinates_of",
    "counts_of",
    "describe",
    "estimate_run",
    "identify_domains",
    "score",
    "simulate_section",
    "write_results",
]

logger = logging.getLogger("amilst_lite")

_ADVICE = (
    "Leave the counts on disk (amilst run --backed; in Python read(path, backed=True)), take fewer genes "
    "(n_top_genes) or components (n_components), or run it section by section."
)


def identify_domains(
    adata: ad.AnnData,
    n_domains: int | None = None,
    *,
    seed: int = 0,
    preset: str = "default",
    device: str = "auto",
    key_added: str = keys.DEFAULT_KEY,
    sample_key: str | None = None,
    use_rep: str | None = None,
    callback: Callback | None = None,
    **settings: Any,
) -> None:
    """Find the spatial domains of a section and write them into ``adata``.

    Parameters
    ----------
    adata : AnnData
        Raw counts in ``layers["counts"]`` or ``X`` (never changed), coordinates in
        ``obsm["spatial"]``.
    n_domains : int, optional
        Number of domains K, at least 2. Without it K is chosen by the stability of the labels; the
        table of every K tried stands in ``uns["amilst"]["selection"]``.
    seed : int
        Same seed, same machine, same number of threads: the same bits.
    preset : str
        ``"default"``, or ``"published"`` for the published program's settings.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
    key_added : str
        Begins the names of the slots written.
    sample_key : str, optional
        Column of ``obs`` that tells sections apart; no edge crosses them.
    use_rep : str, optional
        Matrix of ``obsm`` to start from in place of the counts, for example ``"X_pca"``.
    callback : callable, optional
        Called with (epoch, n_epochs, losses by name) in training.
    **settings
        Single settings that differ from the preset's, by name: ``n_neighbors=6``.

    Notes
    -----
    Written, for ``key_added="amilst"``: ``obsm["X_pca"]`` (unless ``use_rep`` is given),
    ``obsm["X_amilst"]``, ``obs["amilst_domain"]``, ``obs["amilst_domain_refined"]``,
    ``obs["amilst_confidence"]``, ``uns["amilst"]``, ``obsp["spatial_connectivities"]``,
    ``obsp["spatial_distances"]`` and ``uns["spatial_neighbors"]``. Nothing is written before
    everything is computed.

    Raises
    ------
    InputError, MissingKeyError
        The input cannot be used; the message says what was expected, found and what to do.
    MissingExtraError
        Leiden was asked for and igraph is not installed.
    TrainingDivergedError
        A term of the objective is not finite.

    Examples
    --------
    >>> identify_domains(adata, n_domains=7, seed=0)
    >>> adata.obs["amilst_domain"]
    """
    start = time.perf_counter()
    names = keys.ResultKeys(key_added)
    model = AMILST(n_domains, seed=seed, preset=preset, settings=settings, device=device, callback=callback)
    config = model.resolve_config()
    resolved = resolve_device(device)
    # everything that can be refused is refused before the work begins
    check_n_domains(n_domains, adata.n_obs)
    coordinates = coordinates_of(adata)
    needed = estimate_run(adata, n_domains, config=config, device=resolved, use_rep=use_rep)
    logger.info("%s", needed)
    check_memory(needed, resolved, _ADVICE)
    sample = None if sample_key is None else _column(adata, sample_key).to_numpy()

    components = None
    logger.info("graph")
    graph = build_graph(coordinates, config.graph, sample)
    graphed = time.perf_counter()
    if use_rep is None:
        logger.info("prepare")
        preparation = prepare(
            counts_of(adata),
            config.preprocess,
            graph.connectivities() if config.preprocess.top_up > 0 else None,
            seed=spawn_seeds(seed, 1)[0],
            device=resolved,
        )
        features = components = preparation.features
    else:
        features = _representation(adata, use_rep)
    prepared = time.perf_counter()
    model.fit(features, coordinates, sample, graph=graph)

    if adata.is_view:
        # writing into a view would copy it with a warning that sounds like a mistake of the user's
        adata._init_as_actual(adata.copy())
    if components is not None:
        adata.obsm[keys.PCA] = components
    adata.obsm[names.embedding] = model.embedding_
    adata.obs[names.domain] = _categorical(model.labels_, model.n_domains_, adata.obs_names)
    adata.obs[names.refined] = _categorical(model.refined_labels_, model.n_domains_, adata.obs_names)
    adata.obs[names.confidence] = pd.Series(model.confidence_, index=adata.obs_names)
    _write_graph(adata, model, config)
    adata.uns[names.record] = {
        "n_domains": model.n_domains_,
        "selection": {} if model.selection_ is None else _columns(model.selection_.table),
        "preset": preset,
        "config": _writable(config.to_dict()),
        "seed": seed,
        "device": str(resolved),
        "estimate": _writable(dataclasses.asdict(needed)),
        "versions": versions(),
        "losses": {name: np.asarray(series) for name, series in model.history_.items()},
        "seconds": {
            "graph": graphed - start,
            "prepare": prepared - graphed,
            **model.seconds_,
            "total": time.perf_counter() - start,
        },
        "peak_memory": _writable(peak_memory(resolved)),
    }


def estimate_run(
    adata: ad.AnnData,
    n_domains: int | None = None,
    *,
    config: Config | None = None,
    device: str | torch.device = "auto",
    use_rep: str | None = None,
) -> Estimate:
    """What `identify_domains` and writing its results will need, without doing it.

    Parameters
    ----------
    adata : AnnData
        The section, its counts in memory or on disk.
    n_domains, device, use_rep
        As in `identify_domains`.
    config : Config
        The settings; the default preset's unless given.
    """
    config = Config() if config is None else config
    resolved = resolve_device(device)
    if use_rep is not None:
        width = int(np.prod(np.shape(adata.obsm[use_rep])[1:])) if use_rep in adata.obsm else 30
        return estimate(
            adata.n_obs, 0, config.replace(n_components=max(1, width)), n_domains=n_domains, device=resolved
        )
    counts = counts_of(adata)
    return estimate(
        adata.n_obs,
        counts.nnz if sparse.issparse(counts) else CountRows(counts).n_entries,
        config,
        n_domains=n_domains,
        n_genes=adata.n_vars,
        on_disk=is_on_disk(counts),
        device=resolved,
    )


def score(
    adata: ad.AnnData,
    annotation: str | None = None,
    *,
    domain: str = keys.ResultKeys().domain,
    sample_key: str | None = None,
) -> dict[str, float]:
    """How well the domains agree with an annotation, and how coherent they are in space.

    Parameters
    ----------
    adata : AnnData
        With domains in ``obs``.
    annotation : str, optional
        Column of ``obs`` with the truth; spots without one are left out. Without it only the
        scores that need no truth are given.
    domain : str
        Column of ``obs`` with the domains.
    sample_key : str, optional
        Column of ``obs`` that tells sections apart; nearness in space is judged within each.

    Returns
    -------
    dict of str to float
        ``ari``, ``nmi``, ``homogeneity``, ``completeness``, ``n_scored`` (with an annotation);
        ``chaos``, ``pas`` (lower is better) and ``silhouette`` (higher is better).

    Raises
    ------
    MissingKeyError
        There is no such column, or no coordinates.
    InputError
        Fewer than two annotated spots.
    """
    labels = _column(adata, domain)
    scores: dict[str, float] = {}
    if annotation is not None:
        scores |= metrics.agreement(_column(adata, annotation).to_numpy(), labels.to_numpy())
    sample = None if sample_key is None else _column(adata, sample_key).to_numpy()
    return scores | metrics.continuity(labels.to_numpy(), coordinates_of(adata), sample)


# --- what is read ---------------------------------------------------------------------------


def coordinates_of(adata: ad.AnnData) -> np.ndarray:
    """``obsm["spatial"]`` as a float64 array (n, 2) or (n, 3).

    Raises
    ------
    MissingKeyError
        There is none.
    InputError
        It has another shape or is not numeric.
    """
    if keys.SPATIAL not in adata.obsm:
        found = ", ".join(map(repr, adata.obsm)) or "nothing"
        raise MissingKeyError(
            f'no coordinates: expected them in obsm["{keys.SPATIAL}"] (spots × 2 or 3), found {found} there. '
            f"Put them there, or read the file with a table of coordinates (on the command line: --coordinates)."
        )
    try:
        coordinates = np.asarray(adata.obsm[keys.SPATIAL], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f'obsm["{keys.SPATIAL}"] must hold numbers.') from error
    if coordinates.ndim != 2 or coordinates.shape[1] not in (2, 3):
        raise InputError(
            f'obsm["{keys.SPATIAL}"] must have 2 or 3 columns; found an array of shape {coordinates.shape}.'
        )
    return coordinates


def counts_of(adata: ad.AnnData) -> Any:
    """``layers["counts"]`` when there is one, else ``X``; not a copy.

    Raises
    ------
    MissingKeyError
        There is neither.
    """
    if keys.COUNTS in adata.layers:
        return adata.layers[keys.COUNTS]
    if adata.X is None:
        raise MissingKeyError(
            f'no counts: expected raw counts in layers["{keys.COUNTS}"] or X, found neither.'
        )
    return adata.X


def _representation(adata: ad.AnnData, key: str) -> np.ndarray:
    if key not in adata.obsm:
        raise MissingKeyError(f"obsm has no {key!r}; it has {', '.join(map(repr, adata.obsm)) or 'nothing'}.")
    return np.asarray(adata.obsm[key])


def _column(adata: ad.AnnData, name: Hashable) -> pd.Series:
    if name not in adata.obs:
        raise MissingKeyError(
            f"obs has no column {name!r}; it has {', '.join(map(repr, adata.obs.columns)) or 'none'}."
        )
    return adata.obs[name]


def describe(adata: ad.AnnData) -> list[str]:
    """A few lines on what a section holds, for a look before a run."""
    counts = counts_of(adata)
    totals = CountRows(counts).totals()
    coordinates = coordinates_of(adata)
    extent = " × ".join(f"{length:g}" for length in np.ptp(coordinates, axis=0))
    spacing = np.median(cKDTree(coordinates).query(coordinates, 2)[0][:, 1]) if adata.n_obs > 1 else 0.0
    lines = [
        f"{adata.n_obs} spots × {adata.n_vars} genes",
        f"counts: median {np.median(totals):g} a spot, from {totals.min():g} to {totals.max():g}",
        f"coordinates: {coordinates.shape[1]}-D, extent {extent}, median distance to the nearest spot {spacing:g}",
    ]
    for name in adata.obs.columns:
        column = adata.obs[name]
        lines.append(f"obs[{name!r}]: {column.nunique()} values, {column.isna().sum()} missing")
    return lines


# --- what is written ------------------------------------------------------------------------


def _categorical(labels: np.ndarray, n_domains: int, index: pd.Index) -> pd.Series:
    """Labels 0..K-1 as a categorical "1".."K"."""
    names = [str(k + 1) for k in range(n_domains)]
    return pd.Series(pd.Categorical.from_codes(labels, categories=names), index=index)


def _columns(table: pd.DataFrame) -> dict[str, np.ndarray]:
    return {name: table[name].to_numpy() for name in table.columns}


def _write_graph(adata: ad.AnnData, model: AMILST, config: Config) -> None:
    """squidpy's slots."""
    adata.obsp[keys.CONNECTIVITIES] = model.graph_.connectivities()
    adata.obsp[keys.DISTANCES] = model.graph_.distance_matrix()
    parameters: dict[str, Any] = {"n_neighbors": config.graph.n_neighbors, "coord_type": "generic"}
    if config.graph.radius is not None:
        parameters["radius"] = config.graph.radius
    adata.uns[keys.NEIGHBORS] = {
        "connectivities_key": keys.CONNECTIVITIES,
        "distances_key": keys.DISTANCES,
        "params": parameters,
    }


def _writable(value: Any) -> Any:
    """The same with what an h5ad can hold: no None, no tuples."""
    if isinstance(value, dict):
        return {name: _writable(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return np.asarray(value)
    return "none" if value is None else value


# --- a whole run, from a section to a folder of results --------------------------------------


def simulate_section(
    n_spots: int = 2000, n_genes: int = 500, n_domains: int = 7, **options: Any
) -> ad.AnnData:
    """A simulated section with its truth in ``obs["ground_truth"]``.

    Parameters
    ----------
    n_spots, n_genes, n_domains : int
        Size of the section.
    **options
        Passed to `amilst_lite.simulate.simulate_tissue`.

    Returns
    -------
    AnnData
        Counts (CSR float32) in ``X``, coordinates in µm in ``obsm["spatial"]``, the diameter of
        the spots among the scale factors of ``uns["spatial"]``.
    """
    tissue = simulate_tissue(n_spots, n_genes, n_domains, **options)
    return ad.AnnData(
        tissue.counts,
        obs=pd.DataFrame({"ground_truth": pd.Categorical(tissue.annotation)}, index=tissue.spot_names),
        var=pd.DataFrame(index=tissue.gene_names),
        obsm={keys.SPATIAL: tissue.coordinates},
        uns={
            keys.SPATIAL: {
                "simulated": {"scalefactors": {"spot_diameter_fullres": float(tissue.spot_diameter)}}
            }
        },
    )


def write_results(
    adata: ad.AnnData,
    folder: str | PathLike[str],
    *,
    source: str = "",
    annotation: str | None = None,
    sample_key: str | None = None,
    umap: bool = False,
    key_added: str = keys.DEFAULT_KEY,
) -> dict[str, Any]:
    """Leave a run's results in an existing folder.

    Parameters
    ----------
    adata : AnnData
        After `identify_domains`.
    folder : path-like
        Where ``result.h5ad``, ``domains.csv``, ``domains.png``, ``losses.png`` and ``run.json`` go,
        and ``selection.png`` when the number of domains was chosen.
    source : str
        What the section was read from, for the record.
    annotation : str, optional
        Column of ``obs`` to score against and to draw beside the domains.
    sample_key : str, optional
        As in `score`.
    umap : bool
        Draw ``umap.png`` as well (extra ``umap``; takes ten seconds and more).
    key_added : str
        As in `identify_domains`.

    Returns
    -------
    dict
        What ``run.json`` holds: input, scores, seed, device, settings, versions, seconds, peak
        memory, files, and ``left_out`` (what was not drawn, and why).
    """
    folder = Path(folder)
    names = keys.ResultKeys(key_added)
    record = adata.uns[names.record]
    started = time.perf_counter()
    logger.info("score")
    scores = {
        name: score(adata, annotation, domain=column, sample_key=sample_key)
        for name, column in (("domain", names.domain), ("refined", names.refined))
    }
    scored = time.perf_counter()
    pd.DataFrame(
        {
            "spot": adata.obs_names,
            "domain": adata.obs[names.domain].to_numpy(),
            "refined_domain": adata.obs[names.refined].to_numpy(),
            "probability": adata.obs[names.confidence].to_numpy(),
        }
    ).to_csv(folder / "domains.csv", index=False)
    left_out = _draw(adata, folder, annotation, umap, names)
    drawn = time.perf_counter()
    logger.info("write")
    _without_counts_on_disk(adata, left_out).write_h5ad(folder / "result.h5ad")
    written = time.perf_counter()
    seconds = {
        **record["seconds"],
        "score": scored - started,
        "draw": drawn - scored,
        "write": written - drawn,
    }
    seconds["total"] += written - started
    summary: dict[str, Any] = {
        "input": source,
        "n_spots": adata.n_obs,
        "n_genes": adata.n_vars,
        "n_domains": record["n_domains"],
        "selection": record["selection"],
        "annotation": annotation,
        "scores": scores,
        **{name: record[name] for name in ("preset", "config", "seed", "device", "estimate", "versions")},
        "seconds": seconds,
        "peak_memory": peak_memory(resolve_device(record["device"])),
        "left_out": left_out,
        "files": sorted([*(item.name for item in folder.iterdir()), "run.json"]),
    }
    text = json.dumps(summary, indent=2, default=lambda value: np.asarray(value).tolist())
    (folder / "run.json").write_text(text + "\n")
    return summary


def _without_counts_on_disk(adata: ad.AnnData, left_out: list[str]) -> ad.AnnData:
    """The same without an ``X`` that was left on disk: nobody wants a second copy of what fills it."""
    if adata.X is None or not is_on_disk(adata.X):
        return adata
    left_out.append("counts in result.h5ad: they were read from disk, and stay where they are")
    parts = {name: dict(getattr(adata, name)) for name in ("obsm", "varm", "obsp", "varp", "layers", "uns")}
    return ad.AnnData(obs=adata.obs, var=adata.var, **parts)


def _draw(
    adata: ad.AnnData, folder: Path, annotation: str | None, umap: bool, names: keys.ResultKeys
) -> list[str]:
    """The figures; what an absent package leaves out is said, not raised."""
    logger.info("draw")
    record = adata.uns[names.record]
    selection = {name: np.asarray(column) for name, column in record["selection"].items()}
    domains = adata.obs[names.domain]
    figures = {
        "domains.png": lambda: plot.domains(
            adata, key=names.domain, refined=names.refined, annotation=annotation
        ),
        "losses.png": lambda: plot.losses(record["losses"]),
    }
    if selection:
        figures["selection.png"] = lambda: plot.selection_curve(selection, record["n_domains"])
    if umap:
        figures["umap.png"] = lambda: plot.umap(adata.obsm[names.embedding], domains.to_numpy())
    left_out = []
    for name, draw in figures.items():
        try:
            plot.save(draw(), folder / name)
        except MissingExtraError as error:
            left_out.append(f"{name}: {error}")
    return left_out
