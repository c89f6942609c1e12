"""One static page with every figure and table of a folder: `write_page("paper_figures")` writes `index.html`.

The page is made from the files that are there: `KIND_EXPERIMENT.png` belongs to its experiment's section, and so does
`table_EXPERIMENT.csv`; what is of no single experiment comes first. It loads nothing but the PNG files beside it,
follows the reader's light or dark setting, and prints. The same files give the same bytes.

Captions: `captions.json` in the folder, `{"accuracy_tap-textvqa": "…"}`, or the argument; a table without one has
the first line of its Markdown file.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from lfpr.paper.tables import SCORES, write_file

KINDS = {  # what a file's name starts with: its heading, in the page's order
    "overview": "Scores of all experiments",
    "accuracy": "Score against the constraint",
    "table": "Scores",
    "threshold": "Search by threshold",
    "kept": "Heads and neurons kept in each layer",
    "importance": "Importance of heads and neurons",
    "ranks": "Label-free against labelled ranks",
    "sampling": "Samples and decoding steps that score",
    "alternatives": "Ways to retrain",
    "controls": "What each part of the method is worth",
    "mask_values": "Mask values after retraining",
    "sensitivity": "Sensitivity, step by step",
    "cascade": "What a cascade costs, query by query",
    "scoring": "Label-free scores, computed in other ways",
    "scales": "Scale factors of the rescaling",
    "speed": "Measured time against cost",
    "table_comparison": "Against the published numbers",
    "table_agreement": "Agreement of label-free and labelled scores",
    "table_minutes": "Minutes",
    "table_speed": "Measured time and size",
    "minilm": "all-MiniLM-L6-v2",
}
FORMATS = {"png": "PNG", "pdf": "PDF", "csv": "CSV", "tex": "LaTeX", "md": "Markdown"}
OVERVIEW = "overview"  # the group of what belongs to no single experiment
SCALE = 0.58  # of a page's pixels to a PNG file's, which has 200 an inch: a wide figure fills the text's width


@dataclass(frozen=True)
class Item:
    """A figure or table: the files of one name."""

    stem: str
    group: str
    kind: str
    heading: str
    files: dict[str, Path]  # by suffix

    @property
    def place(self) -> tuple:
        """Where it stands in its group."""
        kinds = list(KINDS)
        return (kinds.index(self.kind) if self.kind in KINDS else len(kinds), self.stem)


def write_page(folder: str | Path, captions: dict[str, str] | None = None, title: str = "Figures and tables") -> Path:
    """Write `folder/index.html`, whole or not at all; returns its path.

    `captions`: text by file name without suffix, before those of `captions.json`. Raises `FileNotFoundError` for
    a folder without figures and tables, and `ValueError` for a caption of none of them.
    """
    folder = Path(folder)
    items = find_items(folder)
    if not items:
        raise FileNotFoundError(f"folder = {folder}: no figure (.png) or table (.csv with .md) to show")
    stored = folder / "captions.json"
    captions = (json.loads(stored.read_text()) if stored.is_file() else {}) | (captions or {})
    unknown = sorted(set(captions) - {item.stem for item in items})
    if unknown:
        raise ValueError(f"captions: {unknown[0]!r} is no figure or table of {folder}")
    names = dict.fromkeys(item.group for item in items)
    groups = {name: [item for item in items if item.group == name] for name in names}
    contents = "".join(_contents(name, members) for name, members in groups.items())
    sections = "".join(_section(name, members, captions) for name, members in groups.items())
    data = [file for file in sorted(folder.glob("*.csv")) if not file.with_suffix(".md").is_file()]
    if data:
        contents += '<li><a href="#data">Data</a></li>'
        sections += f'<section id="data"><h2>Data</h2><p>Every number behind the figures:</p>{_data(data)}</section>'
    page = PAGE.format(title=escape(title), style=STYLE, contents=contents, sections=sections)
    return write_file(folder / "index.html", page.encode())


def find_items(folder: Path) -> list[Item]:
    """The figures and tables of a folder, in the page's order: the overview, then by experiment as in `SCORES`."""
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.glob("*.*")):
        if file.suffix[1:] in FORMATS:
            found.setdefault(file.stem, {})[file.suffix[1:]] = file
    items = [_item(stem, files) for stem, files in found.items() if "png" in files or {"csv", "md"} <= set(files)]
    order = [OVERVIEW, *SCORES]
    return sorted(items, key=lambda item: (order.index(item.group), item.place))


def _item(stem: str, files: dict[str, Path]) -> Item:
    """Read the name `KIND_EXPERIMENT[_VARIANT]`; any other belongs to no experiment."""
    for experiment in SCORES:
        kind, found, variant = f"{stem}_".partition(f"_{experiment}_")
        if found:
            heading = KINDS.get(kind, _words(kind)) + (f": {_words(variant).lower()}" if variant else "")
            return Item(stem, experiment, kind, heading, files)
    return Item(stem, OVERVIEW, stem, KINDS.get(stem, _words(stem)), files)


def _words(name: str) -> str:
    words = name.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def _contents(name: str, items: list[Item]) -> str:
    lines = "".join(f'<li><a href="#{quote(item.stem)}">{escape(item.heading)}</a></li>' for item in items)
    return f'<li><a href="#{name}-section">{_name(name)}</a><ul>{lines}</ul></li>'


