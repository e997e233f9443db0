"""The sections of the report, and the file."""

from __future__ import annotations

import base64
import hashlib
import logging
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import keys, plot
from .._version import __version__
from ..errors import AmilstError, InputError, MissingExtraError, MissingKeyError
from ..plot.colors import MISSING, Labels, matched_colors
from ..plot.sections import split_sections
from ..plot.slots import obs_column, recorded_sections
from ..slots import coordinates_of, counts_of, record_of
from ..summary import score
from .charts import Curve, bar, chart, stacked_bar, swatch
from .expression import Expression, expression_of
from .markup import Markup, element, embedded_json, frame_of, number, table
from .spots import Arrays, arrange, thinned
from .tissue import images_of, spot_diameter_of, units_of

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["write_report"]

logger = logging.getLogger("amilst_lite")

_GENES = (4, 60, 5_000_000)  # drawn: per domain, at most, bytes before compression at most
_GENES_LISTED = 5  # in the table of domains
_ROWS = 400  # of a table
_HIGHEST_CONFIDENCE = 254

_COLUMNS = {
    "auc": "Every domain against all other spots. auc: the chance that a spot of the domain expresses the gene more "
    "than another spot; 0.5 is no difference. Share inside, outside: spots with the gene, in the domain and elsewhere.",
    "p_naive": "p naive: from the counts from which the domains were found, and therefore too small; p, where given, "
    "is from counts that were set aside.",
    "share_of_other": "Contacts: pairs of neighbors. Share, share of other: of the contacts of the first and of the "
    "second domain with all other domains.",
    "compactness": "Area: in the squared unit of the coordinates. Parts: those that the neighbor graph connects. "
    "Compactness: 1 is a disk, long and branched parts have less. Contacts inside: the share of a spot's neighbors "
    "that belong to its domain.",
    "moran_i": "Moran's I: 1 if neighbors agree, 0 by chance. Geary's C: 0 if neighbors agree, 1 by chance.",
    "thickness": "The layers from one edge of the tissue to the other; in the unit of the coordinates.",
}
"""Column of a table → what is said below it."""
_CONNECTIVITY = (
    "Contacts of two domains, relative to those expected if spots were placed at random; at most 1."
)
_SCORES = {
    "ari": "adjusted Rand index with the annotation; 1 is identical, 0 is chance",
    "nmi": "normalized mutual information with the annotation; 1 is identical",
    "homogeneity": "each domain contains one annotated region; 1 is best",
    "completeness": "each annotated region lies in one domain; 1 is best",
    "n_scored": "spots with an annotation",
    "chaos": "mean distance to the nearest spot of the same domain; lower is more continuous",
    "pas": "share of spots whose neighbors mostly belong to other domains; lower is more continuous",
    "silhouette": "silhouette of the domains in space; higher is more compact",
    "n_labeled": "spots with such a label",
    "n_embedded": "spots scored in the embedding; of more, these are evenly spaced",
    "silhouette_label": "separation of the labels in the embedding; higher is better",
    "silhouette_batch": "overlap of the sections within a label; higher is better",
    "ilisi": "effective number of sections around a spot (median); more is better mixed",
    "ilisi_scaled": "the same, from 0 to 1; higher is better",
    "clisi": "effective number of labels around a spot (median); 1 is best",
    "clisi_scaled": "the same, from 0 to 1; higher is better",
    "graph_connectivity": "connectedness of each label in the embedding; higher is better",
    "isolated_labels_f1": "recovery of labels that few sections have; higher is better",
    "section_ari_mean": "mean of the adjusted Rand indices of the sections",
    "nmi_domain_section": "mutual information of domain and section; compare with the next",
    "nmi_annotation_section": "mutual information of annotation and section: what the tissue itself explains",
}
_LOSSES = {
    "mutual_information": "an estimate that the network raises",
    "discriminator": "the discriminator lowers it",
    "generator": "the generator lowers it",
    "links": "lower is better",
    "reconstruction": "lower is better",
    "kl": "lower is closer to the prior",
    "network": "the sum that is minimized; lower is better",
}


