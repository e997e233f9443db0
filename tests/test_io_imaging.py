"""MERSCOPE, CosMx and seqFISH folders as their vendors write them."""

import gzip
import logging

import numpy as np
import pytest
from input_files import COUNTS, GENES, N_SPOTS, assert_is_section, truncate, write_text

import amilst_lite as amilst
from amilst_lite.errors import AmilstWarning, InputError
from amilst_lite.io.platform import recommended_command

XY = np.array([[5000.25 + 13 * i, -40.5 * i] for i in range(N_SPOTS)])
# as long as the identifiers of MERSCOPE, and hence not exact as float64
IDS = [str(1234567890123456789 + 10 * i) for i in range(N_SPOTS)]


def lines(*rows):
    return "\n".join(",".join(map(str, row)) for row in rows) + "\n"


# --- MERSCOPE ---------------------------------------------------------------------------------


def merscope_counts(genes=GENES):
    rows = [(name, *row.astype(int), 9, 8) for name, row in zip(IDS, COUNTS, strict=True)]
    return lines(("cell", *genes, "Blank-1", "Blank-50"), *rows)


def merscope_cells(header=("EntityID", "fov", "volume", "center_x", "center_y", "min_x")):
    rows = [(IDS[i], 7 * i, 100.5 + i, *XY[i], 0.5) for i in reversed(range(N_SPOTS))]
    return lines(header, *rows)


def write_merscope(folder):
    write_text(folder / "cell_by_gene.csv", merscope_counts())
    write_text(folder / "cell_metadata.csv", merscope_cells())
    write_text(folder / "detected_transcripts.csv", "a,b\n1,2\n")
    return folder


@pytest.mark.parametrize("inside", ["", "cell_by_gene.csv", ".."])
def test_merscope(tmp_path, caplog, inside):
    folder = write_merscope(tmp_path / "runs" / "region_0")
    with caplog.at_level(logging.INFO, "amilst_lite"):
        adata = amilst.read(folder / inside)
    assert_is_section(adata, IDS)
    np.testing.assert_array_equal(adata.obsm["spatial"], XY)
    assert list(adata.obs) == ["fov", "volume", "min_x"]
    assert adata.obs["fov"].tolist() == [7 * i for i in range(N_SPOTS)]
    assert adata.uns["amilst_input"] == {
        "platform": "merscope",
        "coordinate_unit": "micrometer",
        "geometry": "free",
        "left_out": {"blank barcodes": 2},
    }
    assert any("left out 2 blank barcodes" in message for message in caplog.messages)


def test_merscope_of_another_segmentation(tmp_path):
    folder = write_merscope(tmp_path / "region_0")
    write_text(folder / "vpt" / "cell_by_gene.csv", merscope_counts([f"New{i}" for i in range(7)]))
    write_text(folder / "vpt" / "cell_metadata.csv", merscope_cells())
    assert amilst.read_merscope(folder, vpt_outputs=folder / "vpt").var_names[0] == "New0"


def test_first_release_of_merscope_names_no_column_of_identifiers(tmp_path):
    folder = write_merscope(tmp_path)
    cells = merscope_cells(("", "fov", "volume", "center_x", "center_y", "min_x"))
    write_text(folder / "cell_metadata.csv", cells)
    assert_is_section(amilst.read(folder), IDS)


def test_merscope_of_two_sections(tmp_path):
    for name in ("s1_", "s2_"):
        write_text(tmp_path / f"{name}cell_by_gene.csv", merscope_counts())
        write_text(tmp_path / f"{name}cell_metadata.csv", merscope_cells())
    with pytest.raises(InputError, match=r"2 files whose names end in 'cell_by_gene\.csv'"):
        amilst.read(tmp_path)
    (tmp_path / "s1_cell_metadata.csv").unlink()
    assert_is_section(amilst.read(tmp_path / "s2_cell_by_gene.csv"), IDS)
    with pytest.raises(
        InputError, match=r"no folder of MERSCOPE.*expected `cell_by_gene\.csv` and `cell_metadata"
    ):
        amilst.read(tmp_path / "s1_cell_by_gene.csv")


