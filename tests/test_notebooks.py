"""The committed notebooks: run from top to bottom, parametrised, quiet, and naming only files that exist."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from ipykernel.kernelspec import get_kernel_dict

from lfpr.experiments import Cell, open_experiment
from lfpr.experiments.cell import CELL_FIELDS
from lfpr.experiments.grid import NOTEBOOKS as GRID_NOTEBOOKS
from lfpr.experiments.grid import load_grid
from lfpr.experiments.parameters import PATHS, declared
from lfpr.experiments.run_grid import FIRST, others
from lfpr.experiments.sentences import PACKAGE

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "data" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
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
def test_one_that_is_opened_needs_no_saving(path):
    """JupyterLab writes the kernel's own name into a notebook that has another."""
    spec = get_kernel_dict()
    expected = {"name": "python3", "display_name": spec["display_name"], "language": spec["language"]}
    assert nbformat.read(path, as_version=4).metadata.kernelspec == expected


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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_header_is_two_cells(path):
    first, second, *rest = code_cells(path)
    assert "parameters" in first.metadata["tags"] and len(first.source.splitlines()) <= 23
    assert re.search(r"\b(from|read)_parameters\(", second.source) and len(second.source.splitlines()) <= 6
    assert not any("_parameters(" in cell.source for cell in rest)


