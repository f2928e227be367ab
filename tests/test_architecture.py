"""The layers of docs/architecture.md against the imports of the files."""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import networkx
import pytest
from transformers.dynamic_module_utils import get_imports

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cmfah_hf"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
MOST_LINES = 400
HEAVY = {"torch", "torchvision", "transformers", "datasets", "faiss", "gensim", "matplotlib", "networkx", "scipy"}
HEAVY |= {"ray", "h5py", "gradio", "numba", "fastapi", "uvicorn"}
# `datasets` depends on these and chooses their versions.
WITH_DATASETS = {"fsspec"}
# `gradio` depends on these: its web framework, its server and its client.
WITH_GRADIO = {"fastapi", "httpx", "pydantic", "starlette", "uvicorn"}
MODULE_OF = {"faiss-cpu": "faiss", "pillow": "PIL", "pyyaml": "yaml"}


def section(title: str) -> str:
    """The lines below the heading of this title, up to the next heading of the same or a higher level."""
    match = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert match, f"docs/architecture.md has no section {title!r}"
    return match[2]


def rows(text: str) -> list[list[str]]:
    """The cells of every row of the tables in a text, without headers and rules."""
    lines = [line.strip().strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    rule = {i for i, cells in enumerate(lines) if set("".join(cells)) <= set("-: ")}
    return [[cell.strip() for cell in cells] for i, cells in enumerate(lines) if i not in rule and i + 1 not in rule]


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


LAYERS = {
    name.rstrip("/").removesuffix(".py"): int(number)
    for number, names, _ in rows(section("Layers"))
    for name in spans(names)
}


@cache
def imports(path: Path) -> list[tuple[str, int]]:
    """The full names of all modules that a file imports, each with the level of a relative import."""
    package = path.relative_to(ROOT).parts[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*above, *([node.module] if node.module else [])])
            # `from package import name`: the name may itself be a module.
            for alias in node.names:
                is_module = (ROOT / Path(*stem.split("."), f"{alias.name}.py")).is_file()
                is_package = (ROOT / Path(*stem.split("."), alias.name, "__init__.py")).is_file()
                found.append((f"{stem}.{alias.name}" if is_module or is_package else stem, node.level))
    return found


def part(module: str) -> str:
    """`errors`, `models`, ...: the folder or file directly below the package; empty for the package itself."""
    return [*module.split("."), ""][1]


def inner_imports(path: Path) -> list[tuple[str, int]]:
    return [(name, level) for name, level in imports(path) if name.split(".")[0] == "cmfah_hf"]


def own_part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_imports_finds_every_form(tmp_path, monkeypatch):
    folder = tmp_path / "cmfah_hf" / "low"
    folder.mkdir(parents=True)
    (folder.parent / "high").mkdir()
    (folder.parent / "high" / "thing.py").touch()
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = folder / "file.py"
    file.write_text(
        "import os.path\n"
        "from . import sibling\n"
        "from ..high import thing\n"
        "def f():\n    from cmfah_hf.high.thing import name\n    import cmfah_hf.high\n"
    )
    assert sorted(imports(file)) == [
        ("cmfah_hf.high", 0),
        ("cmfah_hf.high.thing", 0),
        ("cmfah_hf.high.thing", 2),
        ("cmfah_hf.low", 1),
        ("os.path", 0),
    ]


def test_layers_of_the_page_match_the_folders_and_files():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert set(LAYERS) == folders | files
    assert sorted(set(LAYERS.values())) == list(range(max(LAYERS.values()) + 1))


