"""One static page with every figure and table of a folder: `write_page("paper_figures")` writes `index.html`.

The page is made from the files that are there and from `page.html.jinja`; what is of no single experiment comes first,
headings, order and the command under each are those of the registry. It loads nothing but the PNG files beside it,
follows the reader's light or dark setting, and prints. The same files give the same bytes.

Captions: `captions.json` in the folder, `{"accuracy_tap-textvqa": "…"}`, or the argument; a table without one has
the first line of its Markdown file.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

import lfpr.paper.figures  # noqa: F401  (fills the registry)
from lfpr.experiments.specs import SPECS
from lfpr.paper import registry
from lfpr.paper.labels import spec_of
from lfpr.paper.schema import write_file

FORMATS = {"png": "PNG", "pdf": "PDF", "csv": "CSV", "tex": "LaTeX", "md": "Markdown"}
SCALE = 0.58  # of a page's pixels to a PNG file's, which has 200 an inch: a wide figure fills the text's width


@dataclass(frozen=True)
class Item:
    """A figure or table: the files of one name, what they show, and where they stand."""

    stem: str
    heading: str
    caption: str
    files: dict[str, str]  # names by suffix
    size: tuple[int, int] | None  # of the picture on the page
    shows: str  # what the picture shows, in words
    rows: list[list[str]]  # of the table, the head first
    experiment: str | None
    place: int
    made_by: str  # a command; empty of what is not registered


def write_page(folder: str | Path, captions: dict[str, str] | None = None, title: str = "Figures and tables") -> Path:
    """Write `folder/index.html`, whole or not at all; returns its path.

    `captions`: text by file name without suffix, before those of `captions.json`. Raises `FileNotFoundError` for
    a folder without figures and tables, and `ValueError` for a caption of none of them.
    """
    folder = Path(folder)
    stored = folder / "captions.json"
    captions = (json.loads(stored.read_text()) if stored.is_file() else {}) | (captions or {})
    items = find_items(folder, captions)
    if not items:
        raise FileNotFoundError(f"folder = {folder}: no figure (.png) or table (.csv with .md) to show")
    unknown = sorted(set(captions) - {item.stem for item in items})
    if unknown:
        raise ValueError(f"captions: {unknown[0]!r} is no figure or table of {folder}")
    groups = [
        {
            "id": experiment or "overview",
            "name": experiment or "Overview",
            "score": spec_of(experiment).score if experiment else "",
            "members": list(members),
        }
        for experiment, members in groupby(items, lambda item: item.experiment)
    ]
    data = {
        file.name: len(file.read_text().splitlines()) - 1
        for file in sorted(folder.glob("*.csv"))
        if not file.with_suffix(".md").is_file()
    }
    environment = Environment(loader=PackageLoader("lfpr.paper", ""), autoescape=True, undefined=StrictUndefined)
    template = environment.get_template("page.html.jinja")
    page = template.render(title=title, groups=groups, data=data, formats=FORMATS)
    return write_file(folder / "index.html", f"{page}\n".encode())


def find_items(folder: Path, captions: dict[str, str]) -> list[Item]:
    """The figures and tables of a folder, in the page's order: the overview, then by experiment as in `SPECS`."""
    by_stem: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.glob("*.*")):
        if file.suffix[1:] in FORMATS:
            by_stem.setdefault(file.stem, {})[file.suffix[1:]] = file
    shown = {stem: files for stem, files in by_stem.items() if "png" in files or {"csv", "md"} <= set(files)}
    order = [None, *SPECS]
    items = [_item(stem, files, captions) for stem, files in shown.items()]
    return sorted(items, key=lambda item: (order.index(item.experiment), item.place, item.stem))


def _item(stem: str, files: dict[str, Path], captions: dict[str, str]) -> Item:
    place, experiment, heading = registry.locate(stem)
    caption = captions.get(stem) or (files["md"].read_text().split("\n", 1)[0].strip() if "md" in files else "")
    size, shows, rows = None, "", []
    if "png" in files:
        with Image.open(files["png"]) as picture:
            size = tuple(round(SCALE * pixels) for pixels in picture.size)
        shows = description(files["png"])
    if {"csv", "md"} <= set(files):
        with files["csv"].open(newline="") as lines:
            rows = list(csv.reader(lines))
    names = {suffix: file.name for suffix, file in files.items()}
    made_by = registry.ENTRIES[place].made_by if place < len(registry.ENTRIES) else ""
    return Item(stem, heading, caption, names, size, shows, rows, experiment, place, made_by)


def description(file: str | Path) -> str:
    """What a picture shows, in words, as `lfpr.paper.style.save` writes it into the file; empty of other pictures."""
    with Image.open(file) as picture:
        return picture.info.get("Description", "")


def show(folder: str | Path, *kinds: str) -> None:
    """Display, in a notebook, the figures and tables of `folder` whose names begin with one of `kinds`, in order,
    each with its caption; where there are none, as of a small grid, a line says so."""
    from IPython.display import Image as Picture
    from IPython.display import Markdown, display

    captions = json.loads(Path(folder, "captions.json").read_text())
    stems = [stem for kind in kinds for stem in captions if stem.startswith(kind)]
    if not stems:
        display(Markdown(f"*Nothing of {', '.join(kinds)} in these runs.*"))
    for stem in stems:
        if Path(folder, f"{stem}.png").exists():
            file = f"{folder}/{stem}.png"
            display(Picture(file, width=640, alt=description(file)), Markdown(f"*{captions[stem]}*"))
        else:
            display(Markdown(Path(folder, f"{stem}.md").read_text()))
