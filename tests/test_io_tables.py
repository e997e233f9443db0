"""Text tables of counts, coordinates and annotations."""

import tracemalloc

import anndata
import numpy as np
import pandas as pd
import pytest
from input_files import (
    BARCODES,
    N_SPOTS,
    assert_is_section,
    write_10x_h5,
    write_coordinates,
    write_counts_table,
    write_text,
    write_visium,
)

from amilst_lite import io
from amilst_lite.errors import AmilstWarning, InputError
from amilst_lite.io import entries, tables
from amilst_lite.io.coordinates import SpotTable
from amilst_lite.io.files import TextTable


@pytest.mark.parametrize("genes_first", [False, True])
@pytest.mark.parametrize("separator", ["\t", ",", ";", " ", "   "])
@pytest.mark.parametrize("r_style", [False, True])
def test_table_of_counts_in_either_orientation(tmp_path, genes_first, separator, r_style):
    r_style = r_style or (separator.isspace() and separator != "\t")  # a line cannot begin with spaces
    counts = write_counts_table(
        tmp_path / "c.txt", genes_first=genes_first, separator=separator, r_style=r_style
    )
    adata = io.read(counts, coordinates=write_coordinates(tmp_path / "xy.csv"))
    assert_is_section(adata)
    np.testing.assert_array_equal(adata.obsm["spatial"], [[i + 0.5, 2 * i] for i in range(N_SPOTS)])
    assert list(adata.obs) == ["layer"]
    assert list(adata.obs["layer"][:2]) == ["L0", "L1"]


def test_table_with_gzip_quotes_byte_order_mark_and_empty_lines(tmp_path):
    lines = ['"","A","B, or C"', "", '"s1",1,0', '"s2",0,2.5', ""]
    counts = write_text(tmp_path / "c.csv", "\ufeff" + "\r\n".join(lines), gzipped=True)  # no .gz in its name
    adata = io.read_table(counts, write_text(tmp_path / "xy.txt", "\n x   y  id\n1 2 s1\n3 4   s2\n"))
    assert_is_section(adata, ["s1", "s2"], ["A", "B, or C"], [[1, 0], [0, 2.5]])
    np.testing.assert_array_equal(adata.obsm["spatial"], [[1, 2], [3, 4]])


def test_spots_named_by_grid_position(tmp_path):
    """HER2ST: counts of spot "10x13"; coordinates without names, or with names of another kind."""
    counts = write_text(
        tmp_path / "A1.tsv.gz", "\tA\tB\n10x13\t1\t0\n10x14\t2\t0\n9x2\t0\t1\n8x8\t5\t5\n", True
    )
    selection = write_text(
        tmp_path / "A1_selection.tsv",
        "x\ty\tnew_x\tnew_y\tselected\n9\t2\t9.1\t2.1\t0\n10\t13\t9.9\t13.1\t1\n10\t14\t9.9\t14\t1\n",
    )
    with pytest.warns(
        AmilstWarning,
        match=r"2 of 4 spots left out: 1 have no row \(e\.g\. '8x8'\), 1 are marked 0 in 'selected'",
    ):
        adata = io.read(counts, coordinates=selection)
    assert_is_section(adata, ["10x13", "10x14"], ["A", "B"], [[1, 0], [2, 0]])
    np.testing.assert_array_equal(adata.obsm["spatial"], [[10, 13], [10, 14]])
    assert list(adata.obs) == ["new_x", "new_y", "selected"]
    labeled = write_text(
        tmp_path / "A1_labeled.tsv",
        "Row.names\tx\ty\tlabel\n100x200\t9.9\t13.2\tinvasive cancer\n1x2\t10.02\t13.98\tfat\n"
        "3x4\t9.02\t2.01\tfat\n5x6\t8\t7.99\t\n7x8\t-0.2\tNA\tfat\n",
    )
    adata = io.read(counts, coordinates=labeled)
    np.testing.assert_array_equal(
        adata.obsm["spatial"], [[9.9, 13.2], [10.02, 13.98], [9.02, 2.01], [8, 7.99]]
    )
    assert list(adata.obs["label"][:3]) == ["invasive cancer", "fat", "fat"]
    assert adata.obs["label"].isna().sum() == 1


