"""Slide-seq and Spatial Transcriptomics."""

import logging
import shutil
import warnings

import numpy as np
import pytest
from input_files import BARCODES, COUNTS, GENES, N_SPOTS, assert_is_section, truncate, write_text

import amilst_lite as amilst
from amilst_lite.errors import AmilstWarning, InputError

XY = np.array([[900.5 + 11 * i, 4000 - 20.25 * i] for i in range(N_SPOTS)])


def genes_by_spots(separator, corner, names, comments=""):
    rows = [
        [corner, *names],
        *([gene, *row.astype(int).astype(str)] for gene, row in zip(GENES, COUNTS.T, strict=True)),
    ]
    return comments + "\n".join(separator.join(row) for row in rows) + "\n"


def bead_text(header, order=range(N_SPOTS)):
    return header + "".join(f"{BARCODES[i]},{XY[i, 0]},{XY[i, 1]}\n" for i in order)


def write_slideseq(folder, version=2):
    if version == 1:
        write_text(folder / "MappedDGEForR.csv", genes_by_spots(",", "Row", BARCODES))
        write_text(
            folder / "BeadLocationsForR.csv", bead_text("barcodes,xcoord,ycoord\n", reversed(range(N_SPOTS)))
        )
    else:
        comments = "#DGE VERSION:1.1 EXPRESSION_FORMAT:raw\n#DGE HEADER\n"
        text = genes_by_spots("\t", "GENE", BARCODES, comments)
        write_text(folder / "Puck_200115_08.digital_expression.txt.gz", text, gzipped=True)
        write_text(folder / "Puck_200115_08_bead_locations.csv", bead_text("barcode,xcoord,ycoord\n"))
    return folder


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("inside", [False, True])
def test_slideseq(tmp_path, version, inside):
    folder = write_slideseq(tmp_path, version)
    name = "MappedDGEForR.csv" if version == 1 else "Puck_200115_08.digital_expression.txt.gz"
    adata = amilst.read(folder / name if inside else folder)
    assert_is_section(adata, BARCODES)
    np.testing.assert_array_equal(adata.obsm["spatial"], XY)
    assert adata.uns["amilst_input"] == {
        "platform": "slideseq",
        "coordinate_unit": "pixel",
        "geometry": "free",
        "left_out": {},
    }


def test_numbered_beads(tmp_path):
    """The olfactory bulb (Puck_200127_15) has the numbers of the beads before their barcodes."""
    folder = write_slideseq(tmp_path)
    text = "".join(f"{i},{line}\n" for i, line in enumerate(bead_text("").splitlines()))
    write_text(folder / "Puck_200115_08_bead_locations.csv", ",barcode,xcoord,ycoord\n" + text)
    adata = amilst.read(folder)
    assert_is_section(adata, BARCODES)
    np.testing.assert_array_equal(adata.obsm["spatial"], XY)


@pytest.mark.parametrize("barcodes", [True, False])
def test_matched_beads(tmp_path, barcodes):
    """What the pipeline writes before BeadLocationsForR.csv, and GEO keeps: distance, x, y."""
    text = genes_by_spots("\t", "GENE", BARCODES)
    write_text(tmp_path / "GSM1_201104_07.digital_expression.txt.gz", text, gzipped=True)
    order = list(reversed(range(N_SPOTS))) if barcodes else list(range(N_SPOTS))
    rows = "".join(f"0\t{XY[i, 0]}\t{XY[i, 1]}\n" for i in order)
    write_text(tmp_path / "GSM1_201104_07_matched_bead_locations.txt.gz", rows, gzipped=True)
    if barcodes:
        write_text(
            tmp_path / "GSM1_201104_07_matched_bead_barcodes.txt",
            "\n".join(BARCODES[i] for i in order) + "\n",
        )
    adata = amilst.read(tmp_path)
    assert_is_section(adata, BARCODES)
    np.testing.assert_array_equal(adata.obsm["spatial"], XY)
    assert adata.uns["amilst_input"]["platform"] == "slideseq"
    write_text(
        tmp_path / "GSM1_201104_07_matched_bead_locations.txt.gz", rows[: rows.rindex("0\t")], gzipped=True
    )
    with pytest.raises(InputError, match=r"has 11 beads, but .* names 12; expected the same beads"):
        amilst.read(tmp_path)


def test_several_pucks_in_a_folder(tmp_path):
    folder = write_slideseq(tmp_path)
    write_text(folder / "Puck_1.digital_expression.txt", genes_by_spots("\t", "GENE", BARCODES))
    write_text(
        folder / "Puck_1_bead_locations.csv", "barcode,xcoord,ycoord\n" + bead_text("").replace("-1,", "-1,9")
    )
    first = amilst.read(folder / "Puck_200115_08.digital_expression.txt.gz")
    second = amilst.read(folder / "Puck_1.digital_expression.txt")
    np.testing.assert_array_equal(first.obsm["spatial"], XY)
    np.testing.assert_array_equal(second.obsm["spatial"][:, 1], XY[:, 1])
    assert (second.obsm["spatial"][:, 0] != XY[:, 0]).all()
    shutil.copy(folder / "Puck_1.digital_expression.txt", folder / "Puck_2.digital_expression.txt")
    with pytest.raises(InputError, match=r"2 files whose names end in 'bead_locations\.csv'"):
        amilst.read(folder / "Puck_2.digital_expression.txt")