def test_first_data_release_of_merscope(tmp_path):
    """Names end with the slice and the replicate."""
    release = "datasets_mouse_brain_map_BrainReceptorShowcase_Slice1_Replicate1_"
    write_text(tmp_path / f"{release}cell_by_gene_S1R1.csv", merscope_counts())
    write_text(
        tmp_path / f"{release}cell_metadata_S1R1.csv",
        merscope_cells(("", "fov", "volume", "center_x", "center_y", "min_x")),
    )
    adata = amilst.read(tmp_path)
    assert_is_section(adata, IDS)
    assert adata.uns["amilst_input"]["platform"] == "merscope"
    write_text(tmp_path / "cell_by_gene_S2R3.csv.gz", merscope_counts(), gzipped=True)
    write_text(tmp_path / "cell_metadata_S2R3.csv.gz", merscope_cells(), gzipped=True)
    with pytest.raises(
        InputError, match=r"2 sections of MERSCOPE.*'cell_by_gene_S1R1\.csv', 'cell_by_gene_S2R3\.csv'"
    ):
        amilst.read(tmp_path)
    assert_is_section(amilst.read(tmp_path / "cell_by_gene_S2R3.csv.gz"), IDS)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "cell_by_gene.csv",
            lambda text: text[::-1].replace("\n8,9,", "\n9,", 1)[::-1],
            "line 13: row .* has 9 fields",
        ),
        (
            "cell_by_gene.csv",
            lambda text: text.replace(",9,8\n", ",9,x\n", 1),
            "line 2: counts must be numbers",
        ),
        (
            "cell_by_gene.csv",
            lambda text: text[:-3],
            "line 13: row .* has 9 fields, the first line has 10. The file may be truncated",
        ),
        ("cell_by_gene.csv", lambda text: text.replace(",", ";"), None),
        ("cell_by_gene.csv", lambda text: "", "is empty"),
        ("cell_by_gene.csv", lambda text: text.split("\n")[0] + "\n", r"contains 1 line\(s\)"),
        (
            "cell_metadata.csv",
            lambda text: text.replace("center_x", "x"),
            "no column 'center_x': expected MERSCOPE's",
        ),
        (
            "cell_metadata.csv",
            lambda text: text.replace("5000.25", "east"),
            "column 'center_x' contains 'east'",
        ),
        ("cell_metadata.csv", lambda text: text.replace("5000.25", "nan"), f"missing or infinite.*{IDS[0]}"),
        ("cell_metadata.csv", lambda text: text.replace("123456789", "99"), "0 of 12 spots match"),
        ("cell_metadata.csv", lambda text: text.replace(IDS[1], IDS[0]), "1 spots have more than one row"),
    ],
)
def test_wrong_merscope(tmp_path, name, change, message):
    folder = write_merscope(tmp_path)
    path = folder / name
    write_text(path, change(path.read_text()))
    if message is None:  # any separator is fine
        assert_is_section(amilst.read(folder), IDS)
        return
    with pytest.raises(InputError, match=message):
        amilst.read(folder)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_tables_saved_by_a_spreadsheet_program(tmp_path, encoding):
    folder = write_merscope(tmp_path)
    for name in ("cell_by_gene.csv", "cell_metadata.csv"):
        text = (folder / name).read_text().replace("\n", "\r\n").replace("fov", '"fov"')
        (folder / name).write_bytes(text.encode(encoding))
    adata = amilst.read(folder)
    assert_is_section(adata, IDS)
    np.testing.assert_array_equal(adata.obsm["spatial"], XY)


def test_repeated_genes_and_cells(tmp_path):
    folder = write_merscope(tmp_path)
    write_text(folder / "cell_by_gene.csv", merscope_counts([*GENES[:6], GENES[0]]))
    with pytest.warns(AmilstWarning, match=r"1 of 7 gene names repeat.*'Gene0'"):
        adata = amilst.read(folder)
    assert_is_section(adata, IDS, [*GENES[:6], "Gene0-1"])
    write_text(folder / "cell_by_gene.csv", merscope_counts().replace(IDS[1], IDS[0]))
    with (
        pytest.warns(AmilstWarning, match=rf"1 of 12 spot names repeat an earlier one \(e\.g\. '{IDS[0]}'"),
        pytest.warns(AmilstWarning, match=rf"1 have no row \(e\.g\. '{IDS[0]}-1'\)"),
        pytest.warns(AmilstWarning, match=rf"1 have no counts \(e\.g\. '{IDS[1]}'\)"),
    ):
        amilst.read(folder)


def test_repeated_cells_of_another_section(tmp_path):
    # refused before millions of names are made unique, so without a warning
    folder = write_merscope(tmp_path)
    counts = merscope_counts()
    for name in IDS:
        counts = counts.replace(name, "0")
    write_text(folder / "cell_by_gene.csv", counts)
    with pytest.raises(InputError, match=r"0 of 12 spots match one of its 12 rows.*found '0'"):
        amilst.read(folder)


