"""The page of all figures and tables, and LaTeX of the tables."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from PIL import Image
from small_tables import NAME

from lfpr.paper.figures import accuracy, rank_scatter
from lfpr.paper.page import write_page
from lfpr.paper.style import save
from lfpr.paper.tables import marked, write_table

PAPER = Path(__file__).parents[2] / "paper_figures"
SIGNS = "± − – — × · … ≤ ≥ ≈ → ← ↔ ∞ † †† ‡ ° ² ρ Δ < > | & % $ # _ { } ~ ^ \\ é “q”"


class Page(HTMLParser):
    """What a page holds: ids, links, pictures, headings, table cells and text; and that all its elements are closed."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.images, self.headings, self.cells, self.text = [], [], [], [], [], ""
        self.open = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if tag == "a" else []
        self.images += [attributes] if tag == "img" else []
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data.strip())
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


@pytest.fixture
def folder(tmp_path):
    for name in ("kept_tap-textvqa", "accuracy_tap-textvqa", "accuracy_clip-mscoco", "latency", "overview"):
        Image.new("RGB", (1000, 400)).save(tmp_path / f"{name}.png")
    (tmp_path / "accuracy_tap-textvqa.pdf").write_bytes(b"")
    frame = pd.DataFrame({"a < b": ["1 ± 2"]}, index=pd.Index(["Random & all"], name="Method"))
    write_table(frame, tmp_path, "table_tap-textvqa_threshold", "50 % of <all>")
    (tmp_path / "results.csv").write_text("score\n0.5\n0.6\n")
    return tmp_path


def test_figures_and_tables_stand_with_their_experiment(folder):
    path = write_page(folder, {"latency": "ms < MACs"})
    text = path.read_text()
    page = Page(text)
    expected = [
        *("Overview", "Scores of all experiments", "Latency"),
        *("tap-textvqa", "Score against the constraint", "Scores: threshold", "Heads and neurons kept in each layer"),
        *("clip-mscoco", "Score against the constraint", "Data"),
    ]
    assert [heading for heading in page.headings if heading] == expected
    assert [image["src"] for image in page.images][2:4] == ["accuracy_tap-textvqa.png", "kept_tap-textvqa.png"]
    assert all(image["alt"] and (image["width"], image["height"]) == ("580", "232") for image in page.images)
    assert page.cells == ["Random & all", "1 ± 2"]
    made = re.findall(r"made by papermill notebooks/(\w+).ipynb OUT.ipynb \(([\w.]+)\)", page.text)
    assert made[:2] == [("06_paper", f"lfpr.paper.figures.curves.{name}") for name in ("overview", "accuracy")]
    assert len(made) == 5  # of all but "latency", which is not registered
    assert "50 % of <all>" in page.text and "ms < MACs" in page.text and "results.csv: 2 rows" in page.text
    assert not re.search(r"https?:|//|<script|<link|@import|url\(", text)  # nothing is loaded from elsewhere
    assert all(media in text for media in ("prefers-color-scheme: dark", "@media print"))
    assert write_page(folder, {"latency": "ms < MACs"}).read_text() == text


def test_every_link_leads_somewhere(folder):
    page = Page(write_page(folder).read_text())
    inner = {link[1:] for link in page.links if link.startswith("#")}
    assert inner == set(page.ids) and len(page.ids) == len(set(page.ids)) == 10
    files = [link for link in page.links if not link.startswith("#")]
    assert {"accuracy_tap-textvqa.pdf", "table_tap-textvqa_threshold.tex", "results.csv"} <= set(files)
    assert all((folder / name).is_file() for name in files)


def test_a_picture_says_in_words_what_it_shows(tmp_path, results, importance):
    save(accuracy(results, NAME), tmp_path, "accuracy_tap-textvqa")
    save(rank_scatter(importance, NAME), tmp_path, "ranks_tap-textvqa")
    curves, ranked = (
        image["alt"] for image in Page(write_page(tmp_path, {"ranks_tap-textvqa": "Ranks."}).read_text()).images
    )
    assert curves.startswith("2 panels. Before and after ReSt: TextVQA accuracy (%) from 45 to 81.3 against MMT")
    assert "kept (%) from 39.9 to 79.9" in curves
    assert "Shown: Label-free, " in curves and "Pruned + ReSt" in curves
    assert "Fisher (labels) rank from 1 to" in ranked and "Ranks." not in ranked


