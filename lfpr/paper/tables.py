"""Tables of texts: built, written as CSV, LaTeX and Markdown, and put into documents."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from lfpr.paper.schema import write_file

NONE = "–"  # a cell without a number


def text_table(
    rows: Mapping[tuple[str, ...], Mapping[str, str]], names: Sequence[str], columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """A table of texts from `rows`, key -> column -> text; `names` are those of the key's parts. Gaps hold "–"."""
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=None)
    frame = (frame if columns is None else frame.reindex(columns=list(columns))).astype(object).fillna(NONE)
    frame.index = pd.MultiIndex.from_tuples(rows, names=names)
    return frame


def mean_cell(point) -> str:
    """A row of `over_seeds` as text: `79.1 ± 0.2`, in per cent."""
    return f"{100 * point.mean:.1f}" + (f" ± {100 * point.std:.1f}" if point.count > 1 else "")


def number(value: float | None, form: str) -> str:
    """The number with a real minus sign, none for −0, "–" for a missing one."""
    return NONE if value is None or pd.isna(value) else f"{value:z{form}}".replace("-", "−")


def write_table(frame: pd.DataFrame, folder: str | Path, name: str, title: str) -> list[Path]:
    """Write `name.csv`, `name.tex` and `name.md` (GitHub Markdown), each atomically; returns the three paths.

    `title` is the caption, the index of `frame` the first columns. LaTeX (pdflatex, UTF-8) needs the packages
    booktabs and graphicx. A table too wide for one column of a page spans both, with its heads in several lines, and
    what is still too wide is scaled.
    """
    frame = frame.reset_index().map(str)
    escaped = frame.map(_no_bars).rename(columns=_no_bars)
    markdown = escaped.to_markdown(index=False, tablefmt="github", disable_numparse=True)
    contents = {
        "csv": frame.to_csv(index=False),
        "tex": _latex_table(frame, name, title),
        "md": f"{title}\n\n{markdown}\n",
    }
    return [write_file(Path(folder, f"{name}.{kind}"), content.encode()) for kind, content in contents.items()]


def update_readme(readme_path: str | Path, marker: str, markdown: str) -> None:
    """Replace what stands between `<!-- marker -->` and `<!-- /marker -->`, atomically.

    Raises `ValueError` naming the marker unless each of the two stands there once, in this order.
    """
    path, start, end = Path(readme_path), f"<!-- {marker} -->", f"<!-- /{marker} -->"
    text = path.read_text()
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(
            f"{path}: expected {start} and after it {end}, once each, found {text.count(start)} and {text.count(end)}"
        )
    before, after = text.split(start)[0], text.split(end)[1]
    write_file(path, f"{before}{start}\n{markdown.strip()}\n{end}{after}".encode())


def marked(document: str | Path, kind: str) -> list[str]:
    """The names N of the places `<!-- kind N -->` in a document that `update_readme` can fill."""
    return re.findall(rf"<!-- {re.escape(kind)} (\S+) -->", Path(document).read_text())


def _no_bars(cell: str) -> str:
    return cell.replace("|", r"\|")


def _latex_table(frame: pd.DataFrame, name: str, title: str) -> str:
    """A floating table below its caption; numbers are set flush right."""
    widths = {head: max(map(len, frame[head])) for head in frame}
    points = sum(5 * max(len(head), width) + 12 for head, width in widths.items())  # at 10 pt, about
    wide = points >= 245
    sides = {head: "r" if all(map(_NUMBER.fullmatch, frame[head])) else "l" for head in frame}

    def stacked(head: str) -> str:
        breakable = head.replace(" %", "\u00a0%")
        lines = textwrap.wrap(breakable, max(widths[head], 9), break_long_words=False) if wide else [head]
        text = r"\\".join(map(_latex, lines))
        return rf"\shortstack[{sides[head]}]{{{text}}}" if len(lines) > 1 else text

    styler = frame.style.hide(axis="index").format(_latex).format_index(stacked, axis="columns")
    tabular = styler.to_latex(hrules=True, column_format="".join(sides.values())).strip()
    environment = "table*" if wide else "table"
    return (
        f"\\begin{{{environment}}}\n\\centering\n\\setlength{{\\belowcaptionskip}}{{6pt}}\n"
        f"\\caption{{{_latex(title)}}}\n\\label{{tab:{name}}}\n"
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n"
        f"{tabular}}}\n\\end{{{environment}}}\n"
    )


_NUMBER = re.compile(r"(< )?[−+]?\d[\d.,–]*(e-\d+)?( %)?|–?")
_GREEK = {"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "η": "eta", "θ": "theta"}
_GREEK |= {"κ": "kappa", "λ": "lambda", "μ": "mu", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "varphi"}
_GREEK |= {"χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Σ": "Sigma", "Φ": "Phi", "Ω": "Omega"}
_SIGNS = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\u00a0": "~"}
_SIGNS |= {"–": "--", "—": "---", "…": r"\ldots{}", "†": r"\dag{}", "‡": r"\ddag{}", "°": r"$^\circ$", "²": "$^2$"}
_SIGNS |= {"±": r"$\pm$", "−": "$-$", "×": r"$\times$", "·": r"$\cdot$", "≤": r"$\leq$", "≥": r"$\geq$"}
_SIGNS |= {"→": r"$\to$", "←": r"$\gets$", "↔": r"$\leftrightarrow$", "≈": r"$\approx$", "∞": r"$\infty$"}
_SIGNS |= {sign: f"\\{sign}" for sign in "&%$#_{}"} | {sign: f"${sign}$" for sign in "<>|"}
_SIGNS |= {letter: rf"$\{name}$" for letter, name in _GREEK.items()}
_SIGNS = str.maketrans(_SIGNS)


def _latex(text: str) -> str:
    """`text` for pdflatex: special characters escaped, and Greek letters and other signs, which pandas leaves as they
    are, as mathematics."""
    return text.translate(_SIGNS)
