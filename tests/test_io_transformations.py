"""Coordinate systems: documents as spatialdata writes them, composed by hand; spatialdata itself in the slow test."""

import json
import warnings

import numpy as np
import pytest

from amilst_lite.io.transformations import OWN, placements

POINTS = np.random.default_rng(0).uniform(-5, 5, (6, 2))
X, Y = POINTS.T


def system(name, axes="xy", unit="unit"):
    return {"name": name, "axes": [{"name": axis, "type": "space", "unit": unit} for axis in axes]}


def step(kind, value=None, axes="xy", output="global", output_axes=None, unit="unit", **more):
    document = {
        "type": kind,
        "input": system(axes, axes),
        "output": system(output, output_axes or axes, unit),
        **more,
    }
    return document if value is None else {**document, kind: value}


def placed(*documents, name="global"):
    return placements({"coordinateTransformations": list(documents)})[name]


SCALE = step("scale", [2.0, 3.0])
MOVE = step("translation", [5.0, -1.0], "yx")
SWAP = step("mapAxis", {"x": "y", "y": "x"}, output_axes="yx")
SHEAR = step("affine", [[2.0, 0.5, 3.0], [0.1, 3.0, -4.0]])


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (step("identity"), (X, Y)),
        (SCALE, (2 * X, 3 * Y)),
        (step("scale", [2.0, 3.0], "yx"), (3 * X, 2 * Y)),  # labels: y before x
        (step("scale", [1.0, 2.0, 3.0], "cyx"), (3 * X, 2 * Y)),
        (MOVE, (X - 1, Y + 5)),
        (SWAP, (Y, X)),
        (SHEAR, (2 * X + 0.5 * Y + 3, 0.1 * X + 3 * Y - 4)),
        (
            step("affine", [[2.0, 0.5, 3.0], [0.1, 3.0, -4.0], [0, 0, 1]]),
            (2 * X + Y / 2 + 3, X / 10 + 3 * Y - 4),
        ),
        (step("affine", [[0.0, 1, 7], [1, 0, 8]], output_axes="yx"), (X + 8, Y + 7)),
        (step("affine", [[1.0, 0, 0, 0], [0, 0, 2, 1], [0, 4, 0, 2]], "cyx"), (4 * Y + 2, 2 * X + 1)),
        (step("rotation", [[0.0, -1.0], [1.0, 0.0]]), (-Y, X)),
        (step("sequence", transformations=[SCALE, MOVE, SWAP]), (3 * Y + 5, 2 * X - 1)),
        (step("sequence", transformations=[SWAP, MOVE, SCALE]), (2 * (Y - 1), 3 * (X + 5))),
        # steps that do not repeat their axes, as in the specification
        (
            step("sequence", axes="yx", transformations=[{"type": "scale", "scale": [2.0, 3.0]}, SWAP]),
            (2 * Y, 3 * X),
        ),
        (
            step(
                "byDimension",
                transformations=[
                    step("scale", [2.0], "x", output_axes="x"),
                    step("affine", [[3.0, 1.0]], "y", output_axes="y"),
                ],
            ),
            (2 * X, 3 * Y + 1),
        ),
    ],
    ids=lambda one: one["type"] if isinstance(one, dict) else "",
)
def test_transformations(document, expected):
    np.testing.assert_allclose(placed(document).apply(POINTS), np.column_stack(expected), rtol=1e-12)


def test_third_axis():
    solid = np.column_stack([POINTS, np.arange(6.0)])
    scale = placed(step("scale", [2.0, 3.0, 4.0], "xyz"))
    np.testing.assert_allclose(scale.apply(solid), solid * [2, 3, 4])
    np.testing.assert_allclose(scale.apply(POINTS), POINTS * [2, 3])
    # of a flat element, z does not change
    np.testing.assert_allclose(placed(SCALE).apply(solid), solid * [2, 3, 1])


