"""What lfpr's stages take, beside the published ways, peers and the machine: `make bench`.

    OMP_NUM_THREADS=1 python benchmarks/bench.py [--only NAME ...] [--small] [--write [FOLDER]]

Measures the rows of `stages`, `peers`, `costs` and `growth`, all or those named, and prints the table. With `--write`
they go into `paper_figures/benchmarks.csv`, rows that were not measured staying as they are, and `docs/benchmarks.md`
is rendered from it, in FOLDER, by default the checkout. `--small`: tiny models, to try it.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
import costs  # noqa: F401  (rows fill the registry)
import growth  # noqa: F401
import pandas as pd
import peers  # noqa: F401
import stages  # noqa: F401
import torch
from page import COLUMNS, render, table
from registry import ROWS, measure

ROOT = Path(__file__).parents[1]
CSV, PAGE = "paper_figures/benchmarks.csv", "docs/benchmarks.md"


def write(frame: pd.DataFrame, folder: Path) -> None:
    """The table, and the page that is rendered from what was written."""
    for name in (CSV, PAGE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / CSV, index=False, float_format="%.4g")
    (folder / PAGE).write_text(render(read(folder)))


def read(folder: Path) -> pd.DataFrame:
    """The table of a folder; empty if it has none."""
    path = folder / CSV
    return pd.read_csv(path, keep_default_na=True) if path.is_file() else pd.DataFrame(columns=COLUMNS)


def in_order(lines: Mapping[str, dict]) -> pd.DataFrame:
    """The table of lines by the names of their rows."""
    return pd.DataFrame([lines[name] for name in ROWS if name in lines], columns=COLUMNS)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help=" ".join(ROWS))
    parser.add_argument("--small", action="store_true", help="tiny models, to try it")
    parser.add_argument("--write", nargs="?", type=Path, const=ROOT, metavar="FOLDER")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = {line["row"]: line for line in read(options.write or ROOT).to_dict("records")}
    for name in options.only:
        if ROWS[name].needs and find_spec(ROWS[name].needs) is None:
            print(f"{name}: left out, {ROWS[name].needs} is not installed (pip install lfpr[bench])", file=sys.stderr)
            continue
        start = time.process_time()
        lines[name] = measure(ROWS[name], options.small)
        print(f"{name}: {lines[name]['ratio']:.3g}, {time.process_time() - start:.0f} CPU s", file=sys.stderr)
        if options.write:
            write(in_order(lines), options.write)
    frame = in_order(lines)
    print(table(frame[frame.row.isin(options.only)]))


if __name__ == "__main__":
    main()
