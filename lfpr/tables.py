"""The tables of the paper, and checks of the tidy CSV files in ``paper_figures/`` that every figure is drawn from."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lfpr.files import write_whole

TABLES = {
    "results": (
        *("experiment", "profile", "method", "heuristic", "constraint", "percentile", "seed", "retrained", "score"),
        *("fraction", "parameters", "questions", "percent", "last_layers", "iterations", "minutes"),
    ),
    "layers": (
        *("experiment", "method", "heuristic", "constraint", "seed", "layer"),
        *("heads", "neurons", "full_heads", "full_neurons"),
    ),
    "importance": ("experiment", "method", "kind", "layer", "index", "importance"),
    "mask_values": ("experiment", "method", "constraint", "seed", "kind", "layer", "value"),
}
METHODS = {  # label, colour of seaborn's palette "colorblind", marker
    "label-free": ("Label-free", "#0173b2", "o"),
    "fisher": ("Fisher (labels)", "#029e73", "D"),
    "magnitude": ("Magnitude", "#de8f05", "s"),
    "random": ("Random", "#d55e00", "^"),
}
HEURISTICS = {"sum": "Sum of importance", "threshold": "Threshold"}
SCORES = {  # what `score` measures
    "tap-textvqa": "TextVQA accuracy (%)",
    "tap12-textvqa": "TextVQA accuracy (%)",
    "tap-stvqa": "ST-VQA accuracy (%)",
    "tap12-stvqa": "ST-VQA accuracy (%)",
    "clip-mscoco": "MSCOCO Recall@1 (%)",
}


def accuracy_table(results: pd.DataFrame, experiment: str, heuristic: str = "sum") -> pd.DataFrame:
    """The scores in per cent: a row per method, before and after ReSt, a column per constraint (or percentile removed).

    Cells are ``mean ± standard deviation`` over seeds (n − 1 in the denominator), the mean alone for one seed. Where
    the share of parameters kept is more than a point off the column's, it follows: ``79.1 (at 63 %)``.
    """
    unpruned, pruned = scores(results, experiment)
    pruned = select(pruned, "results", heuristic=heuristic)
    by = "constraint" if heuristic == "sum" else "percentile"
    table = {("Unpruned", "no"): {"100 %": f"{100 * unpruned:.1f}"}}
    columns = ["100 %"]
    for key in sorted(pruned[by].unique(), reverse=by == "constraint"):
        columns.append(f"{100 * key:g} %" if by == "constraint" else f"{key:g} % removed")
    for method in (name for name in METHODS if (pruned.method == name).any()):
        for retrained, rows in pruned[pruned.method == method].groupby("retrained"):
            cells = table[METHODS[method][0], "yes" if retrained else "no"] = {}
            for point in over_seeds(rows).itertuples():
                cell = f"{100 * point.mean:.1f}" + (f" ± {100 * point.std:.1f}" if point.count > 1 else "")
                off = by == "percentile" or abs(point.fraction - point.constraint) > 0.01
                name = f"{100 * point.constraint:g} %" if by == "constraint" else f"{point.percentile:g} % removed"
                cells[name] = cell + (f" (at {100 * point.fraction:.0f} %)" if off else "")
    frame = pd.DataFrame.from_dict(table, orient="index").reindex(columns=columns).fillna("–")
    frame.index = pd.MultiIndex.from_tuples(table, names=["Method", "ReSt"])
    return frame


def write_table(frame: pd.DataFrame, folder: str | Path, name: str, title: str) -> list[Path]:
    """Write ``name.csv``, ``name.tex`` (needs package booktabs) and ``name.md`` (GitHub Markdown), each atomically."""
    frame = frame.reset_index()
    rows = [[str(cell) for cell in row] for row in [frame.columns, *frame.to_numpy()]]
    head, *body = [" & ".join(map(_latex, row)) + r" \\" for row in rows]
    table = "table" if len(rows[0]) < 6 else "table*"  # wide ones span both columns of a page
    tex = [
        *(rf"\begin{{{table}}}", r"\centering", rf"\caption{{{_latex(title)}}}", rf"\label{{tab:{name}}}"),
        *(rf"\begin{{tabular}}{{{'l' * len(rows[0])}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule"),
        *(r"\end{tabular}", rf"\end{{{table}}}"),
    ]
    head, *body = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    markdown = [title, "", head, "|" + " --- |" * len(rows[0]), *body]
    return [
        write_file(Path(folder) / f"{name}.csv", frame.to_csv(index=False).encode()),
        write_file(Path(folder) / f"{name}.tex", ("\n".join(tex) + "\n").encode()),
        write_file(Path(folder) / f"{name}.md", ("\n".join(markdown) + "\n").encode()),
    ]


def update_readme(readme_path: str | Path, marker: str, markdown: str) -> None:
    """Replace what stands between ``<!-- marker -->`` and ``<!-- /marker -->``, atomically.

    Raises ``ValueError`` naming the marker unless each of the two stands there once, in this order.
    """
    path, start, end = Path(readme_path), f"<!-- {marker} -->", f"<!-- /{marker} -->"
    text = path.read_text()
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(
            f"{path}: expected {start} and after it {end}, once each, found {text.count(start)} and {text.count(end)}"
        )
    before, after = text.split(start)[0], text.split(end)[1]
    write_file(path, f"{before}{start}\n{markdown.strip()}\n{end}{after}".encode())


def caption(rows: pd.DataFrame, heuristic: str) -> str:
    """What the table of an experiment shows, with its numbers of seeds and questions."""
    experiment, part = rows.experiment.iloc[0], part_label(rows.experiment.iloc[0])
    columns = f"{part} parameters kept" if heuristic == "sum" else f"percentile of {part} importance removed"
    seeds, questions = rows.seed.nunique(), rows.questions.max()
    spread = f" ± standard deviation over up to {seeds} seeds" if seeds > 1 else ""
    return (
        f"{score_label(experiment)} of {experiment} ({rows.profile.iloc[0]} profile, {questions:,.0f} questions) "
        f"by {columns}, search by {HEURISTICS[heuristic].lower()}: mean{spread}."
    )


def scores(results: pd.DataFrame, experiment: str) -> tuple[float, pd.DataFrame]:
    """The unpruned score (a fraction) and the rows of pruned models, checked."""
    rows = select(results, "results", experiment=experiment)
    if rows.profile.nunique() > 1:
        raise ValueError(
            f"results.csv: {experiment} has profiles {sorted(rows.profile.unique())}: expected one of them"
        )
    unknown = sorted(set(rows.method) - {*METHODS, "unpruned"})
    if unknown:
        raise ValueError(f"results.csv: method = {unknown[0]!r}: must be one of {[*METHODS, 'unpruned']}")
    for column in ("score", "fraction"):
        odd = rows[column][~rows[column].between(0, 1)]
        if len(odd):
            raise ValueError(f"results.csv: {column} = {odd.iloc[0]} ({experiment}): must be a fraction in [0, 1]")
    check_once(rows, "results", ["method", "heuristic", "constraint", "percentile", "seed", "retrained"])
    unpruned = rows[rows.method == "unpruned"]
    if len(unpruned) != 1:
        raise ValueError(f"results.csv: {len(unpruned)} rows of method 'unpruned' ({experiment}): expected one")
    pruned = rows[rows.method != "unpruned"]
    if not pruned.heuristic.isin(HEURISTICS).any():
        raise ValueError(f"results.csv: no pruned model of {experiment} with a heuristic of {list(HEURISTICS)}")
    return float(unpruned.score.iloc[0]), pruned.astype({"retrained": bool})


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per constraint or percentile: mean fraction kept, and mean, min, max, std and count of the score."""
    groups = rows.groupby(["constraint", "percentile"], dropna=False)
    return (
        groups.score.agg(["mean", "min", "max", "std", "count"]).assign(fraction=groups.fraction.mean()).reset_index()
    )