def test_tables_whose_names_do_not_match(tmp_path):
    counts = write_counts_table(tmp_path / "c.tsv")
    with pytest.raises(
        InputError,
        match=r"Neither the rows of .*'AAGATTACA-1'.* nor its columns .*'Gene0'.*0 of 12 rows and 0 of 7",
    ) as caught:
        io.read(counts, coordinates=write_coordinates(tmp_path / "xy.csv", [f"s{i}" for i in range(5)]))
    assert "suffix" not in str(caught.value)
    bare = write_coordinates(tmp_path / "xy.csv", [name.removesuffix("-1") for name in BARCODES])
    with pytest.raises(InputError, match=r"12 would match without the suffix \('-1'\)"):
        io.read(counts, coordinates=bare)
    with pytest.raises(InputError, match=r"0 of 12 spots match.*'AAGATTACA-1'.*'AAGATTACA'.*12 would match"):
        io.read(write_10x_h5(tmp_path / "m.h5"), coordinates=bare)
    with pytest.warns(AmilstWarning, match="9 of 12 spots left out: 9 have no row"):
        assert io.read(counts, coordinates=write_coordinates(tmp_path / "xy.csv", BARCODES[:3])).n_obs == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", r"contains 0 line\(s\) of text"),
        (",A,B\n", r"contains 1 line\(s\) of text"),
        ("just words\nand again some more\n", "is not a text table"),
        ('a,"b\nc,d\n1,2\n', "is not a text table"),  # one field in quotes, over two lines
        (",A,B\ns0,1,2\ns1,1\n", "line 3: row 's1' has 2 fields, the first line has 3.*truncated"),
        (",A,B\ns0,1,2\ns1,1,n/a\n", "line 3: counts must be numbers; row 's1'.*n/a"),
        (",A,B\ns0,1,2\ns1,1,\n", "counts must be numbers; row 's1'"),
    ],
)
def test_broken_table_of_counts(tmp_path, text, message):
    path = write_text(tmp_path / "broken.csv", text)
    with pytest.raises(InputError, match=message) as caught:
        io.read_table(path, write_coordinates(tmp_path / "xy.csv", ["s0", "s1"]))
    assert "broken.csv" in str(caught.value)


@pytest.mark.parametrize("missing", [1, 8, 20, 60])
def test_truncated_gzip(tmp_path, missing):
    counts = write_counts_table(tmp_path / "c.tsv.gz")
    counts.write_bytes(counts.read_bytes()[:-missing])
    with pytest.raises(InputError, match=r"c\.tsv\.gz cannot be read as"):
        io.read(counts, coordinates=write_coordinates(tmp_path / "xy.csv"))


def test_table_truncated_inside_a_line(tmp_path):
    coordinates = write_coordinates(tmp_path / "xy.csv", ["s0", "s1"])
    path = write_text(tmp_path / "c.csv", ",A,B\n\ns0,1,2\ns1,3")  # no line break at the end
    with pytest.raises(InputError, match=r"c\.csv, line 4: row 's1' has 2 fields, the first line has 3"):
        io.read(path, coordinates=coordinates)
    path = write_text(tmp_path / "c.csv", ",A,B\ns0,1,2\ns1,3,4")  # complete but for the line break
    assert_is_section(io.read(path, coordinates=coordinates), ["s0", "s1"], ["A", "B"], [[1, 2], [3, 4]])


