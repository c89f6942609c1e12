"""NumPy files from outside, read without running anything: arrays, and pickled records by a restricted unpickler.

TAP publishes its annotations as object arrays, that is as pickles, and a pickle is a program.
`np.load(allow_pickle=True)` would run whatever a downloaded file says; here the header is parsed by NumPy and the
body admits NumPy arrays, dtypes and scalars, numbers, strings and plain containers only. Files by NumPy 1 and 2 and by
Python 2 (latin1) are read alike.

A pickle of plain values can do harm, too: dtypes that lie about their items, sizes that are not in the file, and keys
that take for ever to hash or to compare (tuples that hold each other twice, numbers of equal hashes). Hence Python's
own unpickler in place of C's, which nobody can look into: ten times as slow, some 10 s for TextVQA's questions.
"""

import io
import math
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from lfpr.files import WHERE, DataError, existing


class Refused(pickle.UnpicklingError):
    """A pickle asks for a name that is not admitted."""


def check_keys(keys: Iterable) -> None:
    """Refused unless keys of a dict, or members of a set, are text or numbers below 2^60, as those of data are."""
    for key in keys:
        number = isinstance(key, int | np.integer) and abs(int(key)) < 1 << 60
        if not (number or key is None or isinstance(key, str | bytes | float | np.floating)):
            raise Refused(f"a {type(key).__name__} as a key, or a number beyond 2^60")


def ordered(pairs: Iterable[tuple] = ()) -> OrderedDict:
    """`OrderedDict`, its keys checked."""
    pairs = list(pairs)
    check_keys(key for key, _ in pairs)
    return OrderedDict(pairs)


class CarefulUnpickler(pickle._Unpickler):
    """Unpickler whose work and memory are in proportion to the file, if `find_class` and `persistent_load` let it."""

    def check_keys(self, keys: Iterable) -> None:
        """Raises `Refused` for keys that may not be in a dict or set."""
        check_keys(keys)

    @staticmethod
    def _checked(code: bytes, keys: slice) -> Callable:
        run = pickle._Unpickler.dispatch[code[0]]

        def load(self) -> None:
            self.check_keys(self.stack[keys])
            run(self)

        return load

    def load_bytearray8(self) -> None:
        """Python's own makes room before it looks whether there are so many bytes."""
        (size,) = struct.unpack("<Q", self.read(8))
        data = self.read(size)
        if len(data) != size:
            raise EOFError(f"{len(data)} of {size} bytes")
        self.append(bytearray(data))

    dispatch = pickle._Unpickler.dispatch | {
        pickle.SETITEM[0]: _checked(pickle.SETITEM, slice(-2, -1)),
        pickle.SETITEMS[0]: _checked(pickle.SETITEMS, slice(0, None, 2)),
        pickle.DICT[0]: _checked(pickle.DICT, slice(0, None, 2)),
        pickle.ADDITEMS[0]: _checked(pickle.ADDITEMS, slice(None)),
        pickle.FROZENSET[0]: _checked(pickle.FROZENSET, slice(None)),
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }


class _NDArray:
    """Stands for the class `numpy.ndarray` in a pickle: an argument of `_reconstruct`, not to be called."""


def _reconstruct(_cls, _shape, _kind):
    return np.ndarray(0, np.uint8)  # what follows sets shape, dtype and data


def _dtype(spec, *_):
    if not isinstance(spec, str) or not re.fullmatch(r"[?biufcSUO]\d{0,9}", spec):
        raise Refused(f"the dtype {spec!r:.80}")
    return np.dtype(spec, copy=True)


def _scalar(dtype, data):
    if dtype.hasobject:
        raise Refused("a scalar of objects")
    return np._core.multiarray.scalar(dtype, data)


def _frombuffer(buffer, dtype, shape, order, *_):
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order).copy()


def _encode(text, encoding="latin1"):
    if encoding.lower().replace("-", "").replace("_", "") not in {"latin1", "utf8", "ascii"}:
        raise Refused(f"text encoding {encoding!r}")
    return text.encode(encoding)


def _members(kind: type) -> Callable:
    def make(members=()):
        members = list(members)
        check_keys(members)
        return kind(members)

    return make


def _bytes(kind: type) -> Callable:
    def make(data=b"", *encoding):
        if not isinstance(data, str | bytes):  # a number would be a size
            raise Refused(f"{kind.__name__} of a {type(data).__name__}")
        return kind(_encode(data, *encoding) if isinstance(data, str) else data)

    return make


_MULTIARRAY = {"_reconstruct": _reconstruct, "scalar": _scalar}
_NUMERIC = {"_frombuffer": _frombuffer}
_BUILTINS = {kind.__name__: _members(kind) for kind in (set, frozenset)}
_BUILTINS |= {kind.__name__: _bytes(kind) for kind in (bytes, bytearray)} | {"complex": complex}
ADMITTED = {
    "numpy": {"ndarray": _NDArray(), "dtype": _dtype},
    "numpy.core.multiarray": _MULTIARRAY,
    "numpy._core.multiarray": _MULTIARRAY,
    "numpy.core.numeric": _NUMERIC,
    "numpy._core.numeric": _NUMERIC,
    "collections": {"OrderedDict": ordered},
    "_codecs": {"encode": _encode},
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,
}


