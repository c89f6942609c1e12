"""`docs/benchmarks.md`, rendered from the table of numbers."""

import json

import pandas as pd
from registry import ROWS

COLUMNS = ["row", "what", "size", "other", "ours", "unit", "other_value", "our_value", "ratio", "bar", "met"]
COLUMNS += ["other_wall", "our_wall", "other_mb", "our_mb", "other_quality", "our_quality", "gflop", "rate", "share"]
COLUMNS += ["details"]

HEAD = """# What the stages take

Rendered by `make bench` from [benchmarks.csv](../paper_figures/benchmarks.csv); how a row is added:
[architecture.md](architecture.md). {rows} rows, {barred} of them with a bar, {met} met.

**How it is measured.** Two ways to the same result run in turn in one process of one thread, repeatedly: the least
CPU seconds (user and system) of each, so that other work on the machine disturbs little, and the least wall seconds.
Ratios and bars are of CPU seconds. Memory is the peak of anonymous memory of a process forked for one way alone,
beyond imports, model and inputs; pages of libraries do not count. Before each row the machine's float32 matrix
products (1024 × 1024, one thread) were timed: {slowest:.0f} to {fastest:.0f} GFLOP/s. *Of that rate* is what a stage
reaches of it: operations of its matrix products and attention ÷ seconds ÷ rate; what it lacks is spent on
element-wise work, memory, factorisations (which are not counted) and float64, which runs at half the rate.

Models have the real sizes and random weights, MiniLM its real ones. What a bar says: ≥, how many times as fast as the
other way; ≤, our cost by the other's, or the number itself.
"""
TITLES = {
    "stages": "Against the published ways",
    "peers": "Against peers, on the real MiniLM",
    "costs": "Loading, importing, running, reading",
    "growth": "How memory and time grow",
}
LARGER = {"ViT-L, 257 tokens": (24, 1024, 257), "1 B parameters, 128 tokens": (32, 1600, 128)}  # layers, width, tokens
SAMPLES = 512
ONE = """**What bounds a batch of one.** By torch's profiler, a forward pass of the unpruned and of the shrunk model:

{table}

Pruning shrinks products and attention. The rest, small operations in a fixed number and calls from Python, stays;
{rest}. Where that is much, a batch of one gains less than its arithmetic says.
"""
SCALE = """**Larger models.** Each stage was timed at three widths and two sample counts: some seconds a layer takes
once (factorisations, removal costs), some for each sample; both grow with a power of the width. By these powers,
{samples} samples, one thread of this machine at {rate:.0f} GFLOP/s, an estimate and not measured:

{table}

All stages but scoring go layer by layer, so they need one layer at a time beside its inputs; scoring runs the model.
"""
CLUSTER = """**On a cluster** each job adds its start, a few seconds, and all wait for what the first cell of their
experiment makes for them: the unpruned model's score and answers, one to three minutes on mini. Cells of an experiment
share nothing else, so more cores help until each job has one cell. The profile `workflow/profiles/slurm` ran
`GRID=smoke` to its end on one node with Slurm 22.05 (`slurmctld`, `slurmd`; without accounting, which takes the line
`slurm-status-command: squeue`); on more nodes than one it was not tried.
"""


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
            "bar": frame.bar.astype(object).fillna(""),
            "met": frame.met.astype(object).map({"yes": "yes", "no": "**no**"}).fillna(""),
            "MB": _pairs(frame.other_mb.map(_megabytes), frame.our_mb.map(_megabytes)),
            "result": _pairs(*(part.astype(object).fillna("") for part in (frame.other_quality, frame.our_quality))),
            "of that rate": frame.share.map(lambda share: "" if pd.isna(share) else f"{share:.0%}"),
        }
    )
    shown = shown[[name for name in shown if shown[name].astype(bool).any()]]
    return _markdown([*shown], [*shown.itertuples(index=False)])


