"""Tables as CSV, LaTeX and Markdown, and in the README."""

import pandas as pd
import pytest

from lfpr.paper.tables import update_readme, write_table


def test_written_tables(tmp_path):
    frame = pd.DataFrame({"a_b & c": ["1 ± 2 %", "x|y"]}, index=pd.Index(["p", "q"], name="Method"))
    csv, tex, markdown = write_table(frame, tmp_path, "t", "50 % of {all}")
    assert pd.read_csv(csv).to_numpy().tolist() == [["p", "1 ± 2 %"], ["q", "x|y"]]
    lines = tex.read_text().splitlines()
    assert (
        r"\caption{50 \% of \{all\}}" in lines and r"Method & a\_b \& c \\" in lines and r"p & 1 $\pm$ 2 \% \\" in lines
    )
    assert lines.index(r"\toprule") < lines.index(r"\midrule") < lines.index(r"\bottomrule")
    rows = [
        "| Method   | a_b & c   |",
        "|----------|-----------|",
        "| p        | 1 ± 2 %   |",
        r"| q        | x\|y      |",
    ]
    assert markdown.read_text().splitlines() == ["50 % of {all}", "", *rows]


def test_wide_tables_in_latex_have_stacked_heads_and_numbers_flush_right(tmp_path):
    columns = {"Peak memory (MB)": ["1,011", "–"], "Heads: top 40 % in common": ["< 0.1", "−2"], "ρ": ["1 ± 2", "a†"]}
    index = pd.Index(["a row with a long name", "b"], name="Row")
    lines = write_table(pd.DataFrame(columns, index=index), tmp_path, "t", "Title")[1].read_text().splitlines()
    assert lines[0] == r"\begin{table*}" and r"\begin{tabular}{lrrl}" in lines
    heads = r"\shortstack[r]{Peak\\memory\\(MB)} & \shortstack[r]{Heads:\\top 40~\%\\in common} & $\rho$ \\"
    assert rf"Row & {heads}" in lines and r"b & -- & $-$2 & a\dag{} \\" in lines


def test_readme_is_updated_between_its_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table -->\nold\n<!-- /table -->\nafter\n")
    for _ in range(2):
        update_readme(readme, "table", "| new |\n")
        assert readme.read_text() == "before\n<!-- table -->\n| new |\n<!-- /table -->\nafter\n"
    with pytest.raises(ValueError, match="<!-- figure -->"):
        update_readme(readme, "figure", "x")
    assert "new" in readme.read_text()
