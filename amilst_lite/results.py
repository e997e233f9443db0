"""The output folder of a run: AnnData, table, figures and record."""

from __future__ import annotations

import errno
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from . import analysis, io, keys, plot
from .checkpoint import Checkpoint
from .distributed import alone, ranks
from .errors import InputError, MissingKeyError, recorded_warnings, warn
from .estimator import AMILST
from .preprocess import is_on_disk
from .progress import begin
from .report import write_report
from .slots import counts_of, record_of
from .summary import score_columns

__all__ = ["to_json", "write_figures", "write_results"]

logger = logging.getLogger("amilst_lite")

_MOST_SPOTS = 200_000
"""Above, analyses that take minutes or hold the counts in memory are left to `amilst analyze`."""
_SECTIONS = "sections"
"""Folder for the results of each section, where several processes have them."""
_ROWS = 200_000
"""Spots of the table that are written at a time."""
_MOST_MARKERS = 100
"""Genes of each domain in the table of marker genes."""
_FIGURES = ("domains", "composition", "losses", "markers", "selection", "shrinkage", "umap")
_FILES = (
    "result.h5ad", "domains.csv", "report.html", "model.h5", "run.json",
    *(f"{name}.csv" for name in analysis.CHEAP), *(f"{name}.png" for name in _FIGURES),
)  # fmt: skip


