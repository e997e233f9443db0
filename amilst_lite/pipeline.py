"""Functions on AnnData: identify the domains of one or more sections, score them.

They fetch arrays from the AnnData, call the modules that work on arrays, and write the results into the
slots named in `keys`.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse

from . import io, keys, metrics
from .checkpoint import Checkpoint
from .config import Config
from .distributed import ranks, sampled
from .errors import InputError, MissingKeyError, recorded_warnings
from .estimator import AMILST, validate
from .fitted_model import Prediction
from .preprocess import CountRows, FittedPreparation, is_on_disk, prepare
from .progress import begin
from .resources import Estimate, check_memory, estimate
from .runtime import peak_memory, resolve_device, stage_seed, standard_math, versions
from .simulate import simulate_tissue
from .slots import (
    check_anndata,
    check_not_a_view_on_disk,
    check_slots,
    coordinates_of,
    counts_of,
    record_of,
    representation_of,
    sections_column,
    writable,
    write_run,
)
from .spatial.graph import SpatialGraph
from .spatial.neighbors import check_coordinates, section_codes
from .train import Callback, ShareEvidence, network_share

__all__ = ["apply_model", "estimate_run", "identify_domains", "repeat_run", "simulate_section"]

logger = logging.getLogger("amilst_lite")


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
    checkpoint: Checkpoint | None = None,
    **settings: Any,
) -> AMILST:
    """Identify spatial domains and write them into ``adata``.

    Parameters
    ----------
    adata : AnnData
        Raw counts in ``layers["counts"]`` or ``X`` (never changed), coordinates in ``obsm["spatial"]``.
    n_domains : int, optional
        Number of domains K, >= 2. If not given, K is chosen by the likelihood of held-out blocks; the table of
        all candidates is in ``uns["amilst"]["selection"]``.
    seed : int
        In [0, 2**32). The same seed, machine and number of threads give identical results.
    preset : str
        ``"default"``, or ``"published"`` for the settings of the published program.
    device : str
        ``"auto"`` (CUDA if available), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    key_added : str
        Prefix of the names of all slots written.
    sample_key : str, optional
        Column of ``obs`` with the section of each spot; no edge connects two sections, and section effects are
        corrected as far as held-out spots support it (setting ``batch_correction``).
    use_rep : str, optional
        Matrix of ``obsm`` to use as features instead of the counts, for example ``"X_pca"``.
    callback : callable, optional
        Called after each epoch with (epoch, n_epochs, losses by name). Clustering then waits for the training.
    checkpoint : Checkpoint, optional
        Keeps the results of long stages in a folder, from which the same call continues after it was killed.
    **settings
        Settings that differ from the preset's, by name: ``n_neighbors=6``.

    Returns
    -------
    AMILST
        The fitted model, for `apply_model` and ``save``. All results are in ``adata``.

    Raises
    ------
    InputError, MissingKeyError
        The input cannot be used; the message says what was expected, what was found and what to do.
    InsufficientMemoryError
        The estimated memory exceeds the available memory.
    MissingExtraError
        Leiden is selected and igraph is not installed.
    TrainingDivergedError
        A loss is not finite.

    Notes
    -----
    Written, for ``key_added="amilst"``: ``obsm["X_amilst"]`` (what is clustered),
    ``obsm["X_amilst_latent"]`` (the latent representation), ``obsm["X_amilst_pca"]`` (unless ``use_rep`` is
    given), ``obs["amilst_domain"]``, ``obs["amilst_domain_refined"]``, ``obs["amilst_confidence"]``,
    ``uns["amilst"]``, ``uns["amilst_domain_colors"]`` and ``uns["amilst_domain_refined_colors"]``. The
    neighbor graph is written to
    ``obsp["spatial_connectivities"]``, ``obsp["spatial_distances"]`` and ``uns["spatial_neighbors"]`` if
    these are free or from an earlier run with the same ``key_added``, otherwise to
    ``obsp["amilst_connectivities"]``, ``obsp["amilst_distances"]`` and ``uns["amilst_neighbors"]``;
    ``uns["amilst"]["connectivities_key"]`` and ``["distances_key"]`` say which. Nothing is written before
    everything has been computed. A view in memory becomes an actual AnnData.

    Examples
    --------
    >>> identify_domains(adata, n_domains=7, seed=0)
    >>> adata.obs["amilst_domain"]
    """
    with standard_math(), recorded_warnings() as issued:
        start = time.perf_counter()
        # Validation: everything that can be refused is refused here, before the first expensive step.
        names = keys.ResultKeys(key_added)
        check_anndata(adata)
        check_not_a_view_on_disk(adata)
        model = AMILST(
            n_domains, seed=seed, preset=preset, settings=settings, device=device, callback=callback
        )
        config = model.resolve_config()
        validate(config, adata.n_obs, n_domains, seed)
        resolved = resolve_device(device)
        coordinates = check_coordinates(coordinates_of(adata))
        sample: Any = None if sample_key is None else sections_column(adata, sample_key)
        check_slots(adata, names)
        representation = None if use_rep is None else representation_of(adata, use_rep)
        n_sections = 1 if sample is None else len(pd.unique(sample))
        needed = estimate_run(
            adata, n_domains, config=config, device=resolved, use_rep=use_rep, n_sections=n_sections
        )
        logger.info("%s", needed)
        check_memory(needed, resolved)
        if adata.is_view:  # the setters would do the same later, with a warning
            adata._init_as_actual(adata.copy())
        checkpoint = Checkpoint() if checkpoint is None else checkpoint
        values = counts_of(adata) if representation is None else representation
        checkpoint.begin(
            config.to_dict(), preset, seed, n_domains, str(resolved), torch.get_num_threads(), use_rep, adata.shape,
            list(adata.var_names), coordinates, *([] if sample is None else _codes_and_names(sample)),
            *([] if checkpoint.folder is None else _content(values)),
        )  # fmt: skip

        begin("graph")
        graph = checkpoint.stage(
            "graph",
            lambda: SpatialGraph.from_coordinates(
                coordinates,
                n_neighbors=config.graph.n_neighbors,
                radius=config.graph.radius,
                sample=sample,
                device=resolved,
            ),
            SpatialGraph.to_arrays,
            SpatialGraph.from_arrays,
        )
        graphed = time.perf_counter()
        depth = fitted_preparation = None
        prepared = graphed
        if representation is None:
            begin("prepare")
            counts = counts_of(adata)
            codes = None if sample is None else ranks().numbered(section_codes(sample, len(sample))[0])

            def prepared_counts() -> tuple[np.ndarray, np.ndarray, FittedPreparation, np.ndarray]:
                preparation = prepare(
                    counts,
                    config.preprocess,
                    graph.connectivities,
                    order=graph.order,
                    sections=codes,
                    seed=stage_seed(seed, "prepare"),
                    device=resolved,
                )
                fitted = FittedPreparation.of(preparation, adata.var_names, config.preprocess.normalization)
                return preparation.features, preparation.depth, fitted, preparation.genes

            features, depth, fitted_preparation, genes = checkpoint.stage(
                "prepare",
                prepared_counts,
                lambda done: {
                    "features": done[0],
                    "depth": done[1],
                    "fitted": done[2].to_arrays(),
                    "genes": done[3],
                },
                lambda arrays: _stored_preparation(arrays, adata.var_names, config),
            )
            prepared = time.perf_counter()
        else:
            features = representation
        evidence: list[ShareEvidence] = []

        def decide_share() -> float:
            found = checkpoint.stage(
                "share",
                lambda: network_share(
                    counts, graph, config, genes=genes, seed=stage_seed(seed, "share"), device=resolved
                ),
                unpack=lambda fields: ShareEvidence(**fields),
            )
            evidence.append(found)
            return found.share

        model._fit(
            features, coordinates, sample, graph, depth, checkpoint,
            decide_share if representation is None and _share_is_open(config) else None,
        )  # fmt: skip
        share = evidence[0] if evidence else None
        if share is not None:
            model.settings = {**settings, "network_share": share.share}
        if model.fitted_ is not None:
            model.fitted_ = model.fitted_.with_input(fitted_preparation, use_rep)

        result = Prediction(
            model.labels_, model.refined_labels_, model.probabilities_, model.embedding_, model.latent_,
            model.section_effect_, model.graph_,
        )  # fmt: skip
        record: dict[str, Any] = {
            "n_domains": model.n_domains_,
            "selection": {} if model.selection_ is None else _columns(model.selection_.table),
            "shrinkage": {} if model.evidence_ is None else writable(dataclasses.asdict(model.evidence_)),
            "network_share": {} if share is None else writable(dataclasses.asdict(share)),
            "integration": {} if sample is None else _integration_record(result, sample),
            "preset": preset,
            "config": writable(model.config_.to_dict()),
            "seed": int(seed),
            "device": str(resolved),
            "estimate": writable(dataclasses.asdict(needed)),
            "versions": versions(),
            "losses": {name: np.asarray(series) for name, series in model.history_.items()},
            "seconds": {
                "graph": graphed - start,
                "prepare": prepared - graphed,
                **model.seconds_,
                "total": time.perf_counter() - start,
            },
            "peak_memory": writable(peak_memory(resolved)),
        }
    record["warnings"] = np.asarray(issued, dtype=object)
    record |= io.unit_of(adata)
    record |= {
        name: key for name, key in (("sample_key", sample_key), ("use_rep", use_rep)) if key is not None
    }
    write_run(adata, names, model.config_, result, record, None if use_rep is not None else features)
    logger.info(
        "%d domains of %d to %d spots, mean confidence %.2f, in obs[%r]; %.1f s",
        model.n_domains_, *np.sort(np.bincount(model.labels_, minlength=model.n_domains_))[[0, -1]],
        model.confidence_.mean(), names.domain, record["seconds"]["total"],
    )  # fmt: skip
    return model


def apply_model(
    adata: ad.AnnData,
    model: AMILST | str | PathLike[str],
    *,
    device: str = "auto",
    key_added: str = keys.DEFAULT_KEY,
    sample_key: str | None = None,
) -> None:
    """Label new sections with a trained model and write the domains into ``adata``.

    Domain "1" here is domain "1" of the training. The effect of each new section is estimated from itself and
    removed by the method that training used (`AMILST.apply`).

    Parameters
    ----------
    adata : AnnData
        As for `identify_domains`. Genes may be in another order; unknown ones are ignored, missing ones are
        predicted from the others. A model trained on a matrix of ``obsm`` (``use_rep``) takes that matrix.
    model : AMILST or path
        The result of `identify_domains`, or the file of its ``save`` or of ``amilst run`` (``model.h5``).
    device : str
        As in `identify_domains`.
    key_added : str
        Prefix of the names of all slots written; the slots are those of `identify_domains`.
    sample_key : str, optional
        Column of ``obs`` with the section of each spot, if there are several.

    Raises
    ------
    InputError, MissingKeyError
        The model or the input cannot be used, or half of what the model needs is missing.
    InsufficientMemoryError
        The estimated memory exceeds the available memory.

    Warns
    -----
    AmilstWarning
        Missing genes have more than a tenth of the variance that the model uses.

    Examples
    --------
    >>> model = identify_domains(adata, n_domains=7)
    >>> apply_model(other, model)
    """
    with standard_math(), recorded_warnings() as issued:
        start = time.perf_counter()
        names = keys.ResultKeys(key_added)
        check_anndata(adata)
        check_not_a_view_on_disk(adata)
        resolved = resolve_device(device)
        fitted = (model if isinstance(model, AMILST) else AMILST.load(model))._fitted()
        coordinates = check_coordinates(coordinates_of(adata))
        sample: Any = None if sample_key is None else sections_column(adata, sample_key)
        codes, _ = section_codes(sample, adata.n_obs)
        check_slots(adata, names)
        if fitted.preparation is None and fitted.use_rep is None:
            raise InputError(
                "the model was trained on an array and does not say how to compute its features. Compute them as for "
                "training and use AMILST.apply, or train with identify_domains."
            )
        representation = None if fitted.use_rep is None else representation_of(adata, fitted.use_rep)
        needed = estimate_run(
            adata, fitted.n_domains, config=fitted.config, device=resolved, use_rep=fitted.use_rep
        )
        check_memory(needed, resolved)
        if adata.is_view:
            adata._init_as_actual(adata.copy())

        begin("graph")
        graph = fitted.make_graph(coordinates, sample, resolved)
        graphed = prepared = time.perf_counter()
        depth, features = None, representation
        if fitted.preparation is not None:
            begin("prepare")
            features, depth = fitted.preparation.apply(counts_of(adata), adata.var_names, device=resolved)
            prepared = time.perf_counter()
        begin("apply")
        result = fitted.apply(
            torch.from_numpy(features), graph, coordinates, codes, depth=depth, device=resolved
        )
        now = time.perf_counter()
        record: dict[str, Any] = {
            "n_domains": fitted.n_domains,
            "selection": {},
            "shrinkage": {},
            "network_share": {},
            "integration": _integration_record(result, ["input"] * adata.n_obs if sample is None else sample),
            "preset": fitted.preset,
            "config": writable(fitted.config.to_dict()),
            "seed": fitted.seed,
            "device": str(resolved),
            "estimate": writable(dataclasses.asdict(needed)),
            "versions": versions(),
            "losses": {},
            "seconds": {
                "graph": graphed - start, "prepare": prepared - graphed, "apply": now - prepared, "total": now - start,
            },
            "peak_memory": writable(peak_memory(resolved)),
            "model": "in memory" if isinstance(model, AMILST) else Path(model).name,
        }  # fmt: skip
    record["warnings"] = np.asarray(issued, dtype=object)
    record |= io.unit_of(adata)
    given = (("sample_key", sample_key), ("use_rep", fitted.use_rep))
    record |= {name: key for name, key in given if key is not None}
    write_run(adata, names, fitted.config, result, record, None if fitted.preparation is None else features)


def repeat_run(adata: ad.AnnData, key_added: str = keys.DEFAULT_KEY) -> Callable[[ad.AnnData], AMILST]:
    """A function that runs `identify_domains` on another AnnData as it was run on this one.

    Parameters
    ----------
    adata : AnnData
        After `identify_domains`.
    key_added : str
        As in that run.

    Returns
    -------
    callable
        For example the argument ``identify`` of `amilst_lite.analysis.marker_genes`.

    Raises
    ------
    MissingKeyError
        There is no such run, or it used a matrix of ``obsm`` instead of counts.
    """
    record = record_of(adata, key_added)
    if record is None or "use_rep" in record or "model" in record:
        raise MissingKeyError(
            f"adata has no run of identify_domains on counts under key_added={key_added!r} that could be repeated. "
            "Run it first."
        )
    settings: dict[str, Any] = {
        name: None if isinstance(value, str) and value == "none" and name != "batch_correction" else value
        for part in record["config"].values()
        for name, value in part.items()
    }

    def identify(other: ad.AnnData) -> AMILST:
        return identify_domains(
            other, int(record["n_domains"]), seed=int(record["seed"]), preset=str(record["preset"]),
            key_added=key_added, sample_key=record.get("sample_key"), **settings,
        )  # fmt: skip

    return identify


def estimate_run(
    adata: ad.AnnData,
    n_domains: int | None = None,
    *,
    config: Config | None = None,
    device: str | torch.device = "auto",
    use_rep: str | None = None,
    n_sections: int = 1,
    n_processes: int = 1,
) -> Estimate:
    """Estimate the memory and time of `identify_domains` and of writing its results.

    Parameters
    ----------
    adata : AnnData
        Counts in memory or on disk.
    n_domains, device, use_rep
        As in `identify_domains`.
    config : Config, optional
        The settings; the default preset's if not given.
    n_sections : int
        Number of sections.
    n_processes : int
        Number of processes that share the run; the estimate is for each of them, with a core for each.

    Raises
    ------
    InputError
        ``n_processes`` is not positive.
    """
    check_anndata(adata)
    if n_processes < 1:
        raise InputError(f"n_processes (--processes) must be at least 1; found {n_processes}.")
    config = Config() if config is None else config
    n_spots, n_sections = -(-adata.n_obs // n_processes), -(-n_sections // n_processes)
    resolved = resolve_device(device)
    if use_rep is not None:
        width = representation_of(adata, use_rep).shape[1]
        return estimate(
            n_spots, 0, config.replace(n_components=width), n_domains=n_domains, n_sections=n_sections,
            device=resolved,
        )  # fmt: skip
    counts = counts_of(adata)
    n_entries = counts.nnz if sparse.issparse(counts) else CountRows(counts).n_entries
    return estimate(
        n_spots,
        -(-n_entries // n_processes),
        config,
        n_domains=n_domains,
        n_genes=adata.n_vars,
        n_sections=n_sections,
        on_disk=is_on_disk(counts) and n_processes == 1,
        device=resolved,
    )


def _integration_record(result: Prediction, sample: Any) -> dict[str, Any]:
    """What was done about section effects, for the record."""
    effect = result.section_effect
    codes, sections = section_codes(sample, len(sample))
    codes = ranks().numbered(codes)
    sections = [section for names in ranks().objects(sections) for section in names]
    return {
        "batch_correction": effect.method,
        "strength": effect.strength,
        "log_likelihood": dict(effect.log_likelihood),
        "nmi_section": dict(effect.nmi),
        "sections": np.asarray([str(section) for section in sections], dtype=object),
        "shift": effect.shift,
        "nmi_domain_section": metrics.normalized_mutual_info(*sampled(codes, result.labels)),
    }


def simulate_section(
    n_spots: int = 2000, n_genes: int = 500, n_domains: int = 7, **options: Any
) -> ad.AnnData:
    """Simulate a section with known domains.

    Parameters
    ----------
    n_spots, n_genes, n_domains : int
        Size of the section.
    **options
        Passed to `amilst_lite.simulate.simulate_tissue`.

    Returns
    -------
    AnnData
        Counts (CSR float32) in ``X``, coordinates in µm in ``obsm["spatial"]``, the true domains in
        ``obs["ground_truth"]``, the spot diameter in the scale factors of ``uns["spatial"]``, the unit in
        ``uns["amilst_input"]``.
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
            },
            keys.INPUT: {
                "platform": "simulation",
                "coordinate_unit": "micrometer",
                "geometry": "free",
                "left_out": {},
            },
        },
    )


