"""The tidy tables that every figure and table of the paper is drawn from: their columns, their digits, and checks.

`write_tables` writes them, `read` reads them back; a row of results.csv is one score. Equal numbers give equal bytes.
Columns with times or memory differ from run to run: `minutes`, `seconds`, `peak_memory_mb` (results, minutes), `ms`
(speed.csv), and what follows from times, `break_even` and `speedup…` (cascade.csv, growth.csv).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from lfpr.experiments.specs import Way
from lfpr.files import write_whole
from lfpr.paper.labels import CONTROLS, HEURISTICS, METHODS, spec_of

TABLES: dict[str, tuple[str, ...]] = {
    "results": (
        *("experiment", "profile", "method", "heuristic", "constraint", "percentile", "seed", "variant", "retrained"),
        *("score", "anls", "r5", "r10", "i2t_r1", "i2t_r5", "i2t_r10", "fraction", "parameters", "questions"),
        *("num_samples", "percent", "last_layers", "iterations", "minutes", "seconds", "megabytes", "delta_megabytes"),
    ),
    "layers": (
        *("experiment", "method", "heuristic", "constraint", "percentile", "seed", "layer"),
        *("heads", "neurons", "full_heads", "full_neurons"),
    ),
    "importance": ("experiment", "method", "kind", "layer", "index", "importance"),
    "mask_values": ("experiment", "method", "constraint", "seed", "kind", "layer", "value"),
    "speed": ("experiment", "model", "constraint", "parameters", "macs", "megabytes", "ms"),
    "minutes": ("experiment", "profile", "stage", "runs", "minutes", "peak_memory_mb"),
    "scoring": ("experiment", "seed", "with", "constraint", "kind", "spearman", "overlap"),
    "sensitivity": ("experiment", "step", "removed", "fraction", "rescaled", "score", "r10"),
    "cascade": (
        *("experiment", "method", "constraint", "seed", "retrained", "fraction", "m", "r1", "r5", "r10"),
        *("reranked", "break_even", "speedup", "speedup_measured", "speedup_query"),
    ),
    "growth": ("experiment", "method", "constraint", "seed", "retrained", "m", "queries", "reranked", "speedup"),
    "scales": (
        *("experiment", "model", "solver", "constraint", "layer", "part", "kept", "total"),
        *("smallest", "lower", "median", "upper", "largest"),
    ),
}
"""Name of a file without `.csv` -> its columns. Of these, results.csv alone must be there. `num_samples`: samples
behind the importance, none for methods that need no data. `seconds`: what making the model took, from importance to
retraining, without scoring (`Experiment.seconds`)."""
OPTIONAL = ("seconds", "delta_megabytes")
"""Columns that older files lack; read as empty."""
TOLERANCE = 1.5
"""Points that a score may differ from the committed one, on another machine: see `allowed`."""
KEY = ("experiment", "profile", "method", "heuristic", "constraint", "percentile", "seed", "variant", "retrained")
"""The columns of results.csv that name one score."""
_DIGITS = {
    5: "score anls r1 r5 r10 i2t_r1 i2t_r5 i2t_r10 fraction",
    4: "importance value megabytes delta_megabytes reranked spearman overlap smallest lower median upper largest",
    3: "minutes seconds peak_memory_mb ms break_even speedup speedup_measured speedup_query",
}
DIGITS = {column: digits for digits, columns in _DIGITS.items() for column in columns.split()}
"""Significant digits of the columns that are measured; other numbers are written as they are."""


def write_tables(tables: Mapping[str, pd.DataFrame], folder: str | Path) -> list[Path]:
    """Write `folder/TABLE.csv` for each of `TABLES` given, each atomically; returns the paths.

    Columns that a table lacks are empty, others than its own are left out, numbers are rounded as in `DIGITS`.
    """
    unknown = sorted(set(tables) - set(TABLES))
    if unknown:
        raise ValueError(f"table {unknown[0]!r}: must be one of {list(TABLES)}")
    files = []
    for name, table in tables.items():
        columns = table.reindex(columns=TABLES[name])
        text = {column: [_text(value, column) for value in columns[column].tolist()] for column in columns}
        files.append(write_file(Path(folder, f"{name}.csv"), pd.DataFrame(text).to_csv(index=False).encode()))
    return files


def _text(value: object, column: str) -> str:
    if not isinstance(value, str | tuple | list) and pd.isna(value):
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{float(f'{value:.{DIGITS.get(column, 12)}g}'):z.12g}"


def write_file(path: Path, content: bytes) -> Path:
    """Write `content`, whole or not at all; returns the path."""
    write_whole(path, lambda partial: partial.write_bytes(content))
    return path


def read(folder: str | Path, table: str) -> pd.DataFrame:
    """The table `folder/TABLE.csv`, one of `TABLES`, its columns checked.

    Raises FileNotFoundError if it is not there, ValueError if it is empty or lacks a column.
    """
    path, columns = Path(folder, f"{table}.csv"), list(TABLES[table])
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: expected a table with the columns {columns}")
    try:
        return select(pd.read_csv(path), table)
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"{path} is empty: expected a table with the columns {columns}") from error


def read_all(folder: str | Path) -> dict[str, pd.DataFrame]:
    """results.csv, and the others of `TABLES` that are in `folder`."""
    others = (name for name in TABLES if Path(folder, f"{name}.csv").is_file())
    return {"results": read(folder, "results")} | {name: read(folder, name) for name in others}


def select(frame: pd.DataFrame, table: str, **wanted: object) -> pd.DataFrame:
    """A copy of the rows with these values, one column at a time. Raises `ValueError` naming what is not there."""
    columns = TABLES[table]
    absent = [column for column in columns if column not in frame.columns]
    if missing := [column for column in absent if column not in OPTIONAL]:
        raise ValueError(f"{table}.csv has no column {missing}: expected {list(columns)}")
    frame = frame.reindex(columns=[*frame.columns, *absent]) if absent else frame
    for column, value in wanted.items():
        there = frame[column].unique().tolist()
        if value not in there:
            raise ValueError(f"{table}.csv: no row with {column} = {value!r} (of {wanted}): there are {there}")
        frame = frame[frame[column] == value]
    return frame.copy()


def check_once(rows: pd.DataFrame, table: str, key: Iterable[str]) -> None:
    """Raises ValueError naming the row if two rows have the same values of `key`."""
    key = list(key)
    twice = rows[rows.duplicated(key)]
    if len(twice):
        about = [column for column in ("experiment", "method") if column in rows and column not in key]
        raise ValueError(f"{table}.csv: two rows with {twice.iloc[0][[*about, *key]].to_dict()}: expected one")


def scores(
    results: pd.DataFrame, experiment: str, metric: str = "score", variants: bool = False
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
    for column in (metric, "fraction"):
        odd = rows[column][~rows[column].between(0, 1)]
        if len(odd):
            raise ValueError(f"results.csv: {column} = {odd.iloc[0]} ({experiment}): must be a fraction in [0, 1]")
    check_once(rows, "results", KEY)
    unpruned = rows[rows.method == "unpruned"]
    if len(unpruned) != 1:
        raise ValueError(f"results.csv: {len(unpruned)} rows of method 'unpruned' ({experiment}): expected one")
    pruned = rows[(rows.method != "unpruned") & (variants | (rows.variant == "") & rows.method.isin(METHODS))]
    if not pruned.heuristic.isin(HEURISTICS).any():
        raise ValueError(f"results.csv: no pruned model of {experiment} with a heuristic of {list(HEURISTICS)}")
    return float(unpruned[metric].iloc[0]), pruned.astype({"retrained": bool})


def variant_text(rows: pd.DataFrame) -> pd.Series:
    """The column `variant`, "" for the experiment's own way, which a CSV file leaves empty."""
    return rows.variant.astype(object).fillna("")


def plain(rows: pd.DataFrame) -> pd.Series:
    """Which rows are of the experiment's own way, or of masks without a search (heuristic "none") as they are."""
    variant = variant_text(rows)
    return (variant == "") | (rows.heuristic == "none") & variant.str.fullmatch(r"(heads_removed|masks)=[^,]*")


def over_seeds(rows: pd.DataFrame, metric: str = "score") -> pd.DataFrame:
    """A row per constraint or percentile: mean fraction kept; mean, min, max, std (n − 1), count of the score."""
    groups = rows.groupby(["constraint", "percentile"], dropna=False)
    points = groups[metric].agg(["mean", "min", "max", "std", "count"])
    return points.assign(fraction=groups.fraction.mean()).reset_index()


def of_way(rows: pd.DataFrame, experiment: str, way: Way) -> pd.DataFrame:
    """The rows of a way (`lfpr.experiments.specs.Way`) among an experiment's."""
    method, variant, retrained = way
    method = method or main_method(rows, experiment)
    return rows[(rows.method == method) & (rows.variant == variant) & (rows.retrained == retrained)]


def main_method(rows: pd.DataFrame, experiment: str) -> str:
    """The experiment's own method, the one its variants are of, or the first of `METHODS` if `rows` lack it."""
    own = spec_of(experiment).method
    return next((name for name in (own, *METHODS) if (rows.method == name).any()), own)


def allowed(unpruned: float, *scores: float, tolerance: float = TOLERANCE) -> float:
    """Points that a score may differ from the committed one on another machine: `tolerance`, and up to twice that of a
    model that pruning took much from, a third of what the lower of the two `scores` lacks to the `unpruned` model's:
    where curves are steep, what another rounding keeps instead counts more (docs/runs.md)."""
    lost = 100 * (unpruned - min(scores))
    return min(max(tolerance, lost / 3), 2 * tolerance)