def test_file_tables_of_the_page_match_the_docstrings():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from write_architecture import written
    finally:
        sys.path.remove(str(ROOT / "docs"))
    assert written(PAGE) == PAGE, "run `make docs`"
    assert all(f"| `{path.name}` |" in PAGE for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_public_names_of_the_page_match_the_package():
    import cmfah_hf

    listed = {
        name: spans(home)[0].rstrip("/") for names, home, _ in rows(section("Public names")) for name in spans(names)
    }
    assert sorted(listed) == cmfah_hf.__all__
    for name, home in listed.items():
        assert part(getattr(cmfah_hf, name).__module__) == home, name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_layer_imports_a_higher_one(path):
    layer = LAYERS.get(own_part(path), max(LAYERS.values()) + 1)  # the package's own `__init__` may import all
    for module, _ in inner_imports(path):
        if part(module):
            assert LAYERS[part(module)] <= layer, f"{path.relative_to(ROOT)} imports {module} from a higher layer"


def test_no_cycles_between_packages_or_files():
    packages, files = networkx.DiGraph(), networkx.DiGraph()
    for path in FILES:
        if own_part(path) == "__init__":
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for imported, _ in inner_imports(path):
            if part(imported) and part(imported) != own_part(path):
                packages.add_edge(own_part(path), part(imported))
            if imported != module:
                files.add_edge(module, imported)
    assert packages.number_of_edges() > 10
    assert list(networkx.simple_cycles(packages)) == []
    assert list(networkx.simple_cycles(files)) == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").glob("*.py")), ids=lambda path: path.name)
def test_models_import_only_their_siblings_and_only_relatively(path):
    for module, level in inner_imports(path):
        assert level == 1, f"{path.name} imports {module}, which is not saved with the model's files"
        assert (PACKAGE / "models" / f"{module.split('.')[-1]}.py").is_file(), module


# What the code of models may import besides the standard library: what transformers and PyTorch bring.
BROUGHT = {"PIL", "huggingface_hub", "numpy", "safetensors", "tokenizers", "torch", "torchvision", "transformers"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").glob("*.py")), ids=lambda path: path.name)
def test_code_that_is_saved_with_models_runs_where_only_transformers_is_installed(path):
    """By the rule of transformers, which refuses to run code with any other import, unless it is in a `try`."""
    needed = set(get_imports(path)) - set(sys.stdlib_module_names)
    assert needed <= BROUGHT | ({"sentence_transformers"} if path.name == "sentence_module.py" else set())


def test_dependencies_of_the_page_match_the_package_and_the_imports():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.DOTALL | re.MULTILINE)[1]
    declared = set(re.findall(r'^\s*"([\w-]+)', block, re.MULTILINE))
    assert {spans(package)[0] for package, _ in rows(section("Dependencies"))} == declared
    imported = {module.split(".")[0] for path in FILES for module, _ in imports(path)}
    third_party = imported - set(sys.stdlib_module_names) - {"cmfah_hf"}
    modules = {MODULE_OF.get(name, name) for name in declared}
    optional = {
        "icu4py",
        "imagecodecs",
        "mcp",
        "mteb",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "peft",
        "pillow_heif",
        "prometheus_client",
        "rawpy",
        "ray",
        "resvg_py",
        "rjieba",
        "sentence_transformers",  # which loads the file that imports it
        "sklearn",
        "textual_image",
        "timm",
        "watchfiles",
    }
    assert third_party - modules == WITH_DATASETS | WITH_GRADIO | optional
    assert modules <= third_party


def output_of(script: str, *arguments: str) -> str:
    """The standard output of a new process that runs this code."""
    command = [sys.executable, "-c", script, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout


def loaded_by(code: str) -> set[str]:
    """The modules loaded in a new process by this code."""
    return {name.split(".")[0] for name in output_of(f"{code}\nimport sys; print(*sys.modules)").split()}


@pytest.mark.parametrize("package", ["", *(f".{path.parent.name}" for path in sorted(PACKAGE.glob("*/__init__.py")))])
def test_importing_a_package_is_light(package):
    light = {"scipy"} | (
        {"transformers"} if package == ".expansion" else set()
    )  # `split_words` builds on its tokenizers
    modules = loaded_by(f"import cmfah_hf{package}")
    assert "cmfah_hf" in modules
    assert not modules & (HEAVY - light)


def test_bare_import_loads_only_the_standard_library():
    modules = loaded_by("import sys; before = set(sys.modules)\nimport cmfah_hf, cmfah_hf.models, cmfah_hf.data")
    outside = modules & (HEAVY | {"numpy", "PIL", "yaml", "typer", "rich", "tokenizers", "pyarrow", "huggingface_hub"})
    assert not outside


SHARED = ("__init__", "options", "output")
# Folders of one command, whose other files are parts of it.
IN_PARTS = ["search"]
COMMANDS = sorted([*IN_PARTS, *(path.stem for path in (PACKAGE / "cli").glob("*.py") if path.stem not in SHARED)])
GROUPS = {
    folder.name: sorted(path.stem.replace("_", "-") for path in folder.glob("*.py") if path.stem != "__init__")
    for folder in (PACKAGE / "cli").iterdir()
    if (folder / "__init__.py").is_file() and folder.name not in IN_PARTS
}
# The help of `train` lists the settings of transformers and of the models too.
CALLS = [[command] for command in COMMANDS if command != "train"] + [[group] for group in GROUPS]
CALLS += [[group, command] for group, commands in GROUPS.items() for command in commands]


# Prints the exit code, the output and the newly loaded modules of each call.
HELPS = """
import contextlib, io, json, sys
from cmfah_hf.cli import main

found, before = [], set()
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            code = main([*arguments, "--help"])
        except SystemExit as end:
            code = end.code
    found.append([code, printed.getvalue(), sorted({name.split(".")[0] for name in set(sys.modules) - before})])
    before = set(sys.modules)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def helps():
    """The result of `--help` for each call, all in one new process."""
    calls = [[], *CALLS]
    return dict(zip(map(tuple, calls), json.loads(output_of(HELPS, json.dumps(calls))), strict=True))


@pytest.mark.parametrize("arguments", [[], *CALLS], ids=lambda arguments: " ".join(arguments) or "cmfah")
def test_help_is_quick_and_imports_no_deep_learning(helps, arguments):
    code, printed, modules = helps[tuple(arguments)]
    assert not code
    assert "Usage:" in printed
    expected = GROUPS.get(arguments[0], []) if len(arguments) == 1 else arguments
    assert all(name in printed for name in (expected if arguments else [*COMMANDS, *GROUPS]))
    assert not HEAVY.intersection(modules)


def test_layer_numbers_decrease_from_row_to_row():
    numbers = [int(number) for number, _, _ in rows(section("Layers"))]
    assert all(upper - lower == 1 for upper, lower in pairwise(numbers))


def test_markers_are_named_by_the_files_of_their_tests():
    """`make test-slow` and `make test-cluster` read these files only."""
    tests = set((ROOT / "tests").rglob("*.py"))
    for path in tests - set((ROOT / "tests").rglob("test_*.py")):
        assert not re.search(r"mark\.(slow|cluster)\b", path.read_text(encoding="utf-8")), path