@pytest.mark.parametrize("genes_first", [False, True])
def test_fewer_spots_with_counts_than_with_coordinates(tmp_path, genes_first):
    """A table that was truncated at the end of a line is complete by itself."""
    path = write_counts_table(tmp_path / "c.tsv", genes_first=genes_first)
    if not genes_first:
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:-3]))
        coordinates = write_coordinates(tmp_path / "xy.csv")
    else:
        coordinates = write_coordinates(tmp_path / "xy.csv", [*BARCODES, "t1", "t2", "t3"])
    n_spots = N_SPOTS - 3 if not genes_first else N_SPOTS
    with pytest.warns(
        AmilstWarning,
        match=rf"c\.tsv has counts of {n_spots} spots, but .*xy\.csv lists {n_spots + 3}: 3 have no counts",
    ):
        adata = io.read(path, coordinates=coordinates)
    assert adata.n_obs == n_spots


def test_spots_marked_as_off_tissue_need_no_counts(tmp_path):
    path = write_text(tmp_path / "c.csv", ",A,B\ns0,1,2\ns1,3,4\n")
    coordinates = write_text(tmp_path / "xy.csv", "n,x,y,in_tissue\ns0,1,2,1\ns1,1,3,1\ns2,1,4,0\n")
    assert io.read(path, coordinates=coordinates).n_obs == 2


# --- tables of counts without a header --------------------------------------------------------


def test_table_without_header_keeps_its_first_spot(tmp_path):
    path = write_text(tmp_path / "c.tsv", "s0\t1\t0\t2\ns1\t0\t3\t0\n")
    coordinates = write_coordinates(tmp_path / "xy.csv", ["s0", "s1"])
    with pytest.warns(AmilstWarning, match=r"c\.tsv has no header.*spot 's0'.*gene_1 to gene_3"):
        adata = io.read(path, coordinates=coordinates)
    assert_is_section(adata, ["s0", "s1"], ["gene_1", "gene_2", "gene_3"], [[1, 0, 2], [0, 3, 0]])


@pytest.mark.parametrize(
    "text",
    [
        "1,0,2\n0,3,0\n",  # numbers only: no names of spots
        "0,5,2\n1,3,0\n",  # the first column may hold names or counts
        "other,0,0\ns1,3,0\n",  # counts of a spot without coordinates: repeated "names"
    ],
)
def test_table_with_an_ambiguous_first_line(tmp_path, text):
    path = write_text(tmp_path / "c.csv", text)
    coordinates = write_coordinates(tmp_path / "xy.csv", ["s0", "s1", "0", "1"])
    with pytest.raises(InputError, match=r"c\.csv, line 1: expected names, found numbers.*Add a first line"):
        io.read(path, coordinates=coordinates)


@pytest.mark.filterwarnings("ignore:.*have no counts")
@pytest.mark.parametrize("corner", ["", "name"])
def test_numbers_as_names_in_the_header(tmp_path, corner):
    """Genes named by Entrez ID, or spots by their number."""
    coordinates = write_coordinates(tmp_path / "xy.csv", ["s0", "s1", "0", "1"])
    path = write_text(tmp_path / "c.csv", f"{corner},672,7157\ns0,1,0\ns1,3,2\n")
    assert_is_section(io.read(path, coordinates=coordinates), ["s0", "s1"], ["672", "7157"], [[1, 0], [3, 2]])
    path = write_text(tmp_path / "c.csv", f"{corner},0,1\nA,1,0\nB,3,2\n")
    assert_is_section(io.read(path, coordinates=coordinates), ["0", "1"], ["A", "B"], [[1, 3], [0, 2]])


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("x,y", ("x", "y")),
        ("Y,X", ("X", "Y")),
        ("x,y,pixel_x,pixel_y", ("x", "y")),
        ("imagerow,imagecol", ("imagecol", "imagerow")),
        (
            "pxl_row_in_fullres,pxl_col_in_fullres,array_row,array_col",
            ("pxl_col_in_fullres", "pxl_row_in_fullres"),
        ),
        ("pixel_x,pixel_y,new_x,new_y", ("pixel_x", "pixel_y")),
        ("new_x,new_y", ("new_x", "new_y")),
        ("X.Centroid,Y.Centroid", ("X.Centroid", "Y.Centroid")),
        ("array_row,array_col", ("array_col", "array_row")),
        ("row,col", ("col", "row")),
    ],
)
def test_names_of_coordinate_columns(tmp_path, header, columns):
    n = header.count(",") + 1
    path = write_text(tmp_path / "xy.csv", f"id,{header}\ns0,{','.join(map(str, range(n)))}\n")
    table = SpotTable.read(path)
    assert table.coordinate_columns() == columns
    names = header.split(",")
    np.testing.assert_array_equal(table.coordinates(), [[names.index(column) for column in columns]])


