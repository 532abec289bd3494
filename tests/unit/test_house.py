"""Rules of the house: imports point one way, heavy packages stay where they belong, nothing is unpickled, names are pinned."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import ngramstore
from ngramstore.serve.open_options import OpenOptions

ROOT = Path(__file__).parents[2]
CORE = ROOT / "ngramstore"
SOURCES = sorted(path for folder in (CORE, ROOT / "integrations", ROOT / "bench") for path in folder.rglob("*.py"))

LEVELS = [
    {"errors", "layout", "checked_json"},
    {
        "hashing",
        "windows",
        "options",
        "npy",
        "safetensors_header",
        "files",
        "file_writer",
        "writer_lock",
        "system_memory",
        "kernels",
    },
    {"codec", "mine", "keys"},
    {"store"},
    {"serve"},
    {"api", "cli", "__main__"},
]
"""A module imports from its own level and from those before it. The bare package gives its version to all."""

STORE_LEVELS = ["progress", "layers", "journal", "view", "live", "changes", "building", "imports", "repair"]
"""Folders and files of ngramstore/store: each imports from itself and from those before it. What is not here (trace,
sizes, backup) is imported by none of them."""

TORCH_LEVELS = [{"data"}, {"model"}, {"serving", "training", "export"}, {"experiment"}, {"cli"}]
"""Folders of ngramstore_torch: a module imports from its own folder and from levels before it, not from its neighbours."""

PUBLIC = {
    "ngramstore": "build, open, sizes, Store, Builder, Hit, Trace, errors",
    "ngramstore.errors": "what to catch and to raise",
    "ngramstore.mine": "corpora, vocabularies, mining",
    "ngramstore.codec": "codecs by spec, for rows that arrive encoded",
    "ngramstore.keys": "row numbers of the tables that models ship with",
    "ngramstore.hashing": "MAX_N and ngram_ids: the IDs are part of the format",
    "ngramstore.files": "atomic publication, the same for training checkpoints as for stores",
    "ngramstore.windows": "token ids as users give them",
    "ngramstore.checked_json": "small JSON files with a checksum",
    "ngramstore.writer_lock": "one at a time in a folder, of training runs as of builds",
    "ngramstore.cli.common": "options and output that all commands share",
}
"""Modules whose public names others may use."""

MOST_LINES = 300
LONG = {
    "ngramstore/kernels/native/dequantize.py": 310,  # a writer for each codec
}
"""Files that may be longer, and where that ends."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, those inside functions too; of `from a import b`, a.b where that is a module."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} imports relatively"
            assert node.module is not None
            for alias in node.names:
                inner = ROOT.joinpath(*node.module.split("."), alias.name)
                yield (
                    f"{node.module}.{alias.name}"
                    if inner.is_dir() or inner.with_suffix(".py").exists()
                    else node.module
                )


def level(module: str) -> int:
    part = module.split(".")[1]
    return next(i for i, names in enumerate(LEVELS) if part in names)


CORE_FILES = [path for path in sorted(CORE.rglob("*.py")) if path != CORE / "__init__.py"]


def test_every_module_of_the_core_has_a_level():
    parts = {path.relative_to(CORE).parts[0].removesuffix(".py") for path in CORE_FILES}
    assert parts == set().union(*LEVELS)


@pytest.mark.parametrize("path", CORE_FILES, ids=name_of)
def test_imports_point_one_way(path):
    here = level("ngramstore." + path.relative_to(CORE).parts[0].removesuffix(".py"))
    wrong = [
        module
        for module in imports(path)
        if (module.startswith("ngramstore.") and level(module) > here) or module.startswith("ngramstore_")
    ]
    assert wrong == []


STORE_FILES = [path for path in CORE_FILES if path.is_relative_to(CORE / "store") and path.parent.name != "ngramstore"]


@pytest.mark.parametrize("path", STORE_FILES, ids=name_of)
def test_imports_of_the_store_point_one_way(path):
    part = path.relative_to(CORE / "store").parts[0].removesuffix(".py")
    allowed = STORE_LEVELS[: STORE_LEVELS.index(part) + 1] if part in STORE_LEVELS else STORE_LEVELS
    ours = [module.split(".")[2] for module in imports(path) if module.startswith("ngramstore.store.")]
    assert [name for name in ours if name not in allowed] == []