@pytest.mark.parametrize(
    "name, steps",
    {
        "03_prune": "importance search rearrange rescale shrink verify_equivalent finish",
        "04_retrain": "teach load_pruned training retrain fold spread finish",
    }.items(),
)
def test_the_algorithm_is_visible(name, steps):
    calls = [
        node.func.attr
        for cell in code_cells(ROOT / "notebooks" / f"{name}.ipynb")
        for node in ast.walk(ast.parse(re.sub(r"^%.*", "", cell.source)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    assert set(steps.split()) <= set(calls)


def test_nothing_that_is_shown_alone_is_needed_later():
    """The grid leaves out the cells tagged `diagnostic`: no other cell may use a name that only they define."""
    for path in NOTEBOOKS:
        here, elsewhere = set(), set()
        for cell in code_cells(path):
            tree = ast.parse(re.sub(r"^%.*", "", cell.source))
            names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
            defined = {node.id for node in names if isinstance(node.ctx, ast.Store)}
            imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
            defined |= {(alias.asname or alias.name).split(".")[0] for node in imports for alias in node.names}
            if "diagnostic" in cell.metadata.get("tags", []):
                elsewhere |= defined
                continue
            here |= defined
            used = {node.id for node in names if isinstance(node.ctx, ast.Load)}
            assert not used & (elsewhere - here), f"{path.stem}: {sorted(used & (elsewhere - here))}"


def test_what_does_not_fit_in_memory_waits_beside_the_stage():
    """The system's place for temporary files may be memory itself; rescaling on 8,192 images writes 10 GB."""
    source = "\n".join(cell.source for cell in code_cells(ROOT / "notebooks" / "03_prune.ipynb"))
    calls = [node for node in ast.walk(ast.parse(re.sub(r"(?m)^%.*", "", source))) if isinstance(node, ast.Call)]
    fits = [ast.unparse(node) for node in calls if ast.unparse(node.func) in ("exp.rescaled", "lfpr.rescale")]
    assert len(fits) == 2 and all("run.folder" in fit for fit in fits)


def test_models_are_loaded_where_the_experiment_is():
    for path in NOTEBOOKS:
        source = "\n".join(cell.source for cell in code_cells(path))
        if "exp, cell = from_parameters(" in source:
            assert not [line for line in source.splitlines() if "load_pruned(" in line and "exp.device)" not in line]


OWN = [
    ("limit", 0, "limit = 0: must be a whole number of at least 1"),
    ("limit", -5, "limit = -5: must be"),
    ("studies", [["scoring"]], "studies = [['scoring']]: must be a list of some of ['scoring']"),
    ("studies", 0, "studies = 0: must be"),
    ("settings", 0, "settings = 0: must be a mapping"),
    ("settings", {"lr": "1e-5"}, "lr = '1e-5': must be a finite number; YAML reads 1e-5 as text"),
    ("settings", {"scores": "None"}, "scores = 'None': must be a path, or None as papermill's -p reads it"),
    ("settings", {"Schedule": "own"}, "did you mean schedule?"),
    ("shortlist", 7, "unknown setting 'shortlist' of tap-textvqa"),
    ("profile", "Mini", "profile = 'Mini': must be one of ['mini', 'full']"),
    ("experiment", "TAP-textvqa", "did you mean tap-textvqa?"),
    ("method", "Fisher", "method = 'Fisher': must be one of"),
    ("rescaled", "false", "papermill's -p reads True and False, but true, false and all of -r are text"),
    ("constraints", [0.5, 1.5], "constraint = 1.5: must be in (0, 1]"),
    ("constraints", 0.5, "constraints = 0.5: must be a list"),
    ("seeds", ["0"], "seed = '0': must be a whole number"),
    ("num_texts", 101, "num_texts = 101: must be a whole number from 1 to 100"),
]
"""Parameters of some notebooks, and values that they do not take."""


def opened(path, **values):
    """What a notebook's first two cells leave in its namespace, with these values, as papermill puts them between."""
    first, second, *_ = code_cells(path)
    namespace = {"In": ["", first.source, "\n".join(["# Parameters", *(f"{name} = 0" for name in values)])]}
    exec(first.source, namespace)
    exec(re.sub(r"(?m)^%.*", "", second.source), namespace | values)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_says_in_its_header_what_is_wrong(path, monkeypatch):
    monkeypatch.setattr("lfpr.experiments.experiment.Experiment.check", None)  # it would find more, and take longer
    parameters = declared(path)
    wrong = [("zzz", 1, f"parameter zzz: {path.stem} has none of this name; it has ['")]
    wrong += [each for each in OWN if each[0] in parameters]
    for name, default in parameters.items():
        wrong += [(each, 1, f"did you mean {name}?") for each in (f"{name}z", name.upper(), name.title())]
        kind = f"{name} = "
        if name in PATHS:
            wrong += [(name, value, kind) for value in (7, True, [], b"x", "false", "None", "null")]
        elif default is not None or name in CELL_FIELDS:
            wrong += [(name, value, kind) for value in ({}, b"x", object(), float("nan"))]
        if isinstance(default, int | float):
            wrong += [(name, value, kind) for value in ("0.4", "false", True, [])]
    for name, value, message in wrong:
        with pytest.raises(ValueError, match=re.escape(message)):
            opened(path, **{name: value})
    assert len(wrong) > 20


@pytest.mark.parametrize(
    "options, message",
    [
        ("-p constrain 0.6", r"parameter constrain: 03_prune has none of this name; did you mean constraint\?"),
        ("-p rescaled false", "rescaled = 'false': must be True or False or 'released' or None; papermill's -p reads"),
    ],
)
def test_a_wrong_parameter_is_refused_by_the_notebook_itself(tmp_path, options, message):
    command = [sys.executable, "-m", "papermill", ROOT / "notebooks" / "03_prune.ipynb", tmp_path / "out.ipynb"]
    command += ["--kernel", "python3", "--no-progress-bar", *options.split()]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode != 0 and re.search(message, run.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["out.ipynb"]


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"the package {PACKAGE} (lfpr[text])")
def test_03_does_what_prune_does(tmp_path):
    parameters = {"experiment": "minilm-texts", "constraint": 0.6, "rescaled": True, "seed": 1}
    command = [sys.executable, "-m", "lfpr", "run", "03_prune", "--out", tmp_path / "out.ipynb"]
    for name, value in (parameters | {"runs": tmp_path / "runs"}).items():
        command += ["-p", name, str(value)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    cell = Cell(constraint=0.6, rescaled=True, seed=1)
    shown = open_experiment("minilm-texts", runs=tmp_path / "runs")
    with shown.runs.load_only():
        stage = shown.prune(cell)
    again = open_experiment("minilm-texts", runs=tmp_path / "again").prune(cell)
    assert stage.result | {"seconds": 0} == again.result | {"seconds": 0}
    first = code_cells(tmp_path / "out.ipynb")[2].outputs[0].text.splitlines()[0]
    assert first.startswith("papermill 03_prune.ipynb OUT.ipynb -p experiment minilm-texts -p constraint 0.6")


def test_the_workflow_runs_these_notebooks():
    named = set(re.findall(r"\b(0[1-7]_\w+)", (ROOT / "workflow" / "Snakefile").read_text()))
    plans = [
        plan for name in ("default", "full") for plan in load_grid(f"{ROOT / 'workflow/grid.yaml'}:{name}").values()
    ]
    named |= {FIRST, *GRID_NOTEBOOKS.values(), *(name for plan in plans for name, *_ in others(plan))}
    assert named == {path.stem for path in NOTEBOOKS} - {"00_explore"}


def test_nbval_fails_when_a_number_changes(tmp_path):
    whole = nbformat.read(ROOT / "notebooks" / "01_data.ipynb", as_version=4)
    opening = next(i for i, cell in enumerate(whole.cells) if "from_parameters" in cell.source)
    whole.cells = whole.cells[: opening + 1]
    output = whole.cells[opening].outputs[-1]  # the encoder: 4 layers, …
    assert "4 layers" in output.text
    changed = output.text.replace("4 layers", "5 layers")
    for name, text, passes in (("same", output.text, True), ("changed", changed, False)):
        output.text = text
        nbformat.write(whole, tmp_path / f"{name}.ipynb")
        command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", tmp_path / f"{name}.ipynb"]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert (run.returncode == 0) == passes, run.stdout
        assert passes or "mismatch" in run.stdout


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_named_in_documents_exist(path):
    text = path.read_text()
    named = re.findall(r"`((?:data|tests|workflow|paper_figures)/[\w/.-]+)`", text)
    named += [f"notebooks/{name}.ipynb" for name in re.findall(r"`(\d\d_\w+)`", text)]
    assert [name for name in named if not (ROOT / name).exists()] == []
    links = re.findall(r"\]\(([\w/.-]+)(#[\w-]+)?\)", text)
    assert links or named
    for target, anchor in links:
        assert (path.parent / target).exists(), target
        heads = re.findall(r"^#+ (.+)", (path.parent / target).read_text(), re.MULTILINE) if anchor else ()
        assert not anchor or anchor[1:] in [re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads]


def test_the_readme_is_short_and_its_pictures_are_described():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    for path in PAGES:
        assert all(len(words) > 20 for words in re.findall(r"!\[(.*?)\]\(", path.read_text())), path
