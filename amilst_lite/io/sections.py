"""`read_sections`: several inputs as one AnnData, for their joint analysis."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Number
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from .. import keys
from ..errors import InputError, MissingKeyError, warn
from .dispatch import read, recognize
from .files import PathLike, checked_path, examples, reading
from .h5ad import are_counts
from .kept import read_once
from .matrix import to_csr, unique
from .platform import Platform

if TYPE_CHECKING:
    from anndata import AnnData

    from ..checkpoint import Checkpoint

_log = logging.getLogger("amilst_lite")

SECTION = "section"
"""Default name of the column of ``obs`` with the section of each spot."""

# names that Space Ranger and Cell Ranger give to files and folders of every section
_GENERIC = ("outs", "filtered_feature_bc_matrix", "raw_feature_bc_matrix", "matrix")


def read_sections(
    paths: Iterable[PathLike],
    *,
    names: Sequence[str] | None = None,
    sample_key: str = SECTION,
    min_genes: int = 50,
    backed: bool | Literal["auto"] = False,
    checkpoint: Checkpoint | None = None,
    **options: Any,
) -> AnnData:
    """Read several sections, of any supported formats, into one AnnData with the genes that all of them have.

    Parameters
    ----------
    paths
        One input for each section, as for `read`. Every input must have coordinates of its own.
    names
        Names of the sections. Default: the name of the file without its ending, or of the folder; names that
        Space Ranger gives to every section (``outs``, ``filtered_feature_bc_matrix``, ...) are replaced by
        that of the folder around, and where names repeat, that of the folder around is put in front:
        ``a/result.h5ad`` and ``b/result.h5ad`` become ``a_result`` and ``b_result``.
    sample_key
        Column of ``obs`` to write the names into. An input may have this column already if it holds the name
        of the section for every spot.
    min_genes
        Smallest number of genes in common, >= 1. It applies only if the sections have different genes.
    backed
        Read the counts of ``.h5ad`` files from disk in blocks of rows, and keep only the genes in common,
        which needs less memory if the files have many others; "auto": of files that would need more than a
        third of the memory. The result is in memory in either case.
    checkpoint
        Keeps each section that takes long to read.
    **options
        Other options of `read`, for every section: ``platform``, ``genome``, ``bin_size``, ``layer``, ``table``.

    Returns
    -------
    AnnData
        All spots, section by section in the order of ``paths``, × the genes in common, in the order of the
        first section.

        - ``X``: counts, CSR, float32; of each input ``layers["counts"]`` if it has them, otherwise ``X``.
        - ``obs``: the columns of all inputs, missing values where an input lacks the column, and
          ``sample_key``, categorical. If a spot name occurs in several sections, "-" and the name of the
          section are appended to all spot names.
        - ``var``: the columns that are the same in all inputs.
        - ``obsm["spatial"]``: (n, 2) or (n, 3), float64, in the unit of the inputs. Sections may overlap.
        - ``uns["spatial"]``: image and scale factors of each section, under its name. Of an input with
          several libraries, each under "SECTION-LIBRARY", except one with the name of the section.
        - ``uns["amilst_input"]``: as of `read`, "mixed" where the sections differ; ``micrometers_per_unit`` only if
          it is the same in all, to a hundredth.

        Other layers, matrices and graphs of the inputs, and the domains of earlier runs, are left out,
        because they are not comparable between sections.

    Raises
    ------
    InputError
        As `read`, for any input; an input is given twice, has no spots or no coordinates, or has another
        content in ``sample_key``; coordinates have two dimensions in some and three in others; too few
        genes are in common; or the values of some inputs are counts and those of others are not.

    Warns
    -----
    AmilstWarning
        As `read`.

    Notes
    -----
    Within `amilst_lite.distributed.together`, every process reads some of the inputs, in the order of their names,
    and keeps the genes that those of all processes have.

    The number of genes of each section is logged. Memory: at most that of the inputs and the result, or, if all
    are read from disk in blocks, about twice that of the result. What is not needed of an input is released
    before the next one is read.

    Examples
    --------
    >>> adata = read_sections(["151673/", "151674/", "151675.h5ad"])
    >>> identify_domains(adata, n_domains=7, sample_key="section")
    """
    if isinstance(paths, str | os.PathLike):
        raise InputError(f"Expected a list of paths; found {paths!r}. Use `read` for a single section.")
    inputs = [checked_path(path) for path in paths]
    if not inputs:
        raise InputError("Expected the path of at least one section; found none.")
    if not isinstance(sample_key, str) or not sample_key.strip() or "/" in sample_key:
        raise InputError(f"sample_key must be a non-empty string without '/'; found {sample_key!r}.")
    if not isinstance(min_genes, Integral) or min_genes < 1:
        raise InputError(f"min_genes must be an integer >= 1; found {min_genes!r}.")
    platforms = _recognized(inputs, options.get("platform"))
    names = _default_names(inputs) if names is None else _checked_names(names, len(inputs))

    from ..distributed import alone, deal, ranks  # not at the top: it imports torch

    group = ranks()
    everything = list(zip(inputs, names, platforms, strict=True))
    if group.size > 1:
        everything.sort(key=lambda one: one[1])
        sizes = [max(1, _size_on_disk(path)) for path, _, _ in everything]
        everything = [everything[place] for place in deal(sizes, group.size)[group.rank]]
    sections = []
    for place, (path, name, platform) in enumerate(everything):
        can_be_backed = "backed" in platform.options
        own_options = {**options, "backed": backed if can_be_backed else False}
        with alone():  # every process has its own
            adata = read_once(partial(read, path, **own_options), checkpoint, f"read-{place}")
        section = _Section.of(adata, path, name, sample_key)
        _log.info("%s: %d spots × %d genes", name, len(section.obs), len(section.var))
        sections.append(section)
    coordinates = _joined_coordinates(sections)
    description = _joined_description(
        {
            name: each
            for part in group.objects({one.name: one.description for one in sections})
            for name, each in part.items()
        }
    )
    genes = _common_genes(sections, min_genes)
    for others in group.objects(genes):
        genes = genes[genes.isin(others)]
    if len(genes) < min(min_genes, *(group.objects(len(sections[0].var)))):
        raise InputError(
            f"Only {len(genes)} gene(s) are in the sections of all processes; expected at least {min_genes}. Run as "
            "one process to see which genes each section has."
        )
    genes = group.same(genes)  # in the order of the first section
    obs = _joined_obs(sections, sample_key)
    for columns in group.objects(list(obs.columns)):
        for column in columns:
            if column not in obs:  # of sections of other processes
                obs[column] = pd.Series(None, index=obs.index, dtype=object)
    var = _common_var(sections, genes)
    images = {
        key: library
        for section in sections
        for key, library in section.images.items()
        if key == section.name or key not in names
    }
    counts = _joined_counts(sections, genes)

    # not at the top: anndata takes half a second to import
    from anndata import AnnData

    adata = AnnData(X=counts, obs=obs, var=var, obsm={keys.SPATIAL: coordinates})
    if images:
        adata.uns[keys.SPATIAL] = images
    adata.uns[keys.INPUT] = description
    return adata


# --- inputs and their names -------------------------------------------------------------------


def _recognized(inputs: Sequence[Path], name: str | None) -> list[Platform]:
    """The platform of each input; what can be refused before anything is read is refused here."""
    platforms: list[Platform] = []
    seen: dict[Path, Path] = {}
    for path in inputs:
        platform, found = recognize(path, name)
        same = seen.setdefault(found.resolve(), path)
        if same is not path:
            raise InputError(
                f"{path} is given twice{'' if same == path else f' (it is the same as {same})'}. "
                "Give each section once."
            )
        if platform.needs_coordinates:
            raise InputError(
                f"{path} has counts but no coordinates, and a table of coordinates can be given with a single "
                "input only. Convert it to h5ad first: "
                f"amilst_lite.read({str(path)!r}, coordinates=TABLE).write_h5ad(FILE)."
            )
        platforms.append(platform)
    return platforms


def own_sections(adata: AnnData, sample_key: str) -> AnnData:
    """Of an AnnData with several sections, in memory or on disk, those of this process, in memory.

    Raises
    ------
    MissingKeyError, InputError
        There is no column ``sample_key``, or it has missing values or fewer sections than there are processes.
    """
    from ..distributed import deal, ranks
    from ..spatial.neighbors import section_codes

    if sample_key not in adata.obs:
        raise MissingKeyError(f"obs has no column {sample_key!r}; it has {examples(adata.obs.columns, 12)}.")
    codes, _ = section_codes(adata.obs[sample_key].to_numpy(), adata.n_obs)
    own = deal(np.bincount(codes), ranks().size)[ranks().rank]
    part = adata[np.isin(codes, own)]
    return part.to_memory() if adata.isbacked else part.copy()


def _size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _default_names(inputs: Sequence[Path]) -> list[str]:
    """Names of files and folders; where they repeat, with as many folders in front as needed."""
    parts = [_name_parts(path) for path in inputs]
    depths = [1] * len(parts)
    while True:
        names = ["_".join(part[-depth:]) for part, depth in zip(parts, depths, strict=True)]
        repeated = pd.Index(names).duplicated(keep=False)
        longer = [
            i
            for i, part in enumerate(parts)
            if repeated[i] and depths[i] < len(part)  # else there is no further folder
        ]
        if not longer:
            break
        for i in longer:
            depths[i] += 1
    taken: set[str] = set()
    for i, name in enumerate(names):  # a.h5ad and a.h5 in one folder
        number = 1
        while names[i] in taken:
            number += 1
            names[i] = f"{name}_{number}"
        taken.add(names[i])
    return names


def _name_parts(path: Path) -> list[str]:
    """Names of the folders and of the input itself, without its ending and without names that mean nothing."""
    path = Path(os.path.abspath(path))  # not resolve(): the target of a link may have any name
    own = path.name
    if path.is_file():
        own = own.removesuffix(".gz")
        own = own[: own.rindex(".")] if "." in own[1:] else own
    parts = [name for name in path.parts[1:-1] if name not in _GENERIC]
    return [*parts, own] if own not in _GENERIC or not parts else parts


def _checked_names(names: Sequence[str], n: int) -> list[str]:
    names = [names] if isinstance(names, str) else list(names)
    wrong = [name for name in names if not isinstance(name, str) or not name.strip() or "/" in name]
    if wrong or len(set(names)) != len(names) or len(names) != n:
        raise InputError(
            f"names must be {n} different non-empty strings without '/', one for each section; found {names}."
        )
    return names


# --- one section ------------------------------------------------------------------------------


@dataclass
class _Section:
    """What is needed of an input. ``counts`` may be on disk; then ``source`` keeps the file open."""

    name: str
    path: Path
    counts: Any
    place: str
    obs: pd.DataFrame
    var: pd.DataFrame
    coordinates: np.ndarray
    images: dict[str, Any]
    description: Mapping[str, Any]
    source: AnnData | None = None

    @classmethod
    def of(cls, adata: AnnData, path: Path, name: str, sample_key: str) -> _Section:
        coordinates = _coordinates(adata, path)
        obs = _own_columns(adata, path, name, sample_key)
        has_layer = keys.COUNTS in adata.layers
        counts = adata.layers[keys.COUNTS] if has_layer else adata.X
        on_disk = adata.isbacked and not has_layer and getattr(counts, "format", None) != "csc"
        if not on_disk:
            with reading(path, "counts"):
                # on disk by genes (CSC), spots cannot be read in blocks
                counts = to_csr(counts.to_memory() if hasattr(counts, "to_memory") else counts)
            if adata.isbacked:
                adata.file.close()
        return cls(
            name=name,
            path=path,
            counts=counts,
            place=f"layers[{keys.COUNTS!r}]" if has_layer else "X",
            obs=obs,
            var=adata.var,
            coordinates=coordinates,
            images=_images(adata, name),
            description=adata.uns.get(keys.INPUT, {}),
            source=adata if on_disk else None,
        )

    def take_counts(self, genes: pd.Index) -> tuple[list[sparse.csr_matrix], bool]:
        """The counts of ``genes``, as blocks of rows, and whether they are integers; then release the input."""
        columns = self.var.index.get_indexer(genes)
        if np.array_equal(columns, np.arange(len(self.var))):
            columns = slice(None)
        blocks: Iterable[sparse.csr_matrix] = [self.counts]
        if self.source is not None:
            from ..preprocess import CountRows  # not at the top: it imports torch

            blocks = (block for _, block in CountRows(self.counts))
        taken, integers = [], True
        with reading(self.path, "counts"):
            for block in blocks:
                chosen = block if isinstance(columns, slice) else block[:, columns]
                chosen.sort_indices()
                integers = integers and are_counts(chosen)
                taken.append(chosen)
        if self.source is not None:
            self.source.file.close()
        self.counts = self.source = None
        return taken, integers


def _coordinates(adata: AnnData, path: Path) -> np.ndarray:
    if keys.SPATIAL not in adata.obsm:
        raise InputError(
            f"{path} has no coordinates: expected obsm[{keys.SPATIAL!r}] (spots × 2 or 3), found "
            f"{examples(adata.obsm, 8)} in obsm. Add them, or leave this section out."
        )
    with reading(path, f"coordinates (obsm[{keys.SPATIAL!r}], numbers)"):
        points = np.asarray(adata.obsm[keys.SPATIAL], dtype=np.float64)
    if points.ndim != 2 or points.shape[1] not in (2, 3):
        raise InputError(f"{path}: obsm[{keys.SPATIAL!r}] must have 2 or 3 columns; found {points.shape}.")
    return points


def _own_columns(adata: AnnData, path: Path, name: str, sample_key: str) -> pd.DataFrame:
    """``obs`` without the results of earlier runs and without ``sample_key``; log what is left out."""
    obs = adata.obs
    if sample_key in obs:
        found = obs[sample_key].astype(object)
        if not (found.notna() & (found.astype(str) == name)).all():
            raise InputError(
                f"{path}: obs[{sample_key!r}] exists already and is not {name!r} for every spot; found "
                f"{examples(found.unique())}. Choose another column for the names of the sections "
                "(sample_key=, on the command line --sample-key), or rename this one."
            )
    results = [names for names in map(keys.ResultKeys, _earlier_runs(adata.uns)) if names.domain in obs]
    earlier = [column for one in results for column in one.slots["obs"] if column in obs]
    left_out = [f"obs[{column!r}]" for column in earlier]
    for slot, kept in (("layers", keys.COUNTS), ("obsm", keys.SPATIAL), ("obsp", None)):
        others = (key for key in getattr(adata, slot) if key not in (kept, None))
        left_out += [f"{slot}[{key!r}]" for key in others]
    if left_out:
        _log.info("%s: left out, as it belongs to this section alone: %s", name, ", ".join(left_out))
    return obs.drop(columns=[*earlier, sample_key], errors="ignore")


def _earlier_runs(uns: Mapping[str, Any]) -> list[str]:
    """``key_added`` of the runs of `identify_domains` whose records are in ``uns``."""
    records = {key: record for key, record in uns.items() if isinstance(record, Mapping)}
    return [
        key
        for key, record in records.items()
        if isinstance(record.get("versions"), Mapping) and "amilst-lite" in record["versions"]
    ]


def _images(adata: AnnData, name: str) -> dict[str, Any]:
    """The entries of ``uns["spatial"]`` by their names in the result."""
    libraries = adata.uns.get(keys.SPATIAL)
    if not isinstance(libraries, Mapping) or not libraries:
        return {}
    if len(libraries) == 1:
        return {name: next(iter(libraries.values()))}
    return {name if key == name else f"{name}-{key}": library for key, library in libraries.items()}


# --- all sections -----------------------------------------------------------------------------


def _joined_coordinates(sections: Sequence[_Section]) -> np.ndarray:
    dimensions: dict[int, list[str]] = {2: [], 3: []}
    for section in sections:
        dimensions[section.coordinates.shape[1]].append(section.name)
    if all(dimensions.values()):
        raise InputError(
            f"Coordinates must have the same number of dimensions in all sections; found 2 in "
            f"{examples(dimensions[2])} and 3 in {examples(dimensions[3])}. Remove the third coordinate or "
            "add it everywhere."
        )
    return np.concatenate([section.coordinates for section in sections])


def _joined_description(descriptions: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the readers know about all sections; "mixed" where they differ. Warns of different units."""
    joined: dict[str, Any] = {}
    for key in ("platform", "coordinate_unit", "geometry"):
        values = {name: str(each.get(key, "unknown")) for name, each in descriptions.items()}
        joined[key] = next(iter(values.values())) if len(set(values.values())) == 1 else "mixed"
        if key == "coordinate_unit" and len(set(values.values()) - {"unknown"}) > 1:
            units = ", ".join(f"{name}: {value}" for name, value in values.items())
            warn(
                f"The coordinates have different units ({units}). Neighbors by number are not affected; a radius or "
                "a spacing means something else in each section."
            )
    sizes = [each.get("micrometers_per_unit") for each in descriptions.values()]
    known = [float(size) for size in sizes if size is not None]
    if len(known) == len(sizes) and max(known) < 1.01 * min(known):
        joined["micrometers_per_unit"] = float(np.mean(known))
    left_out: dict[str, int] = {}
    for each in descriptions.values():
        for what, count in each.get("left_out", {}).items():
            left_out[what] = left_out.get(what, 0) + int(count)
    return {**joined, "left_out": left_out}