@pytest.mark.parametrize("names", ["x,y,z", "x_centroid,y_centroid,z_centroid", "Center_X,Center_Y,Center_Z"])
def test_three_dimensional_coordinates(tmp_path, names):
    path = write_text(tmp_path / "xyz.csv", f"n,{names},q\n0,1,2,3,a\n1,4,5,6.5,b\n")
    joined = io.join_coordinates(anndata.AnnData(np.ones((2, 1))), path)
    np.testing.assert_array_equal(joined.obsm["spatial"], [[1, 2, 3], [4, 5, 6.5]])
    assert list(joined.obs) == ["q"]


@pytest.mark.parametrize("z", ["0", ""])
def test_constant_or_empty_z_is_not_a_coordinate(tmp_path, z):
    path = write_text(tmp_path / "xyz.csv", f"n,x,y,z\n0,1,2,{z}\n1,4,5,{z}\n")
    joined = io.join_coordinates(anndata.AnnData(np.ones((2, 1))), path)
    np.testing.assert_array_equal(joined.obsm["spatial"], [[1, 2], [4, 5]])
    assert list(joined.obs) == ["z"]


def test_z_that_is_not_a_number(tmp_path):
    path = write_text(tmp_path / "xyz.csv", "n,x,y,z\n0,1,2,top\n1,4,5,6\n")
    with pytest.raises(InputError, match="column 'z' contains 'top'"):
        io.join_coordinates(anndata.AnnData(np.ones((2, 1))), path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spot,a,b\ns0,1,2\n", r"has no coordinates: expected columns named x/y.*found 'spot', 'a', 'b'"),
        (
            "spot,x,y\ns0,1,2\ns1,left,2\ns2,,2\n",
            r"coordinates must be numbers; column 'x' contains 'left' \(1 of 3",
        ),
        (
            "spot,x,y\ns0,1,2\ns1,1,2\ns1,1,3\n",
            r"1 spots have more than one row \(column 'spot', e\.g\. 's1'\)",
        ),
        ("s0,1,2,3\ns1,1,2,3\n", "has no header, and which of its 4 columns are coordinates is ambiguous"),
        (
            "s0,7,2,3,4,5\ns1,1,2,3,4,5\n",
            "has no header, and which of its 6 columns are coordinates is ambiguous",
        ),
        ("spot,x,x,y\ns0,1,2,3\n", "line 1: expected names of columns, each once; 'x' repeat. Is the header"),
        ("spot,x,y\ns0,1,2\ns1,1,2,3,4\n", "cannot be read as a table of spots"),
        ("", "is empty"),
        ("spot,x,y\n", r"contains 1 line\(s\)"),
    ],
)
def test_broken_table_of_coordinates(tmp_path, text, message):
    path = write_text(tmp_path / "xy.csv", text)
    adata = anndata.AnnData(np.ones((3, 1)), obs=pd.DataFrame(index=["s0", "s1", "s2"]))
    with pytest.raises(InputError, match=message) as caught:
        io.join_coordinates(adata, path)
    assert "xy.csv" in str(caught.value)
    assert "spatial" not in adata.obsm


def test_table_of_coordinates_without_header(tmp_path):
    path = write_text(tmp_path / "xy.tsv", "s1\t1\t2\ns0\t3\t4.5\n")
    adata = anndata.AnnData(np.ones((2, 1)), obs=pd.DataFrame({"kept": [1, 2]}, index=["s0", "s1"]))
    joined = io.join_coordinates(adata, path)
    np.testing.assert_array_equal(joined.obsm["spatial"], [[3, 4.5], [1, 2]])
    assert list(joined.obs) == ["kept"]
    assert "spatial" not in adata.obsm  # a copy


