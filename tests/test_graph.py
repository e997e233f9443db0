"""The neighbor graph against scikit-learn, dense formulas, a golden file and itself permuted."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.neighbors import kneighbors_graph, radius_neighbors_graph

from amilst_lite.errors import AmilstWarning, InputError
from amilst_lite.nn.sparse import SymmetricAdjacency
from amilst_lite.spatial.graph import SpatialGraph, _symmetrize
from amilst_lite.spatial.neighbors import (
    _hilbert_position,
    nearest_neighbors,
    space_filling_order,
    typical_spacing,
)

quick = settings(max_examples=60, deadline=None)


def scatter(n=300, dims=2, seed=0):
    return np.random.default_rng(seed).random((n, dims)) * 1000


def build(coordinates, **options):
    """A graph whose warnings are not the subject of the test."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmilstWarning)
        return SpatialGraph.from_coordinates(coordinates, **options)


def dense_adjacency(connectivities):
    a = connectivities.toarray() + np.eye(connectivities.shape[0])
    d = a.sum(axis=1) ** -0.5
    return d[:, None] * a * d[None, :]


def check_invariants(graph):
    """What holds for every graph, whatever it was made from."""
    n = graph.n_spots
    row, column = graph.edges.numpy()
    np.testing.assert_array_equal(np.sort(graph.order), np.arange(n))
    np.testing.assert_array_equal(graph.order[graph.rank], np.arange(n))
    assert (row != column).all()
    keys = row * n + column
    assert (np.diff(keys) > 0).all(), "edges are sorted and none is repeated"
    np.testing.assert_array_equal(np.sort(column * n + row), keys)
    np.testing.assert_array_equal(graph.degrees, np.bincount(row, minlength=n))
    assert graph.n_edges * 2 == len(row)
    distance = graph.distance_matrix()
    np.testing.assert_array_equal(distance.indices, graph.connectivities().indices)
    np.testing.assert_array_equal(distance.toarray(), distance.T.toarray())
    a_hat = graph.adjacency(dtype=torch.float64)
    assert a_hat.is_coalesced()
    indices = a_hat.indices().numpy()
    assert (np.diff(indices[0] * n + indices[1]) > 0).all()
    expected = dense_adjacency(graph.connectivities())[np.ix_(graph.order, graph.order)]
    np.testing.assert_allclose(a_hat.to_dense().numpy(), expected, rtol=1e-12, atol=0)


# ---- oracles ----


def test_reproduces_the_published_graph_and_its_normalization(shared_dir):
    golden = np.load(shared_dir / "golden" / "amilst_reference_120.npz")
    graph = SpatialGraph.from_coordinates(golden["coordinates"], n_neighbors=12)
    n = graph.n_spots
    connected = graph.connectivities().tocoo()
    published = sorted(zip(golden["edge_rows"].tolist(), golden["edge_cols"].tolist(), strict=True))
    assert sorted(zip(connected.row.tolist(), connected.col.tolist(), strict=True)) == published

    a_hat = graph.adjacency().to_dense().numpy()[np.ix_(graph.rank, graph.rank)]
    expected = np.zeros((n, n), np.float32)
    expected[golden["adj_rows"], golden["adj_cols"]] = golden["adj_norm_values"]
    np.testing.assert_allclose(a_hat, expected, atol=1e-6)
    ones = graph.edges.shape[1]
    assert n * n / (2 * (n * n - ones)) == pytest.approx(float(golden["norm_value"]))


def with_ties(points, k):
    """The k nearest others by all distances, and those within 1e-4 of the k-th."""
    distances = cdist(points, points)
    np.fill_diagonal(distances, np.inf)
    limit = np.sort(distances, axis=1)[:, k - 1 : k] * (1 + 1e-4)
    return sparse.csr_matrix((distances <= limit).astype(float))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("how", ["union", "mutual"])
def test_nearest_neighbors_are_those_of_all_distances(dims, how):
    coordinates = scatter(400, dims)
    graph = build(coordinates, n_neighbors=7, symmetrization=how)
    directed = with_ties(coordinates, 7)
    expected = directed.maximum(directed.T) if how == "union" else directed.multiply(directed.T)
    np.testing.assert_array_equal(graph.connectivities().toarray(), expected.toarray())
    check_invariants(graph)


