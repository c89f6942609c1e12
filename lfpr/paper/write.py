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
from lfpr.paper.registry import items
from lfpr.paper.schema import read_all, write_file
from lfpr.paper.style import save
from lfpr.paper.tables import write_table


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
