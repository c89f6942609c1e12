"""Runs one notebook by papermill: `python -m lfpr run 03_prune -p constraint 0.6`.

What papermill only warns of is refused before a kernel starts: parameters that the notebook does not declare, and
values of another kind. The output, where papermill would ask for one, is `runs/notebooks/NOTEBOOK-PARAMETERS.ipynb`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lfpr.experiments.parameters import check_parameters, find_notebook, project
from lfpr.experiments.runs import fingerprint
from lfpr.files import saving

LONGEST = 120  # characters of a file name


def output_name(notebook: str, parameters: Mapping[str, Any]) -> str:
    """Such as "03_prune-constraint=0.6"; ends with a hash where it would be too long, or has odd characters."""
    name = "-".join([notebook, *(f"{key}={value}" for key, value in parameters.items())])
    plain = re.sub(r"[^\w.=-]+", "_", name)[:LONGEST]
    return name if plain == name else f"{plain}-{fingerprint(dict(parameters))}"


def main() -> int:
    """Print where the executed notebook is; 1 if it failed. Raises ValueError for parameters that it does not take."""
    parser = argparse.ArgumentParser(description="Run a notebook with these parameters, by papermill.")
    parser.add_argument("notebook", help="such as 03_prune")
    parser.add_argument("-p", dest="given", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("-r", dest="raw", nargs=2, action="append", default=[], metavar=("NAME", "TEXT"))
    parser.add_argument(
        "-y", dest="yaml", action="append", default=[], metavar="YAML", help="such as 'studies: [scales]'"
    )
    parser.add_argument("--out", type=Path, help="file of the executed notebook")
    parser.add_argument("--notebooks", type=Path, help="folder of the notebooks; notebooks/ of the checkout by default")
    arguments = parser.parse_args()
    notebook = find_notebook(arguments.notebook, arguments.notebooks)
    parameters = parse(arguments.given, arguments.yaml, arguments.raw)
    check_parameters(notebook, parameters)
    out = arguments.out or project() / "runs" / "notebooks" / f"{output_name(notebook.stem, parameters)}.ipynb"

    from papermill.exceptions import PapermillExecutionError

    from lfpr.experiments.kernel import WarmKernel

    print(out.absolute(), flush=True)
    with WarmKernel(environment={}) as kernel:
        try:
            with saving(out):
                kernel.execute(notebook, out.absolute(), parameters, skip="", progress_bar=sys.stderr.isatty())
        except PapermillExecutionError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


def parse(given: Sequence[Sequence[str]], texts: Sequence[str], raw: Sequence[Sequence[str]] = ()) -> dict[str, Any]:
    """Parameters as papermill's own command line reads them: those of `-y`, of `-p`, and of `-r`, which are text."""
    import yaml
    from papermill.cli import _resolve_type
    from papermill.iorw import NoDatesSafeLoader

    parameters: dict[str, Any] = {}
    for text in texts:
        try:
            loaded = yaml.load(text, Loader=NoDatesSafeLoader) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"-y {text!r}: {error}") from None
        if not isinstance(loaded, dict):
            raise ValueError(f"-y {text!r}: must be a mapping, such as 'constraint: 0.6'")
        parameters |= loaded
    return parameters | {name: _resolve_type(value) for name, value in given} | dict(raw)