def select(frame: pd.DataFrame, table: str, **wanted: object) -> pd.DataFrame:
    """A copy of the rows with these values, one column at a time. Raises ``ValueError`` naming what is not there."""
    missing = [column for column in TABLES[table] if column not in frame.columns]
    if missing:
        raise ValueError(f"{table}.csv has no column {missing}: expected {list(TABLES[table])}")
    for column, value in wanted.items():
        there = frame[column].unique().tolist()
        if value not in there:
            raise ValueError(f"{table}.csv: no row with {column} = {value!r} (of {wanted}): there are {there}")
        frame = frame[frame[column] == value]
    return frame.copy()


def check_once(rows: pd.DataFrame, table: str, key: list[str]) -> None:
    twice = rows[rows.duplicated(key)]
    if len(twice):
        raise ValueError(
            f"{table}.csv: two rows with {twice.iloc[0][['experiment', 'method', *key]].to_dict()}: expected one"
        )


def read(folder: Path, table: str) -> pd.DataFrame:
    path = folder / f"{table}.csv"
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: expected a table with the columns {list(TABLES[table])}")
    try:
        return select(pd.read_csv(path), table)
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"{path} is empty: expected a table with the columns {list(TABLES[table])}") from error


def score_label(experiment: str) -> str:
    return SCORES.get(experiment, "Score (%)")


def part_label(experiment: str) -> str:
    """The part of the model that is pruned."""
    return "Vision encoder" if experiment.startswith("clip") else "MMT"


def _latex(text: str) -> str:
    """``text`` for LaTeX: special characters escaped, signs as mathematics."""
    signs = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    signs |= {"±": r"$\pm$", "−": "$-$", "–": "--"} | {sign: f"\\{sign}" for sign in "&%$#_{}"}
    return "".join(signs.get(sign, sign) for sign in text)


def write_file(path: Path, content: bytes) -> Path:
    """Write ``content``, whole or not at all; returns the path."""
    write_whole(path, lambda partial: partial.write_bytes(content))
    return path