@dataclass(frozen=True)
class _Run:
    """What the sections of the page are made from."""

    adata: AnnData
    names: keys.ResultKeys
    record: Mapping[str, Any]
    summary: Mapping[str, Any]
    annotation: str | None
    domains: Labels
    refined: Labels
    truth: Labels | None
    sections: Labels
    colors: dict[str, dict[str, str]]  # by what is colored: "domain", "refined", "annotation", "section"
    confidence: np.ndarray
    command: str | None
    analyses: Mapping[str, pd.DataFrame]


def write_report(
    adata: AnnData,
    path: str | PathLike[str],
    *,
    key_added: str = keys.DEFAULT_KEY,
    annotation: str | None = None,
    summary: Mapping[str, Any] | None = None,
    command: str | None = None,
    analyses: Mapping[str, pd.DataFrame] | None = None,
) -> Path:
    """Write the results of `identify_domains` as one HTML file.

    The file needs no other file and no network; its content security policy forbids any request. It holds a map
    of the spots that can be zoomed, colored and selected from, and tables and curves. Above 200,000 spots the map
    draws a part of them, evenly chosen in space, and says so; tables count all spots. The same input gives the
    same bytes.

    Parameters
    ----------
    adata : AnnData
        After `identify_domains`. A UMAP in ``obsm["X_<key_added>_umap"]`` (`amilst_lite.analysis.umap`) or
        ``obsm["X_umap"]`` is drawn beside the sections. Images of the tissue, in ``uns["spatial"]`` as in
        `amilst_lite.plot.domains`, are drawn below the spots (extra ``plot``).
    path : path-like
        The file to write; an existing file is replaced.
    key_added : str
        As in `identify_domains`.
    annotation : str, optional
        Column of ``obs`` to show, to score against and to cross-tabulate with the domains.
    summary : mapping, optional
        What `write_results` returns: input, scores, warnings. Default: from ``uns``, with scores computed here.
    command : str, optional
        The command that repeats the run.
    analyses : mapping of str to DataFrame, optional
        Tables to show, by title: ``"markers"`` (columns ``domain`` and ``gene``, the best gene of each domain
        first, decide which genes the map offers), ``"enrichment"``, ``"composition"`` and others. Default:
        composition and leading genes are computed here.

    Returns
    -------
    pathlib.Path
        ``path``.

    Raises
    ------
    MissingKeyError
        ``adata`` has no results under ``key_added``, or no column ``annotation``.
    InputError
        The file cannot be written, or ``analyses`` does not consist of tables.
    """
    run = _collect(adata, key_added, annotation, summary, command, analyses)
    spots = thinned(coordinates_of(adata)[:, :2], run.sections.codes)
    expression, reason = _expression(run, spots)
    arrays, meta = _map(run, spots, expression)
    contents = [
        ("domains", "Domains", _domains(run, expression, reason)),
        ("composition", "Composition of sections", _composition(run)),
        ("analyses", "Analyses", _analyses(run)),
        ("scores", "Scores", _scores(run)),
        ("choices", "How the settings were chosen", _choices(run)),
        ("training", "Training", _training(run)),
        ("run", "Settings and versions", _settings(run)),
    ]
    contents = [(name, title, content) for name, title, content in contents if content]
    script, style = _asset("report.js"), _asset("report.css")
    title = ": ".join(filter(None, ("Spatial domains", _source(run))))
    page = string.Template(_asset("template.html")).substitute(
        script_hash=_hash(script),
        style_hash=_hash(style),
        title=element("", title),
        style=style,
        script=script,
        header=_header(run),
        links=element(
            "", [element("li", element("a", text, href=f"#{name}")) for name, text, _ in contents]
        ),
        map_note=element("", _map_note(run, meta)),
        contents=element(
            "",
            [
                element("section", element("h2", text, id=f"{name}-title"), content, id=name,
                        aria_labelledby=f"{name}-title")
                for name, text, content in contents
            ],
        ),
        footer=element("", f"Written by amilst-lite {__version__}."),
        meta=embedded_json(meta),
        arrays=arrays,
    )  # fmt: skip
    path = Path(path)
    try:
        path.write_bytes(page.encode("utf-8", "xmlcharrefreplace"))
    except OSError as error:
        raise InputError(f"the report {path} cannot be written ({error}). Choose another path.") from error
    return path


# ------------------------------------------------------------------------------------------------- input