def test_captions_come_from_the_folder_too(folder):
    (folder / "captions.json").write_text(json.dumps({"latency": "from the file", "kept_tap-textvqa": "kept"}))
    text = Page(write_page(folder, {"latency": "from the call"}).read_text()).text
    assert "from the call" in text and "kept" in text and "from the file" not in text
    with pytest.raises(ValueError, match="captions: 'latncy' is no figure or table of"):
        write_page(folder, {"latncy": "misspelt"})


def test_a_folder_without_figures_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="no figure"):
            write_page(folder)


def test_the_papers_own_folder_makes_a_page(tmp_path):
    folder = shutil.copytree(PAPER, tmp_path / "paper")
    page = Page(write_page(folder).read_text())
    assert len(page.images) == len(list(PAPER.glob("*.png")))
    assert {file.stem for file in PAPER.glob("*.png")} | {file.stem for file in PAPER.glob("*.md")} <= set(page.ids)


def test_the_committed_latex_is_what_is_written_now(tmp_path):
    for file in PAPER.glob("*.tex"):
        title = file.with_suffix(".md").read_text().split("\n", 1)[0]
        frame = pd.read_csv(file.with_suffix(".csv"), dtype=str, keep_default_na=False)
        for path in write_table(frame.set_index(frame.columns[0]), tmp_path, file.stem, title):
            assert path.read_bytes() == (PAPER / path.name).read_bytes()


def test_the_documents_show_the_committed_tables():
    shown = 0
    for document in (PAPER.parent / "README.md", PAPER.parent / "docs" / "results.md"):
        for name in marked(document, "results"):
            table = (PAPER / f"table_{name}.md").read_text().strip()
            assert f"<!-- results {name} -->\n{table}\n<!-- /results {name} -->" in document.read_text(), name
            shown += 1
    assert shown > 15


def test_the_papers_notebook_shows_the_committed_tables():
    cells = nbformat.read(PAPER.parent / "notebooks" / "06_paper.ipynb", as_version=4).cells
    shown = [
        output.data["text/markdown"].strip()
        for cell in cells
        if "page.show(" in cell.source
        for output in cell.outputs
        if "text/markdown" in output.get("data", {})
    ]
    tables = [text for text in shown if "|--" in text]
    assert len(tables) > 15
    assert set(tables) <= {file.read_text().strip() for file in PAPER.glob("*.md")}


@pytest.mark.skipif(
    not shutil.which("pdflatex"), reason="needs pdflatex (Debian: apt install texlive-latex-recommended)"
)
def test_tables_compile_in_latex_and_fit_the_page(tmp_path):
    index = pd.Index(["a †", "Text→image"], name="ρ of A_b")
    write_table(pd.DataFrame({"narrow": ["1", "2††"], SIGNS: [SIGNS, "–"]}, index=index), tmp_path, "signs", SIGNS)
    wide = pd.DataFrame({f"column number {i} in 40 %": ["91.0 ± 0.2"] for i in range(20)})
    write_table(wide, tmp_path, "wide", "Wider than a page")
    tables = [*sorted(PAPER.glob("*.tex")), tmp_path / "signs.tex", tmp_path / "wide.tex"]
    assert len(tables) > 10
    for options in ("", "[twocolumn]"):
        lines = [rf"\documentclass{options}{{article}}", r"\usepackage{booktabs,graphicx}", r"\begin{document}"]
        lines += [rf"\input{{\detokenize{{{file}}}}}" for file in tables] + [r"\end{document}"]
        (tmp_path / "paper.tex").write_text("\n".join(lines))
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
        assert run.returncode == 0, run.stdout[-2000:]
        log = (tmp_path / "paper.log").read_text(errors="replace")
        assert not re.search("Overfull|Undefined|Missing character|multiply defined", log)
        assert (tmp_path / "paper.pdf").stat().st_size > 10_000
