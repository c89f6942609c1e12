"""The tables of the paper, and checks of the tidy CSV files in `paper_figures/` that every figure is drawn from."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pandas as pd

from lfpr.files import write_whole

__all__ = ["accuracy_table", "read", "update_readme", "write_table"]

TABLES = {
    "results": (
        *("experiment", "profile", "method", "heuristic", "constraint", "percentile", "seed", "variant", "retrained"),
        *("score", "anls", "r5", "r10", "i2t_r1", "i2t_r5", "i2t_r10", "fraction", "parameters", "questions"),
        *("percent", "last_layers", "iterations", "minutes", "megabytes"),
    ),
    "layers": (
        *("experiment", "method", "heuristic", "constraint", "percentile", "seed", "layer"),
        *("heads", "neurons", "full_heads", "full_neurons"),
    ),
    "importance": ("experiment", "method", "kind", "layer", "index", "importance"),
    "mask_values": ("experiment", "method", "constraint", "seed", "kind", "layer", "value"),
}
OPTIONAL = {  # drawn if the file is there
    "speed": ("experiment", "model", "constraint", "parameters", "macs", "megabytes", "ms"),
    "minutes": ("experiment", "profile", "stage", "runs", "minutes", "peak_memory_mb"),
    "scoring": ("experiment", "seed", "with", "constraint", "kind", "spearman", "overlap"),
    "sensitivity": ("step", "removed", "fraction", "rescaled", "score", "r10"),
    "cascade": (
        *("method", "constraint", "seed", "retrained", "fraction", "m", "r1", "r5", "r10", "reranked", "break_even"),
        *("speedup", "speedup_measured", "speedup_query"),
    ),
    "growth": ("method", "constraint", "seed", "retrained", "m", "queries", "reranked", "speedup"),
    "scales": (
        *("model", "solver", "constraint", "layer", "part", "kept", "total"),
        *("smallest", "lower", "median", "upper", "largest"),
    ),
}
METHODS = {  # label, colour of seaborn's palette "colorblind", marker
    "label-free": ("Label-free", "#0173b2", "o"),
    "fisher": ("Fisher (labels)", "#029e73", "D"),
    "absolute": ("Absolute gradient (labels)", "#cc78bc", "v"),
    "magnitude": ("Magnitude", "#de8f05", "s"),
    "l1": ("L1", "#949494", "P"),
    "random": ("Random", "#d55e00", "^"),
    "activation": ("Activation", "#56b4e9", "X"),
}
CONTROLS = {  # label of methods that only show what a part of another is worth
    "uniform": "Fisher, equal share per layer",
    "split-activation": "Fisher, neurons by activation",
    "split-magnitude": "Fisher, neurons by magnitude",
    "split-random": "Fisher, neurons at random",
}
HEURISTICS = {"sum": "Sum of importance", "threshold": "Threshold"}
SCORES = {  # what `score` measures
    "tap-textvqa": "TextVQA accuracy (%)",
    "tap12-textvqa": "TextVQA accuracy (%)",
    "tap-stvqa": "ST-VQA accuracy (%)",
    "tap12-stvqa": "ST-VQA accuracy (%)",
    "clip-mscoco": "MSCOCO Recall@1 (%)",
}
ALTERNATIVE_SCORES = {"anls": "ST-VQA ANLS (%)", "r10": "MSCOCO Recall@10 (%)"}  # other columns of results.csv


def accuracy_table(
    results: pd.DataFrame, experiment: str, heuristic: str = "sum", measure: str = "score"
) -> pd.DataFrame:
    """The scores in per cent: a row per method, pruned and retrained, a column per constraint (or percentile removed).

    Cells are `mean ± standard deviation` over seeds (n − 1 in the denominator), the mean alone for one seed. Where
    the share kept is more than a point off the column's, it follows: `79.1 (at 63 %)`. `measure` is a column of
    results.csv.
    """
    unpruned, pruned = scores(results, experiment, measure)
    pruned = select(pruned, "results", heuristic=heuristic)
    by = "constraint" if heuristic == "sum" else "percentile"
    table = {("Unpruned", "no"): {"100 %": f"{100 * unpruned:.1f}"}}
    columns = ["100 %"]
    for key in sorted(pruned[by].unique(), reverse=by == "constraint"):
        columns.append(f"{100 * key:g} %" if by == "constraint" else f"{key:g} % removed")
    for method in (name for name in METHODS if (pruned.method == name).any()):
        for retrained, rows in pruned[pruned.method == method].groupby("retrained"):
            cells = table[METHODS[method][0], "yes" if retrained else "no"] = {}
            for point in over_seeds(rows, measure).itertuples():
                off = by == "percentile" or abs(point.fraction - point.constraint) > 0.01
                name = f"{100 * point.constraint:g} %" if by == "constraint" else f"{point.percentile:g} % removed"
                cells[name] = mean_cell(point) + (f" (at {100 * point.fraction:.0f} %)" if off else "")
    frame = pd.DataFrame.from_dict(table, orient="index").reindex(columns=columns).fillna("–")
    frame.index = pd.MultiIndex.from_tuples(table, names=["Method", sentence(retraining_name(experiment))])
    return frame


def mean_cell(point) -> str:
    """A row of `over_seeds` as text: `79.1 ± 0.2`, in per cent."""
    return f"{100 * point.mean:.1f}" + (f" ± {100 * point.std:.1f}" if point.count > 1 else "")


def write_table(frame: pd.DataFrame, folder: str | Path, name: str, title: str) -> list[Path]:
    """Write `name.csv`, `name.tex` and `name.md` (GitHub Markdown), each atomically; returns the three paths.

    `title` is the caption, the index of `frame` the first columns. LaTeX (pdflatex, UTF-8) needs the packages
    booktabs and graphicx. A table too wide for one column of a page spans both, with its heads in several lines, and
    what is still too wide is scaled.
    """
    frame = frame.reset_index()
    rows = [[str(cell) for cell in row] for row in [frame.columns, *frame.to_numpy()]]
    head, *body = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    markdown = [title, "", head, "|" + " --- |" * len(rows[0]), *body]
    return [
        write_file(Path(folder) / f"{name}.csv", frame.to_csv(index=False).encode()),
        write_file(Path(folder) / f"{name}.tex", _latex_table(rows, name, title).encode()),
        write_file(Path(folder) / f"{name}.md", ("\n".join(markdown) + "\n").encode()),
    ]


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


def scores(
    results: pd.DataFrame, experiment: str, measure: str = "score", variants: bool = False
) -> tuple[float, pd.DataFrame]:
    """The unpruned score (a fraction) and the rows of pruned models, checked.

    Only those of `METHODS` in the experiment's own way, unless `variants`; their `variant` is "".
    """
    rows = select(results, "results", experiment=experiment)
    rows["variant"] = variant_text(rows)
    if rows.profile.nunique() > 1:
        raise ValueError(
            f"results.csv: {experiment} has profiles {sorted(rows.profile.unique())}: expected one of them"
        )
    known = [*METHODS, *CONTROLS, "unpruned"]
    unknown = sorted(set(rows.method) - set(known))
    if unknown:
        raise ValueError(f"results.csv: method = {unknown[0]!r}: must be one of {known}")
    for column in (measure, "fraction"):
        odd = rows[column][~rows[column].between(0, 1)]
        if len(odd):
            raise ValueError(f"results.csv: {column} = {odd.iloc[0]} ({experiment}): must be a fraction in [0, 1]")
    check_once(rows, "results", ["method", "heuristic", "constraint", "percentile", "seed", "variant", "retrained"])
    unpruned = rows[rows.method == "unpruned"]
    if len(unpruned) != 1:
        raise ValueError(f"results.csv: {len(unpruned)} rows of method 'unpruned' ({experiment}): expected one")
    pruned = rows[(rows.method != "unpruned") & (variants | (rows.variant == "") & rows.method.isin(METHODS))]
    if not pruned.heuristic.isin(HEURISTICS).any():
        raise ValueError(f"results.csv: no pruned model of {experiment} with a heuristic of {list(HEURISTICS)}")
    return float(unpruned[measure].iloc[0]), pruned.astype({"retrained": bool})


def variant_text(rows: pd.DataFrame) -> pd.Series:
    """The column `variant`, "" for the experiment's own way, which a CSV file leaves empty."""
    return rows.variant.astype(object).fillna("")


