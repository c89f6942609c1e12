import numpy as np
import pytest
import small_sal as small


@pytest.fixture(scope="module")
def published():
    """The published implementation's numbers."""
    return np.load(small.REFERENCE / "sal_seed7.npz")


@pytest.fixture(scope="module")
def batch():
    """The batch that they are of."""
    return small.batch()
