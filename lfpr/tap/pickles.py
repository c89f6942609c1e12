"""NumPy files from outside, read without running anything: arrays, and pickled records by a restricted unpickler.

TAP publishes its annotations as object arrays, that is as pickles, and a pickle is a program.
`np.load(allow_pickle=True)` would run whatever a downloaded file says; here the header is parsed by NumPy and the
body admits NumPy arrays, dtypes and scalars, numbers, strings and plain containers only. Files by NumPy 1 and 2 and by
Python 2 (latin1) are read alike.
"""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from lfpr.files import WHERE, DataError, existing


class Refused(pickle.UnpicklingError):
    """A pickle asks for a name that is not admitted."""


class _NDArray:
    """Stands for the class `numpy.ndarray` in a pickle: an argument of `_reconstruct`, not to be called."""


def _reconstruct(_cls, shape, kind):
    return np.ndarray.__new__(np.ndarray, shape, kind)


def _dtype(spec, align=False, copy=False):
    return np.dtype(spec, align=bool(align), copy=bool(copy))  # old files say 0 and 1, which NumPy 2.4 warns about


def _frombuffer(buffer, dtype, shape, order, *_):
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order).copy()


def _encode(text, encoding="latin1"):
    if encoding.lower().replace("-", "").replace("_", "") not in {"latin1", "utf8", "ascii"}:
        raise Refused(f"text encoding {encoding!r}")
    return text.encode(encoding)


_MULTIARRAY = {"_reconstruct": _reconstruct, "scalar": np._core.multiarray.scalar}
_NUMERIC = {"_frombuffer": _frombuffer}
_BUILTINS = {
    t.__name__: t for t in (set, frozenset, complex, bytearray, bytes, list, dict, tuple, str, int, float, bool)
}
_BUILTINS |= {"long": int, "unicode": str}  # Python 2
ADMITTED = {
    "numpy": {"ndarray": _NDArray(), "dtype": _dtype},
    "numpy.core.multiarray": _MULTIARRAY,
    "numpy._core.multiarray": _MULTIARRAY,
    "numpy.core.numeric": _NUMERIC,
    "numpy._core.numeric": _NUMERIC,
    "collections": {"OrderedDict": OrderedDict},
    "_codecs": {"encode": _encode},
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,
}


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickler that resolves the names in `ADMITTED` and raises `Refused` for any other."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in ADMITTED.get(module, ()):
            raise Refused(f"the name {module}.{name}")
        return ADMITTED[module][name]


def load_npy(path: str | Path, what: str) -> np.ndarray:
    """The array in an `.npy` file; object arrays go through `RestrictedUnpickler`.

    `what` says what the file is, for messages. Raises FileNotFoundError for a missing file, and DataError for a
    truncated or foreign one and for a pickle that asks for anything but arrays, numbers, strings and plain containers.
    """
    path = existing(path, what)
    with path.open("rb") as file:
        try:
            version = npy.read_magic(file)
            read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
            shape, _, dtype = read_header(file)
            if not dtype.hasobject:
                file.seek(0)
                return npy.read_array(file, allow_pickle=False)
            array = RestrictedUnpickler(file, encoding="latin1").load()
            if not isinstance(array, np.ndarray) or array.size != np.prod(shape, dtype=np.int64):
                raise ValueError(f"header says shape {shape}, body holds {type(array).__name__}")
            return array.reshape(shape)
        except Refused as error:
            raise DataError(
                f"{path} ({what}) is refused: its pickle contains {error}; only NumPy arrays, numbers, strings and "
                "plain containers are read from outside files"
            ) from error
        except Exception as error:  # a broken pickle raises nearly anything
            raise DataError(
                f"{path} ({what}) is not a complete .npy file ({type(error).__name__}: {error}); get it again: {WHERE}"
            ) from error


def load_dict(path: str | Path, what: str) -> dict:
    """The dict in a `_info.npy` file (a pickled dict in a 0-dimensional object array). Raises as `load_npy`."""
    array = load_npy(path, what)
    if array.dtype != object or array.size != 1 or not isinstance(array.item(), dict):
        raise DataError(f"{path} ({what}): expected one dict, found an array of {array.dtype} of shape {array.shape}")
    return array.item()


def load_features(path: str | Path, what: str, width: int) -> np.ndarray:
    """Features [n, width] as float32 from an `.npy` file. As `load_npy`, and DataError for a wrong shape or NaN."""
    array = load_npy(path, what)
    if array.size == 0:  # an image without boxes, whatever shape its writer chose
        return np.zeros((0, width), np.float32)
    if array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[1] != width:
        raise DataError(
            f"{path} ({what}): expected numbers of shape [n, {width}], found {array.dtype} {list(array.shape)}; {WHERE}"
        )
    array = array.astype(np.float32, copy=False)
    broken = np.count_nonzero(~np.isfinite(array))
    if broken:
        raise DataError(f"{path} ({what}): {broken} numbers are NaN or infinite; {WHERE}")
    return array