def over_seeds(rows: pd.DataFrame, measure: str = "score") -> pd.DataFrame:
    """A row per constraint or percentile: mean fraction kept, and mean, min, max, std and count of the score."""
    groups = rows.groupby(["constraint", "percentile"], dropna=False)
    points = groups[measure].agg(["mean", "min", "max", "std", "count"])
    return points.assign(fraction=groups.fraction.mean()).reset_index()


def main_method(rows: pd.DataFrame, experiment: str) -> str:
    """The experiment's own method, the one its variants are of, or the first of `METHODS` if `rows` lack it."""
    own = "fisher" if experiment.startswith("clip") else "label-free"
    return next((name for name in (own, *METHODS) if (rows.method == name).any()), own)


def select(frame: pd.DataFrame, table: str, **wanted: object) -> pd.DataFrame:
    """A copy of the rows with these values, one column at a time. Raises `ValueError` naming what is not there."""
    columns = (TABLES | OPTIONAL)[table]
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(f"{table}.csv has no column {missing}: expected {list(columns)}")
    for column, value in wanted.items():
        there = frame[column].unique().tolist()
        if value not in there:
            raise ValueError(f"{table}.csv: no row with {column} = {value!r} (of {wanted}): there are {there}")
        frame = frame[frame[column] == value]
    return frame.copy()


