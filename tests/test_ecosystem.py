"""Results in scanpy, squidpy, anndata and spatialdata: what they draw, compute, join, write and read again.

These packages are no dependencies; CONTRIBUTING.md says how to run these tests. Runs that come from Python and from
the command line are both tried, because the second have been written to a file and read again.
"""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import amilst_lite as amilst
from amilst_lite import analysis
from amilst_lite.cli import main
from amilst_lite.io import read_h5ad

pytestmark = [
    pytest.mark.slow,
    # of the other packages
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
QUICK = {"epochs": 3, "n_networks": 1, "n_init": 4}
FLAGS = [part for name, value in QUICK.items() for part in (f"--{name.replace('_', '-')}", str(value))]
N_DOMAINS = 4


@pytest.fixture(scope="module")
def scanpy():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    return pytest.importorskip("scanpy")


@pytest.fixture(scope="module")
def squidpy(scanpy):
    return pytest.importorskip("squidpy")


def section(seed=1):
    """A section with an image of the tissue, as scanpy reads those of Visium."""
    adata = amilst.simulate_section(300, 60, N_DOMAINS, seed=seed)
    extent = adata.obsm["spatial"].max(axis=0) - adata.obsm["spatial"].min(axis=0)
    adata.obsm["spatial"] += 100 - adata.obsm["spatial"].min(axis=0)
    width, height = np.ceil((extent + 200) * 0.1).astype(int)
    library = adata.uns["spatial"]["simulated"]
    library["images"] = {"hires": np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)}
    library["scalefactors"]["tissue_hires_scalef"] = 0.1
    return adata


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run by the function, with every analysis, and by the command line, read from its file."""
    folder = tmp_path_factory.mktemp("run")
    own = section()
    own.write_h5ad(folder / "section.h5ad")
    amilst.identify_domains(own, N_DOMAINS, seed=0, **QUICK)
    own.obs["section"], own.obs["condition"] = pd.Categorical(["s"] * own.n_obs), "c"
    names = [name for name in analysis.ANALYSES if name != "comparison"]
    analysis.run(own, names)
    out = folder / "out"
    assert main(["run", str(folder / "section.h5ad"), "-k", str(N_DOMAINS), "-o", str(out), *FLAGS]) == 0
    return {"function": own, "command line": ad.read_h5ad(out / "result.h5ad")}


@pytest.fixture(params=["function", "command line"])
def run(runs, request):
    return runs[request.param].copy()


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """A joint run of two sections."""
    parts = {name: section(seed) for name, seed in (("first", 1), ("second", 2))}
    adata = ad.concat(parts, label="section", index_unique="-", uns_merge="first")
    adata.uns["spatial"] = {name: part.uns["spatial"]["simulated"] for name, part in parts.items()}
    amilst.identify_domains(adata, N_DOMAINS, sample_key="section", **QUICK)
    return adata


def colors_drawn(axis):
    """Colors of the spots on an axis, in the order of the rows."""
    from matplotlib.colors import to_hex

    spots = next(one for one in axis.collections if len(one.get_facecolors()) > N_DOMAINS)
    return [to_hex(color).upper() for color in spots.get_facecolors()]


def colors_of(adata):
    domains = adata.obs["amilst_domain"]
    return list(np.asarray(adata.uns["amilst_domain_colors"])[domains.cat.codes])


def test_both_runs_are_the_same(runs):
    own, read = runs.values()
    assert list(own.obs["amilst_domain"]) == list(read.obs["amilst_domain"])
    assert list(own.uns["amilst_domain_colors"]) == list(read.uns["amilst_domain_colors"])


def test_scanpy_draws_the_domains_on_the_image(scanpy, run):
    (axis,) = scanpy.pl.spatial(run, color="amilst_domain", show=False)
    assert colors_drawn(axis) == colors_of(run) and len(axis.images) == 1
    axes = scanpy.pl.spatial(run, color=["amilst_domain_refined", "amilst_confidence"], show=False)
    assert len(axes) == 2


def test_scanpy_draws_a_section_without_an_image(scanpy):
    adata = amilst.simulate_section(200, 40, 3)
    amilst.identify_domains(adata, 3, **QUICK)
    (axis,) = scanpy.pl.spatial(adata, color="amilst_domain", img_key=None, show=False)
    assert colors_drawn(axis) == colors_of(adata) and not axis.images


def test_the_image_that_our_reader_records_is_drawn_once_it_is_loaded(scanpy, squidpy, run, tmp_path):
    from matplotlib import pyplot as plt

    library = run.uns["spatial"]["simulated"]
    plt.imsave(tmp_path / "hires.png", library["images"]["hires"])
    library |= {"images": {}, "metadata": {"hires_image_path": str(tmp_path / "hires.png")}}
    library["images"]["hires"] = amilst.io.load_image(run)[0]
    (axis,) = scanpy.pl.spatial(run, color="amilst_domain", show=False)
    assert len(axis.images) == 1
    squidpy.pl.spatial_scatter(run, color="amilst_domain", library_id="simulated")
    assert plt.gca().images
    plt.close("all")


@pytest.mark.parametrize("basis", ["spatial", "X_amilst", "X_amilst_latent", "X_amilst_pca"])
def test_scanpy_draws_embeddings(scanpy, run, basis):
    axis = scanpy.pl.embedding(run, basis=basis, color="amilst_domain", show=False)
    assert sorted(colors_drawn(axis)) == sorted(colors_of(run))


def test_squidpy_draws_the_domains(squidpy, run):
    import matplotlib.pyplot as plt

    squidpy.pl.spatial_scatter(run, color="amilst_domain", library_id="simulated", return_ax=True)
    axis = plt.gca()
    assert set(colors_drawn(axis)) == set(colors_of(run)) and axis.images
    squidpy.pl.spatial_scatter(
        run, color=["amilst_domain", "amilst_confidence"], shape=None, library_id="simulated"
    )
    plt.close("all")


def test_squidpy_draws_the_sections_of_a_joint_run(squidpy, joint):
    import matplotlib.pyplot as plt

    adata = joint.copy()
    squidpy.pl.spatial_scatter(
        adata, color="amilst_domain", library_key="section", library_id=["first", "second"], img=False
    )
    axes = plt.gcf().axes
    assert len([axis for axis in axes if axis.collections]) == 2
    plt.close("all")


def test_squidpy_uses_the_graph(squidpy, run):
    squidpy.gr.nhood_enrichment(run, cluster_key="amilst_domain", n_perms=20, seed=0, show_progress_bar=False)
    counts = run.uns["amilst_domain_nhood_enrichment"]["count"]
    graph = run.obsp["spatial_connectivities"]
    assert counts.sum() == graph.nnz
    domains = run.obs["amilst_domain"].cat.codes.to_numpy()
    member = sparse.csr_matrix((np.ones(run.n_obs), (domains, np.arange(run.n_obs))))
    np.testing.assert_array_equal(counts, (member @ (graph != 0) @ member.T).toarray())


def test_scanpy_ranks_genes(scanpy, run):
    scanpy.pp.normalize_total(run)
    scanpy.pp.log1p(run)
    scanpy.tl.rank_genes_groups(run, groupby="amilst_domain", method="wilcoxon", tie_correct=True)
    ours = analysis.marker_genes(run_counts(run)).set_index(["domain", "gene"])
    theirs = scanpy.get.rank_genes_groups_df(run, group=None).set_index(["group", "names"])
    # scanpy normalizes to the median of the totals, and has no continuity correction
    z = theirs["scores"].rename_axis(["domain", "gene"]).reindex(ours.index)
    np.testing.assert_allclose(ours["z"], z, atol=0.02)


def run_counts(adata):
    """The counts of a run whose X is normalized by now, with its domains."""
    counts = section()
    counts.obs["amilst_domain"] = adata.obs["amilst_domain"]
    return counts


def test_scanpy_connects_domains(scanpy, run):
    scanpy.pp.neighbors(run, use_rep="X_amilst", n_neighbors=10)
    scanpy.tl.paga(run, groups="amilst_domain")
    assert run.uns["paga"]["connectivities"].shape == (N_DOMAINS, N_DOMAINS)
    # and on the spatial graph, whose parameters are recorded as squidpy does
    scanpy.tl.paga(run, groups="amilst_domain", neighbors_key="spatial_neighbors")
    assert run.uns["paga"]["connectivities"].nnz
    pytest.importorskip("igraph")
    scanpy.pl.paga(run, show=False)


def test_results_of_two_sections_are_joined(scanpy, squidpy):
    parts = {}
    for name, seed in (("a", 1), ("b", 2)):
        parts[name] = section(seed)
        amilst.identify_domains(parts[name], N_DOMAINS, **QUICK)
        analysis.run(parts[name])
    whole = ad.concat(
        parts, label="section", join="outer", index_unique="-", pairwise=True, uns_merge="unique"
    )
    assert whole.n_obs == 600 and set(whole.obs["amilst_domain"]) <= set("1234")
    for name in ("X_amilst_pca", "spatial"):
        assert len(whole.obsm[name]) == 600
    assert whole.obsp["spatial_connectivities"].nnz == sum(
        part.obsp["spatial_connectivities"].nnz for part in parts.values()
    )
    scanpy.pl.embedding(whole, basis="spatial", color=["section", "amilst_domain"], show=False)
    # a joint run on the joined results replaces those of the parts
    amilst.identify_domains(whole, N_DOMAINS, sample_key="section", **QUICK)
    assert whole.uns["amilst"]["sample_key"] == "section"


def same(first, second):
    """The same values, whatever the containers that a file gives back."""
    if isinstance(first, dict):
        assert set(first) == set(second)
        for name in first:
            same(first[name], second[name])
    elif sparse.issparse(first):
        assert (sparse.csr_matrix(first) != sparse.csr_matrix(second)).nnz == 0
    elif isinstance(first, pd.DataFrame):
        pd.testing.assert_frame_equal(
            first, second, check_dtype=False, check_names=False, check_categorical=False, check_column_type=False,
            check_index_type=False,
        )  # fmt: skip
    else:
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_files_hold_everything(runs, kind, tmp_path):
    adata = runs["function"]
    path = tmp_path / f"result.{kind}"
    with warnings.catch_warnings():
        warnings.simplefilter("error", ad.ImplicitModificationWarning)
        getattr(adata, f"write_{kind}")(path)
    back = getattr(ad, f"read_{kind}")(path)
    same(dict(adata.uns), dict(back.uns))
    for place in ("obsm", "obsp"):
        assert set(getattr(adata, place)) == set(getattr(back, place))
        for name, values in getattr(adata, place).items():
            same(values, getattr(back, place)[name])
    pd.testing.assert_frame_equal(adata.obs, back.obs, check_dtype=False)
    # what was read can be written, scored and drawn again, and replaced by another run
    getattr(back, f"write_{kind}")(tmp_path / f"again.{kind}")
    assert amilst.score(back, "ground_truth") == amilst.score(adata, "ground_truth")
    amilst.plot.domains(back)
    amilst.write_results(back, tmp_path / "out")
    amilst.identify_domains(back, N_DOMAINS, **QUICK)
    assert list(back.obs["amilst_domain"]) == list(adata.obs["amilst_domain"])


def test_a_joint_run_in_files_of_both_kinds(joint, tmp_path):
    for kind in ("h5ad", "zarr"):
        path = tmp_path / f"joint.{kind}"
        getattr(joint, f"write_{kind}")(path)
        back = getattr(ad, f"read_{kind}")(path)
        same(dict(joint.uns["amilst"]), dict(back.uns["amilst"]))


def test_a_table_of_spatialdata(runs, tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    adata = runs["function"].copy()
    adata.obs["region"] = pd.Categorical(["spots"] * adata.n_obs)
    adata.obs["instance"] = np.arange(adata.n_obs)
    table = spatialdata.models.TableModel.parse(
        adata, region="spots", region_key="region", instance_key="instance"
    )
    spots = spatialdata.models.ShapesModel.parse(adata.obsm["spatial"], geometry=0, radius=27.5)
    store = tmp_path / "store.zarr"
    spatialdata.SpatialData(shapes={"spots": spots}, tables={"table": table}).write(store)
    back = spatialdata.read_zarr(store).tables["table"]
    assert list(back.obs["amilst_domain"]) == list(adata.obs["amilst_domain"])
    same(dict(adata.uns["amilst"]), dict(back.uns["amilst"]))
    # our reader reads what spatialdata has written
    again = amilst.read(store)
    np.testing.assert_allclose(again.obsm["spatial"], adata.obsm["spatial"])
    assert list(again.obs["amilst_domain"]) == list(adata.obs["amilst_domain"])


def test_the_reader_accepts_results(runs, tmp_path):
    """A second run on a result: the image and the results of other packages stay."""
    runs["function"].write_h5ad(tmp_path / "result.h5ad")
    adata = read_h5ad(tmp_path / "result.h5ad")
    adata.uns["leiden_colors"] = ["#000000"]
    amilst.identify_domains(adata, 2, **QUICK)
    assert adata.uns["amilst"]["n_domains"] == 2 and "amilst_markers" not in adata.uns
    assert "hires" in adata.uns["spatial"]["simulated"]["images"] and "leiden_colors" in adata.uns
