"""What tests of experiments share."""

import pytest


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Where the stages of a file's tests are kept."""
    return tmp_path_factory.mktemp("runs")
