"""SpatialData stores, written as spatialdata lays them out by anndata and zarr alone; closed forms as the oracle."""

import json
import shutil
import struct
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from input_files import BARCODES, COUNTS, GENES, N_SPOTS, PIXELS, assert_is_section
from scipy import sparse

from amilst_lite import io
from amilst_lite.errors import AmilstWarning, InputError, MissingExtraError, MissingKeyError
from amilst_lite.io.spatialdata import SPATIALDATA, centroids_of_wkb

zarr = pytest.importorskip("zarr")

INSTANCES = [f"cell{i}" for i in range(N_SPOTS)]
FORMATS = pytest.mark.parametrize("form", [2, 3])


def make_table(region="circles", instances=INSTANCES, **parts):
    rows = len(instances)
    return anndata.AnnData(
        sparse.csr_matrix(COUNTS[:rows]),
        obs=pd.DataFrame(
            {"region": pd.Categorical([region] * rows), "instance": instances}, index=BARCODES[:rows]
        ),
        var=pd.DataFrame(index=GENES),
        uns={"spatialdata_attrs": {"region": region, "region_key": "region", "instance_key": "instance"}},
        **parts,
    )


def write_store(path, form, *, consolidated=True, **tables):
    """A store without elements; spatialdata consolidates the metadata of the whole store."""
    with anndata.settings.override(zarr_write_format=form), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr's and anndata's, of defaults to come
        root = zarr.open_group(str(path), mode="w", zarr_format=form)
        root.attrs["spatialdata_attrs"] = {"version": "0.2"}
        root.create_group("tables").attrs["tables"] = list(tables)
        for name, table in tables.items():
            anndata.io.write_elem(root["tables"], name, table)
            root["tables"][name].attrs["spatialdata-encoding-type"] = "ngff:regions_table"
        root.create_group("shapes")
        if consolidated:
            zarr.consolidate_metadata(str(path))
    return path


def point(x, y, order="<"):
    return struct.pack(f"{order}BIdd", order == "<", 1, x, y)


def polygon(*rings, order="<"):
    parts = [struct.pack(f"{order}BII", order == "<", 3, len(rings))]
    for ring in rings:
        closed = [*ring, ring[0]]
        parts += [
            struct.pack(f"{order}I", len(closed)),
            *(struct.pack(f"{order}dd", *corner) for corner in closed),
        ]
    return b"".join(parts)


def multipolygon(*polygons):
    return struct.pack("<BII", 1, 6, len(polygons)) + b"".join(polygons)


def square(x, y, side=2.0):
    """The square around a center."""
    half = side / 2
    return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]


def write_shapes(store, name, geometries, index):
    pytest.importorskip("pyarrow")
    folder = store / "shapes" / name
    folder.mkdir(parents=True)
    pd.DataFrame({"geometry": geometries, "radius": 1.0}, index=index).to_parquet(folder / "shapes.parquet")


@pytest.mark.parametrize(
    ("geometry", "center"),
    [
        (point(3, -4), (3, -4)),
        (point(3, -4, ">"), (3, -4)),
        (polygon(square(5, 6)), (5, 6)),
        (polygon(square(5, 6)[::-1]), (5, 6)),
        (polygon(square(5, 6), order=">"), (5, 6)),
        (polygon([(0, 0), (3, 0), (0, 6)]), (1, 2)),
        # rectangles of 4 × 1 and 1 × 2
        (
            polygon([(0, 0), (4, 0), (4, 1), (1, 1), (1, 3), (0, 3)]),
            ((4 * 2 + 2 * 0.5) / 6, (4 * 0.5 + 2 * 2) / 6),
        ),
        (multipolygon(polygon(square(0, 0, 2)), polygon(square(10, 0, 4))), (8, 0)),
        (polygon(square(5, 6), square(5.5, 6, 0.5)), (5, 6)),  # holes are ignored
        (polygon([(0, 0), (2, 0)]), (1, 0)),  # without area
        (polygon(square(1e7 + 0.25, -1e7, 0.5)), (1e7 + 0.25, -1e7)),
    ],
)
def test_centroids(geometry, center):
    np.testing.assert_allclose(centroids_of_wkb([geometry, point(1, 2)]), [center, (1, 2)], rtol=1e-12)