def test_beads_without_counts_are_normal(tmp_path, caplog):
    folder = write_slideseq(tmp_path)
    path = folder / "Puck_200115_08_bead_locations.csv"
    write_text(path, path.read_text() + "TTTTTTTT-1,5,6\n")
    with caplog.at_level(logging.INFO, "amilst_lite"):
        assert amilst.read(folder).n_obs == N_SPOTS
    assert any("1 have no counts (e.g. 'TTTTTTTT-1')" in message for message in caplog.messages)


def test_locations_without_header(tmp_path):
    folder = write_slideseq(tmp_path)
    (folder / "Puck_200115_08_bead_locations.csv").unlink()
    write_text(folder / "Puck_200115_08_matched_bead_locations.txt", bead_text("").replace(",", "\t"))
    np.testing.assert_array_equal(amilst.read(folder).obsm["spatial"], XY)


def test_wrong_slideseq(tmp_path):
    folder = write_slideseq(tmp_path)
    beads = folder / "Puck_200115_08_bead_locations.csv"
    write_text(beads, bead_text("barcode,a,b\n"))
    with pytest.raises(InputError, match=r"bead_locations\.csv has no coordinates: expected columns named"):
        amilst.read(folder)
    write_text(beads, bead_text("barcode,xcoord,ycoord\n").replace("-1,", ","))
    with pytest.raises(InputError, match=r"0 of 12 columns match.*12 would match without the suffix"):
        amilst.read(folder)
    write_text(beads, bead_text("barcode,xcoord,ycoord\n", range(9)))
    with pytest.warns(
        AmilstWarning, match=rf"3 of 12 spots left out: 3 have no row \(e\.g\. '{BARCODES[9]}'"
    ):
        assert amilst.read(folder).n_obs == 9
    beads.unlink()
    with pytest.raises(
        InputError, match=r"no folder of Slide-seq.*expected `MappedDGEForR\.csv`.*Give the folder"
    ):
        amilst.read_slideseq(folder)
    folder = write_slideseq(tmp_path)
    truncate(folder / "Puck_200115_08.digital_expression.txt.gz")
    with pytest.raises(InputError, match=r"digital_expression\.txt\.gz cannot be read as a"):
        amilst.read(folder)


# --- Spatial Transcriptomics ------------------------------------------------------------------

PLACES = np.array([[i % 4 + 7, i // 4 + 2] for i in range(N_SPOTS)])


def spots_by_genes(names):
    rows = [
        ["", *GENES],
        *([name, *row.astype(int).astype(str)] for name, row in zip(names, COUNTS, strict=True)),
    ]
    return "\n".join("\t".join(row) for row in rows) + "\n"


@pytest.mark.parametrize("shift", [0, 0.019, -9])
@pytest.mark.parametrize("prefix", ["", "X"])
@pytest.mark.parametrize("genes_first", [False, True])
def test_spots_named_by_place(tmp_path, shift, prefix, genes_first):
    places = PLACES + shift
    names = [f"{prefix}{x:g}x{y:g}" for x, y in places]
    text = genes_by_spots("\t", "", names) if genes_first else spots_by_genes(names)
    adata = amilst.read(write_text(tmp_path / "mOB.tsv.gz", text, gzipped=True))
    assert_is_section(adata, names)
    np.testing.assert_allclose(adata.obsm["spatial"], places, atol=1e-9)
    assert adata.uns["amilst_input"] == {
        "platform": "st",
        "coordinate_unit": "spot",
        "geometry": "square",
        "left_out": {},
    }


def test_spots_with_other_names(tmp_path):
    names = [f"{x}x{y}" for x, y in PLACES]
    path = write_text(tmp_path / "a.tsv", spots_by_genes([*names[:10], "total", "mean"]))
    with pytest.raises(
        InputError, match=r"such as '10x13'; found 'total', 'mean' \(2 of 12 spots\).*--coordinates"
    ):
        amilst.read(path)
    path = write_text(tmp_path / "a.tsv", spots_by_genes([*names[:11], names[0]]))
    with pytest.warns(AmilstWarning, match="1 of 12 spot names repeat an earlier one"):
        assert amilst.read(path).obs_names[11] == f"{names[0]}-1"
    with pytest.raises(InputError, match="such as '10x13'"):
        amilst.read(write_text(tmp_path / "b.tsv", spots_by_genes(BARCODES)), platform="st")


@pytest.mark.parametrize("section", ["A1", "H2"])
def test_real_sections(shared_dir, section):
    """HER2ST as published: the names are the places in the table of selected spots."""
    raw = shared_dir / "formats" / "her2st_raw"
    adata = amilst.read(raw / f"{section}.tsv.gz")
    selection = np.loadtxt(raw / f"{section}_selection.tsv", skiprows=1, usecols=(0, 1), dtype=int)
    known = {f"{x}x{y}": (x, y) for x, y in selection}
    common = [name for name in adata.obs_names if name in known]
    assert len(common) > 300
    np.testing.assert_array_equal(adata[common].obsm["spatial"], [known[name] for name in common])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmilstWarning)  # see test_io_tables
        joined = amilst.read(raw / f"{section}.tsv.gz", coordinates=raw / f"{section}_selection.tsv")
    assert joined.uns["amilst_input"]["platform"] == "st"
    assert (joined.X != adata[joined.obs_names].X).nnz == 0
