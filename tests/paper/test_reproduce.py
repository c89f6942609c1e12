"""Whether a run reproduced the committed scores, with runs that did not; and taking over those of a run."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from small_tables import NAME, add, by_threshold, result, small_results

from lfpr.paper.reproduce import compare, main, update
from lfpr.paper.schema import allowed, write_tables
from lfpr.paper.write import write_all


@pytest.fixture
def committed(tmp_path):
    extra = [by_threshold("label-free", 30, True, 0.7, 0.7), result("label-free", 0.4, 0, False, 0.6, variant="step=2")]
    return folder(tmp_path / "committed", add(small_results(), *extra))


def folder(path, results):
    write_tables({"results": results}, path)
    return path


def changed(committed, path, change):
    rows = pd.read_csv(committed / "results.csv")
    return folder(path, change(rows) if callable(change) else rows.assign(score=rows.score + change))


def one(method, constraint, points, seed=0, retrained=True):
    def change(rows):
        row = (rows.method == method) & (rows.constraint == constraint) & (rows.seed == seed)
        rows.loc[row & (rows.retrained == retrained) & rows.variant.isna(), "score"] += points / 100
        return rows

    return change


def test_equal_scores_are_reproduced(committed, tmp_path):
    report = compare(committed, changed(committed, tmp_path / "new", 0))
    assert report.reproduced
    assert str(report) == ("23 scores, largest difference to the committed ones 0.0 points, tolerance 1.5: reproduced")


def test_the_largest_difference_is_named(committed, tmp_path):
    new = changed(committed, tmp_path / "new", one("random", 0.4, -0.8))
    line = "23 scores, largest difference to the committed ones 0.8 points (tap-textvqa random 0.4, retrained), "
    assert str(compare(committed, new)) == f"{line}tolerance 1.5: reproduced"
    report = compare(committed, new, tolerance=0.3)
    assert not report.reproduced
    assert str(report) == f"{line}tolerance 0.3, up to 0.6 of models that lost much: not reproduced"
    assert report.differences.iloc[0] == pytest.approx(-0.8)
    seeded = changed(committed, tmp_path / "seed", one("label-free", 0.8, 3, seed=2, retrained=False))
    assert "(tap-textvqa label-free 0.8, seed 2), tolerance 1.5: not reproduced" in str(compare(committed, seeded))


def test_a_model_that_lost_much_may_differ_more(committed, tmp_path):
    worst = one("random", 0.4, -2.5, retrained=False)  # 36 points below the unpruned model
    report = compare(committed, changed(committed, tmp_path / "new", worst))
    assert report.reproduced and str(report).endswith("tolerance 1.5, up to 3 of models that lost much: reproduced")
    beyond = changed(committed, tmp_path / "beyond", one("random", 0.4, -3.1, retrained=False))
    assert not compare(committed, beyond).reproduced
    assert [allowed(0.9, score, 0.89) for score in (0.9, 0.86, 0.84, 0.5)] == pytest.approx([1.5, 1.5, 2, 3])
    assert allowed(0.9, 0.89, 0.84) == allowed(0.9, 0.84, 0.89)  # whichever is the committed one


def test_variants_and_searches_by_threshold_are_other_scores(committed, tmp_path):
    def change(rows):
        return rows.assign(score=rows.score + 0.02 * (rows.variant == "step=2") + 0.035 * (rows.percentile == 30))

    report = compare(committed, changed(committed, tmp_path / "new", change))
    assert not report.reproduced
    assert list(report.differences.index[:2]) == [
        "tap-textvqa label-free percentile 30, retrained",
        "tap-textvqa label-free 0.4, step=2",
    ]
    assert report.differences.iloc[:3].tolist() == pytest.approx([3.5, 2, 0])


def test_missing_scores_are_named_and_no_reproduction_but_of_a_subset(committed, tmp_path):
    def change(rows):
        return add(rows[rows.method != "random"], result("l1", 0.4, 0, False, 0.5))

    new = changed(committed, tmp_path / "new", change)
    report = compare(committed, new)
    assert not report.reproduced and len(report.missing) == 8 and report.additional == ("tap-textvqa l1 0.4",)
    lines = str(report).splitlines()
    assert lines[0].startswith("15 scores,") and lines[0].endswith("not reproduced")
    assert lines[1].startswith("missing: 8: tap-textvqa random 0.4; tap-textvqa random 0.4, seed 1;")
    assert lines[2] == "additional: 1: tap-textvqa l1 0.4"
    assert compare(committed, new, subset=True).reproduced
    assert not compare(committed, changed(committed, tmp_path / "off", 0.02), subset=True).reproduced


def test_no_score_and_no_common_score_are_no_reproduction(committed, tmp_path):
    missing = changed(committed, tmp_path / "nan", lambda rows: rows.assign(score=np.nan))
    assert not compare(committed, missing).reproduced
    other = changed(committed, tmp_path / "other", lambda rows: rows.assign(profile="full"))
    report = compare(committed, other, subset=True)
    assert not report.reproduced and str(report).startswith("0 scores, tolerance 1.5: not reproduced")
    assert "profile full" in str(report)
    with pytest.raises(ValueError, match="two rows with"):
        compare(committed, changed(committed, tmp_path / "twice", lambda rows: pd.concat([rows, rows[-1:]])))


@pytest.mark.parametrize(("points", "code"), [(0.5, 0), (2, 1)])
def test_the_command_exits_with_1_beyond_the_tolerance(committed, tmp_path, points, code):
    new = changed(committed, tmp_path / "new", points / 100)
    command = [sys.executable, "-m", "lfpr.paper.reproduce", "--committed", committed, "--new", new]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == code and f"ones {points:.1f} points" in run.stdout, run.stderr


def test_the_command_compares_a_subset_and_updates(committed, tmp_path, monkeypatch, capsys):
    def run(*options):
        arguments = ["reproduce", "--committed", committed, "--new", new, *options]
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
        main()

    new = changed(committed, tmp_path / "new", lambda rows: rows[rows.method != "random"])
    with pytest.raises(SystemExit, match="1"):
        run()
    run("--subset")
    assert capsys.readouterr().out.splitlines()[2].endswith("tolerance 1.5: reproduced")
    write_all(new)
    (tmp_path / "README.md").write_text(f"<!-- results {NAME} --><!-- /results {NAME} -->")
    run("--update", tmp_path / "README.md")
    assert "renewed" in capsys.readouterr().out and compare(committed, new).reproduced


def test_an_update_takes_over_figures_tables_and_the_readmes(committed, tmp_path):
    new = changed(committed, tmp_path / "new", 0.01)
    write_all(new)
    (new / ".unfinished.csv").write_text("")
    (committed / "minilm.png").write_bytes(b"stays")
    readme, other = tmp_path / "README.md", tmp_path / "results.md"
    readme.write_text("<!-- results ladder -->stays: one experiment has none<!-- /results ladder -->")
    other.write_text(f"# A\n<!-- results {NAME} -->\nold\n<!-- /results {NAME} -->\n")
    files = update(new, committed, [readme, other])
    names = {path.name for path in new.iterdir()} - {".unfinished.csv"}
    assert {path.name for path in files} == names | {"README.md", "results.md"} and f"accuracy_{NAME}.pdf" in names
    assert all((committed / name).read_bytes() == (new / name).read_bytes() for name in names)
    assert (new / f"table_{NAME}.md").read_text().strip() in other.read_text() and "old" not in other.read_text()
    assert "stays" in readme.read_text()
    assert (committed / "minilm.png").read_bytes() == b"stays"
    with pytest.raises(ValueError, match=f"README.md'.: none has <!-- results {NAME} -->"):
        update(new, committed, [readme])
