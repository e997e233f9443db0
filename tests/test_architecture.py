"""The plan of the house, held true: layers, public names, what an import costs, what a wheel holds."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import amilst_lite

PACKAGE = Path(amilst_lite.__file__).parent
RUNTIME_PACKAGES = {"torch", "numpy", "scipy", "sklearn", "anndata", "h5py", "pandas", "pynndescent"}
OPTIONAL = {"matplotlib", "igraph", "umap"}

LAYERS = [
    {"errors", "_version"},  # the root of layer 0: everyone may raise
    {"keys", "config", "runtime"},
    {
        "estimate",
        "graph",
        "decomposition",
        "nn",
        "losses",
        "cluster",
        "refine",
        "metrics",
        "autocorrelation",
        "simulate",
    },
    {"batches", "train", "estimator"},
    {"io", "preprocess", "plot"},
    {"pipeline"},
    {"cli", "__main__", "__init__"},
]
LAYER = {room: depth for depth, rooms in enumerate(LAYERS) for room in rooms}
# Two stand beside each other by the plan: the estimator runs the training; figures give scores in titles.
SAME_LAYER = {("train", "batches"), ("estimator", "train"), ("__main__", "cli")}


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """(room or package imported, at the top of the file?) for every import in a file."""
    tree = ast.parse(path.read_text())
    depth = len(path.relative_to(PACKAGE).parts) - 1
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            for name in node.names:
                yield "package", name.name.split(".")[0], node in tree.body
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield "package", (node.module or "").split(".")[0], node in tree.body
            elif node.level > depth:  # reaches the package's own rooms
                targets = [node.module.split(".")[0]] if node.module else [name.name for name in node.names]
                for target in targets:
                    yield "room", target, node in tree.body


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_import_only_from_lower_layers(path):
    room = room_of(path)
    for kind, target, _ in imports(path):
        if kind != "room" or target == room:
            continue
        allowed = LAYER[target] < LAYER[room] or (room, target) in SAME_LAYER
        assert allowed, f"{room} (layer {LAYER[room]}) imports {target} (layer {LAYER[target]})"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_packages_are_the_eight_and_optional_ones_are_lazy(path):
    for kind, target, at_top in imports(path):
        if kind != "package" or target in sys.stdlib_module_names:
            continue
        assert target in RUNTIME_PACKAGES | OPTIONAL, f"{target} is no run-time package"
        if target in OPTIONAL | {"pynndescent"}:
            assert not at_top, f"{target} must be imported where it is used"
        if target == "anndata":
            assert LAYER[room_of(path)] >= LAYER["io"], "layers 0 to 2 never import anndata"


def test_every_room_has_its_layer():
    assert {room_of(path) for path in FILES} <= set(LAYER)


def test_no_assert_and_no_print_in_the_package():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Assert), f"{path.name}:{node.lineno}: asserts live in tests"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{path.name}:{node.lineno}: prints"


def test_public_names_are_there_and_sorted():
    assert set(amilst_lite.__all__) == set(dir(amilst_lite))
    for name in amilst_lite.__all__:
        assert getattr(amilst_lite, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        amilst_lite.nothing  # noqa: B018


def test_every_room_names_what_it_offers():
    for path in FILES:
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        if path.name in ("__main__.py", "_version.py"):
            continue
        loaded = __import__(module, fromlist=["_"])
        for name in getattr(loaded, "__all__", []):
            assert hasattr(loaded, name), f"{module}.{name}"


def test_importing_is_light():
    heavy = "('torch', 'anndata', 'matplotlib', 'pynndescent', 'numba', 'igraph', 'umap')"
    code = f"import sys, amilst_lite; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_dependencies_are_the_eight():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    names = {requirement.split(">")[0].strip() for requirement in project["dependencies"]}
    assert names == {name.replace("sklearn", "scikit-learn") for name in RUNTIME_PACKAGES}
    assert all(">=" in requirement and "==" not in requirement for requirement in project["dependencies"])


@pytest.mark.slow
def test_a_wheel_holds_the_package_and_nothing_else(tmp_path):
    import zipfile

    root = PACKAGE.parent
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), str(root)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"amilst_lite", next(top for top in tops if top.endswith(".dist-info"))}
    assert "amilst_lite/py.typed" in names
    ours = {str(path.relative_to(root)) for path in FILES}
    assert {name for name in names if name.endswith(".py")} == ours