def _collect(
    adata: AnnData,
    key_added: str,
    annotation: str | None,
    summary: Mapping[str, Any] | None,
    command: str | None,
    analyses: Mapping[str, pd.DataFrame] | None,
) -> _Run:
    """Everything that can be refused is refused here."""
    names = keys.ResultKeys(key_added)
    record = record_of(adata, key_added)
    if record is None:
        raise MissingKeyError(
            f"adata has no results under key_added={key_added!r}. Run identify_domains first."
        )
    for name, frame in (analyses or {}).items():
        if not isinstance(frame, pd.DataFrame):
            raise InputError(
                f"analyses must map names to pandas DataFrames; {name!r} is {type(frame).__name__}."
            )
    domains = Labels.of(obs_column(adata, names.domain))
    refined = Labels.of(obs_column(adata, names.refined))
    truth = None if annotation is None else Labels.of(obs_column(adata, annotation))
    sections = split_sections(coordinates_of(adata), recorded_sections(adata, names.domain, None))
    own = domains.colors(_stored(adata, names.domain))
    labelings = {"domain": domains, "refined": refined, "section": sections}
    colors = {
        "domain": own,
        "refined": refined.colors({**own, **_stored(adata, names.refined)}),
        "section": sections.colors(),
    }
    if truth is not None and annotation is not None:
        matched = matched_colors(truth, domains, own)
        colors["annotation"] = truth.colors({**matched, **_stored(adata, annotation)})
        labelings["annotation"] = truth
    if summary is None:
        scores = {}
        if truth is not None:
            pairs = (("domain", names.domain), ("refined", names.refined))
            scores = {name: score(adata, annotation, domain=column) for name, column in pairs}
        summary = {**record, "scores": scores}
    return _Run(
        adata=adata,
        names=names,
        record=record,
        summary=summary,
        annotation=annotation,
        domains=domains,
        refined=refined,
        truth=truth,
        sections=sections,
        # Only of labels that exist, in the order of the labels
        colors={
            kind: {name: chosen[name] for name in labelings[kind].names} for kind, chosen in colors.items()
        },
        confidence=np.asarray(obs_column(adata, names.confidence), dtype=np.float64),
        command=command,
        analyses=analyses or {},
    )


def _stored(adata: AnnData, column: str) -> dict[str, str]:
    """Colors stored for a column, where matplotlib is there to check them."""
    try:
        return plot.stored_colors(adata, column)
    except MissingExtraError:
        return {}


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Of an inline script or style, for the content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _source(run: _Run) -> str:
    source = run.summary.get("input") or ""
    if isinstance(source, str):
        return source
    return source[0] if len(source) == 1 else f"{len(source)} sections"