@pytest.mark.parametrize("wrap", [lambda image: image, lambda image: {"ome": image}])
def test_labels(wrap):
    """The transformations of images and labels are those of the multiscale image; datasets have their own."""
    documents = [step("scale", [2.0, 3.0], "yx"), step("translation", [1.0, 2.0], "yx", output="slide")]
    pyramid = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [9.0, 9.0]}]}]
    image = {"multiscales": [{"datasets": pyramid, "coordinateTransformations": documents}]}
    found = placements(wrap(image))
    assert list(found) == ["global", "slide"]
    np.testing.assert_allclose(found["global"].apply(POINTS), POINTS * [3, 2])
    np.testing.assert_allclose(found["slide"].apply(POINTS), POINTS + np.array([2, 1]))


@pytest.mark.parametrize("attributes", [{}, {"coordinateTransformations": []}, {"multiscales": [{}]}])
def test_without_transformations(attributes):
    assert placements(attributes) == {"global": OWN}
    assert OWN.is_identity


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("unit", {}),
        ("micrometer", {"coordinate_unit": "micrometer"}),
        ("Micron", {"coordinate_unit": "micrometer"}),
        ("pixel", {"coordinate_unit": "pixel"}),
        ("millimeter", {"micrometers_per_unit": 1000.0}),
    ],
)
def test_units(unit, expected):
    assert placed(step("scale", [2.0, 2.0], unit=unit)).description() == expected
    document = step("identity", unit=unit)
    document["output"]["axes"][1]["unit"] = "inch"
    assert placed(document).description() == {}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (step("displacements", []), "unknown type 'displacements'"),
        (step("affine", [[1.0, 0, 0], [1, 0, 0]]), "'global' is not invertible"),
        (step("scale", [1.0, 0.0]), "'global' is not invertible"),
        (step("scale", [1.0, np.nan]), "'global' is not invertible"),
        (step("scale", [1.0, 2.0, 3.0]), "shape|unequal|shorter"),
        (step("affine", [[1.0, 2.0]]), "shape"),
    ],
)
def test_broken_transformations(document, message):
    with pytest.raises(ValueError, match=message):
        placed(document)


def test_endless_nesting():
    document = step("identity")
    for _ in range(40):
        document = step("sequence", transformations=[document])
    with pytest.raises(ValueError, match="nested in more than 32 levels"):
        placed(document)


@pytest.mark.slow
def test_against_spatialdata(tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    transformations = pytest.importorskip("spatialdata.transformations")
    affine = transformations.Affine(
        [[2, 0.5, 3], [0.1, 3, -4], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y")
    )
    steps = [
        transformations.Scale([2, 3], axes=("x", "y")),
        transformations.Translation([5], axes=("y",)),
        transformations.MapAxis({"x": "y", "y": "x"}),
        affine,
    ]
    known = {
        "global": affine,
        "steps": transformations.Sequence(steps),
        "turned": transformations.Sequence(steps[::-1]),
        "same": transformations.Identity(),
    }
    shapes = spatialdata.models.ShapesModel.parse(POINTS, geometry=0, radius=1.0, transformations=known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spatialdata.SpatialData(shapes={"spots": shapes}).write(tmp_path / "s.zarr")
    attributes = json.loads((tmp_path / "s.zarr" / "shapes" / "spots" / "zarr.json").read_text())[
        "attributes"
    ]
    found = placements(attributes)
    assert list(found) == list(known)
    for name, placement in found.items():
        expected = spatialdata.get_centroids(shapes, coordinate_system=name).compute()[["x", "y"]].to_numpy()
        np.testing.assert_allclose(placement.apply(POINTS), expected, rtol=1e-10, err_msg=name)
        moved = spatialdata.transform(shapes, to_coordinate_system=name).geometry
        np.testing.assert_allclose(placement.apply(POINTS), np.column_stack([moved.x, moved.y]), rtol=1e-10)
