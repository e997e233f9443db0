"""`read_sections`: several inputs as one AnnData."""

import gc
import logging
import os
import weakref

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from input_files import (
    BARCODES,
    COUNTS,
    GENES,
    N_GENES,
    N_SPOTS,
    PIXELS,
    write_10x_h5,
    write_coordinates,
    write_counts_table,
    write_mtx,
    write_visium,
)
from scipy import sparse

import amilst_lite as amilst
from amilst_lite.errors import AmilstWarning, InputError
from amilst_lite.io import read_sections
from amilst_lite.io.sections import _default_names

MANY = [f"Gene{j}" for j in range(80)]


def make(n=6, genes=GENES, *, prefix="spot", seed=0, dimensions=2, **columns):
    """An AnnData with counts that differ by gene and spot, and columns of obs."""
    rng = np.random.default_rng(seed)
    return ad.AnnData(
        sparse.csr_matrix(rng.poisson(1.5, (n, len(genes))).astype(np.float32)),
        obs=pd.DataFrame(columns, index=[f"{prefix}{i}" for i in range(n)]),
        var=pd.DataFrame(index=list(genes)),
        obsm={"spatial": rng.uniform(size=(n, dimensions))},
    )


def write(path, adata=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    adata = make(**options) if adata is None else adata
    adata.write_h5ad(path)
    return path


def assert_counts(adata):
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    assert adata.X.has_canonical_format
    assert list(adata.layers) in ([], [None])  # X, since anndata 0.13


# --- formats, genes and counts ----------------------------------------------------------------


@pytest.mark.parametrize("backed", [False, True, "auto"])
def test_mixed_formats(tmp_path, backed):
    genes = [*reversed(GENES), "Other"]
    own = make(5, genes, prefix="s")
    paths = [
        write_visium(tmp_path / "A"),
        write(tmp_path / "b.h5ad", own),
        write_visium(tmp_path / "C" / "outs", counts="mtx") / "filtered_feature_bc_matrix",
    ]
    adata = read_sections(map(str, paths), min_genes=5, backed=backed)
    assert adata.shape == (2 * N_SPOTS + 5, N_GENES)
    assert not adata.isbacked
    assert_counts(adata)
    assert list(adata.var_names) == GENES
    assert list(adata.obs["section"].cat.categories) == ["A", "b", "C"]
    assert adata.obs["section"].value_counts(sort=False).tolist() == [N_SPOTS, 5, N_SPOTS]
    expected = np.vstack([COUNTS, own[:, GENES].X.toarray(), COUNTS])
    np.testing.assert_array_equal(adata.X.toarray(), expected)
    np.testing.assert_array_equal(adata.obsm["spatial"], np.vstack([PIXELS, own.obsm["spatial"], PIXELS]))
    assert adata.obsm["spatial"].dtype == np.float64
    assert adata.obs["array_row"].isna().sum() == 5
    assert list(adata.var.columns) == []  # b has none
    # images on disk are found by the name of the section
    assert set(adata.uns["spatial"]) == {"A", "C"}
    assert adata.uns["spatial"]["A"]["scalefactors"]["spot_diameter_fullres"] == 45
    adata.write_h5ad(tmp_path / "joined.h5ad")


def test_genes_in_common_are_logged(tmp_path, caplog):
    a = write(tmp_path / "a.h5ad", genes=["x", *MANY[:60]])
    b = write(tmp_path / "b.h5ad", genes=[*reversed(MANY[5:70])], prefix="t")
    c = write(tmp_path / "c.h5ad", genes=MANY[5:60], prefix="u")
    with caplog.at_level(logging.INFO, "amilst_lite"):
        adata = read_sections([a, b, c])
    assert list(adata.var_names) == MANY[5:60]
    line = "55 genes are shared by all sections; a: 61 (6 dropped), b: 65 (10 dropped), c: 55"
    assert line in caplog.messages
    for name, path in zip("abc", (a, b, c), strict=True):
        expected = ad.read_h5ad(path)[:, MANY[5:60]].X.toarray()
        np.testing.assert_array_equal(adata[adata.obs["section"] == name].X.toarray(), expected)
    assert list(adata.obs_names[:7]) == [*(f"spot{i}" for i in range(6)), "t0"]  # no clash


def test_too_few_genes_in_common(tmp_path):
    a = write(tmp_path / "a.h5ad", genes=["both", *MANY])
    b = write(tmp_path / "b.h5ad", genes=["both", *(f"ENSG{j:011d}" for j in range(90))])
    with pytest.raises(InputError) as error:
        read_sections([a, b])
    text = str(error.value)
    assert "Only 1 gene(s) are in all 2 sections; expected at least 50" in text
    assert "a: 81 (80 dropped), b: 91 (90 dropped)" in text
    assert "a: 'Gene0', 'Gene1', 'Gene2', ...; b: 'ENSG00000000000'" in text
    assert "gene symbols in one section and Ensembl ids in another" in text
    assert read_sections([a, b], min_genes=1).n_vars == 1


def test_small_panel_is_no_error(tmp_path):
    a = write(tmp_path / "a.h5ad", genes=MANY[:30])
    b = write(tmp_path / "b.h5ad", genes=MANY[29::-1])
    assert list(read_sections([a, b]).var_names) == MANY[:30]
    c = write(tmp_path / "c.h5ad", genes=MANY[1:31])
    with pytest.raises(InputError, match=r"Only 29 gene\(s\)"):
        read_sections([a, c])


def test_repeated_gene_names_are_handled_as_by_the_readers(tmp_path):
    for name in "AB":
        folder = write_visium(tmp_path / name)
        write_10x_h5(folder / "filtered_feature_bc_matrix.h5", genes=["G", "G", *GENES[2:]])
    with pytest.warns(AmilstWarning, match="gene names repeat"):
        adata = read_sections([tmp_path / "A", tmp_path / "B"])
    assert list(adata.var_names[:2]) == ["G", "G-1"]
    assert list(adata.var["gene_ids"][:2]) == ["ENSG000", "ENSG001"]  # the same in both
    np.testing.assert_array_equal(adata.X.toarray(), np.vstack([COUNTS, COUNTS]))


def with_counts_in_a_layer(adata, dense=False):
    adata.layers["counts"] = adata.X.toarray() if dense else sparse.csc_matrix(adata.X)
    adata.X = adata.X.log1p()
    return adata


@pytest.mark.parametrize("backed", [False, True])
def test_counts_in_a_layer_and_in_x(tmp_path, backed):
    parts = [make(seed=seed) for seed in range(4)]
    expected = np.vstack([part.X.toarray() for part in parts])
    with_counts_in_a_layer(parts[1])
    with_counts_in_a_layer(parts[2], dense=True)
    parts[3].X = sparse.csc_matrix(parts[3].X, dtype=np.float64)
    paths = [write(tmp_path / f"{i}.h5ad", part) for i, part in enumerate(parts)]
    adata = read_sections(paths, backed=backed)
    assert_counts(adata)
    np.testing.assert_array_equal(adata.X.toarray(), expected)


@pytest.mark.parametrize("backed", [False, True])
def test_dense_counts_become_sparse(tmp_path, backed):
    a, b = make(), make(seed=1, genes=GENES[::-1])
    expected = np.vstack([a.X.toarray(), b[:, GENES].X.toarray()])
    a.X, b.X = a.X.toarray(), b.X.toarray().astype(np.int64)
    adata = read_sections([write(tmp_path / "a.h5ad", a), write(tmp_path / "b.h5ad", b)], backed=backed)
    assert_counts(adata)
    np.testing.assert_array_equal(adata.X.toarray(), expected)


@pytest.mark.parametrize("backed", [False, True])
def test_counts_and_other_values_are_not_mixed(tmp_path, backed):
    normalized = make()
    normalized.X = normalized.X.log1p()
    a, b = write(tmp_path / "a.h5ad"), write(tmp_path / "b.h5ad", normalized)
    with pytest.raises(InputError, match=r"missing values in X of b, but counts in X of a\."):
        read_sections([a, b], backed=backed)
    write(tmp_path / "c.h5ad", normalized)
    read_sections([b, tmp_path / "c.h5ad"])  # identify_domains warns


@pytest.mark.parametrize("backed", [False, True])
def test_inputs_are_released(tmp_path, monkeypatch, backed):
    """No reference to an input remains, so that memory is that of the counts of the inputs and the result."""
    from amilst_lite.io import sections

    alive = []

    def read(*arguments, **options):
        adata = original(*arguments, **options)
        alive.append(weakref.ref(adata))
        return adata

    original = sections.read
    monkeypatch.setattr(sections, "read", read)
    paths = [write(tmp_path / f"{name}.h5ad") for name in "ab"]
    gc.disable()  # large arrays must not wait for the collector
    try:
        adata = read_sections(paths, backed=backed)
        assert [one() for one in alive] == [None, None]
    finally:
        gc.enable()
    assert adata.n_obs == 12
    for path in paths:
        os.rename(path, path.with_suffix(".moved"))  # the files are closed


# --- names ------------------------------------------------------------------------------------


def test_names_of_sections(tmp_path):
    def named(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                path.mkdir(parents=True, exist_ok=True)
            else:
                path.touch()
        return _default_names([tmp_path / name for name in names])

    assert named("a.h5ad", "b.tsv.gz", "c.1.h5ad", "d.5/", ".e") == ["a", "b", "c.1", "d.5", ".e"]
    assert named("s1/outs/", "s2/outs/", "s3/filtered_feature_bc_matrix.h5") == ["s1", "s2", "s3"]
    assert named("s4/outs/filtered_feature_bc_matrix/", "matrix/") == ["s4", tmp_path.name]
    assert named("r1/result.h5ad", "r2/result.h5ad", "x.h5ad") == ["r1_result", "r2_result", "x"]
    assert named("p/r/x.h5ad", "q/r/x.h5ad", "r/x.h5ad") == ["p_r_x", "q_r_x", f"{tmp_path.name}_r_x"]
    assert len(set(named("t_x.h5ad", "t/x.h5ad", "u/x.h5ad"))) == 3
    assert len(set(named("y.h5ad", "y.csv", "y"))) == 3


def test_given_names(tmp_path):
    paths = [write(tmp_path / "a.h5ad"), write(tmp_path / "b.h5ad")]
    adata = read_sections(paths, names=["late", "early"], sample_key="day")
    assert list(adata.obs["day"].cat.categories) == ["late", "early"]
    assert "section" not in adata.obs
    for names in (["one"], ["same", "same"], ["x", ""], ["x/y", "z"], "ab", [1, 2]):
        with pytest.raises(InputError, match="names must be 2 different non-empty strings"):
            read_sections(paths, names=names)


def test_spot_names_that_clash(tmp_path):
    a, b = write(tmp_path / "a.h5ad", n=3), write(tmp_path / "b.h5ad", n=4)
    adata = read_sections([a, b])
    assert list(adata.obs_names) == [f"spot{i}-{s}" for s, n in (("a", 3), ("b", 4)) for i in range(n)]
    # what is appended clashes again
    first, second = make(1), make(1)
    first.obs_names, second.obs_names = ["x-1"], ["x"]
    third = second.copy()
    paths = [write(tmp_path / f"{i}.h5ad", part) for i, part in enumerate((first, second, third))]
    with pytest.warns(AmilstWarning, match="sections '1', '1-1', '2': 1 of 3 spot names"):
        adata = read_sections(paths, names=["1", "1-1", "2"])
    assert adata.obs_names.is_unique


# --- obs --------------------------------------------------------------------------------------


def test_columns_of_all_inputs(tmp_path):
    layers = pd.Categorical(["L2", "L10", None], categories=["L2", "L10"])
    a = make(
        3, layer=layers, depth=[1, 2, 3], flag=[True, False, True], same=[1.5, 2.5, 3.5], label=[1, 2, 3]
    )
    b = make(2, layer=pd.Categorical(["L1", "L2"]), same=[0.0, 1.0], label=["x", "y"], own=["u", "v"])
    c = make(2, label=pd.Categorical(["x", "z"]), level=pd.Categorical([1, 2]))
    d = make(1, level=pd.Categorical(["high"]))
    paths = [write(tmp_path / f"{name}.h5ad", part) for name, part in zip("abcd", (a, b, c, d), strict=True)]
    adata = read_sections(paths)
    obs = adata.obs
    assert list(obs.columns) == ["layer", "depth", "flag", "same", "label", "own", "level", "section"]
    assert list(obs["layer"].cat.categories) == ["L2", "L10", "L1"]
    assert obs["layer"].astype(object).tolist()[:5] == ["L2", "L10", np.nan, "L1", "L2"]
    np.testing.assert_array_equal(obs["depth"], [1, 2, 3, *[np.nan] * 5])
    assert obs["flag"].dtype == "boolean" and obs["flag"].isna().sum() == 5
    assert obs["label"].tolist()[:7] == ["1", "2", "3", "x", "y", "x", "z"]
    assert obs["own"].tolist()[3:5] == ["u", "v"] and obs["own"].isna().sum() == 6
    assert list(obs["level"].cat.categories) == ["1", "2", "high"]
    adata.write_h5ad(tmp_path / "joined.h5ad")
    read = ad.read_h5ad(tmp_path / "joined.h5ad").obs
    assert read["layer"].isna().tolist() == obs["layer"].isna().tolist()


def test_existing_section_column(tmp_path):
    same = write(tmp_path / "a.h5ad", section="a")
    numbered = write(tmp_path / "7.h5ad", section=7)
    adata = read_sections([same, numbered])
    assert adata.obs["section"].tolist() == ["a"] * 6 + ["7"] * 6
    other = write(tmp_path / "c.h5ad", section=["c"] * 5 + ["d"])
    with pytest.raises(InputError, match=r"c\.h5ad: obs\['section'\] exists.*found 'c', 'd'.*--sample-key"):
        read_sections([same, other])
    adata = read_sections([same, other], sample_key="slide")
    assert adata.obs["section"].tolist() == ["a"] * 6 + ["c"] * 5 + ["d"]
    assert adata.obs["slide"].tolist() == ["a"] * 6 + ["c"] * 6
    missing = write(tmp_path / "e.h5ad", section=["e"] * 5 + [None])
    with pytest.raises(InputError, match="exists already"):
        read_sections([same, missing])


def test_results_of_earlier_runs_are_left_out(tmp_path, caplog):
    paths = []
    for name in "ab":
        adata = make(confidence=0.5)
        adata.obs["amilst_domain"], adata.obs["amilst_confidence"] = "1", 0.9
        adata.uns["amilst"] = {"versions": {"amilst-lite": "0"}}
        adata.obsm["X_amilst"] = np.zeros((6, 2))
        adata.obsp["spatial_distances"] = sparse.eye(6, format="csr")
        adata.layers["log"] = adata.X.log1p()
        paths.append(write(tmp_path / f"{name}.h5ad", adata))
    with caplog.at_level(logging.INFO, "amilst_lite"):
        joined = read_sections(paths)
    assert list(joined.obs.columns) == ["confidence", "section"]
    assert list(joined.obsm) == ["spatial"] and list(joined.uns) == ["amilst_input"] and not joined.obsp
    assert_counts(joined)
    (line,) = (text for text in caplog.messages if text.startswith("b: left out"))
    for what in ("obs['amilst_domain']", "layers['log']", "obsm['X_amilst']", "obsp['spatial_distances']"):
        assert what in line
    assert "spatial']" not in line.replace("obsp['spatial_distances']", "")
    # a column of that name that is not a result is kept
    other = make(amilst_domain="mine")
    assert "amilst_domain" in read_sections([write(tmp_path / "c.h5ad", other)]).obs


# --- coordinates and images -------------------------------------------------------------------


def test_coordinates_in_two_and_three_dimensions(tmp_path):
    a, b = write(tmp_path / "a.h5ad"), write(tmp_path / "b.h5ad", dimensions=3)
    with pytest.raises(InputError, match="found 2 in 'a' and 3 in 'b'"):
        read_sections([a, b])
    assert read_sections([b, write(tmp_path / "c.h5ad", dimensions=3)]).obsm["spatial"].shape == (12, 3)


def test_missing_coordinates(tmp_path):
    without = make()
    del without.obsm["spatial"]
    without.obsm["X_pca"] = np.zeros((6, 2))
    a = write(tmp_path / "a.h5ad")
    with pytest.raises(InputError, match=r"b\.h5ad has no coordinates: expected.*found 'X_pca'"):
        read_sections([a, write(tmp_path / "b.h5ad", without)])
    wide = make(dimensions=4)
    with pytest.raises(InputError, match=r"c\.h5ad: .*2 or 3 columns; found \(6, 4\)"):
        read_sections([a, write(tmp_path / "c.h5ad", wide)])


def test_inputs_that_need_a_table_of_coordinates(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("an input was read before all were recognized")

    monkeypatch.setattr("amilst_lite.io.sections.read", fail)
    a = write(tmp_path / "a.h5ad")
    write_coordinates(tmp_path / "xy.csv")
    for path in (
        write_10x_h5(tmp_path / "m.h5"), write_mtx(tmp_path / "m"), write_counts_table(tmp_path / "c.csv"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=rf"{path.name} has counts but no.*single.*write_h5ad\(FILE\)"):
            read_sections([a, path])
    with pytest.raises(InputError, match="no file or folder"):
        read_sections([a, tmp_path / "none.h5ad"])


def test_images_are_found_by_section(tmp_path):
    def image(value):
        return {"images": {"hires": np.full((2, 2, 3), value)}, "scalefactors": {"tissue_hires_scalef": 1.0}}

    one, two, named, none = (make() for _ in range(4))
    one.uns["spatial"] = {"V1": image(0.1)}
    two.uns["spatial"] = {"V1": image(0.2), "V2": image(0.3)}
    named.uns["spatial"] = {"named": image(0.4), "one": image(0.5)}
    parts = {"one": one, "two": two, "named": named, "none": none}
    adata = read_sections([write(tmp_path / f"{name}.h5ad", part) for name, part in parts.items()])
    found = {name: entry["images"]["hires"][0, 0, 0] for name, entry in adata.uns["spatial"].items()}
    assert found == {"one": 0.1, "two-V1": 0.2, "two-V2": 0.3, "named": 0.4, "named-one": 0.5}
    assert amilst.io.load_image(adata, "one")[1] == 1.0


# --- what is refused --------------------------------------------------------------------------


def test_the_same_input_twice(tmp_path):
    a, b = write(tmp_path / "a.h5ad"), write(tmp_path / "b.h5ad")
    with pytest.raises(InputError, match=r"a\.h5ad is given twice\. Give"):
        read_sections([a, b, a])
    os.symlink(a, tmp_path / "link.h5ad")
    with pytest.raises(InputError, match=r"link\.h5ad is given twice \(it is the same as .*a\.h5ad\)"):
        read_sections([a, tmp_path / "link.h5ad"])
    write_visium(tmp_path / "S" / "outs")
    with pytest.raises(InputError, match=r"given twice \(it is the same as .*S\)"):
        read_sections([tmp_path / "S", tmp_path / "S" / "outs"])


def test_arguments(tmp_path):
    a = write(tmp_path / "a.h5ad")
    with pytest.raises(InputError, match="Use `read` for a single section"):
        read_sections(str(a))
    with pytest.raises(InputError, match="at least one section"):
        read_sections([])
    with pytest.raises(InputError, match="sample_key must be"):
        read_sections([a], sample_key="a/b")
    with pytest.raises(InputError, match="min_genes must be"):
        read_sections([a], min_genes=0)
    with pytest.raises(InputError, match="Expected the path"):
        read_sections([a, ""])
    with pytest.raises(InputError, match=r"empty\.h5ad has 0 spots"):
        read_sections([a, write(tmp_path / "empty.h5ad", make()[:0].copy())])
    assert read_sections([a]).obs["section"].tolist() == ["a"] * 6


def test_barcodes_of_visium_sections(tmp_path):
    adata = read_sections([write_visium(tmp_path / "A"), write_visium(tmp_path / "B")])
    assert list(adata.obs_names) == [f"{barcode}-{name}" for name in "AB" for barcode in BARCODES]
    assert list(adata.var.columns) == ["gene_ids", "feature_types", "genome"]


def test_description_of_the_input(tmp_path):
    a, b = write(tmp_path / "a.h5ad"), write(tmp_path / "b.h5ad")
    described = read_sections([a, b]).uns["amilst_input"]
    assert described == {"platform": "h5ad", "coordinate_unit": "unknown", "geometry": "free", "left_out": {}}
    for path, unit, count in ((a, "micrometer", 2), (b, "pixel", 5)):
        adata = ad.read_h5ad(path)
        adata.uns["amilst_input"] = {"platform": "x", "coordinate_unit": unit, "left_out": {"blanks": count}}
        adata.write_h5ad(path)
    with pytest.warns(AmilstWarning, match=r"coordinates have different units \(a: micrometer, b: pixel\)"):
        described = read_sections([a, b]).uns["amilst_input"]
    assert described["coordinate_unit"] == "mixed" and described["left_out"] == {"blanks": 7}
    for size, expected in ((0.502, 0.501), (0.6, None)):
        for path, own in ((a, 0.5), (b, size)):
            adata = ad.read_h5ad(path)
            adata.uns["amilst_input"] = {"coordinate_unit": "pixel", "micrometers_per_unit": own}
            adata.write_h5ad(path)
        described = read_sections([a, b]).uns["amilst_input"]
        assert described["coordinate_unit"] == "pixel"
        assert described.get("micrometers_per_unit") == (
            None if expected is None else pytest.approx(expected)
        )


def test_options_of_the_readers(tmp_path):
    folders = [write_visium(tmp_path / name) for name in "AB"]
    joined = read_sections(folders, platform="visium", genome="GRCh38", min_genes=1)
    assert joined.uns["amilst_input"]["platform"] == "visium"
    with pytest.raises(InputError, match="bin_size=8 applies to"):
        read_sections(folders, bin_size=8)
    with pytest.raises(InputError, match="is no folder of CosMx"):
        read_sections(folders, platform="cosmx")