def test_coordinates_are_not_used_as_names(tmp_path):
    """Spots named "0", "1", ...: the column of names is used, not an x or a flag with the same values."""
    path = write_text(tmp_path / "xy.csv", "x,y,selected,name\n1,5,1,n0\n0,6,1,n1\n")
    adata = anndata.AnnData(np.ones((2, 1)))
    with pytest.raises(InputError, match="0 of 2 spots match"):
        io.join_coordinates(adata, path)
    path = write_text(tmp_path / "xy.csv", ",x,y\n1,7,5\n0,8,6\n")
    np.testing.assert_array_equal(io.join_coordinates(adata, path).obsm["spatial"], [[8, 6], [7, 5]])


def test_missing_and_infinite_coordinates_are_kept(tmp_path):
    path = write_text(tmp_path / "xy.csv", "n,x,y\n0,,5\n1,inf,6\n")
    joined = io.join_coordinates(anndata.AnnData(np.ones((2, 1))), path)
    np.testing.assert_array_equal(joined.obsm["spatial"], [[np.nan, 5], [np.inf, 6]])


def test_annotation_of_a_table(tmp_path):
    adata = anndata.AnnData(np.ones((4, 1)))
    text = "n,size,label,comment\n3,1.5,b,w\n2,2,a,v\n1,3,a,u\n0,4,b,t\n"
    assert io.join_annotation(adata, write_text(tmp_path / "a.csv", text)) == "label"
    assert list(adata.obs["label"]) == ["b", "a", "a", "b"]
    assert list(adata.obs["size"]) == [4, 3, 2, 1.5]
    assert (
        io.join_annotation(adata, write_text(tmp_path / "a.csv", "n,cluster\n0,1\n1,1\n2,2\n3,2\n"))
        == "cluster"
    )
    two = "n,a,b\n0,p,q\n1,p,q\n2,x,y\n3,x,y\n"
    with pytest.raises(InputError, match=r"expected one column of labels, found 'a', 'b'"):
        io.join_annotation(adata, write_text(tmp_path / "a.csv", two))
    assert "a" not in adata.obs
    numbers = write_text(tmp_path / "a.csv", "n,a,b\n" + "".join(f"{i},1,2\n" for i in range(4)))
    with pytest.raises(InputError, match="found nothing among the columns 'a', 'b'"):
        io.join_annotation(adata, numbers)
    # text columns with the names of coordinates are allowed
    path = write_text(tmp_path / "a.csv", "n,x,y\n" + "".join(f"{i},l,m\n" for i in range(4)))
    assert io.join_columns(adata, path) == ["x", "y"]


@pytest.mark.parametrize("table", ["A1_selection.tsv", "A1_labeled_coordinates.tsv"])
def test_real_text_tables(shared_dir, table):
    """HER2ST as published, compared with the same section as h5ad."""
    raw = shared_dir / "formats" / "her2st_raw"
    with pytest.warns(AmilstWarning, match=r"counts of 346 spots, but .* lists 348: 2 have no counts"):
        adata = io.read(raw / "A1.tsv.gz", coordinates=raw / table)
    expected = io.read(shared_dir / "data" / "her2st_A1.h5ad")
    assert list(adata.obs_names) == list(expected.obs_names)
    assert list(adata.var_names) == list(expected.var_names)
    assert (adata.X != expected.X).nnz == 0
    if "label" in adata.obs:
        np.testing.assert_array_equal(np.rint(adata.obsm["spatial"]), expected.obsm["spatial"])
        known = expected.obs["ground_truth"].notna().to_numpy()
        assert (
            adata.obs["label"].to_numpy()[known] == expected.obs["ground_truth"].astype(str).to_numpy()[known]
        ).all()
    else:
        np.testing.assert_array_equal(adata.obsm["spatial"], expected.obsm["spatial"])


