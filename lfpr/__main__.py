"""Run notebooks and grids of them from the shell: `python -m lfpr COMMAND`, from any folder.

    python -m lfpr run 03_prune -p constraint 0.6   a notebook with these parameters, into runs/notebooks/
    python -m lfpr grid --experiment tap-textvqa    an experiment's share of the grid, as notebooks
    python -m lfpr plan [--grid full]               what the grid would run, and about how long that takes
    python -m lfpr collect --out FOLDER             tables from what the grid's notebooks left
    python -m lfpr reproduce --new FOLDER           how far tables are from the committed ones
    python -m lfpr check [--remove]                 what is damaged in runs/
    python -m lfpr families --write FILE            what is prunable in which models

`python -m lfpr COMMAND --help` lists a command's options. What is wrong with them, or with the files that they name, is
said in a line, with exit status 2.
"""

import importlib
import sys
from collections.abc import Sequence

from lfpr.files import NotSaved
from lfpr.manifest import Damaged

COMMANDS = {
    "run": "lfpr.experiments.run_notebook:main",
    "grid": "lfpr.experiments.run_grid:main",
    "plan": "lfpr.experiments.run_grid:plan_main",
    "collect": "lfpr.paper.collect:main",
    "reproduce": "lfpr.paper.reproduce:main",
    "check": "lfpr.experiments.check_runs:main",
    "families": "lfpr.paper.families:main",
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
    try:
        return getattr(importlib.import_module(module), function)() or 0
    except (NotSaved, Damaged) as error:
        print(f"{sys.argv[0]}: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"{sys.argv[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{sys.argv[0]}: interrupted; the same command goes on from what is finished", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