def check_once(rows: pd.DataFrame, table: str, key: list[str]) -> None:
    twice = rows[rows.duplicated(key)]
    if len(twice):
        about = [column for column in ("experiment", "method") if column in rows and column not in key]
        raise ValueError(f"{table}.csv: two rows with {twice.iloc[0][[*about, *key]].to_dict()}: expected one")


def read(folder: Path, table: str) -> pd.DataFrame:
    """The table `folder/TABLE.csv`, one of `TABLES` or `OPTIONAL`, its columns checked.

    Raises FileNotFoundError if it is not there, ValueError if it is empty or lacks a column.
    """
    path, columns = folder / f"{table}.csv", list((TABLES | OPTIONAL)[table])
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: expected a table with the columns {columns}")
    try:
        return select(pd.read_csv(path), table)
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"{path} is empty: expected a table with the columns {columns}") from error


def method_label(method: str) -> str:
    """What figures call a method; a name that is not known stays as it is."""
    return METHODS[method][0] if method in METHODS else CONTROLS.get(method, sentence(method))


def score_label(experiment: str, measure: str = "score") -> str:
    return SCORES.get(experiment, "Score (%)") if measure == "score" else ALTERNATIVE_SCORES[measure]


def title(experiment: str) -> str:
    """An experiment's model and data set, such as "TAP12, ST-VQA"."""
    if experiment not in SCORES:
        return experiment
    return f"{experiment.split('-')[0].upper()}, {SCORES[experiment].split()[0]}"


def kept_label(experiment: str) -> str:
    """What a constraint counts."""
    return "vision encoder MACs kept" if experiment.startswith("clip") else "MMT parameters kept"


def retraining_name(experiment: str) -> str:
    return "distillation" if experiment.startswith("clip") else "ReSt"


def sentence(text: str) -> str:
    """`text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def _latex_table(rows: list[list[str]], name: str, title: str) -> str:
    """A floating table of `rows`, the first of which is the head, below its caption; numbers are set flush right."""
    columns = [(head, cells, max(map(len, cells))) for head, *cells in zip(*rows, strict=True)]
    points = sum(5 * max(len(head), width) + 12 for head, _, width in columns)  # at 10 pt, about
    table = "table" if points < 245 else "table*"
    sides = ["r" if all(map(_NUMBER.fullmatch, cells)) else "l" for _, cells, _ in columns]
    heads = []
    for side, (head, _, width) in zip(sides, columns, strict=True):
        breakable = head.replace(" %", "\u00a0%")
        lines = textwrap.wrap(breakable, max(width, 9), break_long_words=False) if table == "table*" else [head]
        stacked = r"\\".join(map(_latex, lines))
        heads.append(rf"\shortstack[{side}]{{{stacked}}}" if len(lines) > 1 else stacked)
    head, *body = [" & ".join(row) + r" \\" for row in [heads, *(map(_latex, row) for row in rows[1:])]]
    tex = [
        *(rf"\begin{{{table}}}", r"\centering", r"\setlength{\belowcaptionskip}{6pt}"),
        *(rf"\caption{{{_latex(title)}}}", rf"\label{{tab:{name}}}"),
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        *(rf"\begin{{tabular}}{{{''.join(sides)}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule"),
        *(r"\end{tabular}}", rf"\end{{{table}}}"),
    ]
    return "\n".join(tex) + "\n"


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


def _latex(text: str) -> str:
    """`text` for pdflatex: special characters escaped, Greek letters and other signs as mathematics."""
    return "".join(_SIGNS.get(sign, sign) for sign in text)


def write_file(path: Path, content: bytes) -> Path:
    """Write `content`, whole or not at all; returns the path."""
    write_whole(path, lambda partial: partial.write_bytes(content))
    return path
