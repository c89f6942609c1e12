"""Bars are shown unless the environment says not to."""

from lfpr.progress import bar


def test_bars_are_left_out_where_they_would_be_outputs(monkeypatch, capsys):
    for value, shown in (("1", False), ("0", True)):
        monkeypatch.setenv("TQDM_DISABLE", value)
        batches = [1, 2, 3]
        assert (bar(batches, "work") is batches) != shown
        assert list(bar(batches, "work")) == batches
        assert ("work" in capsys.readouterr().err) == shown
    assert bar(batches, None) is batches