def _expression(run: _Run, spots: np.ndarray) -> tuple[Expression | None, str]:
    """Genes to show, or why there are none."""
    per_domain, most, budget = _GENES
    most = min(most, per_domain * len(run.domains.names), max(1, budget // len(spots)))
    chosen = _chosen_genes(run)
    try:
        return expression_of(
            counts_of(run.adata),
            spots,
            run.domains.codes[spots],
            len(run.domains.names),
            most_genes=most,
            chosen=chosen,
        ), ""
    except AmilstError as error:  # of a run on a representation, there need not be counts
        logger.info("no genes in the report: %s", error)
        return None, f"No genes are shown: {error}"


def _chosen_genes(run: _Run) -> list[list[int]] | None:
    markers = run.analyses.get("markers")
    if markers is None or not {"domain", "gene"} <= set(markers.columns):
        return None
    column = {str(name): j for j, name in reversed(list(enumerate(run.adata.var_names)))}
    genes: dict[str, list[int]] = {name: [] for name in run.domains.names}
    markers = markers.groupby("domain", sort=False, observed=True).head(_GENES[1])
    for domain, gene in zip(markers["domain"].astype(str), markers["gene"].astype(str), strict=True):
        if domain in genes and gene in column:
            genes[domain].append(column[gene])
    return list(genes.values())


# --------------------------------------------------------------------------------------------------- map


def _map(run: _Run, spots: np.ndarray, expression: Expression | None) -> tuple[str, dict[str, Any]]:
    """The arrays of the map, encoded, and their description."""
    arrays = Arrays()
    points = coordinates_of(run.adata)[:, :2]
    units = units_of(run.adata, run.sections, points)
    layout = arrange(points, run.sections, spots, units)
    images = images_of(run.adata, run.sections, layout.sections)
    # Larger discs close the gaps of the spots left out
    diameter = (0.95 if len(spots) == run.adata.n_obs else 1.3) * layout.spacing
    arrays.add("position", layout.quantized)
    umap = _umap(run, spots)
    if umap is not None:
        arrays.add("umap", umap)
    views: list[dict[str, Any]] = []

    def labeled(name: str, field: str, labels: Labels) -> None:
        arrays.add_labels(field, labels.codes[spots], len(labels.names))
        sizes = np.bincount(labels.codes + 1, minlength=len(labels.names) + 1)
        views.append(
            {
                "name": name,
                "field": field,
                "kind": "labels",
                "labels": list(labels.names),
                "colors": list(run.colors[field].values()),
                "sizes": sizes[1:].tolist(),
                "missing": int(sizes[0]),
            }
        )

    labeled("Domains", "domain", run.domains)
    labeled("Refined domains", "refined", run.refined)
    if run.truth is not None:
        labeled(f"Annotation: {run.annotation}", "annotation", run.truth)
    labeled("Sections", "section", run.sections)
    if len(run.sections.names) == 1:
        views.pop()
    confidence = run.confidence
    finite = confidence[np.isfinite(confidence)]
    low = min(float(np.floor(10 * np.quantile(finite, 0.02)) / 10), 0.9) if len(finite) else 0.0
    drawn = np.clip(np.nan_to_num(confidence[spots], nan=255 / _HIGHEST_CONFIDENCE), 0, 255 / 254)
    arrays.add("confidence", np.rint(_HIGHEST_CONFIDENCE * drawn).astype(np.uint8))
    views.append({"name": "Confidence", "field": "confidence", "kind": "confidence", "low": low, "high": 1.0})
    meta: dict[str, Any] = {}
    if expression is not None:
        gene_names = [str(name) for name in run.adata.var_names]
        arrays.add("genes", expression.values)
        marked = _marked(run, expression)
        for i, gene in enumerate(expression.genes):
            views.append(
                {
                    "name": gene_names[gene],
                    "of": marked.get(int(gene), ""),
                    "field": "genes",
                    "kind": "gene",
                    "row": i,
                    "low": 0.0,
                    "high": float(expression.highest[i]),
                }
            )
        used, leading = np.unique(expression.leading, return_inverse=True)
        named = used[used >= 0]
        codes = leading.reshape(expression.leading.shape) - (len(used) - len(named))
        arrays.add_labels("leading", codes, len(named))
        meta["leading"] = [gene_names[gene] for gene in named]
    arrays.add_texts("names", [str(name) for name in run.adata.obs_names[spots]])
    meta |= {
        "n_spots": run.adata.n_obs,
        "n_drawn": len(spots),
        "n_far": layout.n_far,
        "sections": layout.sections,
        "diameter": diameter,
        "scaled": units is not None,  # the unit of the map is the micrometer
        "images": images,
        "diameter_over_image": spot_diameter_of(run.adata, run.sections, points, units) or diameter,
        "umap": umap is not None,
        "views": views,
        "fields": arrays.fields,
    }
    return arrays.encoded(), meta


def _umap(run: _Run, spots: np.ndarray) -> np.ndarray | None:
    """Two-dimensional embedding if ``obsm`` has one, quantized, (2, n)."""
    for name in (run.names.umap, "X_umap"):
        if name not in run.adata.obsm:
            continue
        points = np.asarray(run.adata.obsm[name])
        if points.ndim == 2 and points.shape[1] == 2 and np.isfinite(points).all():
            low, extent = points.min(axis=0), float(np.ptp(points, axis=0).max()) or 1.0
            return np.rint((points[spots] - low) / extent * 65_535).T.astype(np.uint16)
    return None


def _marked(run: _Run, expression: Expression) -> dict[int, str]:
    """The domain for which each gene ranks best."""
    best: dict[int, tuple[int, str]] = {}
    for name, genes in zip(run.domains.names, expression.ranking, strict=True):
        for rank, gene in enumerate(genes[: len(expression.genes)]):
            if int(gene) not in best or rank < best[int(gene)][0]:
                best[int(gene)] = (rank, name)
    return {gene: name for gene, (_, name) in best.items()}


def _map_note(run: _Run, meta: Mapping[str, Any]) -> str:
    notes = []
    if meta["n_drawn"] < meta["n_spots"]:
        notes.append(
            f"The map draws {meta['n_drawn']:,} of {meta['n_spots']:,} spots, evenly chosen in space; selections "
            "and their CSV files contain drawn spots only. domains.csv has all of them."
        )
    if meta["n_far"]:
        notes.append(f"{meta['n_far']:,} spots lie far outside; zoom out to see them.")
    return " ".join(notes)


# ---------------------------------------------------------------------------------------------- sections


def _header(run: _Run) -> Markup:
    record, summary, source = run.record, run.summary, _source(run)
    how = "chosen by held-out spots" if len(_mapping(record.get("selection"))) else "as given"
    facts = [
        ("spots", number(run.adata.n_obs)),
        ("genes", number(run.adata.n_vars)),
        ("domains", f"{number(int(record['n_domains']))} ({how})"),
        ("sections", number(len(run.sections.names))),
        ("preset", record.get("preset")),
        ("seed", record.get("seed")),
    ]
    texts = _texts(summary.get("warnings"))
    warnings = None
    if texts:
        warnings = element(
            "aside",
            element("h2", "Warnings"),
            element("ul", [element("li", text) for text in texts]),
            class_="warnings",
            aria_label="Warnings",
        )
    return element(
        "",
        element("p", "Spatial domains", class_="kicker") if source else None,
        element("h1", source or "Spatial domains"),
        element("dl", [element("div", element("dt", name), element("dd", value)) for name, value in facts],
                class_="facts"),
        warnings,
    )  # fmt: skip


def _domains(run: _Run, expression: Expression | None, reason: str) -> Markup:
    n = len(run.domains.names)
    sizes = np.bincount(run.domains.codes[run.domains.codes >= 0], minlength=n)
    refined = {name: size for name, size, _ in run.refined.entries(run.colors["refined"])}
    rows = []
    for k, (name, color) in enumerate(run.colors["domain"].items()):
        inside = run.confidence[run.domains.codes == k]
        share = sizes[k] / max(run.adata.n_obs, 1)
        row = {
            "domain": element("", swatch(color), name),
            "spots": int(sizes[k]),
            "share": element("", bar(share, color), element("span", f"{100 * share:.1f} %")),
            "after refinement": refined.get(name, 0),
            "mean confidence": float(inside.mean()) if len(inside) else np.nan,
        }
        if expression is not None:
            genes = expression.ranking[k][:_GENES_LISTED]
            row["leading genes"] = ", ".join(str(run.adata.var_names[gene]) for gene in genes) or "–"
        rows.append(row)
    note = reason
    if expression is not None and _chosen_genes(run) is None:
        note = (
            "Leading genes: highest t statistic of the normalized expression against all other spots. The domains "
            "were found from the same counts, so no p-values are given."
        )
    elif expression is not None:
        note = "Leading genes: the first of each domain in the table of markers."
    sized = table(frame_of(rows), "Domains: size, confidence and leading genes", hidden_caption=True)
    return element("", sized, element("p", note, class_="quiet") if note else None)


def _composition(run: _Run) -> Markup | None:
    if len(run.sections.names) < 2:
        return None
    counts = np.zeros((len(run.sections.names), len(run.domains.names) + 1), dtype=np.int64)
    np.add.at(counts, (run.sections.codes, run.domains.codes), 1)  # -1, missing, is the last column
    colors = run.colors["domain"]
    if counts[:, -1].any():
        colors = {**colors, "none": MISSING}
    counts = counts[:, : len(colors)]
    bars = [
        {
            "section": name,
            "spots": int(row.sum()),
            "share of the domains": stacked_bar(row / max(row.sum(), 1), colors, name),
        }
        for name, row in zip(run.sections.names, counts, strict=True)
    ]
    key = element(
        "ul", [element("li", swatch(color), label) for label, color in colors.items()], class_="keys"
    )
    frame = pd.DataFrame(counts, columns=list(colors))
    frame.insert(0, "section", list(run.sections.names))
    return element(
        "",
        table(frame_of(bars), "Share of each domain in each section", most_rows=_ROWS),
        key,
        _details("Numbers of spots", table(frame, "Spots of each section and domain", most_rows=_ROWS)),
    )


def _analyses(run: _Run) -> Markup | None:
    parts: list[Markup] = []
    for name, frame in run.analyses.items():
        if name == "composition":  # shown by `_domains` and `_composition`
            continue
        title = name.replace("-", " ").replace("_", " ")
        shown = frame
        if not isinstance(frame.index, pd.RangeIndex):
            unnamed = frame.index.nlevels == 1 and frame.index.name is None
            shown = (frame.rename_axis(index="domain") if unnamed else frame).reset_index()
        parts.append(element("h3", title[:1].upper() + title[1:]))
        pairs = _matrix_of_pairs(shown)
        if pairs is not None:
            caption = "z scores of the contacts of two domains; blue: more than expected, orange: fewer"
            parts.append(table(pairs, caption, shades=_matrix_shades(pairs)))
        shades = _matrix_shades(shown)
        rows = _first_of_domains(shown)
        if shades is None:  # the columns of a matrix are names of domains
            rows = rows.rename(columns=lambda column: str(column).replace("_", " "))
        whole = table(rows, title, most_rows=_ROWS, shades=shades, hidden_caption=pairs is None)
        parts.append(whole if pairs is None else _details("Values", whole))
        notes = [text for column, text in _COLUMNS.items() if column in shown]
        if name == "connectivity" and shades is not None:
            notes.append(_CONNECTIVITY)
        parts += [element("p", text, class_="quiet") for text in notes]
    return element("", parts) if parts else None


def _first_of_domains(frame: pd.DataFrame, most: int = 20) -> pd.DataFrame:
    """Of a long table with genes of domains, the first rows of each domain."""
    if len(frame) <= _ROWS or not {"domain", "gene"} <= set(frame.columns):
        return frame
    return frame.groupby("domain", sort=False, observed=True).head(most)


def _matrix_of_pairs(frame: pd.DataFrame) -> pd.DataFrame | None:
    """The symmetric matrix of ``z`` of a table of pairs of domains, one row each."""
    if not {"domain", "other", "z"} <= set(frame.columns):
        return None
    pairs = frame[["domain", "other", "z"]].astype({"domain": str, "other": str})
    mirrored = pairs.rename(columns={"domain": "other", "other": "domain"})
    both = pd.concat([pairs, mirrored]).drop_duplicates(["domain", "other"])
    names = list(dict.fromkeys(both["domain"]))
    matrix = both.pivot_table(index="domain", columns="other", values="z", sort=False)
    return matrix.reindex(index=names, columns=names).rename_axis(columns=None).reset_index()


def _matrix_shades(frame: pd.DataFrame) -> np.ndarray | None:
    """Shades of a matrix of numbers whose rows and columns are the same domains, in [-1, 1].

    The largest number of two different domains has the full shade: domains touch themselves more than all others.
    """
    rows, columns = frame.iloc[:, 0].astype(str), frame.columns[1:].astype(str)
    if len(frame) != len(columns) or set(rows) != set(columns):
        return None
    values = frame.iloc[:, 1:].to_numpy(dtype=float)
    sizes, others = np.abs(values), rows.to_numpy()[:, None] != columns.to_numpy()
    largest = np.nanmax(sizes, where=others, initial=0.0) or np.nanmax(sizes, initial=0.0)
    return np.clip(values / largest, -1, 1) if largest > 0 else None


def _scores(run: _Run) -> Markup | None:
    scores = _mapping(run.summary.get("scores"))
    by_domains = {
        title: {key: one for key, one in _mapping(scores.get(name)).items() if not isinstance(one, str)}
        for name, title in (("domain", "domains"), ("refined", "refined domains"))
    }
    integration = {title: _mapping(one.pop("integration", None)) for title, one in by_domains.items()}
    parts: list[Markup] = []
    if any(by_domains.values()):
        caption = "Scores of the domains and of the refined domains"
        parts.append(_compared(by_domains, "score", caption, hidden=True))
    if any(map(len, integration.values())):
        labels = next(iter(integration.values())).get("labels", "")
        parts.append(element("h3", "Integration of the sections"))
        parts.append(_compared(integration, "score", f"Integration scores, by the labels: {labels}"))
    if run.truth is not None:
        parts.append(element("h3", "Annotated regions and domains"))
        parts.append(_confusion(run, run.truth))
    return element("", parts) if parts else None


def _compared(
    columns: Mapping[str, Mapping[str, Any]], head: str, caption: str, hidden: bool = False
) -> Markup:
    """The scores of several labelings side by side, with what they mean; text is left out."""
    flat = {
        title: {name: one for name, one in _flattened(values).items() if not isinstance(one, str)}
        for title, values in columns.items()
    }
    rows = [
        {
            head: name.replace("section_ari.", "ari of "),
            **{title: number(values.get(name, np.nan)) for title, values in flat.items()},
            "meaning": _SCORES.get(name, ""),
        }
        for name in dict.fromkeys(name for values in flat.values() for name in values)
    ]
    return table(pd.DataFrame(rows), caption, hidden_caption=hidden)


def _confusion(run: _Run, truth: Labels) -> Markup:
    """Spots of each annotated region in each domain, shaded by their share of the region."""
    counts = np.zeros((len(truth.names), len(run.domains.names)), dtype=np.int64)
    both = (truth.codes >= 0) & (run.domains.codes >= 0)
    np.add.at(counts, (truth.codes[both], run.domains.codes[both]), 1)
    domains, regions = (
        [element("", swatch(color), name) for name, color in run.colors[which].items()]
        for which in ("domain", "annotation")
    )
    # markup remains markup in columns of objects only
    frame = pd.DataFrame(counts, columns=pd.Index(domains, dtype=object))
    frame.insert(0, "region", pd.Series(regions, dtype=object))
    caption = (
        "Spots of each annotated region (rows) in each domain (columns); darker: a larger share of the region"
    )
    return table(frame, caption, shades=counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def _choices(run: _Run) -> Markup | None:
    figures = []
    notes = []
    likelihood = "log-likelihood of a held-out spot"
    selection = {name: np.asarray(one) for name, one in _mapping(run.record.get("selection")).items()}
    tables = []
    if selection:
        k, value = (selection[name].astype(float) for name in ("n_domains", "log_likelihood"))
        chosen = int(run.record["n_domains"])
        figures.append(
            chart(
                [Curve("held-out likelihood", k, value, k == chosen)],
                title="Number of domains",
                description=f"{likelihood} for {number(int(k.min()))} to {number(int(k.max()))} domains; "
                f"chosen: {chosen}",
                x_label="number of domains",
                y_label=f"{likelihood}; chosen: {chosen}",
                chosen=chosen,
            )
        )
        compared = pd.DataFrame(selection)
        compared.insert(0, "domains", compared.pop("n_domains"))
        compared.columns = compared.columns.str.replace("_", " ")
        tables.append(table(compared, "Numbers of domains that were compared", digits=5))
    evidence = _mapping(run.record.get("shrinkage"))
    if len(np.atleast_1d(evidence.get("shares", ()))) > 1:
        shares = np.asarray(evidence["shares"], dtype=float)
        rows = np.asarray(evidence["log_likelihood"], dtype=float)
        weights = np.asarray(evidence["weights"], dtype=float)
        curves = [
            Curve(f"{width} principal axes", shares, np.where(row - np.nanmax(row) < -10, np.nan, row - np.nanmax(row)),
                  used > 0)
            for width, row, used in zip(np.asarray(evidence["columns"]), rows, weights, strict=True)
            if np.isfinite(row).any()
        ]  # fmt: skip
        figures.append(
            chart(
                curves,
                title="Shrinkage of the covariance",
                description=f"{likelihood} relative to the best value, for each number of principal axes; filled "
                "markers were averaged",
                x_label="share of the spherical covariance",
                y_label=f"{likelihood}, relative to the best; filled markers were averaged",
                logarithmic=True,
            )
        )
        compared = pd.DataFrame(rows, columns=[f"share {share:g}" for share in shares])
        compared.insert(0, "principal axes", np.asarray(evidence["columns"]))
        tables.append(table(compared, f"Shrinkage: {likelihood}", digits=5))
    share = _mapping(run.record.get("network_share"))
    if np.isfinite(np.atleast_1d(np.asarray(share.get("deviance", np.nan), dtype=float))).sum() > 1:
        figures.append(
            chart(
                [
                    Curve(
                        "deviance",
                        np.asarray(share["shares"], dtype=float),
                        np.asarray(share["deviance"], dtype=float),
                        np.ones(len(np.asarray(share["shares"])), dtype=bool),
                        np.asarray(share["error"], dtype=float),
                    )
                ],
                title="Share of the network",
                description="Poisson deviance of counts set aside, by the weight of the network's reconstruction; "
                f"share used: {number(float(share['share']))}",
                x_label="weight of the reconstruction",
                y_label=f"deviance of counts set aside; lower is better; share used: {number(float(share['share']))}",
            )
        )
    integration = _mapping(run.record.get("integration"))
    compared_ways = _mapping(integration.get("log_likelihood"))
    if len(compared_ways):
        mutual = _mapping(integration.get("nmi_section"))
        frame = pd.DataFrame(
            {
                "correction": list(compared_ways),
                likelihood: [float(one) for one in compared_ways.values()],
                "NMI of domain and section": [float(mutual.get(name, np.nan)) for name in compared_ways],
            }
        )
        notes.append(
            table(
                frame, f"Correction of section effects; used: {integration.get('batch_correction')}", digits=5
            )
        )
    if not figures and not notes:
        return None
    return element(
        "",
        element("div", figures, class_="charts") if figures else None,
        notes,
        _details("Values of the curves", *tables) if tables else None,
    )


def _training(run: _Run) -> Markup | None:
    losses = {name: np.asarray(one, dtype=float) for name, one in _mapping(run.record.get("losses")).items()}
    epochs = losses.pop("epoch", None)
    figures = []
    for name, values in losses.items():
        if not np.isfinite(values).any():
            continue
        at = epochs if epochs is not None and len(epochs) == len(values) else np.arange(1.0, len(values) + 1)
        finite = values[np.isfinite(values)]
        figures.append(
            chart(
                [Curve(name, at, values)],
                title=name.replace("_", " ").capitalize() if name != "kl" else "KL divergence",
                description=f"from {number(float(finite[0]))} to {number(float(finite[-1]))} over {len(values)} epochs",
                x_label="epoch",
                y_label=_LOSSES.get(name, ""),
                size=(300, 180),
            )
        )
    return element("div", figures, class_="charts small") if figures else None


def _settings(run: _Run) -> Markup:
    record, summary = run.record, run.summary
    parts = []
    if run.command:
        parts += [
            element("h3", "Repeat this run"),
            element(
                "div",
                element("pre", element("code", run.command, id="command"), tabindex=0),
                element("button", "Copy", type="button", id="copy", hidden=True),
                class_="command",
            ),
        ]
    source = summary.get("input")
    if isinstance(source, Sequence) and not isinstance(source, str) and len(source) > 1:
        parts.append(_details("Input", element("ul", [element("li", one) for one in source])))
    config = _flattened(_mapping(record.get("config")))
    parts.append(
        _details("Settings as used", _pairs(config, "setting", "value", "Settings as used"), opened=True)
    )
    parts.append(
        _details("Versions", _pairs(_mapping(record.get("versions")), "package", "version", "Versions"))
    )
    seconds = {name: float(one) for name, one in _mapping(summary.get("seconds")).items()}
    memory = {
        f"peak {name.removesuffix('_bytes')} (MB)": int(one) // 10**6
        for name, one in _mapping(summary.get("peak_memory")).items()
        if isinstance(one, int | float | np.number)
    }
    resources_used = {**{f"{name} (s)": one for name, one in seconds.items()}, **memory}
    if resources_used:
        device = f"Time and memory on {record.get('device')}"
        parts.append(_details("Time and memory", _pairs(resources_used, "stage", "value", device)))
    left_out = _texts(summary.get("left_out"))
    if left_out:
        parts.append(
            _details("Left out", element("ul", [element("li", one) for one in left_out]), opened=True)
        )
    return element("", parts)


def _pairs(values: Mapping[str, Any], first: str, second: str, caption: str) -> Markup:
    frame = pd.DataFrame({first: list(values), second: [_shown(one) for one in values.values()]})
    return table(frame, caption, hidden_caption=True)


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray | list | tuple):
        return ", ".join(map(number, np.asarray(value).ravel().tolist()))
    return number(value)


def _details(summary: str, *content: Any, opened: bool = False) -> Markup:
    return element("details", element("summary", summary), *content, open=opened)


def _flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with names like ``cluster.n_init``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flattened(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _texts(value: Any) -> list[str]:
    """Texts of a record, which may be an array or absent."""
    return [] if value is None else [str(one) for one in np.atleast_1d(np.asarray(value, dtype=object))]