def test_real_table_with_coordinates_of_another_section(shared_dir):
    raw = shared_dir / "formats" / "her2st_raw"
    with (
        pytest.warns(AmilstWarning, match=r"275 of 603 spots left out: 275 have no row"),
        pytest.warns(AmilstWarning, match=r"counts of 328 spots, but .* lists 348: 20 have no counts"),
    ):
        io.read(raw / "H2.tsv.gz", coordinates=raw / "A1_selection.tsv")


# --- large and strange tables -----------------------------------------------------------------


@pytest.mark.parametrize("separator", ["\t", ",", ";"])
@pytest.mark.parametrize("block", [1, 200, 10**6])
def test_blocks_of_lines(tmp_path, monkeypatch, separator, block):
    """The same matrix whatever the block, and whether numbers are integers, fractions or quoted."""
    monkeypatch.setattr(tables, "_BLOCK", block)
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.5, (50, 9)).astype(float)
    names = [f"s{i}" for i in range(50)]
    xy = write_coordinates(tmp_path / "xy.csv", names)
    genes = [f"g{j}" for j in range(9)]
    for change in (
        lambda text: text,
        lambda text: text.replace(f"{separator}3", f"{separator}3.5"),
        lambda text: text.replace("s7", '"s7"'),
    ):
        rows = [separator.join(["", *genes])]
        rows += [
            separator.join([name, *(f"{value:g}" for value in row)])
            for name, row in zip(names, counts, strict=True)
        ]
        text = change("\n".join(rows) + "\n\n")
        expected = np.where(counts == 3, 3.5, counts) if "3.5" in text else counts
        adata = io.read(write_text(tmp_path / "c.csv", text), coordinates=xy)
        assert_is_section(adata, names, genes, expected)


def test_fractions_are_read_in_blocks(tmp_path, monkeypatch):
    """Not line by line, which takes ten times as long."""
    monkeypatch.setattr(tables, "_parse_rows", None)
    counts = np.random.default_rng(0).gamma(0.5, 3, (40, 11)).astype(np.float32)
    counts[counts < 0.5] = 0
    names, genes = [f"s{i}" for i in range(40)], [f"g{j}" for j in range(11)]
    rows = [",".join([name, *map(repr, row)]) for name, row in zip(names, counts.tolist(), strict=True)]
    path = write_text(tmp_path / "c.csv", "\n".join([",".join(["", *genes]), *rows]) + "\n")
    assert_is_section(
        io.read(path, coordinates=write_coordinates(tmp_path / "xy.csv", names)), names, genes, counts
    )