@pytest.mark.parametrize("dims", [2, 3])
def test_radius_neighbors_equal_scikit_learn(dims):
    coordinates = scatter(400, dims)
    graph = build(coordinates, radius=120.0)
    expected = radius_neighbors_graph(coordinates, 120.0, include_self=False)
    np.testing.assert_array_equal(graph.connectivities().toarray(), expected.toarray())
    check_invariants(graph)


def test_distances_are_the_distances():
    coordinates = scatter(200)
    graph = SpatialGraph.from_coordinates(coordinates)
    connected = graph.connectivities().toarray() > 0
    expected = np.where(connected, cdist(coordinates, coordinates), 0)
    np.testing.assert_allclose(graph.distance_matrix().toarray(), expected, rtol=1e-6)
    row, column = graph.order[graph.edges.numpy()]
    np.testing.assert_allclose(graph.distances, expected[row, column], rtol=1e-6)


@pytest.mark.parametrize("dims", [2, 3])
def test_consecutive_cells_of_the_hilbert_curve_are_adjacent(dims):
    side = 32 if dims == 2 else 16
    cells = np.stack(np.meshgrid(*[np.arange(side)] * dims), axis=-1).reshape(-1, dims).astype(float)
    np.random.default_rng(0).shuffle(cells)
    order = np.argsort(_hilbert_position(cells.astype(np.int64), 5 if dims == 2 else 4))
    steps = np.abs(np.diff(cells[order], axis=0)).sum(axis=1)
    assert (steps == 1).all(), "on a full grid each step goes to an adjacent cell"


@pytest.mark.slow
def test_many_dimensions_are_searched_approximately_and_reproducibly():
    points = np.random.default_rng(0).normal(size=(5000, 10))
    graph = SpatialGraph.from_coordinates(points, n_neighbors=10)
    check_again = SpatialGraph.from_coordinates(points, n_neighbors=10)
    assert torch.equal(graph.edges, check_again.edges)
    directed = kneighbors_graph(points, 10, include_self=False)
    exact = directed.maximum(directed.T)
    assert graph.connectivities().multiply(exact).nnz > 0.9 * exact.nnz


def test_a_few_points_in_many_dimensions_are_searched_exactly():
    points = np.random.default_rng(0).normal(size=(300, 10))
    directed = with_ties(points, 5)
    graph = build(points, n_neighbors=5)
    np.testing.assert_array_equal(graph.connectivities().toarray(), directed.maximum(directed.T).toarray())