@pytest.mark.parametrize("path", sorted((ROOT / "integrations").rglob("*.py")), ids=name_of)
def test_the_library_does_not_import_a_command_line(path):
    assert path.parent.name == "cli" or not any("cli" in module.split(".") for module in imports(path))


TORCH = ROOT / "integrations" / "ngramstore_torch"
TORCH_FILES = [path for path in sorted(TORCH.rglob("*.py")) if path != TORCH / "__init__.py"]


def test_every_module_of_the_torch_side_is_in_a_folder_with_a_level():
    assert {path.relative_to(TORCH).parts[0] for path in TORCH_FILES} == set().union(*TORCH_LEVELS)


@pytest.mark.parametrize("path", TORCH_FILES, ids=name_of)
def test_imports_of_the_torch_side_point_one_way(path):
    folder = path.relative_to(TORCH).parts[0]
    here = next(i for i, folders in enumerate(TORCH_LEVELS) if folder in folders)
    allowed = {folder}.union(*TORCH_LEVELS[:here])
    ours = [module.split(".") for module in imports(path) if module.split(".")[0].startswith("ngramstore_")]
    assert [".".join(parts) for parts in ours if parts[0] != "ngramstore_torch" or parts[1:2] == []] == []
    assert [".".join(parts) for parts in ours if parts[1] not in allowed] == []


@pytest.mark.parametrize("path", sorted((ROOT / "integrations").rglob("*.py")), ids=name_of)
def test_integrations_use_public_names_only(path):
    used = {module for module in imports(path) if module == "ngramstore" or module.startswith("ngramstore.")}
    assert used <= set(PUBLIC)
    private = [
        alias.name
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ngramstore"
        for alias in node.names
        if alias.name.startswith("_")
    ]
    assert private == []


def test_no_two_modules_of_the_core_import_each_other_at_the_top():
    """Levels allow imports within a level; a circle among them would still break at some first import."""
    edges: dict[str, set[str]] = {}
    for path in CORE_FILES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        edges[module] = set()
        for node in tree_of(path).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ngramstore."):
                edges[module].add(str(node.module))
    reached: dict[str, set[str]] = {}

    def reach(module: str) -> set[str]:
        if module not in reached:
            reached[module] = set()
            reached[module] = edges.get(module, set()).union(*(reach(other) for other in edges.get(module, ())))
        return reached[module]

    packages = {
        str(path.parent.relative_to(ROOT)).replace("/", ".") for path in CORE_FILES if path.name == "__init__.py"
    }
    assert [module for module in edges if module in reach(module) and module not in packages] == []


@pytest.mark.parametrize(
    ("package", "where"),
    [
        ("rocksdict", r"ngramstore/store/journal/rocks\.py"),
        # .jsonl.zst corpora are streams, not rows: they need none of what codec/compress.py knows.
        ("zstandard", r"ngramstore/codec/compress\.py|ngramstore/mine/inputs\.py"),
        # a checkpoint that the user names is read with torch, where torch is installed; nothing else needs it.
        ("torch", r"ngramstore/store/building/row_files\.py"),
        ("click", r"ngramstore/cli/\w+\.py"),
        ("llvmlite", r"ngramstore/kernels/native/\w+\.py"),
    ],
)  # fmt: skip
def test_heavy_packages_are_imported_in_their_own_files_only(package, where):
    users = [name_of(path) for path in CORE_FILES if package in {module.split(".")[0] for module in imports(path)}]
    assert [name for name in users if not re.fullmatch(where, name)] == []


WRITERS = {"files.py", "file_writer.py", "writer_lock.py"}
CHANGES = {
    "fsync", "ftruncate", "link", "makedirs", "mkdir", "pwrite", "pwritev", "remove", "rename", "replace", "rmdir", "truncate",
    "unlink", "write", "writev",
}  # fmt: skip
CHANGING_METHODS = {
    "hardlink_to", "rename", "rmtree", "symlink_to", "touch", "truncate", "unlink", "write_bytes", "write_text",
}  # fmt: skip