def _section(name: str, items: list[Item], captions: dict[str, str]) -> str:
    measure = f"<p>Score: {escape(SCORES[name].removesuffix(' (%)'))}</p>" if name in SCORES else ""
    figures = "".join(_figure(item, captions) for item in items)
    return f'<section id="{name}-section"><h2>{_name(name)}</h2>{measure}{figures}</section>'


def _name(group: str) -> str:
    return "Overview" if group == OVERVIEW else escape(group)


def _figure(item: Item, captions: dict[str, str]) -> str:
    """The picture, the table, or both under one heading, with their caption and links to all their files."""
    files, parts = item.files, []
    caption = captions.get(item.stem) or (_title(files["md"]) if "md" in files else "")
    if "png" in files:
        width, height = (round(SCALE * n) for n in Image.open(files["png"]).size)
        alternative = escape(caption or f"{item.heading}, {item.group}")
        parts.append(f'<img src="{quote(files["png"].name)}" width="{width}" height="{height}" alt="{alternative}">')
    if {"csv", "md"} <= set(files):
        parts.append(f'<div class="wide">{_table(files["csv"])}</div>')
    links = " · ".join(f'<a href="{quote(files[s].name)}">{name}</a>' for s, name in FORMATS.items() if s in files)
    caption = f"{escape(caption)} " if caption else ""
    text = f'<figcaption>{caption}<span class="links">{links}</span></figcaption>'
    heading = f'<h3>{escape(item.heading)} <a class="anchor" href="#{quote(item.stem)}">#</a></h3>'
    return f'<figure id="{item.stem}">{heading}{"".join(parts)}{text}</figure>\n'


def _title(markdown: Path) -> str:
    return markdown.read_text().split("\n", 1)[0].strip()


def _table(path: Path) -> str:
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead>\n<tbody>{body}</tbody></table>"


def _data(files: list[Path]) -> str:
    lines = []
    for file in files:
        with file.open() as text:
            rows = sum(1 for _ in text) - 1
        lines.append(f'<li><a href="{quote(file.name)}">{escape(file.name)}</a>: {rows:,} rows</li>')
    return f"<ul>{''.join(lines)}</ul>"


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<nav aria-label="Contents"><h1>{title}</h1><ul>{contents}</ul></nav>
<main>
{sections}
</main>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --faint: #667; --line: #d8dbe0; --link: #0461a4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --paper: #16181c; --faint: #9aa0ab; --line: #353a43; --link: #6fb7f2; }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
a { color: var(--link); text-decoration: none; }
a:hover, a:focus-visible { text-decoration: underline; }
nav { padding: 1.5rem; border-bottom: 1px solid var(--line); font-size: 0.875rem; }
nav ul { list-style: none; margin: 0; padding: 0; }
nav ul ul { padding-left: 0.9rem; margin-bottom: 0.6rem; }
nav > ul > li > a { font-weight: 600; }
h1 { font-size: 1.25rem; margin: 0 0 1rem; }
h2 { border-bottom: 1px solid var(--line); padding-bottom: 0.3rem; margin: 2.5rem 0 0.5rem; }
h3 { font-size: 1.05rem; margin: 0 0 0.7rem; }
main { max-width: 56rem; padding: 0 1.5rem 4rem; margin: 0 auto; }
figure { margin: 1.5rem 0 2.5rem; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; padding: 8px; }
.wide { overflow-x: auto; }
img + .wide { margin-top: 1rem; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.3rem 0.8rem 0.3rem 0; white-space: nowrap; }
thead th { border-block: 1px solid var(--ink); border-top-width: 2px; }
tbody tr:last-child td { border-bottom: 2px solid var(--ink); }
figcaption { margin-top: 0.6rem; font-size: 0.9rem; color: var(--faint); max-width: 48rem; }
.links { white-space: nowrap; }
.anchor { visibility: hidden; }
h3:hover .anchor { visibility: visible; }
@media (min-width: 75rem) {
  body { display: grid; grid-template-columns: 19rem 1fr; }
  nav { position: sticky; top: 0; height: 100vh; overflow-y: auto; border: 0; border-right: 1px solid var(--line); }
}
@media print {
  :root { --ink: #000; --paper: #fff; --faint: #333; --line: #999; --link: #000; }
  body { display: block; font-size: 10pt; }
  nav { height: auto; position: static; break-after: page; border: 0; }
  main { max-width: none; padding: 0; }
  section { break-before: page; }
  section:first-child, #data { break-before: auto; }
  figure { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  img { padding: 0; border-radius: 0; }
  .wide { overflow: visible; }
  table { font-size: 8pt; }
  .links, .anchor { display: none; }
}
"""


def show(folder: str | Path, *kinds: str) -> None:
    """Display, in a notebook, the figures and tables of `folder` whose names begin with one of `kinds`, in order,
    each with its caption; where there are none, as of a small grid, a line says so."""
    from IPython.display import Image, Markdown, display

    captions = json.loads(Path(folder, "captions.json").read_text())
    stems = [stem for kind in kinds for stem in captions if stem.startswith(kind)]
    if not stems:
        display(Markdown(f"*Nothing of {', '.join(kinds)} in these runs.*"))
    for stem in stems:
        if Path(folder, f"{stem}.png").exists():
            display(Image(f"{folder}/{stem}.png", width=640), Markdown(f"*{captions[stem]}*"))
        else:
            display(Markdown(Path(folder, f"{stem}.md").read_text()))