@pytest.mark.parametrize(
    ("header", "unit", "geometry"),
    [
        ("spot,x,y", "unknown", "free"),
        ("spot,x_um,y_um", "micrometer", "free"),
        ("spot,pixel_x,pixel_y", "pixel", "free"),
        ("barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres", "pixel", "hexagonal"),
    ],
)
def test_unit_and_geometry_that_a_table_states(tmp_path, header, unit, geometry):
    counts = write_counts_table(tmp_path / "c.csv")
    n_others = header.count(",") - 2
    rows = [
        ",".join([name, *["1", str(i // 4), str(2 * (i % 4) + i // 4 % 2)][:n_others], str(7 * i), str(-i)])
        for i, name in enumerate(BARCODES)
    ]
    text = "\n".join([header, *rows]) + "\n"
    described = {"coordinate_unit": unit, "geometry": geometry, "left_out": {}}
    adata = io.read(counts, coordinates=write_text(tmp_path / "xy.csv", text))
    assert adata.uns["amilst_input"] == {"platform": "table", **described}
    # and where the input has coordinates of its own, those of the table replace what is known of them
    visium = io.read(write_visium(tmp_path / "s"), coordinates=tmp_path / "xy.csv")
    assert visium.uns["amilst_input"] == {"platform": "visium", **described}


def test_line_numbers_in_later_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_BLOCK", 30)
    names = [f"s{i}" for i in range(40)]
    lines = [f"{name},1,2,{'x' if name == 's33' else 0}" for name in names]
    path = write_text(tmp_path / "c.csv", "\n".join([",A,B,C", *lines]) + "\n")
    with pytest.raises(InputError, match=r"c\.csv, line 35: counts must be numbers; row 's33'.*'x'"):
        io.read(path, coordinates=write_coordinates(tmp_path / "xy.csv", names))


def test_decimal_commas(tmp_path):
    xy = write_coordinates(tmp_path / "xy.csv", ["s0", "s1"])
    path = write_text(tmp_path / "c.csv", ";A;B\ns0;1,5;2\ns1;0;1\n")
    with pytest.raises(InputError, match=r"row 's0'.* '1,5' has a decimal comma; write '1\.5'"):
        io.read(path, coordinates=xy)
    counts = write_text(tmp_path / "c.csv", ";A;B\ns0;1;2\ns1;0;1\n")
    xy = write_text(tmp_path / "xy.csv", "spot;x;y\ns0;1,25;2\ns1;3,5;4\n")
    with pytest.raises(
        InputError, match=r"column 'x' contains '1,25', '3,5' \(2 of 2 rows\)\. '1,25' has a decimal"
    ):
        io.read(counts, coordinates=xy)


def test_word_among_the_numbers_of_a_later_row(tmp_path):
    """Columns of fractional numbers are read as numbers, unless a later row disagrees."""
    rows = [f"{i},{i}.5,{i}.25,{i}.125" for i in range(1500)]
    table = SpotTable.read(write_text(tmp_path / "xy.csv", "\n".join(["name,x,y,area", *rows]) + "\n"))
    assert table.frame.dtypes.map(lambda dtype: dtype.kind).tolist() == ["O", "f", "f", "f"]
    rows[1400] = "1400,1.5,left,"
    table = SpotTable.read(write_text(tmp_path / "xy.csv", "\n".join(["name,x,y,area", *rows]) + "\n"))
    with pytest.raises(InputError, match=r"column 'y' contains 'left' \(1 of 1500 rows\)"):
        table.coordinates()


@pytest.mark.parametrize("by_column", [False, True])
def test_memory_is_that_of_the_result_and_a_block(tmp_path, monkeypatch, by_column):
    monkeypatch.setattr(tables, "_BLOCK", 50_000)
    monkeypatch.setattr(entries, "_PENDING", 5_000)
    monkeypatch.setattr(entries, "_BLOCK", 5_000)
    counts = np.random.default_rng(0).poisson(0.7, (3000, 250))
    text = "\n".join(
        [",".join(["", *(f"g{j}" for j in range(250))]), *(",".join(map(str, ["s", *row])) for row in counts)]
    )
    table = TextTable.sniff(write_text(tmp_path / "c.csv", text + "\n"))
    tables.read_numbers(table, by_column=by_column)  # what is made once
    tracemalloc.start()
    try:
        _, matrix = tables.read_numbers(table, by_column=by_column)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    result = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
    np.testing.assert_array_equal(matrix.toarray(), counts)
    # 750,000 numbers; characters, text objects and numbers of a block, and the names. Since numpy 2.5, which copies an
    # array to extend it, a second copy of the numbers or of their places, which is half of the result, counts as well.
    copied = result / 2 if np.lib.NumpyVersion(np.__version__) >= "2.5.0" else 0
    assert peak < 1.25 * (result + 50_000 * (1 + 8 / 2)) + 3000 * 100 + copied


@pytest.mark.slow
def test_million_columns(tmp_path):
    n = 1_000_000
    xy = write_coordinates(tmp_path / "xy.csv", [f"s{i}" for i in range(n)])
    header = "gene," + ",".join(f"s{i}" for i in range(n))
    rows = [f"{gene}," + ",".join(["0"] * (n - 1) + [count]) for gene, count in (("A", "1"), ("B", "7"))]
    adata = io.read(write_text(tmp_path / "c.csv", "\n".join([header, *rows]) + "\n"), coordinates=xy)
    assert adata.shape == (n, 2) and adata.X[n - 1].toarray().tolist() == [[1, 7]] and adata.X.nnz == 2