def _common_genes(sections: Sequence[_Section], min_genes: int) -> pd.Index:
    """The genes that all sections have, in the order of the first."""
    genes = sections[0].var.index
    for section in sections[1:]:
        genes = genes[genes.isin(section.var.index)]
    shares = ", ".join(
        f"{section.name}: {len(section.var)}"
        + (f" ({len(section.var) - len(genes)} dropped)" if len(section.var) > len(genes) else "")
        for section in sections
    )
    if len(genes) < min_genes and any(len(section.var) > len(genes) for section in sections):
        names = "; ".join(
            f"{section.name}: {examples(section.var.index[~section.var.index.isin(genes)])}"
            for section in sections
            if len(section.var) > len(genes)
        )
        raise InputError(
            f"Only {len(genes)} gene(s) are in all {len(sections)} sections; expected at least {min_genes}. "
            f"Genes of each section: {shares}. Names that are not shared: {names}. The usual cause is gene "
            "symbols in one section and Ensembl ids in another; use the same kind of names in all of them. "
            "min_genes= of read_sections accepts fewer genes."
        )
    _log.info("%d genes are shared by all sections; %s", len(genes), shares)
    return genes


def _joined_obs(sections: Sequence[_Section], sample_key: str) -> pd.DataFrame:
    sizes = [len(section.obs) for section in sections]
    stops = np.cumsum(sizes)
    columns = list(dict.fromkeys(name for section in sections for name in section.obs.columns))
    joined = {}
    for column in columns:
        parts = []
        for section, stop, size in zip(sections, stops, sizes, strict=True):
            if column in section.obs:
                parts.append(section.obs[column].set_axis(range(stop - size, stop)))
        joined[column] = _joined_column(parts, int(stops[-1]))

    names = [section.name for section in sections]
    spots = [section.obs.index for section in sections]
    index = spots[0].append(spots[1:])
    if _repeated(index):
        spots = [own + f"-{name}" for own, name in zip(spots, names, strict=True)]
        # "x-1" in section "1" and "x" in section "1-1" are still the same
        index = unique(spots[0].append(spots[1:]), "spot names", f"sections {examples(names, 8)}")
    obs = pd.DataFrame(joined, index=range(len(index))).set_axis(index)
    codes = np.repeat(np.arange(len(sections)), sizes)
    obs[sample_key] = pd.Categorical.from_codes(codes, categories=names)
    return obs