def test_centroids_of_other_geometries():
    with pytest.raises(ValueError, match="found a geometry of type 2"):
        centroids_of_wkb([struct.pack("<BIIdd", 1, 2, 1, 0, 0)])
    with pytest.raises(TypeError, match="expected geometries as well-known binary"):
        centroids_of_wkb([{"x": 1.0, "y": 2.0}])


@FORMATS
@pytest.mark.parametrize("inside", ["", "tables", "tables/cells"])
def test_table_with_coordinates(tmp_path, form, inside):
    store = write_store(tmp_path / "s.zarr", form, cells=make_table(obsm={"spatial": PIXELS}))
    adata = io.read(store / inside)
    assert_is_section(adata)
    np.testing.assert_array_equal(adata.obsm["spatial"], PIXELS)
    assert adata.uns["amilst_input"]["platform"] == "spatialdata"
    assert adata.uns["spatialdata_attrs"]["region_key"] == "region"


def test_global_coordinates_of_cosmx(tmp_path):
    table = make_table(obsm={"spatial": PIXELS, "global": PIXELS + 1000.0})
    adata = io.read(write_store(tmp_path / "s.zarr", 3, cells=table))
    np.testing.assert_array_equal(adata.obsm["spatial"], PIXELS + 1000)


@FORMATS
def test_coordinates_of_shapes(tmp_path, form):
    store = write_store(tmp_path / "s.zarr", form, cells=make_table())
    write_shapes(store, "circles", [point(*xy) for xy in PIXELS[::-1]], INSTANCES[::-1])
    np.testing.assert_array_equal(io.read(store).obsm["spatial"], PIXELS)


