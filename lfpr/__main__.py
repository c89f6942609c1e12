"""Run notebooks and grids of them from the shell: `python -m lfpr COMMAND`, from any folder.

    python -m lfpr run 03_prune -p constraint 0.6   a notebook with these parameters, into runs/notebooks/
    python -m lfpr grid --experiment tap-textvqa    an experiment's share of the grid, as notebooks
    python -m lfpr plan [--grid full]               what the grid would run, and about how long that takes
    python -m lfpr collect --out FOLDER             tables from what the grid's notebooks left
    python -m lfpr reproduce --new FOLDER           how far tables are from the committed ones

`python -m lfpr COMMAND --help` lists a command's options.
"""

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "run": "lfpr.experiments.run_notebook:main",
    "grid": "lfpr.experiments.run_grid:main",
    "plan": "lfpr.experiments.run_grid:plan_main",
    "collect": "lfpr.paper.collect:main",
    "reproduce": "lfpr.paper.reproduce:main",
}
"""Command -> the function behind it, which reads `sys.argv` and may return an exit status."""


def main(argv: Sequence[str]) -> int:
    command = argv[0] if argv else "--help"
    if command in ("-h", "--help", "help"):
        print(__doc__.strip())
        return 0
    if command not in COMMANDS:
        print(f"command = {command!r}: must be one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, _, function = COMMANDS[command].partition(":")
    sys.argv = [f"python -m lfpr {command}", *argv[1:]]  # argparse calls itself so
    return getattr(importlib.import_module(module), function)() or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
