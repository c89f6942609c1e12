"""Bars are shown unless the environment says not to."""

import pytest

from lfpr.progress import bar, told


def test_bars_are_left_out_where_they_would_be_outputs(monkeypatch, capsys):
    for value, shown in (("1", False), ("0", True)):
        monkeypatch.setenv("TQDM_DISABLE", value)
        batches = [1, 2, 3]
        assert (bar(batches, "work") is batches) != shown
        assert list(bar(batches, "work")) == batches
        assert ("work" in capsys.readouterr().err) == shown
    assert bar(batches, None) is batches


def test_a_listener_gets_what_a_bar_would_show():
    heard = []
    with told(lambda *report: heard.append(report)):
        assert list(bar(["a", "b"], "read")) == ["a", "b"]
        assert list(bar(iter("c"), "train", total=3, initial=2)) == ["c"]
        assert list(bar("d", None)) == ["d"]
    assert heard == [("read", 0, 2), ("read", 1, 2), ("read", 2, 2), ("train", 2, 3), ("train", 3, 3)]
    assert bar(batches := ["a"], None) is batches


def test_nobody_listens_after_an_error():
    heard = []
    with pytest.raises(ValueError, match="stop"), told(lambda *report: heard.append(report)):
        raise ValueError("stop")
    assert list(bar(["a"], "read")) == ["a"] and not heard