def render(frame: pd.DataFrame) -> str:
    """The page."""
    numbers = {"rows": len(frame), "barred": int(frame.bar.notna().sum()), "met": int((frame.met == "yes").sum())}
    parts = [HEAD.format(**numbers, slowest=frame.rate.min(), fastest=frame.rate.max())]
    for group, title in TITLES.items():
        rows = frame[[ROWS[name].group == group for name in frame.row]]
        if not len(rows):
            continue
        parts += [f"## {title}\n", table(rows) + "\n"]
        reasons: dict[str, list[str]] = {}
        for name in rows.row:
            reasons.setdefault(ROWS[name].why, []).append(ROWS[name].title)
        lines = [f"- **{'; '.join(titles)}.** {why}" for why, titles in reasons.items() if why]
        unmet = {ROWS[name].unmet or "No reason known." for name in rows.row[rows.met == "no"]}
        parts += ["\n".join(lines) + "\n"] if lines else []
        parts += (
            ["Bars that are not met:\n", "\n".join(f"- {reason}" for reason in sorted(unmet)) + "\n"] if unmet else []
        )
        parts += {"costs": _batch_of_one, "growth": _larger}.get(group, lambda frame: [])(frame)
    if missing := [f"`{name}`" for name in ROWS if name not in set(frame.row)]:
        parts.append(f"Not measured yet: {', '.join(missing)}.\n")
    return "\n".join(parts)


def _batch_of_one(frame: pd.DataFrame) -> list[str]:
    found = {name: details(frame, f"one-{name[:3].lower()}") for name in ("ViT-B/16", "MiniLM")}
    lines, rest = [], []
    for name, known in found.items():
        for way, title in (("other", "unpruned"), ("our", "shrunk")) if known else ():
            spent = known[way]
            lines.append([f"{name}, {title}", *(f"{ms:.1f}" for ms in spent.values())])
        if known:
            shares = (
                1 - (known[way]["products"] + known[way]["attention"]) / sum(known[way].values())
                for way in ("other", "our")
            )
            rest.append(f"{name}: {' → '.join(f'{share:.0%}' for share in shares)} of the time")
            kinds = list(known["our"])
    if not lines:
        return []
    return [ONE.format(table=_markdown(["ms", *kinds], lines), rest="; ".join(rest))]


def _larger(frame: pd.DataFrame) -> list[str]:
    lines = []
    for name in frame.row[frame.row.str.startswith("width-")]:
        known = details(frame, name)
        powers = [known["fixed exponent"], known["further exponent"]]
        line = [name.removeprefix("width-"), *(f"{power:.1f}" for power in powers)]
        for layers, width, tokens in LARGER.values():
            once, each = (
                known[k][-1] * (width / known["widths"][-1]) ** p
                for k, p in zip(("fixed", "further"), powers, strict=True)
            )
            line.append(_duration(layers * (once + each * SAMPLES * tokens / known["tokens"])))
        lines.append(line)
    if known := details(frame, "rearrangement-exponent"):
        power = frame[frame.row == "rearrangement-exponent"].our_value.iloc[0]
        line = ["rearrangement", f"{power:.1f}", "–"]
        for layers, width, _ in LARGER.values():
            line.append(_duration(layers * known["seconds"][-1] * (4 * width / known["widths"][-1]) ** power))
        lines.append(line)
    columns = ["stage", "exponent in width, once", "for each sample", *LARGER]
    shown = {"samples": SAMPLES, "rate": frame.rate.median(), "table": _markdown(columns, lines)}
    return [SCALE.format(**shown), CLUSTER] if lines else []


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _markdown(columns: list[str], lines: list) -> str:
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in [columns, ["---"] * len(columns), *lines])


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
        return "" if pd.isna(value) else f"{_number(value)} {'' if pd.isna(unit) else unit}".strip()
    return f"{_number(value)} s" if value >= 1 else f"{_number(1000 * value)} ms"


def _megabytes(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.0f}"
