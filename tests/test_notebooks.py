"""The committed notebooks: run from top to bottom, parametrised, quiet, and naming only files that exist."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STAGES = ["01_data", "02_importance", "03_prune", "04_retrain", "05_evaluate", "06_paper"]


def code_cells(path):
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]


def test_all_stages_have_a_notebook():
    assert set(STAGES) <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_was_run_in_order_without_noise(path):
    cells = code_cells(path)
    # nbval compares nothing for a cell that was not run
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_are_commented_literals(path):
    tagged = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for statement in ast.parse(tagged[0].source).body:
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)
    assert all("#" in line for line in tagged[0].source.splitlines())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_logic_is_in_the_library(path):
    source = "\n".join(cell.source for cell in code_cells(path))
    assert len(source.splitlines()) <= 120
    assert not re.search(r"^\s*(class|def) ", source, re.MULTILINE)
    assert "simplefilter" not in source and "sys.path" not in source


def test_the_workflow_runs_these_notebooks():
    named = "workflow/Snakefile", "workflow/grid.yaml", "lfpr/experiments/grid.py", "lfpr/experiments/run_grid.py"
    text = "\n".join((ROOT / file).read_text() for file in named)
    assert set(re.findall(r"\b(0[1-6]_[a-z]+)", text)) == set(STAGES)


def test_nbval_fails_when_a_number_changes(tmp_path):
    whole = nbformat.read(ROOT / "notebooks" / "01_data.ipynb", as_version=4)
    opening = next(i for i, cell in enumerate(whole.cells) if "open_experiment" in cell.source)
    whole.cells = whole.cells[: opening + 1]
    output = whole.cells[opening].outputs[0]
    for name, text, passes in (("same", output.text, True), ("changed", output.text.replace("4", "5", 1), False)):
        output.text = text
        nbformat.write(whole, tmp_path / f"{name}.ipynb")
        command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", tmp_path / f"{name}.ipynb"]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert (run.returncode == 0) == passes, run.stdout
        assert passes or "mismatch" in run.stdout


def test_files_named_in_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"\]\(([\w/.-]+)\)", text) + re.findall(
        r"`((?:data|tests|workflow|paper_figures)/[\w/.-]+)`", text
    )
    named += [f"notebooks/{name}.ipynb" for name in re.findall(r"`(\d\d_\w+)`", text)]
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists()] == []
