"""The names of this package that its documents and notebooks mention exist."""

import ast
import importlib
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "data/README.md", *sorted((ROOT / "notebooks").glob("*.ipynb"))]


def mentioned(path: Path) -> set[str]:
    """`lfpr.xxx.yyy` in a document's text, and in a notebook's cells, where names are imported, too."""
    if path.suffix != ".ipynb":
        return set(re.findall(r"\blfpr(?:\.\w+)+", path.read_text()))
    cells = nbformat.read(path, as_version=4).cells
    names = set(re.findall(r"\blfpr(?:\.\w+)+", "\n".join(cell.source for cell in cells)))
    code = (re.sub(r"^%.*", "", cell.source, flags=re.MULTILINE) for cell in cells if cell.cell_type == "code")
    for source in code:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "lfpr":
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def resolve(name: str) -> object:
    """What a dotted name means: a module, or an attribute of what the name before its last dot means."""
    parent, _, last = name.rpartition(".")
    try:
        return getattr(resolve(parent), last) if parent else importlib.import_module(name)
    except AttributeError:
        return importlib.import_module(name)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_is_there(path):
    names = mentioned(path)
    assert names
    for name in sorted(names):
        resolve(name)


def test_a_name_that_is_not_there_is_noticed(tmp_path):
    (tmp_path / "README.md").write_text("`lfpr.tap.TAP.generate` and `lfpr.tap.write_nothing(x)`.")
    assert mentioned(tmp_path / "README.md") == {"lfpr.tap.TAP.generate", "lfpr.tap.write_nothing"}
    assert callable(resolve("lfpr.tap.TAP.generate"))
    with pytest.raises(ModuleNotFoundError, match=r"lfpr\.tap\.write_nothing"):
        resolve("lfpr.tap.write_nothing")
