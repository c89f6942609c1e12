"""The tidy tables as files: digits, columns, and the same bytes for the same numbers."""

import numpy as np
import pandas as pd
import pytest
from small_tables import small_tables

from lfpr.paper.schema import DIGITS, TABLES, read, read_all, write_tables


def test_columns_are_written_with_the_digits_that_mean_something(tmp_path):
    row = {"experiment": "tap-textvqa", "score": 2 / 3, "minutes": 12345.678, "parameters": 4473601, "percent": 73.0}
    row |= {"retrained": np.True_, "constraint": 0.1 + 0.2, "megabytes": 1e-9 / 3, "iterations": -0.0, "extra": 1}
    (path,) = write_tables({"results": pd.DataFrame([row, {"experiment": "other"}])}, tmp_path)
    head, first, second = path.read_text().splitlines()
    assert head.split(",") == list(TABLES["results"])
    written = {name: cell for name, cell in zip(head.split(","), first.split(","), strict=True) if cell}
    assert written == {
        **{"experiment": "tap-textvqa", "constraint": "0.3", "retrained": "True", "score": "0.66667"},
        **{"parameters": "4473601", "percent": "73", "iterations": "0", "minutes": "12300", "megabytes": "3.333e-10"},
    }
    assert second.split(",") == ["other"] + [""] * (len(TABLES["results"]) - 1)
    assert set(DIGITS) <= {column for columns in TABLES.values() for column in columns}


def test_what_was_written_is_written_again_byte_by_byte(tmp_path):
    files = write_tables(small_tables(), tmp_path / "first")
    again = write_tables(read_all(tmp_path / "first"), tmp_path / "second")
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again] and len(files) == 4


def test_a_table_that_is_not_one_of_the_papers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="table 'result': must be one of"):
        write_tables({"result": pd.DataFrame()}, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"results\.csv: expected a table with the columns"):
        read(tmp_path, "results")


def test_columns_that_older_files_lack_are_empty(tmp_path):
    table = small_tables()["results"]
    table.drop(columns="delta_megabytes").to_csv(tmp_path / "results.csv", index=False)
    assert list(read(tmp_path, "results").columns) == list(TABLES["results"])
    assert read(tmp_path, "results").delta_megabytes.isna().all()
    table.drop(columns="megabytes").to_csv(tmp_path / "results.csv", index=False)
    with pytest.raises(ValueError, match=r"results\.csv has no column \['megabytes'\]"):
        read(tmp_path, "results")