@pytest.mark.parametrize("path", CORE_FILES, ids=name_of)
def test_files_are_changed_through_one_module(path):
    """Else the tests that let each write, truncation, fsync, rename and unlink fail would miss some."""
    if path.parent == CORE and path.name in WRITERS:
        return
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Call):
            continue
        of, _, called = ast.unparse(node.func).rpartition(".")
        where = f"{name_of(path)}:{node.lineno}: {of}.{called}"
        assert of != "os" or called not in CHANGES, where
        assert of in ("", "files") or called not in CHANGING_METHODS, where
        if (of, called) == ("", "open"):
            mode = node.args[1] if len(node.args) > 1 else None
            assert mode is None or (isinstance(mode, ast.Constant) and set(mode.value) <= set("rb")), where


UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_unpickled_and_no_text_is_run_as_code(path):
    assert not UNPICKLING & {module.split(".")[0] for module in imports(path)}
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert called not in ("eval", "exec", "compile", "__import__"), f"{name_of(path)}:{node.lineno}"
        if called in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle", "False") == "False", f"{name_of(path)}:{node.lineno}: may unpickle"
        if called == "torch.load":
            assert keywords.get("weights_only") == "True", f"{name_of(path)}:{node.lineno}: may run code"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_are_short_and_say_what_they_are(path):
    text = path.read_text()
    assert len(text.splitlines()) <= LONG.get(name_of(path), MOST_LINES)
    assert ast.get_docstring(tree_of(path)), "the first line says the one idea of the file"


@pytest.mark.parametrize("package", [CORE, *sorted((ROOT / "integrations").glob("ngramstore_*"))], ids=name_of)
def test_every_package_is_type_checked_and_says_so(package):
    assert (package / "py.typed").exists()
    checked = re.search(r"^packages = \[(.+)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert checked is not None and f'"{package.name}"' in checked[1]


def in_python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.strip()


def test_importing_the_package_loads_its_errors_and_little_else():
    """What makes an import slow is what it loads; how long that takes is the machine's business."""
    code = """
        import sys, typing
        before = set(sys.modules)
        import ngramstore
        print(*sorted(set(sys.modules) - before))
    """
    loaded = in_python(code).split()
    assert {name for name in loaded if name.startswith("ngramstore")} == {"ngramstore", "ngramstore.errors"}
    assert {name.partition(".")[0] for name in loaded} <= {"ngramstore"} | set(sys.stdlib_module_names)
    assert len(loaded) < MOST_MODULES, loaded


MOST_MODULES = 8  # 4 at most with Python 3.10 to 3.13, where typing is loaded already; logging would bring 12 more


def test_opening_a_store_loads_no_torch():
    code = """
        import sys, ngramstore
        ngramstore.open, ngramstore.build, ngramstore.sizes, ngramstore.Store
        print(*sorted({"torch", "transformers", "tokenizers", "matplotlib"} & set(sys.modules)))
    """
    assert in_python(code) == ""


def test_public_names_are_pinned():
    functions = ["build", "errors", "import_checkpoint", "open", "sizes"]
    assert ngramstore.__all__ == ["Builder", "Hit", "Store", "Trace", "__version__", *functions]
    assert dir(ngramstore) == sorted(ngramstore.__all__)
    for name in ngramstore.__all__:
        assert getattr(ngramstore, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ngramstore.nothing  # noqa: B018


def test_every_error_is_in_the_tree_that_its_file_draws():
    drawn = re.findall(r"(?:\|--|`--)\s+(\w+)", ngramstore.errors.__doc__)
    defined = [
        name
        for name, value in vars(ngramstore.errors).items()
        if isinstance(value, type) and issubclass(value, ngramstore.errors.NgramStoreError)
    ]
    assert sorted([*drawn, "NgramStoreError"]) == sorted(defined)


def test_the_changelog_begins_with_this_release():
    releases = re.findall(r"^## (\S+)", (ROOT / "docs" / "changelog.md").read_text(), re.MULTILINE)
    assert releases[0] == ngramstore.__version__
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    assert declared[1] == ngramstore.__version__


def test_open_spells_out_what_can_be_chosen():
    """Editors and type checkers read the signature; the handle keeps the choices in a dataclass."""
    choices = {field.name: field.default for field in dataclasses.fields(OpenOptions)}
    parameters = list(inspect.signature(ngramstore.open).parameters.values())[1:]
    assert {parameter.name: parameter.default for parameter in parameters} == choices
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)
