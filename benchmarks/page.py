"""`docs/benchmarks.md`, rendered from the table of numbers."""

import json

import pandas as pd
from registry import ROWS

COLUMNS = ["row", "group", "what", "size", "other", "ours", "unit", "other_value", "our_value", "ratio", "bar", "met"]
COLUMNS += ["other_wall", "our_wall", "other_mb", "our_mb", "other_quality", "our_quality", "gflop", "rate", "share"]
COLUMNS += ["details"]

HEAD = """# What the stages take

Rendered by `make bench` from [benchmarks.csv](../paper_figures/benchmarks.csv); how a row is added:
[architecture.md](architecture.md). {rows} rows, {barred} of them with a bar, {met} met.

**How it is measured.** Two ways to the same result run in turn in one process of one thread, repeatedly: the least user
CPU seconds of each, so that other work on the machine disturbs little, and the least wall seconds. Ratios and bars are
of CPU seconds. Memory is the peak of anonymous memory of a process forked for one way alone, beyond imports, model and
inputs; pages of libraries do not count. Before each row the machine's float32 matrix products (1024 × 1024, one thread)
were timed: {slowest:.0f} to {fastest:.0f} GFLOP/s. *Of that rate* is what a stage reaches of it: operations of its matrix
products and attention ÷ seconds ÷ rate; what it lacks is spent on element-wise work, memory, factorisations (which are
not counted) and float64, which runs at half the rate.

Models have the real sizes and random weights, MiniLM its real ones. What a bar says: ≥, how many times as fast as the
other way; ≤, our cost by the other's, or the number itself.
"""
TITLES = {"stages": "Against the published ways"}


def table(frame: pd.DataFrame) -> str:
    """Rows as a Markdown table; columns that none of them fills are left out."""
    shown = pd.DataFrame(
        {
            "what": frame.what,
            "size": frame["size"],
            "other way": frame.other,
            "our way": frame.ours,
            "other": [_amount(value, unit) for value, unit in zip(frame.other_value, frame.unit, strict=True)],
            "ours": [_amount(value, unit) for value, unit in zip(frame.our_value, frame.unit, strict=True)],
            "ratio": frame.ratio.map(_number),
            "bar": frame.bar.fillna(""),
            "met": frame.met.fillna("").map({"yes": "yes", "no": "**no**"}).fillna(""),
            "by wall clock": (frame.other_wall / frame.our_wall).map(_number),
            "MB": _pairs(frame.other_mb.map(_megabytes), frame.our_mb.map(_megabytes)),
            "result": _pairs(frame.other_quality.fillna(""), frame.our_quality.fillna("")),
            "of that rate": frame.share.map(lambda share: "" if pd.isna(share) else f"{share:.0%}"),
        }
    )
    shown = shown[[name for name in shown if shown[name].astype(bool).any()]]
    lines = [shown.columns, ["---"] * len(shown.columns), *shown.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def render(frame: pd.DataFrame) -> str:
    """The page."""
    numbers = {"rows": len(frame), "barred": int(frame.bar.notna().sum()), "met": int((frame.met == "yes").sum())}
    parts = [HEAD.format(**numbers, slowest=frame.rate.min(), fastest=frame.rate.max())]
    for group, title in TITLES.items():
        rows = frame[frame.group == group]
        if len(rows):
            parts += [f"## {title}\n", table(rows) + "\n", "\n".join(f"- **{ROWS[n].title}.** {ROWS[n].why}" for n in rows.row) + "\n"]
    return "\n".join(parts)


def details(frame: pd.DataFrame, name: str) -> dict:
    """What else a row has measured; {} if it was not."""
    found = frame[frame.row == name].details
    return json.loads(found.iloc[0]) if len(found) else {}


def _pairs(others: pd.Series, ours: pd.Series) -> list[str]:
    return ["" if not (a or b) else b if a in ("", b) else f"{a} → {b}" for a, b in zip(others, ours, strict=True)]


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _amount(value: float, unit: str) -> str:
    if unit != "CPU s" or pd.isna(value):
        return "" if pd.isna(value) else f"{_number(value)} {unit}".strip()
    return f"{_number(value)} s" if value >= 1 else f"{_number(1000 * value)} ms"


def _megabytes(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.0f}"
