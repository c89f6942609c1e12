"""What documents and notebooks mention exists: names of this package, parameters, settings, files."""

import ast
import importlib
import re
from dataclasses import fields
from pathlib import Path

import nbformat
import pytest

from lfpr.experiments.clip import CLIPSettings
from lfpr.experiments.parameters import declared
from lfpr.experiments.sal import SaLSettings
from lfpr.experiments.tap import TAPSettings
from lfpr.training.retrain import ReSt

ROOT = Path(__file__).parents[1]
GRID_NOTEBOOKS = ("01_data", "02_importance", "03_prune", "04_retrain", "05_evaluate")
TEXTS = [ROOT / "README.md", ROOT / "data/README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [*TEXTS, *sorted((ROOT / "notebooks").glob("*.ipynb"))]


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
    for name in sorted(mentioned(path)):
        resolve(name)


def test_a_name_that_is_not_there_is_noticed(tmp_path):
    (tmp_path / "README.md").write_text("`lfpr.tap.TAP.generate` and `lfpr.tap.write_nothing(x)`.")
    assert mentioned(tmp_path / "README.md") == {"lfpr.tap.TAP.generate", "lfpr.tap.write_nothing"}
    assert callable(resolve("lfpr.tap.TAP.generate"))
    with pytest.raises(ModuleNotFoundError, match=r"lfpr\.tap\.write_nothing"):
        resolve("lfpr.tap.write_nothing")


def settings_named(text: str) -> list[str]:
    return re.findall(r"[Ss]ettings? `([a-z_]+)", text) + re.findall(r"\{settings: \{([a-z_]+)", text)


def test_what_is_looked_for_is_found():
    everything = "".join(path.read_text() for path in TEXTS)
    assert len(settings_named(everything)) > 10 and everything.count("-p ") > 10
    assert all(mentioned(path) for path in DOCUMENTS if path.suffix == ".ipynb")


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_parameter_setting_and_file_is_there(path):
    text = path.read_text()
    parameters = {name for notebook in GRID_NOTEBOOKS for name in declared(notebook)}
    assert set(re.findall(r"-p ([a-z_]+)", text)) <= parameters
    settings = {field.name for kind in (TAPSettings, SaLSettings, CLIPSettings, ReSt) for field in fields(kind)}
    assert set(settings_named(text)) <= settings
    for name in re.findall(r"`((?:tests|benchmarks|workflow|docs|lfpr)/[\w./-]+)`", text):
        assert (ROOT / name).exists() or name.startswith("docs/api/"), name


def test_every_published_command_has_an_answer():
    rows = [line for line in (ROOT / "docs/published.md").read_text().splitlines() if line.startswith("| ")]
    commands = [
        [cell.strip() for cell in row.strip("|").split(" | ")] for row in rows if row != "| published | ours | |"
    ]
    assert len(commands) > 30
    for *_, verdict in commands:
        assert re.match(r"(same|better|differs)\b", verdict), verdict
        assert verdict.startswith("same") or re.search(r"[:;,]", verdict), f"{verdict}: says not why"