def test_union_and_mutual_neighbors():
    found = sparse.csr_matrix(np.array([[0, 1, 1], [1, 0, 0], [0, 0, 0]], np.int8))
    union = [[0, 1, 1], [1, 0, 0], [1, 0, 0]]
    np.testing.assert_array_equal(_symmetrize(found, "union").toarray() > 0, union)
    mutual = [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(_symmetrize(found, "mutual").toarray() > 0, mutual)


TRANSFORMS = {
    "rotation": lambda points: points @ [[0.6, 0.8], [-0.8, 0.6]],
    "reflection": lambda points: points * [1, -1],
    "scale": lambda points: points * 1e4,
    "small scale": lambda points: points * 1e-6,
    "translation": lambda points: points + np.array([1e4, -3e5]),
    "jitter": lambda points: points + np.random.default_rng(9).normal(0, 1e-7, points.shape),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=list(TRANSFORMS))
@pytest.mark.parametrize("grid", ["square", "hexagonal"])
def test_tied_neighbors_on_grids_do_not_depend_on_rounding(grid, transform):
    """The k-th neighbor of a grid is one of several at the same distance: all of them are included."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(14.0), np.arange(11.0))
    points = np.c_[x.ravel(), y.ravel()]
    if grid == "hexagonal":
        points = np.c_[points[:, 0] + points[:, 1] % 2 / 2, points[:, 1] * np.sqrt(3) / 2]
    points = points[rng.random(len(points)) < 0.9]
    one, other = build(points, n_neighbors=6), build(transform(points), n_neighbors=6)
    np.testing.assert_array_equal(other.connectivities().toarray(), one.connectivities().toarray())
    np.testing.assert_array_equal(other.order, one.order)
    inside = ((points > 2) & (points < points.max(0) - 2)).all(1)
    full = nearest_neighbors(np.c_[x.ravel(), y.ravel()], 6)[0]
    assert full[60].nnz == 8  # 4 at distance 1 and all 4 at distance √2
    assert inside.any() and (np.diff(one.connectivities().indptr)[inside] >= 6).all()


def test_ties_are_within_a_relative_tolerance():
    angles = np.arange(9) * 2 * np.pi / 9
    ring = np.c_[np.cos(angles), np.sin(angles)]
    ring[:3] *= 1 + 1e-6  # ties
    ring[3] *= 1 + 1e-3  # does not
    points = np.r_[[[0.0, 0.0]], ring, [[5.0, 5.0]]]
    neighbors, _ = nearest_neighbors(points, 5)
    assert set(neighbors[0].indices) == {1, 2, 3, 5, 6, 7, 8, 9}


def test_order_is_that_of_the_tissue_not_of_the_axes():
    points = scatter(500) * [1.0, 0.6]
    order = space_filling_order(points)
    for transform in TRANSFORMS.values():
        np.testing.assert_array_equal(space_filling_order(transform(points)), order)


# ---- properties ----

grid = hnp.arrays(
    np.int64, st.tuples(st.integers(2, 60), st.sampled_from([2, 3])), elements=st.integers(0, 4)
).filter(lambda points: (points != points[0]).any())


@quick
@given(points=grid, k=st.integers(1, 15))
def test_every_spot_has_k_neighbors_with_duplicates_and_ties(points, k):
    points = points.astype(float)
    k = min(k, len(points) - 1)
    graph = build(points, n_neighbors=k)
    check_invariants(graph)
    assert (graph.degrees >= k).all()
    # The nearest k others of each spot, by distance: ties may be broken either way, but each spot's
    # k shortest edges are as short as the best choice.
    best = np.sort(cdist(points, points) + np.diag(np.full(len(points), np.inf)), axis=1)[:, :k]
    lengths = graph.distance_matrix()
    for spot in range(len(points)):
        mine = lengths.data[lengths.indptr[spot] : lengths.indptr[spot + 1]]
        np.testing.assert_allclose(np.sort(mine)[:k], best[spot], rtol=1e-6)


@quick
@given(points=grid, radius=st.floats(0.5, 3))
def test_radius_holds_with_duplicates(points, radius):
    graph = build(points, radius=radius)
    check_invariants(graph)
    expected = (cdist(points, points) <= radius) & ~np.eye(len(points), dtype=bool)
    np.testing.assert_array_equal(graph.connectivities().toarray() > 0, expected)


@quick
@given(
    n=st.integers(8, 80),
    seed=st.integers(0, 1000),
    shape=st.sampled_from(["plane", "line", "hexagons"]),
    how=st.sampled_from(["union", "mutual"]),
)
def test_result_does_not_depend_on_the_order_of_the_spots(n, seed, shape, how):
    rng = np.random.default_rng(seed)
    points = rng.random((n, 2))
    if shape == "line":
        points = np.outer(rng.permutation(n), [3.0, 1.0])
    elif shape == "hexagons":  # Visium: many exactly equal distances
        across, down = np.divmod(rng.permutation(n), 8)
        points = np.column_stack([across * 2.0 + down % 2, down * 2.0])
    shuffle = rng.permutation(n)
    one = build(points, n_neighbors=6, symmetrization=how)
    other = build(points[shuffle], n_neighbors=6, symmetrization=how)
    check_invariants(one)
    np.testing.assert_array_equal(points[one.order], points[shuffle][other.order])
    assert torch.equal(one.edges, other.edges)
    expected = one.connectivities()[shuffle][:, shuffle]
    np.testing.assert_array_equal(other.connectivities().toarray(), expected.toarray())


def test_same_input_same_bits():
    graphs = [SpatialGraph.from_coordinates(scatter(2000)) for _ in range(3)]
    for graph in graphs[1:]:
        assert torch.equal(graph.edges, graphs[0].edges)
        assert torch.equal(graph.adjacency().values(), graphs[0].adjacency().values())


def test_many_spots_at_one_place_are_connected_in_a_ring_with_a_warning():
    # As when cells without a position were given (0, 0).
    coordinates = np.concatenate([np.zeros((500, 2)), scatter(200)])
    with pytest.warns(AmilstWarning, match="500 of 700 spots have the same coordinates as more than 12"):
        graph = SpatialGraph.from_coordinates(coordinates, n_neighbors=12)
    check_invariants(graph)
    assert (graph.degrees >= 12).all()
    assert graph.degrees.max() <= 500  # no spot is connected to all others
    assert (graph.distance_matrix()[:500, :500].data == 0).all()


@pytest.mark.parametrize("kind", [np.float32, np.int64, list, "frame", torch.tensor])
def test_takes_coordinates_in_any_form(kind):
    import pandas as pd

    whole = np.round(scatter(50))
    given = {"frame": pd.DataFrame, list: np.ndarray.tolist}.get(kind)
    given = given(whole) if given else (kind(whole) if kind is torch.tensor else whole.astype(kind))
    assert torch.equal(SpatialGraph.from_coordinates(given).edges, SpatialGraph.from_coordinates(whole).edges)


# ---- samples ----


@pytest.mark.parametrize("options", [{"n_neighbors": 5}, {"radius": 150.0}])
def test_sections_have_the_graphs_they_have_alone(options):
    coordinates = scatter(300)
    sample = np.array(["b", "a", "c"])[np.random.default_rng(1).integers(0, 3, 300)]
    graph = build(coordinates, sample=sample, **options)
    check_invariants(graph)
    names = sample[graph.order]
    assert list(names) == sorted(names), "samples are contiguous"
    connected = graph.connectivities()
    for name in "abc":
        inside = sample == name
        alone = build(coordinates[inside], **options).connectivities()
        np.testing.assert_array_equal(connected[inside][:, inside].toarray(), alone.toarray())
        assert connected[inside][:, ~inside].nnz == 0


def test_samples_may_be_categories_or_numbers():
    import pandas as pd

    coordinates = scatter(60)
    number = np.repeat([10, 2], 30)
    graph = build(coordinates, sample=number)
    assert set(graph.order[:30]) == set(range(30, 60))
    column = pd.Series(number.astype(str), dtype="category")
    np.testing.assert_array_equal(
        build(coordinates, sample=column).connectivities().toarray(), graph.connectivities().toarray()
    )


# ---- tiles ----


@pytest.mark.parametrize(("max_size", "hops"), [(100, 2), (37, 1), (300, 3), (10_000, 2), (1, 0)])
def test_tiles_give_what_the_whole_graph_gives(max_size, hops):
    graph = build(scatter(600), n_neighbors=8, sample=np.repeat([0, 1], 300))
    features = torch.randn(600, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = features
    a_hat = graph.adjacency(dtype=torch.float64)
    for _ in range(hops):
        whole = a_hat @ whole
    matrix = a_hat.to_dense()
    cores = []
    for tile in graph.tiles(max_size, hops, dtype=torch.float64):
        assert tile.adjacency.is_coalesced()
        assert tile.core.stop - tile.core.start <= max_size
        np.testing.assert_array_equal(tile.adjacency.to_dense(), matrix[tile.nodes[:, None], tile.nodes])
        part = features[tile.nodes]
        for _ in range(hops):
            part = tile.adjacency @ part
        cores.append((tile.nodes[tile.core], part[tile.core]))
    torch.testing.assert_close(torch.cat([nodes for nodes, _ in cores]), torch.arange(600))
    torch.testing.assert_close(torch.cat([part for _, part in cores]), whole, rtol=1e-12, atol=1e-14)


def test_edges_within_a_run_of_nodes():
    graph = SpatialGraph.from_coordinates(np.random.default_rng(5).random((60, 2)), n_neighbors=4)
    dense = graph.adjacency().to_dense() > 0
    edges = graph.edges_within(slice(20, 45))
    found = torch.zeros(25, 25, dtype=torch.bool)
    found[edges[0], edges[1]] = True
    assert torch.equal(found, dense[20:45, 20:45] & ~torch.eye(25, dtype=torch.bool))


def test_tiles_refuse_invalid_sizes():
    graph = SpatialGraph.from_coordinates(scatter(50))
    with pytest.raises(InputError, match="max_size"):
        next(graph.tiles(0, 1))
    with pytest.raises(InputError, match="hops"):
        next(graph.tiles(10, -1))


# ---- what is refused ----


def test_refuses_coordinates_that_are_not_finite():
    coordinates = scatter(50)
    coordinates[[3, 7], 0] = np.nan, np.inf
    with pytest.raises(InputError, match=r"2 of 50 spots have NaN or infinite .*first rows: 3, 7"):
        SpatialGraph.from_coordinates(coordinates)


@pytest.mark.parametrize("shape", [(50,), (50, 1), (0, 2), (5, 2, 2)])
def test_refuses_wrong_shapes(shape):
    with pytest.raises(InputError, match="2 or 3 columns"):
        SpatialGraph.from_coordinates(np.zeros(shape))


def test_refuses_coordinates_that_are_not_numeric():
    with pytest.raises(InputError, match="numeric matrix"):
        SpatialGraph.from_coordinates([["a", "b"]] * 20)


@pytest.mark.parametrize("options", [{}, {"radius": 1.0}])
def test_refuses_all_spots_at_one_place(options):
    with pytest.raises(InputError, match=r"all 20 spots lie at one place, \[3\.0, 3\.0\]"):
        SpatialGraph.from_coordinates(np.full((20, 2), 3.0), **options)


def test_refuses_too_few_spots_and_names_the_section():
    with pytest.raises(InputError, match=r"12 spots are too few .* n_neighbors=11"):
        SpatialGraph.from_coordinates(scatter(12))
    with pytest.raises(InputError, match=r"5 spots of section 'small'"):
        SpatialGraph.from_coordinates(scatter(50), sample=["large"] * 45 + ["small"] * 5)
    with pytest.raises(InputError, match="1 spots are too few"):
        SpatialGraph.from_coordinates([[0.0, 0.0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_neighbors": 0}, "n_neighbors"),
        ({"n_neighbors": 2.5}, "n_neighbors"),
        ({"n_neighbors": True}, "n_neighbors"),
        ({"n_neighbors": "12"}, "n_neighbors"),
        ({"radius": "100"}, "radius"),
        ({"radius": 0}, "radius"),
        ({"radius": -1.0}, "radius"),
        ({"radius": float("nan")}, "radius"),
        ({"symmetrization": "both"}, "symmetrization"),
        ({"sample": ["a"] * 3}, "one section for each of 50"),
        ({"sample": ["a"] * 49 + [None]}, "1 of 50 spots have no section"),
    ],
)
def test_refuses_invalid_options(options, message):
    with pytest.raises(InputError, match=message):
        SpatialGraph.from_coordinates(scatter(50), **options)


def test_refuses_a_radius_in_the_wrong_unit():
    with pytest.raises(InputError, match=r"radius=800 gives about [\d,]+ neighbors.*unit"):
        SpatialGraph.from_coordinates(scatter(3000), radius=800.0)


# ---- what is warned of ----


def test_warns_of_spots_without_neighbors():
    coordinates = np.concatenate([scatter(100), [[9e4, 9e4]]])
    with pytest.warns(AmilstWarning, match="1 of 101 spots have no neighbor"):
        graph = SpatialGraph.from_coordinates(coordinates, radius=300.0)
    check_invariants(graph)
    assert graph.degrees[graph.rank[100]] == 0
    assert graph.n_components == 2


def test_warns_of_a_section_in_pieces():
    coordinates = np.concatenate([scatter(100), scatter(60) + 9e4])
    with pytest.warns(AmilstWarning, match="2 pieces, 60 of 160 spots not in the largest"):
        graph = SpatialGraph.from_coordinates(coordinates)
    assert graph.n_components == 2
    with pytest.warns(AmilstWarning, match="section 's': 2 pieces"):
        SpatialGraph.from_coordinates(
            np.concatenate([coordinates, scatter(80)]), sample=["s"] * 160 + ["t"] * 80
        )


def test_two_samples_are_not_two_pieces():
    coordinates = np.concatenate([scatter(100), scatter(100, seed=1)])
    graph = SpatialGraph.from_coordinates(coordinates, sample=np.repeat([1, 2], 100))
    assert graph.n_components == 2


def test_a_small_detached_part_gives_no_warning():
    coordinates = np.concatenate([scatter(3000), scatter(13) + 9e4])
    assert SpatialGraph.from_coordinates(coordinates).n_components == 2


# ---- memory ----

MEASURE = """
import resource, sys, numpy as np
from amilst_lite.spatial.graph import SpatialGraph
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
coordinates = np.random.default_rng(0).random((50_000, 2))
graph = SpatialGraph.from_coordinates(coordinates)
graph.adjacency(); graph.connectivities(); graph.distance_matrix()
for tile in graph.tiles(10_000, 2): pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kibibytes of RSS as Linux counts them")
def test_memory_is_linear_in_the_number_of_spots():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    # An N × N matrix of bits would take 313 MB, of bytes 2.5 GB.
    assert int(done.stdout) < 200 * 1024


def test_scipy_matrices_are_canonical():
    graph = SpatialGraph.from_coordinates(scatter(100))
    for matrix in (graph.connectivities(), graph.distance_matrix()):
        assert sparse.isspmatrix_csr(matrix) and matrix.has_canonical_format
        assert matrix.dtype == np.float32


def test_typical_spacing_is_the_distance_between_places():
    grid = np.stack(np.meshgrid(np.arange(40), np.arange(50)), -1).reshape(-1, 2) * 3.0
    assert typical_spacing(np.r_[grid, grid]) == 3.0
    assert typical_spacing(np.zeros((5, 2))) == 0.0


def test_subgraph_is_the_submatrix_of_consecutive_nodes():
    points = np.random.default_rng(0).random((60, 2))
    graph = SpatialGraph.from_coordinates(points, n_neighbors=5)
    part = graph.subgraph(slice(10, 45))
    whole = graph.connectivities().toarray()[graph.order][:, graph.order]
    np.testing.assert_array_equal(part.connectivities().toarray(), whole[10:45, 10:45])
    lengths = graph.distance_matrix().toarray()[graph.order][:, graph.order]
    np.testing.assert_array_equal(part.distance_matrix().toarray(), lengths[10:45, 10:45])
    assert part.n_spots == 35
    check_invariants(part)
    loops = whole[10:45, 10:45] + np.eye(35)  # degrees are counted within the part
    root = np.sqrt(loops.sum(1))
    np.testing.assert_allclose(part.adjacency().to_dense(), loops / root / root[:, None], rtol=1e-6)
    same = graph.subgraph(slice(None))
    assert torch.equal(same.edges, graph.edges) and torch.equal(same.distances, graph.distances)


# ---- large graphs, in blocks ----


def test_blocks_of_edges_change_nothing(monkeypatch):
    places = scatter(500)
    options = {"n_neighbors": 5, "sample": np.repeat(["b", "a"], 250)}
    whole = SpatialGraph.from_coordinates(places, **options)
    monkeypatch.setattr("amilst_lite.spatial.graph._BLOCK", 97)
    blocks = SpatialGraph.from_coordinates(places, **options)
    check_invariants(blocks)
    assert torch.equal(blocks.edges, whole.edges) and torch.equal(blocks.distances, whole.distances)
    for one, other in (
        (blocks.connectivities(), whole.connectivities()), (blocks.distance_matrix(), whole.distance_matrix()),
    ):  # fmt: skip
        np.testing.assert_array_equal(one.indptr, other.indptr)
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_array_equal(one.data, other.data)
    expected = SymmetricAdjacency(whole.adjacency())
    for graph in (blocks, whole):
        found = graph.normalized()
        for name in ("offsets", "columns", "values"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
    again = SpatialGraph.from_arrays(whole.to_arrays())
    assert torch.equal(again.edges, whole.edges) and again.n_nearest == whole.n_nearest


def test_memory_of_a_graph():
    """16 bytes a spot and 8 an edge in each direction: of 10 million spots, less than a gigabyte."""
    graph = build(scatter(2000), n_neighbors=6)
    held = sum(part.nbytes for part in (graph.order, graph.offsets, graph.columns, graph.distances))
    assert held <= 16 * 2000 + 8 + 8 * len(graph.columns)
