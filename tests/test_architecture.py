"""The structure of the package: layers, public names, cost of an import, contents of a wheel."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import amilst_lite

PACKAGE = Path(amilst_lite.__file__).parent
RUNTIME_PACKAGES = {"torch", "numpy", "scipy", "sklearn", "anndata", "h5py", "pandas", "pynndescent"}
OPTIONAL = {"matplotlib", "igraph", "umap", "pyarrow", "zarr", "numcodecs"}  # numcodecs comes with zarr
USED_IF_PRESENT = {"tqdm"}  # no extra: without it there is a plain bar

# Each row may import from the rows above it; modules of one package import each other freely. The rows refine
# the layers of the design: Â·H and the neighbor search are used by all of layer 1, results use the pipeline.
LAYERS = [
    ["errors", "_version", "partial", "progress", "html_repr"],
    ["keys", "config", "distributed", "runtime", "model_file"],
    ["checkpoint"],
    ["validation"],
    ["nn.sparse", "spatial.neighbors"],
    ["preprocess", "spatial", "nn", "cluster", "metrics", "simulate"],
    ["train", "integration"],
    ["fitted_model"],
    ["estimator", "io"],
    ["plot"],
    ["slots"],
    ["analysis"],
    ["resources"],
    ["pipeline", "summary"],
    ["report"],
    ["results"],
    ["cli"],
    ["__main__", "__init__"],
]
LAYER = {module: depth for depth, modules in enumerate(LAYERS) for module in modules}
WITH_ANNDATA = {"analysis", "io", "plot", "pipeline", "report", "results", "slots", "summary", "cli"}


def name_of(path):
    """Dotted name of a file inside the package: "nn.sparse", "config"; a package by its own name."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def layer_of(name):
    return LAYER.get(name, LAYER.get(name.split(".")[0]))


def imports(path):
    """(kind, name, at the top of the file?) for every import; kind is "module" inside the package."""
    tree = ast.parse(path.read_text())
    parts = path.relative_to(PACKAGE).parts[:-1]
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
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield "package", (node.module or "").split(".")[0], node in tree.body
        elif isinstance(node, ast.ImportFrom):
            base = [*parts[: len(parts) - node.level + 1], *(node.module or "").split(".")]
            base = ".".join(filter(None, base))
            for name in [base] if node.module else [f"{base}.{item.name}".strip(".") for item in node.names]:
                yield "module", name, node in tree.body


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_import_only_from_lower_layers(path):
    own = name_of(path)
    for kind, target, _ in imports(path):
        if kind != "module" or target.split(".")[0] == own.split(".")[0]:
            continue
        assert layer_of(target) is not None, f"{target} has no layer"
        assert layer_of(target) < layer_of(own), f"{own} imports {target}, which is not in a lower layer"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_dependencies_are_declared_and_optional_ones_are_lazy(path):
    for kind, target, at_top in imports(path):
        if kind != "package" or target in sys.stdlib_module_names:
            continue
        assert target in RUNTIME_PACKAGES | OPTIONAL | USED_IF_PRESENT, f"{target} is not a run-time package"
        if target in OPTIONAL | USED_IF_PRESENT | {"pynndescent"}:
            assert not at_top, f"{target} must be imported where it is used"
        if target == "anndata":
            assert name_of(path).split(".")[0] in WITH_ANNDATA, (
                "the layers that toolkits embed never import it"
            )


def test_every_module_has_a_layer():
    assert all(layer_of(name_of(path)) is not None for path in FILES if path.parent != PACKAGE)
    assert {name_of(path) or "__init__" for path in FILES if path.parent == PACKAGE} <= set(LAYER)


def test_no_assert_and_no_print_in_the_package():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Assert), f"{path.name}:{node.lineno}: assert in the package"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{path.name}:{node.lineno}: prints"


def test_warnings_are_issued_by_one_function():
    """Which records them for the run of this thread, and always shows them."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called != "warnings.warn", f"{path.name}:{node.lineno}: use errors.warn"


def test_public_names_are_there_and_sorted():
    assert set(amilst_lite.__all__) == set(dir(amilst_lite))
    for name in amilst_lite.__all__:
        assert getattr(amilst_lite, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        amilst_lite.nothing  # noqa: B018


def test_names_in_all_exist():
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


def test_dependencies_are_the_eight_packages():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    names = {requirement.split(">")[0].strip() for requirement in project["dependencies"]}
    assert names == {name.replace("sklearn", "scikit-learn") for name in RUNTIME_PACKAGES}
    assert all(">=" in requirement and "==" not in requirement for requirement in project["dependencies"])


@pytest.mark.slow
def test_a_wheel_contains_the_package_only(tmp_path):
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
