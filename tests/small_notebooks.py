"""Made-up notebooks of the grid's names, which take no time: they leave a line in `log.txt`, and a stage in `runs/`."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMETERS = """experiment = "tap-textvqa"  # which
profile = "mini"  # or "full"
runs = None  # folder; None: runs/ of the checkout
method = None  # None: the experiment's own
constraint = None  # kept share
percentile = None  # or percentage removed
seed = 0  # of the sample
num_samples = None  # behind the importance
trained = None  # which parts are
studies = None  # what else is studied"""
WORK = """import json
from pathlib import Path
line = f"{name} {experiment} {method} {constraint} {seed} {studies}\\n"
Path("log.txt").open("a").write(line)
if method == "l1":
    raise ValueError(f"method = {method!r}: a made-up failure")
if runs:
    stage = Path(runs, experiment, profile, name.split("_")[1], f"{method}-{constraint}-{seed}")
    stage.mkdir(parents=True, exist_ok=True)
    (stage / "provenance.json").write_text(json.dumps({"seconds": 90}))
print(line)"""
NAMES = ("01_data", "02_importance", "03_prune", "04_retrain", "05_evaluate", "06_paper")


def write(path: Path, *sources: str | tuple[str, str]) -> Path:
    """A notebook of these code cells; a source may be (tag, source)."""
    cells = [new_markdown_cell("# A notebook")]
    for source in sources:
        tag, source = source if isinstance(source, tuple) else ("", source)
        cells.append(new_code_cell(source, metadata={"tags": [tag]} if tag else {}))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def made_up(folder: Path) -> Path:
    """A folder of notebooks."""
    folder.mkdir(parents=True)
    for name in NAMES:
        parameters = 'folder = ""  # of tables' if name == "06_paper" else PARAMETERS
        work = "print(folder)" if name == "06_paper" else f"name = {name!r}\n{WORK}"
        write(folder / f"{name}.ipynb", ("parameters", parameters), work, ("diagnostic", "1 / 0"))
    return folder


def ran(folder: Path) -> list[str]:
    """What was run in a folder of made-up notebooks since it was last asked: notebook, cell and studies."""
    log = folder / "log.txt"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines
