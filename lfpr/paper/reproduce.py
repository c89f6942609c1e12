"""Whether a run gave the committed numbers, and taking over those of a run.

    python -m lfpr.paper.reproduce --committed paper_figures --new runs/paper [--tolerance 1.5] [--subset]

compares the scores of both folders' results.csv, prints a line, and exits with 1 if one differs by more than the
tolerance (of models that lost much up to twice that: `lfpr.paper.schema.allowed`) or is missing. `--subset` compares
what both have: for a smaller grid. `--update README.md docs/results.md` then copies the new tables and figures over the
committed ones and renews the tables in these documents.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lfpr.paper.page import FORMATS
from lfpr.paper.schema import KEY, TOLERANCE, allowed, check_once, read, variant_text, write_file
from lfpr.paper.tables import marked, update_readme

NAMED = 10  # how many of the missing or additional scores are named


@dataclass(frozen=True)
class Report:
    """How the scores of a run compare with the committed ones.

    differences: points (new − committed) by score's name, the largest first; allowed: how many they may be; missing,
    additional: names of scores that only one side has; tolerance: in points; subset: missing ones are allowed.
    """

    differences: pd.Series
    allowed: pd.Series
    missing: tuple[str, ...]
    additional: tuple[str, ...]
    tolerance: float
    subset: bool = False

    @property
    def reproduced(self) -> bool:
        within = (self.differences.abs() <= self.allowed).all()  # NaN is not
        return bool(len(self.differences) and within and (self.subset or not self.missing))

    def __str__(self) -> str:
        text = f"{len(self.differences)} scores"
        if len(self.differences):
            largest = self.differences.iloc[0]
            text += f", largest difference to the committed ones {abs(largest):.1f} points"
            text += f" ({self.differences.index[0]})" if largest != 0 else ""
        text += f", tolerance {self.tolerance:g}"
        if (self.allowed[self.differences.abs() > self.tolerance] > self.tolerance).any():
            text += f", up to {2 * self.tolerance:g} of models that lost much"
        text += f": {'' if self.reproduced else 'not '}reproduced"
        for what, names in (("missing", self.missing), ("additional", self.additional)):
            if names:
                more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
                text += f"\n{what}: {len(names)}: {'; '.join([*names[:NAMED], *more])}"
        return text


def compare(committed: str | Path, new: str | Path, tolerance: float = TOLERANCE, subset: bool = False) -> Report:
    """The scores of `new/results.csv` beside those of `committed/results.csv`, row by row (`lfpr.paper.schema.KEY`).

    subset: rows that only the committed file has are no fault. Raises FileNotFoundError, or ValueError for a table that
    lacks a column or has a row twice.
    """
    before, after = (_scores(folder) for folder in (committed, new))
    both = [name for name in before.index if name in after.index]
    differences = (100 * (after.score[both] - before.score[both])).round(6)
    limits = [
        allowed(before.unpruned[name], before.score[name], after.score[name], tolerance=tolerance) for name in both
    ]
    limits = pd.Series(limits, both, float)
    order = differences.abs().sort_values(ascending=False, kind="stable", na_position="first").index
    missing = tuple(name for name in before.index if name not in after.index)
    additional = tuple(name for name in after.index if name not in before.index)
    return Report(differences[order], limits[order], missing, additional, tolerance, subset)


def _scores(folder: str | Path) -> pd.DataFrame:
    """The scores of results.csv, by name, and those of the unpruned models."""
    rows = read(folder, "results")
    check_once(rows, "results", KEY)
    rows["variant"] = variant_text(rows)
    places = ["experiment", "profile"]
    unpruned = rows[rows.method == "unpruned"].set_index(places).score.rename("unpruned")
    rows = rows.join(unpruned, on=places)
    rows.index = [_name(row) for row in rows.itertuples()]
    return rows[["score", "unpruned"]].astype(float).fillna({"unpruned": 0.0})  # of none, nothing is known to be lost


def _name(row) -> str:
    """Such as "tap12-textvqa label-free 0.4, seed 1, retrained"."""
    searched = {"": row.constraint, "percentile ": row.percentile}
    place = "".join(f" {label}{value:g}" for label, value in searched.items() if pd.notna(value))
    options = [f"seed {row.seed}"] * (row.seed > 0) + [row.variant] * bool(row.variant)
    options += ["retrained"] * bool(row.retrained) + [f"profile {row.profile}"] * (row.profile != "mini")
    return ", ".join([f"{row.experiment} {row.method}{place}", *options])


def update(new: str | Path, committed: str | Path, documents: Sequence[str | Path]) -> list[Path]:
    """Copy the tables, figures, captions and page of `new` into `committed`, each atomically, and renew the tables in
    Markdown `documents`: what stands between `<!-- results NAME -->` and its end is table_NAME.md.

    Returns the files written. Files that `new` does not have stay, and so do their tables in documents. Raises
    ValueError, before it writes, if no document has a place for the scores of an experiment in results.csv.
    """
    results, new = read(new, "results"), Path(new)
    places = [(document, name) for document in documents for name in marked(document, "results")]
    if missing := set(results.experiment) - {name for _, name in places}:
        raise ValueError(
            f"documents = {[str(document) for document in documents]}: none has <!-- results {min(missing)} -->"
        )
    suffixes = {f".{suffix}" for suffix in FORMATS}
    names = [file.name for file in sorted(new.iterdir()) if file.suffix in suffixes and not file.name.startswith(".")]
    names += [name for name in ("captions.json", "index.html") if (new / name).is_file()]
    files = [write_file(Path(committed, name), (new / name).read_bytes()) for name in names]
    for document, name in places:
        if (table := new / f"table_{name}.md").is_file():
            update_readme(document, f"results {name}", table.read_text())
    return [*files, *map(Path, documents)]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--committed", default="paper_figures", help="folder of the committed tables")
    options.add_argument("--new", default="runs/paper", help="folder of the new ones")
    options.add_argument("--tolerance", type=float, default=TOLERANCE, help="points that a score may differ")
    options.add_argument("--subset", action="store_true", help="compare what both have: for a smaller grid")
    options.add_argument(
        "--update", metavar="FILE", nargs="+", help="take over the new ones, and renew these files' tables"
    )
    arguments = options.parse_args()
    report = compare(arguments.committed, arguments.new, arguments.tolerance, arguments.subset)
    print(report)
    if arguments.update:
        files = update(arguments.new, arguments.committed, arguments.update)
        print(f"{len(files)} files renewed, of {arguments.committed} and {', '.join(arguments.update)}")
    elif not report.reproduced:
        sys.exit(1)


if __name__ == "__main__":
    main()