def test_several_regions(tmp_path):
    table = make_table()
    table.obs["region"] = pd.Categorical(["circles", "polygons"] * (N_SPOTS // 2))
    store = write_store(tmp_path / "s.zarr", 3, cells=table)
    write_shapes(store, "circles", [point(*xy) for xy in PIXELS], INSTANCES)
    write_shapes(store, "polygons", [polygon(square(-x, y)) for x, y in PIXELS], INSTANCES)
    signs = np.column_stack([[1, -1] * (N_SPOTS // 2), np.ones(N_SPOTS)])
    np.testing.assert_allclose(io.read(store).obsm["spatial"], PIXELS * signs)


def place(store, name, form=3, kind="shapes", **systems):
    """Transformations of an element, in its attributes; a scale of x and y, or a whole document."""
    documents = []
    for system, one in systems.items():
        axes = [{"name": axis, "type": "space", "unit": "unit"} for axis in "xy"]
        document = one if isinstance(one, dict) else {"type": "scale", "scale": one}
        documents.append(
            {"input": {"name": "xy", "axes": axes}, "output": {"name": system, "axes": axes}, **document}
        )
    group = zarr.open_group(str(store / kind / name), mode="a", zarr_format=form)
    group.attrs.update({"encoding-type": f"ngff:{kind}", "coordinateTransformations": documents})


IDENTITY = {"type": "identity"}


@FORMATS
@pytest.mark.parametrize("inside", [True, False])
def test_coordinate_system(tmp_path, form, inside):
    """Coordinates in the table are about its region and move with it, as do the centroids of the region."""
    table = make_table(obsm={"spatial": PIXELS.astype(np.float32)} if inside else {})
    store = write_store(tmp_path / "s.zarr", form, cells=table)
    if not inside:
        write_shapes(store, "circles", [point(*xy) for xy in PIXELS], INSTANCES)
    place(store, "circles", form, own=IDENTITY, **{"global": [2.0, 3.0]}, hires=[0.5, 0.5])
    adata = io.read(store)
    assert adata.obsm["spatial"].dtype == np.float64
    np.testing.assert_array_equal(adata.obsm["spatial"], PIXELS * [2, 3])
    assert adata.uns["amilst_input"]["coordinate_system"] == "global"
    assert "coordinate system: global" in io.input_lines(adata, 1.0)
    assert io.unit_of(adata) == {"coordinate_unit": "unknown", "coordinate_system": "global"}
    adata = io.read(store, coordinate_system="hires")
    np.testing.assert_array_equal(adata.obsm["spatial"], PIXELS / 2)
    with pytest.raises(
        InputError, match=r"no coordinate system 'lowres' that all .* have 'own', 'global', 'hires'"
    ):
        io.read(store, coordinate_system="lowres")


@pytest.mark.parametrize(
    ("systems", "expected"),
    [
        ({"only": [2.0, 2.0]}, ("only", 2)),
        ({"a": [2.0, 2.0], "b": [2.0, 2.0]}, ("a", 2)),  # they do not differ
        ({"slide_hires": [0.1, 0.1], "slide": IDENTITY, "slide_lowres": [0.01, 0.01]}, ("slide", 1)),
        ({"a": [2.0, 2.0], "b": [3.0, 3.0]}, None),
    ],
)
def test_default_coordinate_system(tmp_path, systems, expected):
    store = write_store(tmp_path / "s.zarr", 3, cells=make_table(obsm={"spatial": PIXELS}))
    place(store, "circles", **systems)
    if expected is None:
        with pytest.raises(
            InputError, match=r"'a', 'b'. Choose one with coordinate_system= \(--coordinate-system\)"
        ):
            io.read(store)
        return
    adata = io.read(store)
    assert adata.uns["amilst_input"]["coordinate_system"] == expected[0]
    np.testing.assert_allclose(adata.obsm["spatial"], PIXELS * expected[1])


def test_regions_in_one_coordinate_system(tmp_path):
    """Fields of view: local coordinates in the table, and a shift for each field."""
    table = make_table(obsm={"spatial": PIXELS})
    table.obs["region"] = pd.Categorical(["1_labels", "2_labels"] * (N_SPOTS // 2))
    store = write_store(tmp_path / "s.zarr", 3, cells=table)
    for i, region in enumerate(["1_labels", "2_labels"]):
        shift = {"type": "translation", "translation": [1000.0 * i, 7.0]}
        place(store, region, **{"global": shift, str(i): IDENTITY})
    moved = PIXELS + np.column_stack([[0, 1000] * (N_SPOTS // 2), np.full(N_SPOTS, 7)])
    np.testing.assert_array_equal(io.read(store).obsm["spatial"], moved)
    with pytest.raises(
        InputError, match=r"no coordinate system '0' that all of its regions \('1_labels', '2_labels'\)"
    ):
        io.read(store, coordinate_system="0")


def test_regions_without_common_coordinate_system(tmp_path):
    table = make_table(obsm={"spatial": PIXELS})
    table.obs["region"] = pd.Categorical(["a", "b"] * (N_SPOTS // 2))
    store = write_store(tmp_path / "s.zarr", 3, cells=table)
    place(store, "a", a=IDENTITY, a_hires=[0.1, 0.1])
    place(store, "b", b=IDENTITY)
    with pytest.warns(
        AmilstWarning, match=r"its 2 regions have no coordinate system in common .*sample_key='region'"
    ):
        adata = io.read(store)
    np.testing.assert_array_equal(adata.obsm["spatial"], PIXELS)
    assert "coordinate_system" not in adata.uns["amilst_input"]


def test_unit_of_the_coordinate_system(tmp_path):
    store = write_store(tmp_path / "s.zarr", 3, cells=make_table(obsm={"spatial": PIXELS}))
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "xy"]
    place(store, "circles", **{"global": {**IDENTITY, "output": {"name": "global", "axes": axes}}})
    assert io.read(store).uns["amilst_input"]["coordinate_unit"] == "micrometer"


def test_broken_transformations(tmp_path):
    store = write_store(tmp_path / "s.zarr", 3, cells=make_table(obsm={"spatial": PIXELS}))
    place(store, "circles", **{"global": {"type": "warp"}})
    with pytest.raises(InputError, match="an element of a SpatialData store .*unknown type 'warp'"):
        io.read(store)
    (store / "shapes" / "circles" / "zarr.json").unlink()
    (store / "shapes" / "circles" / "zarr.json").symlink_to(store / "zarr.json")
    with pytest.raises(InputError, match=r"zarr.json is a link"):
        io.read(store)


def test_regions_outside_the_store(tmp_path):
    """The name of a region is no path."""
    table = make_table("../../other/circles")
    store = write_store(tmp_path / "s.zarr", 3, cells=table)
    write_shapes(tmp_path, "circles", [point(*xy) for xy in PIXELS], INSTANCES)
    (tmp_path / "shapes").rename(tmp_path / "other")
    with pytest.raises(InputError, match=r"region '\.\./\.\./other/circles' is neither in shapes"):
        io.read(store)
    store = write_store(tmp_path / "t.zarr", 3, cells=make_table("linked"))
    (store / "shapes" / "linked").symlink_to(tmp_path / "other" / "circles")
    with pytest.raises(InputError, match="region 'linked' is neither in shapes"):
        io.read(store)
    with pytest.raises(InputError, match=r"region '\.' is neither in shapes"):
        io.read(write_store(tmp_path / "u.zarr", 3, cells=make_table(".")))


def test_points(tmp_path):
    store = write_store(tmp_path / "s.zarr", 3, cells=make_table("beads", list(range(N_SPOTS))))
    pytest.importorskip("pyarrow")
    folder = store / "points" / "beads" / "points.parquet"
    folder.mkdir(parents=True)
    frame = pd.DataFrame(np.column_stack([PIXELS, np.arange(N_SPOTS)]), columns=["x", "y", "z"])
    frame[:5].to_parquet(folder / "part.0.parquet")
    frame[5:].to_parquet(folder / "part.1.parquet")
    np.testing.assert_array_equal(io.read(store).obsm["spatial"], frame)


@FORMATS
def test_labels(tmp_path, form, monkeypatch):
    monkeypatch.setattr("amilst_lite.io.spatialdata._LABEL_ROWS", 4)
    image = np.zeros((30, 40), dtype=np.int32)
    for i in range(N_SPOTS):
        image[2 * i : 2 * i + 2, 3 * i : 3 * i + 3] = i + 5
    store = write_store(tmp_path / "s.zarr", form, cells=make_table("nuclei", list(range(5, 5 + N_SPOTS))))
    group = zarr.open_group(str(store / "labels" / "nuclei"), mode="w", zarr_format=form)
    group["s0"] = image
    scales = {"multiscales": [{"datasets": [{"path": "s0"}]}]}
    group.attrs.update(scales if form == 2 else {"ome": scales})
    # the corner of the first pixel is the origin, and its center 0.5
    expected = [(3 * i + 1.5, 2 * i + 1) for i in range(N_SPOTS)]
    np.testing.assert_allclose(io.read(store).obsm["spatial"], expected)


def test_shapes_of_early_versions(tmp_path):
    store = write_store(tmp_path / "s.zarr", 2, cells=make_table())
    group = zarr.open_group(str(store / "shapes" / "circles"), mode="w", zarr_format=2)
    group["coords"], group["Index"], group["radius"] = (
        PIXELS,
        np.array(INSTANCES, dtype="U10"),
        np.ones(N_SPOTS),
    )
    np.testing.assert_array_equal(io.read(store).obsm["spatial"], PIXELS)
    del group["radius"]
    with pytest.raises(InputError, match=r"polygons in the format of spatialdata before 0\.1"):
        io.read(store)


def test_instances_without_shape(tmp_path):
    store = write_store(tmp_path / "s.zarr", 3, cells=make_table())
    write_shapes(store, "circles", [point(*xy) for xy in PIXELS[2:]], INSTANCES[2:])
    with pytest.warns(
        AmilstWarning, match=rf"2 of 12 instances are not in its regions \(e\.g\. '{BARCODES[0]}'"
    ):
        adata = io.read(store)
    assert_is_section(adata, BARCODES[2:], GENES, COUNTS[2:])
    assert adata.uns["amilst_input"]["left_out"] == {"instances without a shape": 2}
    shutil.rmtree(store / "shapes" / "circles")
    write_shapes(store, "circles", [point(*xy) for xy in PIXELS], [f"other{i}" for i in range(N_SPOTS)])
    with pytest.raises(InputError, match="12 of 12 instances are not in its regions"):
        io.read(store)


def test_several_tables(tmp_path):
    first, second = make_table(obsm={"spatial": PIXELS}), make_table(obsm={"spatial": PIXELS + 1})
    store = write_store(tmp_path / "s.zarr", 3, first=first, second=second)
    with pytest.raises(
        InputError, match=r"has several tables: 'first', 'second'. Choose one with table= \(--table\)"
    ):
        io.read(store)
    with pytest.raises(InputError, match="has no table 'third', but: 'first', 'second'"):
        io.read(store, table="third")
    np.testing.assert_array_equal(io.read(store, table="second").obsm["spatial"], PIXELS + 1)
    with pytest.raises(InputError, match="is the table 'first'; table='second' is another one"):
        io.read(store / "tables" / "first", table="second")


def test_counts_in_a_layer(tmp_path):
    table = make_table(obsm={"spatial": PIXELS}, layers={"umi": sparse.csr_matrix(COUNTS)})
    table.X = sparse.csr_matrix(np.log1p(COUNTS))
    store = write_store(tmp_path / "s.zarr", 3, cells=table)
    np.testing.assert_array_equal(io.read(store, layer="umi").layers["counts"].toarray(), COUNTS)


def test_no_coordinates(tmp_path):
    table = make_table()
    store = write_store(tmp_path / "a.zarr", 3, cells=table)
    with pytest.raises(
        InputError, match=r"its region 'circles' is neither in shapes nor in points or labels"
    ):
        io.read(store)
    del table.uns["spatialdata_attrs"]
    with pytest.raises(
        InputError, match=r"has no coordinates: expected obsm\['spatial'\], or uns\['spatialdata_attrs'\]"
    ):
        io.read(write_store(tmp_path / "b.zarr", 3, cells=table))
    empty = write_store(tmp_path / "c.zarr", 3)
    assert not SPATIALDATA.recognizes(empty)
    with pytest.raises(
        InputError, match="is not a SpatialData store with a table: expected tables/NAME, found"
    ):
        io.read(empty, platform="spatialdata")


def test_broken_shapes(tmp_path):
    store = write_store(tmp_path / "s.zarr", 3, cells=make_table())
    write_shapes(store, "circles", [point(*xy) for xy in PIXELS], [*INSTANCES[1:], INSTANCES[1]])
    with pytest.raises(InputError, match="circles: identifiers repeat"):
        io.read(store)
    (store / "shapes" / "circles" / "shapes.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"shapes\.parquet cannot be read as a parquet table"):
        io.read(store)


def test_without_pyarrow(tmp_path, without_package):
    store = write_store(tmp_path / "s.zarr", 3, cells=make_table())
    write_shapes(store, "circles", [point(*xy) for xy in PIXELS], INSTANCES)
    without_package("pyarrow")
    with pytest.raises(MissingExtraError, match=r"shapes\.parquet needs .*'pyarrow'.*\[parquet\]"):
        io.read(store)


# --- labels ---------------------------------------------------------------------------------


def labeled(store):
    adata = io.read(store)
    adata.obs["domain"] = pd.Categorical([str(i % 3 + 1) for i in range(adata.n_obs)])
    adata.obs["confidence"] = np.linspace(0, 1, adata.n_obs, dtype=np.float32)
    return adata


def files_of(store):
    return {path.relative_to(store): path.read_bytes() for path in store.rglob("*") if path.is_file()}


@FORMATS
@pytest.mark.parametrize("consolidated", [False, True])
def test_labels_are_written_back(tmp_path, form, consolidated):
    table = make_table(obsm={"spatial": PIXELS})
    store = write_store(tmp_path / "s.zarr", form, consolidated=consolidated, cells=table)
    before = files_of(store)
    adata = labeled(store)
    io.write_labels(store, adata[:-2], ["domain", "confidence"])
    # anndata opens the table, and zarr the whole store by its consolidated metadata, as spatialdata does
    again = anndata.read_zarr(str(store / "tables" / "cells"))
    assert list(again.obs) == ["region", "instance", "domain", "confidence"]
    assert list(again.obs["domain"][:-2]) == list(adata.obs["domain"][:-2])
    assert again.obs["domain"].isna().sum() == again.obs["confidence"].isna().sum() == 2
    np.testing.assert_array_equal(again.obs["confidence"][:-2], adata.obs["confidence"][:-2])
    assert again.obs["confidence"].dtype == np.float32
    obs = zarr.open_group(str(store), mode="r", use_consolidated=consolidated)["tables/cells/obs"]
    assert "domain" in obs
    assert list(obs.attrs["column-order"])[-1] == "confidence"
    # and nothing else has changed
    after = files_of(store)
    metadata = {".zmetadata", ".zattrs", "zarr.json"}
    for path, content in before.items():
        assert path.name in metadata or after[path] == content
    for path in set(after) - set(before):
        assert path.parts[:3] == ("tables", "cells", "obs")
        assert path.parts[3] in ("domain", "confidence")


def test_columns_are_not_overwritten_silently(tmp_path):
    store = write_store(tmp_path / "s.zarr", 3, cells=make_table(obsm={"spatial": PIXELS}))
    adata = labeled(store)
    io.write_labels(store, adata, ["domain"])
    before = files_of(store)
    with pytest.raises(InputError, match="has the column 'domain' already. Choose another key_added"):
        io.write_labels(store, adata, ["confidence", "domain"])
    with pytest.raises(InputError, match="has the column 'region' already"):
        io.write_labels(store, adata, ["region"])
    with pytest.raises(MissingKeyError, match="obs has no column 'nothing'"):
        io.write_labels(store, adata, ["nothing"])
    other = adata.copy()
    other.obs_names = [f"x{name}" for name in BARCODES]
    with pytest.raises(InputError, match=r"12 of 12 observations are not in the table \(e\.g\. 'x"):
        io.write_labels(store, other, ["confidence"])
    assert files_of(store) == before
    adata.obs["domain"] = ["one"] * N_SPOTS
    io.write_labels(store / "tables" / "cells", adata, ["domain"], overwrite=True)
    again = io.read(store)
    assert list(again.obs["domain"]) == ["one"] * N_SPOTS
    assert list(again.obs) == ["region", "instance", "domain"]


@pytest.mark.filterwarnings("ignore:Observation names are not unique:UserWarning")  # anndata's, of this file
def test_labels_of_a_table_with_repeated_names(tmp_path):
    table = make_table(obsm={"spatial": PIXELS})
    table.obs_names = [*BARCODES[:-1], BARCODES[0]]
    store = write_store(tmp_path / "s.zarr", 3, cells=table)
    with pytest.warns(AmilstWarning, match="1 of 12 spot names repeat"):
        adata = labeled(store)
    io.write_labels(store, adata[::-1], ["domain"])
    assert list(anndata.read_zarr(str(store / "tables" / "cells")).obs["domain"]) == list(adata.obs["domain"])


def test_consolidated_metadata_of_the_store(tmp_path):
    store = write_store(tmp_path / "s.zarr", 3, cells=make_table(obsm={"spatial": PIXELS}))
    io.write_labels(store, labeled(store), ["domain"])
    copy = json.loads((store / "zarr.json").read_text())["consolidated_metadata"]["metadata"]
    assert "tables/cells/obs/domain/codes" in copy


@pytest.mark.slow
@pytest.mark.parametrize("version", ["SpatialDataContainerFormatV01", "SpatialDataContainerFormatV02"])
def test_spatialdata_writes_and_reopens(tmp_path, version):
    spatialdata = pytest.importorskip("spatialdata")
    geopandas, shapely = pytest.importorskip("geopandas"), pytest.importorskip("shapely")
    formats = pytest.importorskip("spatialdata._io.format")
    pytest.importorskip("spatialdata.transformations")
    rng = np.random.default_rng(0)
    shapes = [shapely.Point(*xy).buffer(2, quad_segs=3) for xy in PIXELS]
    shapes[1] = shapely.MultiPolygon([shapes[1], shapely.Polygon(rng.uniform(0, 9, (3, 2)) + 200)])
    frame = geopandas.GeoDataFrame(geometry=shapes, index=INSTANCES)
    affine = spatialdata.transformations.Affine(
        [[2, 0.5, 3], [0.1, 3, -4], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y")
    )
    known = {"global": affine, "same": spatialdata.transformations.Identity()}
    element = spatialdata.models.ShapesModel.parse(frame, transformations=known)
    table = spatialdata.models.TableModel.parse(
        make_table("cells"),
        region="cells",
        region_key="region",
        instance_key="instance",
        overwrite_metadata=True,
    )
    store = tmp_path / "s.zarr"
    elements = {"shapes": {"cells": element}, "tables": {"table": table}}
    spatialdata.SpatialData(**elements).write(store, sdata_formats=[getattr(formats, version)()])
    for system in known:
        centers = spatialdata.get_centroids(element, coordinate_system=system).compute().loc[INSTANCES]
        spatial = io.read(store, coordinate_system=system).obsm["spatial"]
        np.testing.assert_allclose(spatial, centers, rtol=1e-10, atol=1e-9)
    adata = labeled(store)
    io.write_labels(store, adata, ["domain", "confidence"])
    again = spatialdata.read_zarr(store).tables["table"]
    spatialdata.models.TableModel().validate(again)
    assert list(again.obs["domain"]) == list(adata.obs["domain"])