def test_blanks_only(tmp_path):
    folder = write_merscope(tmp_path)
    write_text(folder / "cell_by_gene.csv", merscope_counts([f"Blank-{i}" for i in range(10, 17)]))
    with pytest.raises(InputError, match=r"has no genes: all 9 columns are controls, e\.g\. 'Blank-10'"):
        amilst.read(folder)


# --- CosMx ------------------------------------------------------------------------------------

CELLS = [(i // 6 + 1, i % 6 + 1) for i in range(N_SPOTS)]  # field of view, cell
COSMX_NAMES = [f"{cell}_{fov}" for fov, cell in CELLS]


def cosmx_counts():
    rows = [(fov, cell, *COUNTS[i].astype(int), 3, 2, 1) for i, (fov, cell) in enumerate(CELLS)]
    outside = [(fov, 0, *[500] * len(GENES), 3, 2, 1) for fov in (1, 2)]  # one row per field of view
    return lines(
        ("fov", "cell_ID", *GENES, "NegPrb3", "Negative01", "SystemControl7"),
        outside[0],
        *rows[:6],
        outside[1],
        *rows[6:],
    )


def cosmx_cells():
    header = (
        "fov",
        "cell_ID",
        "Area",
        "CenterX_local_px",
        "CenterY_local_px",
        "CenterX_global_px",
        "CenterY_global_px",
    )
    return lines(header, *((*CELLS[i], 30 * i, i, i, *XY[i]) for i in reversed(range(N_SPOTS))))


def write_cosmx(folder, prefix="Lung5_Rep1_", gzipped=False):
    ending = ".gz" if gzipped else ""
    write_text(folder / f"{prefix}exprMat_file.csv{ending}", cosmx_counts(), gzipped)
    write_text(folder / f"{prefix}metadata_file.csv{ending}", cosmx_cells(), gzipped)
    write_text(folder / f"{prefix}fov_positions_file.csv", "fov,x_global_px,y_global_px\n1,0,0\n2,9,9\n")
    return folder


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("inside", ["", "Lung5_Rep1_exprMat_file.csv", ".."])
def test_cosmx(tmp_path, gzipped, inside):
    folder = write_cosmx(tmp_path / "a" / "flat", gzipped=gzipped)
    adata = amilst.read(folder / (f"{inside}.gz" if gzipped and inside.endswith("csv") else inside))
    assert_is_section(adata, COSMX_NAMES)
    np.testing.assert_array_equal(adata.obsm["spatial"], XY)
    assert adata.obs["fov"].tolist() == [fov for fov, _ in CELLS]
    assert adata.uns["amilst_input"] == {
        "platform": "cosmx",
        "coordinate_unit": "pixel",
        "geometry": "free",
        "left_out": {"negative probes": 2, "system controls": 1, "rows of counts outside cells": 2},
    }


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("quote", ["", '"'])
def test_cosmx_of_atomx(tmp_path, place, quote):
    """Exports of AtoMx name each cell in a further column, and have its area in pixels and in µm²."""
    folder = write_cosmx(tmp_path)

    def named(text):
        header, *rows = (line.split(",") for line in text.splitlines())
        table = [header, *rows]
        for i, row in enumerate(table):
            row.insert(place, f"{quote}c_1_{row[0]}_{row[1]}{quote}" if i else "cell")
        return lines(*table)

    def with_area(text):
        header, *rows = (line.split(",") for line in text.splitlines())
        sizes = [(int(row[2]) + 1000, round((int(row[2]) + 1000) * 0.12028**2, 4)) for row in rows]
        extra = [("v6", "c", area) for _, area in sizes]
        rows = [
            [*row[:2], pixels, *row[3:], *more]
            for row, (pixels, _), more in zip(rows, sizes, extra, strict=True)
        ]
        return lines([*header, "version", "cell", "Area.um2"], *rows)

    write_text(folder / "Lung5_Rep1_exprMat_file.csv", named(cosmx_counts()))
    write_text(folder / "Lung5_Rep1_metadata_file.csv", with_area(cosmx_cells()))
    write_text(folder / "Lung5_Rep1-polygons.csv", "fov,cellID,cell,x_local_px\n1,1,c_1_1_1,3\n")
    adata = amilst.read(folder)
    assert_is_section(adata, COSMX_NAMES)
    assert adata.uns["amilst_input"]["micrometers_per_unit"] == pytest.approx(0.12028, rel=1e-3)
    assert adata.uns["amilst_input"]["left_out"]["rows of counts outside cells"] == 2
    # areas that are not of the same cells tell nothing
    text = with_area(cosmx_cells()).splitlines()
    text[1] = text[1].rsplit(",", 1)[0] + ",900"
    text[2] = text[2].rsplit(",", 1)[0] + ",900"
    write_text(folder / "Lung5_Rep1_metadata_file.csv", "\n".join(text) + "\n")
    assert "micrometers_per_unit" not in amilst.read(folder).uns["amilst_input"]


def test_cosmx_of_two_sections(tmp_path):
    write_cosmx(tmp_path)
    write_cosmx(tmp_path, "Lung5_Rep2_")
    with pytest.raises(InputError, match=r"2 files whose names end in 'exprMat_file\.csv'"):
        amilst.read(tmp_path)
    assert_is_section(amilst.read_cosmx(tmp_path, dataset_id="Lung5_Rep2"), COSMX_NAMES)
    assert_is_section(amilst.read(tmp_path / "Lung5_Rep1_exprMat_file.csv"), COSMX_NAMES)
    with pytest.raises(InputError, match="no folder of CosMx"):
        amilst.read_cosmx(tmp_path, dataset_id="Lung6")


def test_wrong_cosmx(tmp_path):
    folder = write_cosmx(tmp_path)
    counts, cells = folder / "Lung5_Rep1_exprMat_file.csv", folder / "Lung5_Rep1_metadata_file.csv"
    write_text(cells, cosmx_cells().replace("global", "slide").replace("local", "field"))
    with pytest.raises(InputError, match=r"no column 'CenterX_global_px', 'CenterY_global_px'.*CosMx"):
        amilst.read(folder)
    write_cosmx(tmp_path)
    write_text(counts, cosmx_counts().replace("cell_ID", "name"))
    with pytest.raises(InputError, match=r"has no column 'cell_ID': expected a header with cell_ID, fov"):
        amilst.read(folder)
    write_text(counts, cosmx_counts())
    cells.unlink()
    with pytest.raises(InputError, match=r"no folder of CosMx: expected `\*_exprMat_file\.csv`.*found"):
        amilst.read(folder, platform="cosmx")
    write_cosmx(tmp_path, gzipped=True)
    counts.unlink()
    truncate(folder / "Lung5_Rep1_exprMat_file.csv.gz")
    with pytest.raises(InputError, match=r"exprMat_file\.csv\.gz cannot be read as a"):
        amilst.read(folder)


def test_cosmx_with_coordinates_within_fields_only(tmp_path, caplog):
    folder = write_cosmx(tmp_path)
    write_text(folder / "Lung5_Rep1_metadata_file.csv", cosmx_cells().replace("global", "slide"))
    with caplog.at_level(logging.INFO, "amilst_lite"):
        adata = amilst.read(folder)
    assert_is_section(adata, COSMX_NAMES)
    local = np.repeat(np.arange(N_SPOTS, dtype=float)[:, None], 2, axis=1)  # fields do not overlap
    np.testing.assert_array_equal(adata.obsm["spatial"], local)
    assert "fields" not in adata.uns["amilst_input"]

    again = cosmx_cells().replace("global", "slide").splitlines()
    moved = [line.split(",") for line in again[1:]]
    for fields in moved:  # the same places in both
        fields[3:5] = [str(10 * int(fields[1])), str(int(fields[1]))]
    write_text(folder / "Lung5_Rep1_metadata_file.csv", lines(again[0].split(","), *moved))
    with caplog.at_level(logging.INFO, "amilst_lite"):
        adata = amilst.read(folder)
    assert "laid out in a row" in adata.uns["amilst_input"]["fields"]
    assert "--sample-key fov" in caplog.text
    points, fields = adata.obsm["spatial"], adata.obs["fov"].to_numpy()
    np.testing.assert_array_equal(points[fields == 1], [[10 * i, i] for i in range(1, 7)])
    np.testing.assert_array_equal(points[fields == 2] - points[fields == 1], np.tile([100, 0], (6, 1)))
    command = recommended_command(adata, str(folder), {})
    assert command.endswith("-o OUT --sample-key fov")


# --- seqFISH ----------------------------------------------------------------------------------


def seqfish_plus(local=True):
    """Two fields of view of 6 cells; the coordinates start anew in each."""
    rows = [
        (i // 6, i % 6 + 1, 100.5 * (i % 6) if local else 5000 * (i // 6) + i, 30 * (i % 6), "Cortex")
        for i in range(N_SPOTS)
    ]
    return lines(("Field of View", "Cell ID", "X", "Y", "Region"), *rows)


def write_seqfish_plus(folder):
    rows = [tuple(row.astype(int)) for row in COUNTS]
    write_text(folder / "cortex_svz_counts.csv", lines(GENES, *rows))
    write_text(folder / "cortex_svz_cellcentroids.csv", seqfish_plus())
    return folder


@pytest.mark.parametrize("inside", ["", "cortex_svz_counts.csv"])
def test_seqfish_plus(tmp_path, caplog, inside):
    folder = write_seqfish_plus(tmp_path)
    with caplog.at_level(logging.INFO, "amilst_lite"):
        adata = amilst.read(folder / inside)
    assert_is_section(adata, [f"{i % 6 + 1}_{i // 6}" for i in range(N_SPOTS)])
    assert adata.obs["fov"].tolist() == [i // 6 for i in range(N_SPOTS)]
    points = adata.obsm["spatial"]
    local = np.array([[100.5 * (i % 6), 30 * (i % 6)] for i in range(N_SPOTS)])
    np.testing.assert_array_equal(points[:6], local[:6])
    np.testing.assert_array_equal(points[6:] - points[6], local[6:])  # the same shape
    width = np.ptp(local[:, 0])
    assert points[6:, 0].min() - points[:6, 0].max() == width  # far enough for every radius within a field
    assert "row" in adata.uns["amilst_input"]["fields"]
    assert any("--sample-key fov" in message for message in caplog.messages)
    write_text(folder / "cortex_svz_cellcentroids.csv", seqfish_plus(local=False))
    adata = amilst.read(folder)
    assert "fields" not in adata.uns["amilst_input"]
    np.testing.assert_array_equal(adata.obsm["spatial"][:, 0], [5000 * (i // 6) + i for i in range(N_SPOTS)])


def test_seqfish_plus_with_names_and_other_numbers_of_cells(tmp_path):
    folder = write_seqfish_plus(tmp_path)
    rows = [(i // 6, i % 6 + 1, *COUNTS[i].astype(int)) for i in reversed(range(N_SPOTS))]
    write_text(folder / "cortex_svz_counts.csv", lines(("Field of View", "Cell ID", *GENES), *rows))
    names = [f"{i % 6 + 1}_{i // 6}" for i in reversed(range(N_SPOTS))]
    assert_is_section(amilst.read(folder), names, counts=COUNTS[::-1])
    write_text(folder / "cortex_svz_counts.csv", lines(GENES, *(row.astype(int) for row in COUNTS[:-1])))
    with pytest.raises(
        InputError, match=r"has 11 cells, but .*cellcentroids\.csv has 12; expected the same cells"
    ):
        amilst.read(folder)
    write_text(folder / "cortex_svz_cellcentroids.csv", seqfish_plus().replace("Field of View", "place"))
    with pytest.raises(InputError, match=r"no column 'Field of View': expected seqFISH\+'s cell centroids"):
        amilst.read(folder)


def write_seqfish(folder, section=1):
    rows = [(i + 1, *row.astype(int)) for i, row in enumerate(COUNTS)]
    write_text(folder / f"TestSet_CxG_section{section}.csv", lines(("", *GENES), *rows))
    cells = [(i + 1, 50 + i, *XY[i]) for i in reversed(range(N_SPOTS))]
    write_text(
        folder / f"TestSet_CellCoordinates_section{section}.csv",
        lines(("label", "area", "center_x", "center_y"), *cells),
    )
    return folder


def test_seqfish(tmp_path):
    folder = write_seqfish(tmp_path)
    adata = amilst.read(folder)
    assert_is_section(adata, [str(i + 1) for i in range(N_SPOTS)])
    np.testing.assert_array_equal(adata.obsm["spatial"], XY)
    assert adata.obs["area"].tolist() == [50 + i for i in range(N_SPOTS)]
    assert adata.uns["amilst_input"]["platform"] == "seqfish"
    write_seqfish(tmp_path, section=2)
    with pytest.raises(InputError, match=r"2 sections of seqFISH.*'TestSet_CxG_section1\.csv'"):
        amilst.read(folder)
    assert amilst.read(folder / "TestSet_CxG_section2.csv").n_obs == N_SPOTS
    (folder / "TestSet_CellCoordinates_section1.csv").unlink()
    (folder / "TestSet_CellCoordinates_section2.csv").unlink()
    with pytest.raises(InputError, match=r"no folder of seqFISH.*expected `\*_CxG_\*\.csv`"):
        amilst.read(folder, platform="seqfish")


def test_counts_in_a_gzip_without_its_end(tmp_path):
    folder = write_seqfish(tmp_path)
    path = folder / "TestSet_CxG_section1.csv"
    path.write_bytes(gzip.compress(path.read_bytes())[:-9])
    with pytest.raises(InputError, match=r"TestSet_CxG_section1\.csv cannot be read as a"):
        amilst.read(folder)