def _codes_and_names(sample: Any) -> tuple[np.ndarray, list[str]]:
    """The section of each spot as a number, and the names of the sections."""
    codes, names = section_codes(sample, len(sample))
    return codes, [str(name) for name in names]


def _content(values: Any) -> list[np.ndarray]:
    """The arrays of a matrix in memory; of one on disk nothing, since reading it takes as long as a stage."""
    if sparse.issparse(values):
        matrix = values.tocsr()
        return [matrix.data, matrix.indices, matrix.indptr]
    return [] if is_on_disk(values) else [np.asarray(values)]


def _stored_preparation(
    arrays: dict[str, Any], genes: pd.Index, config: Config
) -> tuple[np.ndarray, np.ndarray, FittedPreparation, np.ndarray]:
    """Features, depth, fitted preparation and mask of the genes, from a checkpoint."""
    mask = arrays["genes"]
    fitted = FittedPreparation.from_arrays(
        arrays["fitted"], [str(name) for name in genes[mask]], config.preprocess.normalization
    )
    return arrays["features"], arrays["depth"], fitted, mask


def _share_is_open(config: Config) -> bool:
    """Whether the share of the network is to be decided by held-out counts."""
    cluster = config.cluster
    return (
        cluster.network_share is None
        and cluster.cluster_on == "consensus"
        and config.train.recipe == "default"
    )


def _columns(table: pd.DataFrame) -> dict[str, np.ndarray]:
    return {name: table[name].to_numpy() for name in table.columns}
