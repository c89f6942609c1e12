"""The figures and tables of the paper, a decorated function each, and where a file of theirs stands on the page.

    @figure("accuracy_{experiment}", needs=("results",), heading="Score against the constraint", caption="{about}: …")
    def accuracy(results: pd.DataFrame, experiment: str) -> Figure: ...

is drawn for every experiment of results.csv, written as `accuracy_tap-textvqa.pdf` and `.png`, captioned, and put on
the page, after what is registered before it. Nothing else lists it. Functions of a name without `{experiment}` are
drawn once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from lfpr.experiments.specs import SPECS
from lfpr.paper.labels import about, in_words, sentence, spec_of
from lfpr.paper.schema import main_method
from lfpr.paper.style import styled

Drawn = Figure | pd.DataFrame


@dataclass(frozen=True)
class Entry:
    """A figure or table.

    name: of its files, without suffix. needs: the tidy tables (`lfpr.paper.schema.TABLES`) that `draw` takes, in this
    order, each with rows of the experiment if the name has one; none: only a notebook draws it. heading: on the page.
    caption: a function of the same arguments, or a text with `{about}`, `{method}` (the main one) and `{spec}`
    (`ExperimentSpec`). when: whether it is drawn. variants: suffix of the name -> options of `draw`. Both are functions
    of the same arguments as `draw`.
    """

    name: str
    draw: Callable[..., Drawn]
    needs: tuple[str, ...]
    heading: str
    caption: str | Callable[..., str] = ""
    when: Callable[..., bool] | None = None
    variants: Callable[..., Mapping[str, dict]] | None = None

    @property
    def made_by(self) -> str:
        """The command that makes its files, and the function that draws it."""
        notebook = "06_paper" if self.needs else "07_any_transformer"
        return f"papermill notebooks/{notebook}.ipynb OUT.ipynb ({self.draw.__module__}.{self.draw.__name__})"

    @property
    def by_experiment(self) -> bool:
        return "{experiment}" in self.name

    def items(self, tables: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, str, Drawn]]:
        """Name, caption and what is drawn, of all that `tables` allow."""
        present = [tables[need] for need in self.needs if need in tables and len(tables[need])]
        if not self.needs or len(present) < len(self.needs):
            return
        for experiment in self._experiments(tables["results"], *present) if self.by_experiment else (None,):
            args = (*present, experiment) if experiment else tuple(present)
            if self.when and not self.when(*args):
                continue
            for suffix, options in (self.variants(*args) if self.variants else {"": {}}).items():
                name = self.name.format(experiment=experiment) + (f"_{suffix}" if suffix else "")
                yield name, self._caption(tables, args, experiment, options), self.draw(*args, **options)

    def _experiments(self, results: pd.DataFrame, *tables: pd.DataFrame) -> list[str]:
        """Those that every table has."""
        return [name for name in results.experiment.unique() if all(name in set(t.experiment) for t in tables)]

    def _caption(self, tables: Mapping[str, pd.DataFrame], args: tuple, experiment: str | None, options: dict) -> str:
        if callable(self.caption):
            return self.caption(*args, **options)
        if not experiment:
            return self.caption
        rows = args[0][args[0].experiment == experiment]
        method = in_words(main_method(rows, experiment)) if "method" in rows else ""
        return self.caption.format(about=about(tables["results"], experiment), method=method, spec=spec_of(experiment))


ENTRIES: list[Entry] = []
"""All figures and tables, in the page's order; `lfpr.paper.figures` fills it."""


def figure(name: str, needs: tuple[str, ...] = (), **options) -> Callable[[Callable], Callable[..., Figure]]:
    """Registers a function that draws a figure (options: see `Entry`), which it will do in the paper's style."""
    return _register(name, needs, styled, options)


def table(name: str, needs: tuple[str, ...], **options) -> Callable[[Callable], Callable[..., pd.DataFrame]]:
    """Registers a function that makes a table of texts, its index the first columns (options: see `Entry`)."""
    return _register(name, needs, lambda draw: draw, options)


def _register(name: str, needs: tuple[str, ...], wrap: Callable, options: dict) -> Callable[[Callable], Callable]:
    if any(entry.name == name for entry in ENTRIES):
        raise ValueError(f"name = {name!r}: there is such a figure or table already")

    def register(draw: Callable) -> Callable:
        draw = wrap(draw)
        ENTRIES.append(Entry(name, draw, needs, **options))
        return draw

    return register


def items(tables: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, str, Drawn]]:
    """Name, caption and what is drawn: the figures and tables that `tables` (by name) allow, in the page's order."""
    for entry in ENTRIES:
        yield from entry.items(tables)


def locate(stem: str) -> tuple[int, str | None, str]:
    """Where the files of this name stand on the page: their place among others, experiment (None: all) and heading.

    Names that are not registered come last, under their own words; `KIND_EXPERIMENT` goes to its experiment.
    """
    names = [
        (entry.name.format(experiment=experiment), place, experiment, entry.heading)
        for place, entry in enumerate(ENTRIES)
        for experiment in (SPECS if entry.by_experiment else (None,))
    ]
    for name, place, experiment, heading in names:
        if stem == name:
            return place, experiment, heading
    for name, place, experiment, heading in names:
        if ENTRIES[place].variants and stem.startswith(f"{name}_"):
            return place, experiment, f"{heading}: {_words(stem.removeprefix(f'{name}_'))}"
    for experiment in SPECS:
        kind, found, rest = f"{stem}_".partition(f"_{experiment}_")
        if found:
            return len(ENTRIES), experiment, sentence(_words(kind)) + (f": {_words(rest)}" if rest else "")
    return len(ENTRIES), None, sentence(_words(stem))


def _words(name: str) -> str:
    return name.replace("_", " ").strip()
