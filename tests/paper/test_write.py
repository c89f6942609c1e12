"""All figures and tables of a folder: files, captions, errors, and the same bytes every time."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from small_tables import CLIP, NAME

from lfpr.paper.figures import kept_per_layer, save
from lfpr.paper.registry import items
from lfpr.paper.schema import read_all
from lfpr.paper.write import write_all

TABLES_OF_SCORES = (f"table_{NAME}", f"table_ladder_{NAME}", "table_comparison")


def test_write_all_twice_gives_the_same_bytes(folder, tmp_path):
    files = write_all(folder)
    stems = ("accuracy", "ladder", "kept", "importance", "mask_values")
    expected = {f"{stem}_{NAME}.{kind}" for stem in stems for kind in ("pdf", "png")} | {"captions.json"}
    expected |= {f"{stem}.{kind}" for stem in TABLES_OF_SCORES for kind in ("csv", "tex", "md")}
    assert {file.name for file in files} == expected
    first = [file.read_bytes() for file in files]
    assert all(first) and [file.read_bytes() for file in write_all(folder)] == first
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_captions_say_what_is_shown_and_of_how_much(folder):
    write_all(folder)
    captions = json.loads((folder / "captions.json").read_text())
    assert set(captions) == {path.stem for path in folder.glob("*") if path.suffix in (".png", ".md")}
    assert captions[f"accuracy_{NAME}"].startswith(
        "TAP, TextVQA (mini profile, 2,400 validation questions, up to 3 seeds): TextVQA accuracy (%) against MMT "
        "parameters kept (%), search by sum of importance; dashed"
    )
    assert (folder / f"table_{NAME}.md").read_text().splitlines()[0] == captions[f"table_{NAME}"]


def test_only_results_are_needed(folder):
    for name in ("layers", "importance", "mask_values"):
        (folder / f"{name}.csv").unlink()
    stems = {file.stem for file in write_all(folder)}
    assert stems == {f"accuracy_{NAME}", f"ladder_{NAME}", *TABLES_OF_SCORES, "captions"}


def test_a_failed_save_keeps_the_old_file(tables, tmp_path):
    figure = kept_per_layer(tables["layers"], NAME)
    pdf, _ = save(figure, tmp_path, "kept")
    old = pdf.read_bytes()
    figure.text(0, 0, "$\\nonsense$")
    with pytest.raises(ValueError, match="nonsense"):
        save(figure, tmp_path, "kept")
    assert pdf.read_bytes() == old and {path.name for path in tmp_path.iterdir()} == {"kept.pdf", "kept.png"}


def test_missing_table_or_column_is_named(folder, tables):
    tables["layers"].drop(columns="full_heads").to_csv(folder / "layers.csv", index=False)
    with pytest.raises(ValueError, match=r"layers\.csv has no column \['full_heads'\]"):
        write_all(folder)
    (folder / "layers.csv").write_text("")
    with pytest.raises(ValueError, match=r"layers\.csv is empty"):
        write_all(folder)
    (folder / "results.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"results\.csv"):
        write_all(folder)


def test_the_tables_at_hand_say_what_is_drawn(
    tmp_path, results, clip_results, importance, speeds, minutes, sensitivity, cascade, scales, scorings
):
    tables = {"results": pd.concat([results, clip_results]), "importance": importance, "speed": speeds}
    tables |= {
        "minutes": minutes,
        "sensitivity": sensitivity,
        "cascade": cascade,
        "scales": scales,
        "scoring": scorings,
    }
    for name, table in tables.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    found = list(items(read_all(tmp_path)))
    names = [name for name, _, _ in found]
    assert len(names) == len(set(names)) and all(caption.endswith(".") for _, caption, _ in found)
    assert set(names) == {
        *("overview", "speed", "scoring", "table_comparison", "table_agreement", "table_minutes", "table_speed"),
        *(f"{kind}_{NAME}" for kind in ("accuracy", "table", "threshold", "alternatives", "sampling")),
        *(f"{kind}_{NAME}" for kind in ("importance", "ranks")),
        *(f"{kind}_{CLIP}" for kind in ("accuracy", "table", "sensitivity", "scales")),
        *(f"{kind}_{name}" for kind in ("ladder", "table_ladder") for name in (NAME, CLIP)),
        *(f"table_{NAME}_threshold", f"table_{CLIP}_r10", f"table_{CLIP}_recall", f"table_{CLIP}_cascade"),
    }


def test_no_figure_is_left_open(folder):
    write_all(folder)
    assert not plt.get_fignums()