def write_results(
    adata: ad.AnnData,
    folder: str | PathLike[str],
    *,
    model: AMILST | None = None,
    source: str | Sequence[str] = "",
    annotation: str | None = None,
    umap: bool = False,
    key_added: str = keys.DEFAULT_KEY,
    earlier_warnings: Sequence[str] = (),
    command: str | None = None,
    n_spots: int | None = None,
    checkpoint: Checkpoint | None = None,
) -> dict[str, Any]:
    """Write the results of a run into a folder.

    Files of an earlier run in the folder are replaced once all are written; other files are kept. What fails is
    left out with a warning; if the disk is full or fails, or the function is interrupted, nothing is changed. The
    analyses that take seconds (`amilst_lite.analysis.CHEAP`) are run and written into ``adata`` and as tables.

    Parameters
    ----------
    adata : AnnData
        After `identify_domains` or `apply_model`.
    folder : path-like
        Folder for ``result.h5ad``, ``domains.csv``, ``report.html``, ``run.json``, the tables of the analyses
        (``markers.csv``, ...), ``domains.png``, ``losses.png``, ``markers.png`` and ``shrinkage.png``; ``model.h5`` if
        the model is given, ``composition.png`` if there are several sections, and ``selection.png`` if the number
        of domains was chosen. Created if missing.
    model : AMILST, optional
        What `identify_domains` has returned.
    source : str or sequence of str
        What the section, or each of several, was read from, for the record.
    annotation : str, optional
        Column of ``obs`` to score against and to draw beside the domains.
    umap : bool
        Compute the UMAP of the embedding (extra ``umap``; takes ten seconds or more), write it into
        ``obsm["X_amilst_umap"]``, and draw it: ``umap.png`` and beside the sections in the report.
    key_added : str
        As in `identify_domains`.
    earlier_warnings : sequence of str
        Warnings issued before `identify_domains`, for example by the reader, for the record.
    command : str, optional
        The command that repeats the run, for the record.
    n_spots : int, optional
        If ``adata`` holds some of the spots of the run: how many it had. What needs all of them, such as the
        neighbor graph, is left out; see `gathered`.
    checkpoint : Checkpoint, optional
        That of `identify_domains`; keeps analyses, scores and figures as well.

    Returns
    -------
    dict
        The content of ``run.json``: input, settings, scores, seed, device, versions, seconds, peak memory,
        warnings, files, and ``left_out`` (what was not written, and why).

    Raises
    ------
    MissingKeyError
        ``adata`` has no results under ``key_added``, or no column ``annotation``.
    InputError
        The folder cannot be written, the disk is full or fails, or ``adata`` is on disk in the file to be written.

    Warns
    -----
    AmilstWarning
        A figure or the scores failed; the message names the file.
    """
    names = keys.ResultKeys(key_added)
    record = _checked_record(adata, names, annotation)
    _check_not_its_own_file(adata, folder)
    checkpoint = Checkpoint() if checkpoint is None else checkpoint
    if checkpoint.folder is not None:
        checkpoint.begin(*_inputs(adata, names, annotation))
    started = time.perf_counter()
    summary: dict[str, Any] = {
        "input": source,
        "command": command,
        "n_spots": n_spots or adata.n_obs,
        "n_genes": adata.n_vars,
        "n_domains": record["n_domains"],
        "selection": record["selection"],
        "shrinkage": record.get("shrinkage", {}),
        "network_share": record.get("network_share", {}),
        "integration": record.get("integration", {}),
        "annotation": annotation,
        "sample_key": record.get("sample_key"),
        "use_rep": record.get("use_rep"),
        "coordinates": {
            name: record[name] for name in ("coordinate_unit", "micrometers_per_unit") if name in record
        },
        "model": record.get("model"),
        "scores": {},
        **{name: record[name] for name in ("preset", "config", "seed", "device", "estimate", "versions")},
        "seconds": dict(record["seconds"]),
        "peak_memory": record["peak_memory"],
        "processes": record.get("processes", {"n": 1}),
    }
    left_out: list[str] = []
    made: list[str] = []

    def attempt(name: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # whatever the reason, the rest of the results is kept
            failure = io.disk_error(error, place)
            if failure is not None:  # every other file would fail, too
                raise failure from error
            if name in _FILES:
                (place / name).unlink(missing_ok=True)
            reason = " ".join(str(error).split()) or type(error).__name__
            left_out.append(f"{name}: {reason}")
            warn(f"{name} was left out: {reason}")
        else:
            if name in _FILES and (place / name).exists():
                made.append(name)

    def timed(stage: str, since: float) -> float:
        now = time.perf_counter()
        summary["seconds"][stage] = now - since
        summary["seconds"]["total"] = record["seconds"]["total"] + now - started
        return now

    def write_record() -> None:
        if not all((place / name).exists() for name in made):  # the folder is being removed
            raise FileNotFoundError(errno.ENOENT, "its files have disappeared", str(place))
        found = [*earlier_warnings, *record.get("warnings", ()), *issued]
        summary["warnings"] = list(dict.fromkeys(found))  # a figure and the report may have the same
        summary["left_out"] = left_out
        summary["files"] = [name for name in _FILES if name == "run.json" or (place / name).exists()]
        if some_spots:
            summary["files"] += ["domains.csv", _SECTIONS]
        (place / "run.json").write_text(to_json(summary) + "\n", encoding="utf-8")

    def write_scores() -> None:
        columns = {"domain": names.domain, "refined": names.refined}
        found = checkpoint.stage("scores", lambda: score_columns(adata, annotation, list(columns.values())))
        summary["scores"] = dict(zip(columns, found, strict=True))

    tables: dict[str, pd.DataFrame] = {}

    too_large = is_on_disk(counts_of(adata)) or adata.n_obs > _MOST_SPOTS
    some_spots = n_spots is not None and n_spots > adata.n_obs
    if some_spots:
        left_out.append(
            f"result.h5ad, report.html and figures: {adata.n_obs} of {n_spots} spots, evenly spaced; all are in "
            f"{_SECTIONS}/ and domains.csv"
        )

    def analyze(name: str) -> None:
        if some_spots and name not in ("markers", "composition"):
            left_out.append(f"{name}.csv: it needs all spots; amilst analyze makes it of each section")
            return
        if too_large and name in ("markers", "shapes"):
            left_out.append(f"{name}.csv: the section is large; amilst analyze makes it")
            return
        options = {"n_genes": _MOST_MARKERS} if name == "markers" else {}
        tables.update(
            _analyzed(
                adata, checkpoint, name, lambda: analysis.run(adata, [name], key_added=key_added, **options)
            )
        )
        write_table(tables[name], place / f"{name}.csv")

    with io.atomic_files(folder, _FILES) as place, recorded_warnings() as issued:
        if not some_spots:
            _write_domains(adata, names, place / "domains.csv")
            made.append("domains.csv")
        begin("analyze")
        for name in analysis.CHEAP:
            attempt(f"{name}.csv", lambda name=name: analyze(name))  # type: ignore[misc]
        if umap and names.umap not in adata.obsm:
            compute = partial(analysis.umap, adata, key_added=key_added)
            attempt("umap.png", lambda: _analyzed(adata, checkpoint, "umap", compute))
        started_writing = timed("analyze", started)
        begin("write")
        written = _without_data_on_disk(adata, left_out)
        attempt("result.h5ad", lambda: io.write_h5ad(written, place / "result.h5ad"))
        if model is not None and model.fitted_ is not None:
            attempt("model.h5", lambda: model.save(place / "model.h5"))
        then = timed("write", started_writing)
        write_record()
        begin("score")
        attempt("scores", write_scores)
        then = timed("score", then)
        begin("draw")
        drawn_umap = umap and names.umap in adata.obsm
        for name, draw in _figures(adata, record, names, annotation, drawn_umap).items():
            file = place / f"{name}.png"
            attempt(file.name, partial(_draw, checkpoint, file, draw))
        then = timed("draw", then)
        write_record()  # with the warnings so far, which the report shows
        begin("report")
        attempt(
            "report.html",
            lambda: write_report(
                adata, place / "report.html", key_added=key_added, annotation=annotation, summary=summary,
                command=command, analyses=tables,
            ),
        )  # fmt: skip
        timed("report", then)
        write_record()
    return summary


@contextmanager
def gathered(
    adata: ad.AnnData, folder: Path, *, key_added: str = keys.DEFAULT_KEY
) -> Iterator[tuple[ad.AnnData | None, int]]:
    """The results of several processes, for `write_results` by the first one; the others wait meanwhile.

    Of more than 200,000 spots, evenly spaced ones are gathered, without their graph; every process then writes its
    sections, in full, to ``folder/sections``, and all together ``folder/domains.csv``.

    Yields
    ------
    AnnData or None
        None in all processes but the first.
    int
        Number of spots of all processes.
    """
    group, names = ranks(), keys.ResultKeys(key_added)
    n_spots = group.sum(adata.n_obs)
    record = _checked_record(adata, names, None)
    step = -(-n_spots // _MOST_SPOTS)
    part = adata
    if step > 1:
        own = group.own(np.arange(0, n_spots, step), adata.n_obs)
        layers = {name: adata.layers[name] for name in adata.layers if name is not None}
        without_graph = ad.AnnData(adata.X, adata.obs, adata.var, obsm=dict(adata.obsm), layers=layers)
        part = without_graph[own].copy()
        _write_sections(adata, folder / _SECTIONS, record.get("sample_key"))
        _write_domains(adata, names, folder / f".domains.{group.rank}")
    parts = group.to_first(part)
    memory = group.objects(record["peak_memory"]["ram_bytes"])
    together = None
    if parts is not None:
        together = ad.concat(parts, merge="same", pairwise=step == 1)
        together.uns = dict(adata.uns)
        together.uns[names.record] = record | {
            "processes": {"n": group.size, "ram_bytes": np.array([str(each) for each in memory])}
        }
    del part, parts
    with alone():
        yield together, n_spots
    if together is not None and step > 1:
        with (folder / "domains.csv").open("wb") as whole:
            for rank in range(group.size):
                piece = folder / f".domains.{rank}"
                with piece.open("rb") as lines:
                    if rank > 0:
                        lines.readline()  # the names of the columns
                    shutil.copyfileobj(lines, whole)
                piece.unlink()
    group.wait()


def _write_sections(adata: ad.AnnData, folder: Path, sample_key: str | None) -> None:
    """One file for each section of this process."""
    folder.mkdir(exist_ok=True)
    for name, rows in adata.obs.groupby(sample_key, observed=True).indices.items():
        io.write_h5ad(adata[rows].copy(), folder / f"{name}.h5ad")


def write_figures(
    adata: ad.AnnData,
    folder: str | PathLike[str],
    *,
    annotation: str | None = None,
    umap: bool = False,
    suffix: str = ".png",
    key_added: str = keys.DEFAULT_KEY,
) -> list[str]:
    """Draw the figures of `write_results` into a folder.

    Parameters
    ----------
    adata, annotation, key_added
        As in `write_results`.
    folder : path-like
        An existing folder.
    umap : bool
        Compute a UMAP, if ``adata`` has none; one that it has is drawn.
    suffix : str
        Format of the files: ``".png"``, ``".svg"`` or ``".pdf"``.

    Returns
    -------
    list of str
        Names of the files.

    Raises
    ------
    MissingKeyError
        ``adata`` has no results under ``key_added``, or no column ``annotation``.
    """
    names = keys.ResultKeys(key_added)
    record = _checked_record(adata, names, annotation)
    figures = _figures(adata, record, names, annotation, umap or names.umap in adata.obsm)
    for name, draw in figures.items():
        plot.save(draw(), Path(folder) / f"{name}{suffix}")
    return [f"{name}{suffix}" for name in figures]


def write_table(table: pd.DataFrame, path: str | PathLike[str]) -> None:
    """Write a table of an analysis as CSV: without numbers of rows; rows whose index has no name are spots."""
    numbered = pd.api.types.is_integer_dtype(table.index)
    table.to_csv(path, index=not numbered, index_label=None if numbered else table.index.name or "spot")


def to_json(value: Any) -> str:
    """``value`` as strictly valid JSON: NaN and infinity become null, NumPy types plain ones."""
    return json.dumps(_plain(value), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | bool | int) else str(value)


def _checked_record(adata: ad.AnnData, names: keys.ResultKeys, annotation: str | None) -> dict[str, Any]:
    record = record_of(adata, names.key_added) if isinstance(adata, ad.AnnData) else None
    if record is None:
        raise MissingKeyError(
            f"adata has no results under key_added={names.key_added!r}. Run identify_domains first."
        )
    for column in (names.domain, names.refined, names.confidence, annotation):
        if column is not None and column not in adata.obs:
            raise MissingKeyError(
                f"obs has no column {column!r}; it has {', '.join(map(repr, adata.obs.columns))}."
            )
    return record


def _check_not_its_own_file(adata: ad.AnnData, folder: str | PathLike[str]) -> None:
    target = Path(folder) / "result.h5ad"
    if adata.isbacked and Path(adata.filename).resolve() == target.resolve():
        raise InputError(f"adata is read from {target}, which would be overwritten. Choose another folder.")


def _write_domains(adata: ad.AnnData, names: keys.ResultKeys, path: Path) -> None:
    """The table of the spots, block by block: pandas turns what it writes into text as a whole."""
    columns = {"domain": names.domain, "refined_domain": names.refined, "probability": names.confidence}
    for start in range(0, max(adata.n_obs, 1), _ROWS):
        rows = slice(start, start + _ROWS)
        block = pd.DataFrame(
            {
                "spot": adata.obs_names[rows],
                **{name: adata.obs[column].iloc[rows].to_numpy() for name, column in columns.items()},
            }
        )
        block.to_csv(path, index=False, header=start == 0, mode="a")


def _without_data_on_disk(adata: ad.AnnData, left_out: list[str]) -> ad.AnnData:
    """``adata`` without an ``X`` and ``.raw`` that are on disk, of which a copy would take as much space."""
    if adata.X is None or not is_on_disk(adata.X):
        return adata
    left_out.append("X in result.h5ad: the counts were read from disk and remain in the input")
    raw = None
    if adata.raw is not None and is_on_disk(adata.raw.X):
        left_out.append("raw in result.h5ad: it was read from disk and remains in the input")
    elif adata.raw is not None:
        raw = {"X": adata.raw.X, "var": adata.raw.var, "varm": dict(adata.raw.varm)}
    for line in left_out:
        logger.info("left out: %s", line)
    parts = {name: dict(getattr(adata, name)) for name in ("obsm", "varm", "obsp", "varp", "layers", "uns")}
    parts["layers"].pop(None, None)  # X, since anndata 0.13
    return ad.AnnData(obs=adata.obs, var=adata.var, raw=raw, **parts)


def _inputs(adata: ad.AnnData, names: keys.ResultKeys, annotation: str | None) -> list[Any]:
    """What analyses, scores and figures depend on, besides the input of the run."""
    parts: list[Any] = [names.key_added, annotation, np.asarray(adata.obsm.get(names.embedding, ()))]
    for column in (names.domain, names.refined, annotation):
        if column is not None:
            codes, values = pd.factorize(adata.obs[column])
            parts += [codes, [str(value) for value in values]]
    return parts


def _analyzed(adata: ad.AnnData, checkpoint: Checkpoint, name: str, compute: Callable[[], Any]) -> Any:
    """What an analysis returns; what it writes into ``adata`` is taken from the checkpoint, too."""
    before = {place: dict(getattr(adata, place)) for place in ("obsm", "uns")}

    def pack(result: Any) -> dict[str, Any]:
        written = {
            place: {
                key: value for key, value in getattr(adata, place).items() if value is not earlier.get(key)
            }
            for place, earlier in before.items()
        }
        return {"result": result, **written}

    def unpack(kept: dict[str, Any]) -> Any:
        for place in before:
            getattr(adata, place).update(kept[place])
        return kept["result"]

    return checkpoint.stage(f"analysis-{name}", compute, pack, unpack)


def _draw(checkpoint: Checkpoint, file: Path, draw: Callable[[], Any]) -> None:
    """Write a figure, which is kept as its bytes."""

    def drawn() -> bytes:
        plot.save(draw(), file)
        return file.read_bytes()

    content = checkpoint.stage(
        f"figure-{file.stem}", drawn, lambda data: np.frombuffer(data, dtype=np.uint8), np.ndarray.tobytes
    )
    if not file.exists():
        file.write_bytes(content)


def _figures(
    adata: ad.AnnData, record: dict[str, Any], names: keys.ResultKeys, annotation: str | None, umap: bool
) -> dict[str, Callable[[], Any]]:
    """Name of a figure → function that draws it."""
    figures: dict[str, Callable[[], Any]] = {
        "domains": lambda: plot.domains(
            adata, key=names.domain, refined=names.refined, annotation=annotation, confidence=names.confidence
        )
    }
    key_added = names.key_added
    if record["losses"]:
        figures["losses"] = lambda: plot.losses(adata, key_added=key_added)
    sample_key = record.get("sample_key")
    if sample_key in adata.obs and adata.obs[sample_key].nunique() > 1:
        figures["composition"] = lambda: plot.composition(adata, sample_key, key=names.domain)
    if record["selection"]:
        figures["selection"] = lambda: plot.selection_curve(adata, key_added=key_added)
    if len(record.get("shrinkage", {}).get("shares", ())) > 1:
        figures["shrinkage"] = lambda: plot.shrinkage_curve(adata, key_added=key_added)
    if names.markers in adata.uns:
        figures["markers"] = lambda: plot.marker_genes(adata, key_added=key_added)
    if umap:
        figures["umap"] = lambda: plot.umap(adata, key_added=key_added)
    return figures
