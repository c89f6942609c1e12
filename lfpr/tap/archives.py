"""Files of `torch.save` from outside: what is in them is looked at before torch, or anybody, makes tensors of it.

`torch.load(weights_only=True)` runs no code of a file, but believes its sizes, inflates what is compressed, and hashes
whatever is a key.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import torch

from lfpr.tap.pickles import CarefulUnpickler, Refused, check_keys, ordered

CONFIG = "pythia.utils.configuration", "ConfigNode"
"""Published checkpoints hold, beside the weights, the training's configuration: a dict of a class of its own."""
MAGIC = b"PK\3\4"  # an archive; without it, pickles and then data, as torch wrote until 2020
PICKLES = 5  # of the older files: magic number, version, sizes of the machine, the object, names of its data
TIMES = 4  # how often, in all, a file's data may be in its tensors: weights are shared by two modules
DIMENSIONS = 64  # that a tensor can have
TENSORS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
PARAMETERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")  # the second, where one has attributes of its own
STATE = {
    "collections": ("OrderedDict", "Counter"),  # the second in the state of schedules
    "torch": ("Size", "device"),
    "torch._utils": (*TENSORS, *PARAMETERS),
    CONFIG[0]: CONFIG[1:],
}
"""Names in files of tensors, beside those of kinds of numbers."""
DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
}


def load_torch(path: str | Path) -> Any:
    """What `torch.load` makes of the file on the CPU, without running code. Raises what readers raise, of any kind."""
    check_torch(path)
    with torch.serialization.safe_globals([(OrderedDict, ".".join(CONFIG))]):
        return torch.load(path, map_location="cpu", weights_only=True)


def check_torch(path: str | Path) -> None:
    """ValueError, or what unpicklers raise, if the file claims to hold more than it does or has keys that are none."""
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            file.seek(0)
            *_, names = (Sizes(file, size, encoding="latin1").load() for _ in range(PICKLES))
            check_keys(names)  # torch looks them up
            return
        with open_archive(file, size) as archive:
            folder = object_folder(archive)
            with archive.open(f"{folder}data.pkl") as pickled:
                found = Sizes(pickled, size, encoding="latin1")
                found.load()
            for name, needed in found.storages.items():
                if archive.getinfo(f"{folder}data/{name}").file_size < needed:
                    raise ValueError(f"its data {name} are fewer than {needed} bytes")


def open_archive(file: IO[bytes], size: int) -> zipfile.ZipFile:
    """An archive of torch: nothing in it is compressed, and nothing is there twice."""
    archive = zipfile.ZipFile(file)
    entries = archive.infolist()
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not stored or len(set(archive.namelist())) < len(entries) or sum(entry.file_size for entry in entries) > size:
        raise ValueError("its archive is compressed, or holds more than there is")
    return archive


def object_folder(archive: zipfile.ZipFile) -> str:
    """Where in the archive `data.pkl` is."""
    (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    return name.removesuffix("data.pkl")


class StandIn:
    """Any object of a pickle that is not a tensor: it keeps its state and does nothing."""

    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    extend = add = append


class ObjectUnpickler(CarefulUnpickler):
    """Unpickler of torch's objects that makes a stand-in of everything but plain containers and tensors.

    Tensors are within their storages, in all not more than `TIMES` the `size` of the file.
    """

    def __init__(self, file: IO[bytes], size: int, **options: Any) -> None:
        super().__init__(file, **options)
        self.left = TIMES * size

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return ordered
        if module == "torch._utils" and name in TENSORS:
            return self._rebuild
        if module == "torch._utils" and name in PARAMETERS:
            return lambda tensor, *_: tensor
        return type(name, (StandIn,), {})

    def check_keys(self, keys: Any) -> None:
        """Stand-ins and their classes are equal to themselves alone."""
        check_keys(key for key in keys if not isinstance(key, type | StandIn))

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], StandIn | OrderedDict):
            raise Refused(f"a state of {type(self.stack[-2]).__name__}")
        super().load_build()

    dispatch = CarefulUnpickler.dispatch | {pickle.BUILD[0]: load_build}

    def _rebuild(self, storage: Any, offset: int, size: tuple, stride: tuple, *_: Any) -> Any:
        length, width = self.extent(storage)
        if len(size) > DIMENSIONS or min((*size, *stride, offset)) < 0:
            raise Refused(f"a tensor of {size!r:.80}")
        count, last = math.prod(size), offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if count > length or (count and last >= length):
            raise Refused(f"a tensor of {size} in {length} numbers")
        self.left -= count * width
        if self.left < 0:
            raise Refused(f"tensors of more than {TIMES} times its size")
        return self.tensor(storage, offset, size, stride)

    def extent(self, storage: Any) -> tuple[int, int]:
        """How many numbers are in what `persistent_load` returned, and the bytes of each."""
        return storage

    def tensor(self, storage: Any, offset: int, size: tuple, stride: tuple) -> Any:
        """The tensor; None where nobody asks for it."""


class _Kind(StandIn):
    """The class of a storage: a name, of which there are no objects."""

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        raise Refused(f"a {cls.__name__} of its own")


class Sizes(ObjectUnpickler):
    """Looks at a file of tensors: `storages`, name -> its bytes.

    Admits no other names than such files have: torch makes whatever it knows, of any size.
    """

    def __init__(self, file: IO[bytes], size: int, **options: Any) -> None:
        super().__init__(file, size, **options)
        self.size, self.total, self.storages = size, 0, {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.endswith("Storage"):
            return type(name, (_Kind,), {})
        if module == "torch" and isinstance(kind := vars(torch).get(name), torch.dtype):
            return kind
        if name in STATE.get(module, ()):
            return super().find_class(module, name)
        raise Refused(f"the name {module}.{name}")

    def persistent_load(self, key: tuple) -> tuple[int, int]:
        _, kind, name, _, length, *_ = key
        width = DTYPES[kind.__name__].itemsize if kind.__name__ in DTYPES else 1
        check_keys([name])
        known = self.storages.get(name, 0)
        self.storages[name] = max(length * width, known)
        self.total += self.storages[name] - known
        if length < 0 or self.total > self.size:
            raise Refused(f"{self.total} bytes of data in a file of {self.size}")
        return length, width
