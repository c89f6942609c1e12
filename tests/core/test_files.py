"""Files and checks that all rooms share."""

import json

import pytest

from lfpr import files
from lfpr.checks import check_choice, check_percentile


def test_the_checkout_is_known_and_an_installation_has_none(tmp_path, monkeypatch):
    root = files.checkout()
    assert root is not None and (root / "pyproject.toml").is_file() and (root / "lfpr" / "files.py").is_file()
    monkeypatch.setattr(files, "__file__", str(tmp_path / "site-packages" / "lfpr" / "files.py"))
    assert files.checkout() is None


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a" / "b.json"
    files.write_json(path, {"b": 1, "a": [0.5]})
    with pytest.raises(TypeError):
        files.write_json(path, {"b": object()})
    assert json.loads(path.read_text()) == {"b": 1, "a": [0.5]} and [p.name for p in path.parent.iterdir()] == [
        path.name
    ]


def test_what_is_no_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a is missing \(answers\); see data/README\.md"):
        files.existing(tmp_path / "a", "answers")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(FileNotFoundError, match="loop is missing"):
        files.existing(tmp_path / "loop", "answers")
    with pytest.raises(files.DataError, match=r"\(answers\) is a folder, no file"):
        files.existing(tmp_path, "answers")
    with pytest.raises(files.DataError, match=r"/dev/null \(answers\) is a pipe or a device, no file"):
        files.existing("/dev/null", "answers")
    for path in (None, 5, b"x", ["a"]):
        with pytest.raises(ValueError, match="answers: expected a path, found"):
            files.existing(path, "answers")


def test_choices_and_percentiles_are_named():
    check_choice("method", "a", ("a", "b"))
    with pytest.raises(ValueError, match=r"method = 'c': must be one of \['a', 'b'\]"):
        check_choice("method", "c", ("a", "b"))
    check_percentile(0)
    for percentile in (-1, 100, float("nan")):
        with pytest.raises(ValueError, match=f"percentile = {percentile}: must be in"):
            check_percentile(percentile)