class RestrictedUnpickler(CarefulUnpickler):
    """Unpickler that resolves the names in `ADMITTED` and raises `Refused` for any other."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in ADMITTED.get(module, ()):
            raise Refused(f"the name {module}.{name}")
        return ADMITTED[module][name]

    def load_build(self) -> None:
        """Data of an array, or the byte order of a dtype, whose size and flags are to be its kind's: NumPy would take
        bytes of the file for addresses of objects."""
        state, made = self.stack.pop(), self.stack[-1]
        if type(made) is np.ndarray and isinstance(state[2], np.dtype):
            made.__setstate__(state)
        elif isinstance(made, np.dtype):
            *_, size, alignment, flags = np.dtype(made.str).__reduce__()[2]
            sizes = (size, alignment), (made.itemsize, made.alignment)
            if state[1] not in "<>|=" or state[2:] not in [(None, None, None, *known, flags) for known in sizes]:
                raise Refused("a dtype of parts, or unlike its kind")
            made.__setstate__(state)
        else:
            raise Refused(f"a state of {type(made).__name__}")

    dispatch = CarefulUnpickler.dispatch | {pickle.BUILD[0]: load_build}


def load_npy(path: str | Path, what: str, objects: bool = True) -> np.ndarray:
    """The array in an `.npy` file; object arrays go through `RestrictedUnpickler`, or are refused.

    `what` says what the file is, for messages. Raises FileNotFoundError for a missing file, and DataError for a
    truncated or foreign one and for a pickle that asks for anything but arrays, numbers, strings and plain containers.
    """
    path = existing(path, what)
    with _careful(path, what, ".npy file"), path.open("rb") as file:
        version = npy.read_magic(file)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, _, dtype = read_header(file)
        if not dtype.hasobject:
            needed, there = math.prod(shape) * dtype.itemsize, path.stat().st_size - file.tell()
            if min(shape, default=0) < 0 or needed > there:  # NumPy makes room first
                raise ValueError(f"an array of {shape} needs {needed} bytes, {there} are there")
            file.seek(0)
            return npy.read_array(file, allow_pickle=False)
        if not objects:
            raise ValueError("it holds objects, expected numbers")
        array = RestrictedUnpickler(file, encoding="latin1").load()
        if not isinstance(array, np.ndarray) or array.size != np.prod(shape, dtype=np.int64):
            raise ValueError(f"header says shape {shape}, body holds {type(array).__name__}")
        return array.reshape(shape)


def load_pickle(data: bytes, name: str, what: str) -> Any:
    """What a pickle holds, by `RestrictedUnpickler`; `name` says where it is from, `what` what it is. Raises DataError
    as `load_npy`."""
    with _careful(name, what, "pickle"):
        return RestrictedUnpickler(io.BytesIO(data), encoding="latin1").load()


@contextmanager
def _careful(name: str | Path, what: str, form: str) -> Iterator[None]:
    """Within it, whatever an unpickler raises is DataError naming the file."""
    try:
        yield
    except Refused as error:
        raise DataError(
            f"{name} ({what}) is refused: its pickle contains {error}; only NumPy arrays, numbers, strings and "
            "plain containers with plain keys are read from outside files"
        ) from error
    except Exception as error:  # a broken pickle raises nearly anything
        raise DataError(
            f"{name} is not a complete {form} ({what}; {type(error).__name__}: {error}); get it again: {WHERE}"
        ) from error


def load_dict(path: str | Path, what: str) -> dict:
    """The dict in a `_info.npy` file (a pickled dict in a 0-dimensional object array). Raises as `load_npy`."""
    array = load_npy(path, what)
    if array.dtype != object or array.size != 1 or not isinstance(array.item(), dict):
        raise DataError(f"{path} ({what}): expected one dict, found an array of {array.dtype} of shape {array.shape}")
    return array.item()


def load_features(path: str | Path, what: str, width: int) -> np.ndarray:
    """Features [n, width] as float32 from an `.npy` file. Raises as `load_npy` and `as_features`."""
    return as_features(load_npy(path, what, objects=False), path, what, width)


def as_features(array: Any, name: str | Path, what: str, width: int) -> np.ndarray:
    """Features [n, width] as float32, of `what`, from `name`. Raises DataError for a wrong shape or NaN."""
    array = np.asarray(array)
    if array.size == 0:  # an image without boxes, whatever shape its writer chose
        return np.zeros((0, width), np.float32)
    if array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[1] != width:
        raise DataError(
            f"{name} ({what}): expected numbers of shape [n, {width}], found {array.dtype} {list(array.shape)}; {WHERE}"
        )
    array = array.astype(np.float32, copy=False)
    broken = np.count_nonzero(~np.isfinite(array))
    if broken:
        raise DataError(f"{name} ({what}): {broken} numbers are NaN or infinite; {WHERE}")
    return array
