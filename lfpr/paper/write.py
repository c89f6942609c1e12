"""All figures and tables of the paper, with their captions, from the tidy tables in `paper_figures/`.

`write_all(folder)` draws what the tables at hand allow, of what is registered (`lfpr.paper.registry`). A figure is
written as PDF and PNG, a table as CSV, LaTeX and Markdown, and `captions.json` says what each shows, with the numbers
of seeds and samples behind it.
"""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

import lfpr.paper.figures  # noqa: F401  (fills the registry)
from lfpr.files import checkout
from lfpr.paper.registry import items
from lfpr.paper.schema import TABLES, read_all, write_file
from lfpr.paper.style import save
from lfpr.paper.tables import write_table


def tables_folder(folder: str | Path | None = None) -> Path:
    """The folder of tidy tables to draw: by default that of `make paper`, `runs/paper` of the checkout, which gets a
    copy of the committed tables if it has none. Raises FileNotFoundError outside a checkout."""
    root = checkout()
    if folder is None and root is None:
        raise FileNotFoundError("folder = None: outside a checkout of the project, say where the tables are")
    folder = Path(folder or root / "runs" / "paper")
    if root and folder == root / "runs" / "paper" and not (folder / "results.csv").is_file():
        for name in TABLES:
            committed = root / "paper_figures" / f"{name}.csv"
            if committed.is_file():
                write_file(folder / committed.name, committed.read_bytes())
    return folder


def write_all(folder: str | Path) -> list[Path]:
    """Draw every figure and table that the tables in `folder` allow; returns the files written.

    Of the tables in `lfpr.paper.schema.TABLES`, results.csv must be there. Raises `FileNotFoundError` if it is not, and
    `ValueError` naming a table's missing column or odd value.
    """
    folder, files, captions = Path(folder), [], {}
    for name, caption, drawn in items(read_all(folder)):
        files += save(drawn, folder, name) if isinstance(drawn, Figure) else write_table(drawn, folder, name, caption)
        captions[name] = caption
    text = json.dumps(captions, indent=1, sort_keys=True, ensure_ascii=False)
    return [*files, write_file(folder / "captions.json", f"{text}\n".encode())]