def _repeated(index: pd.Index) -> bool:
    """Whether a name occurs twice, among the spots of all processes."""
    from ..distributed import ranks

    group = ranks()
    if group.size == 1:
        return bool(index.has_duplicates)
    # where barcodes are those of a list, some of 10,000 of one section are in another
    some = index[:: max(1, len(index) // 10_000)]
    elsewhere = [names for rank, names in enumerate(group.objects(some)) if rank != group.rank]
    found = index.has_duplicates or any(index.isin(names).any() for names in elsewhere)
    return group.sum(int(found)) > 0


def _joined_column(parts: Sequence[pd.Series], n: int) -> pd.Series:
    """A column of ``obs`` from those of the inputs that have it, of a type that an h5ad file can hold.

    Parameters
    ----------
    parts
        Indexed by row of the result.
    n
        Number of rows of the result; missing values are filled in where no part has the row.
    """
    categorical = all(isinstance(part.dtype, pd.CategoricalDtype) for part in parts)
    ordered = categorical and all(part.cat.ordered and part.dtype == parts[0].dtype for part in parts)
    plain = [part.astype(object) if isinstance(part.dtype, pd.CategoricalDtype) else part for part in parts]
    values = pd.concat(plain)
    if values.dtype == bool and len(values) < n:
        values = values.astype("boolean")  # holds missing values
    values = values.reindex(range(n))
    if categorical:
        levels = list(dict.fromkeys(level for part in parts for level in part.cat.categories))
        if len(set(map(type, levels))) > 1:  # labels that are numbers in one input and text in another
            levels = list(dict.fromkeys(map(str, levels)))
            values = values.map(str, na_action="ignore")
        return pd.Series(pd.Categorical(values, categories=levels, ordered=ordered))
    if values.dtype == object:
        kinds = set(values.dropna().map(type))
        if all(issubclass(kind, bool | np.bool_) for kind in kinds):
            return values.astype("boolean")
        if all(issubclass(kind, Number | np.number) for kind in kinds):
            return pd.to_numeric(values)
        if not all(issubclass(kind, str) for kind in kinds):
            return values.map(str, na_action="ignore")
    return values


def _common_var(sections: Sequence[_Section], genes: pd.Index) -> pd.DataFrame:
    """The columns of ``var`` that are the same in all sections."""
    first, *others = (section.var.loc[genes] for section in sections)
    same = [
        column
        for column in first.columns
        if all(column in other and _equal(first[column], other[column]) for other in others)
    ]
    return first[same].copy()


def _equal(a: pd.Series, b: pd.Series) -> bool:
    a, b = a.astype(object), b.astype(object)
    return bool(((a == b) | (a.isna() & b.isna())).all())


def _joined_counts(sections: Sequence[_Section], genes: pd.Index) -> sparse.csr_matrix:
    """The counts of all sections; those of each section are released once their genes are selected."""
    blocks: list[sparse.csr_matrix] = []
    counted: list[str] = []
    others: list[str] = []
    for section in sections:
        taken, are_integers = section.take_counts(genes)
        blocks += taken
        (counted if are_integers else others).append(f"{section.place} of {section.name}")
    if counted and others:
        raise InputError(
            "All sections must have raw counts, or none. There are negative, fractional or missing values in "
            f"{', '.join(others)}, but counts in {', '.join(counted)}. Put the raw counts into "
            f"layers[{keys.COUNTS!r}] or X."
        )
    return _stacked(blocks, len(genes))


def _stacked(blocks: list[sparse.csr_matrix], n_genes: int) -> sparse.csr_matrix:
    """The rows of all blocks, as scipy's vstack; empties the list, to need half the memory in addition, not all."""
    data, indices = [block.data for block in blocks], [block.indices for block in blocks]
    lengths = np.concatenate([np.diff(block.indptr) for block in blocks])
    blocks.clear()
    indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    index_type = np.int32 if indptr[-1] <= np.iinfo(np.int32).max else np.int64
    values = np.concatenate(data)
    data.clear()
    columns = np.concatenate(indices, dtype=index_type)
    arrays = (values, columns, indptr.astype(index_type))
    return sparse.csr_matrix(arrays, shape=(len(lengths), n_genes))
