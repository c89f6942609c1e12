"""Files made to run code, to hang, or to fill the memory, and what reads them; run by `test_hostile_files.py`.

`python tests/hostile_files.py FOLDER` makes and reads each of `CASES` in FOLDER and prints a line of JSON for it: its
name, "clear" or another kind of error, its text, and the peak of memory so far in MB over what it was at the start.
Memory and time are limited: what hangs or fills the memory ends the run.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import resource
import shutil
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
from numpy.lib import format as npy
from PIL import Image

from lfpr import released
from lfpr.clip.coco import COCOCaptions, batches
from lfpr.clip.processor import Processor
from lfpr.experiments.grid import load_grid
from lfpr.experiments.sentences import read_texts
from lfpr.files import SHIPPED
from lfpr.reading import LONGEST
from lfpr.sal.config import SaLConfig
from lfpr.sal.data import Features
from lfpr.sal.text import Pieces
from lfpr.tap.checkpoint import read_checkpoint
from lfpr.tap.config import TAPConfig
from lfpr.tap.data import read_labels
from lfpr.tap.layout import read_imdb
from lfpr.tap.pickles import load_dict, load_features
from lfpr.tap.text import AnswerVocab, WordPieces
from lfpr.tap.vectors import ARGUMENTS, ENTRIES, MAGIC, VERSION, FastText

SECONDS, MEGABYTES = 60, 500  # of the whole run: of the processor, and above what importing takes
CASES: dict[str, Callable[[Path], object]] = {}
"""Name -> makes a file in a folder of its own and reads it."""


def case(name: str, *made: object) -> Callable:
    def add(function: Callable) -> Callable:
        CASES[name] = lambda folder: function(folder, *made)
        return function

    return add


class Runs:
    """Unpickled by Python, it makes the folder `ran`."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


# ---- pickles

TUPLES = b")" + b"2\x86" * 60  # (), then (x, x) again and again: 2^60 objects to hash


def equal_hashes(count: int) -> bytes:
    """A dict whose keys are numbers that all hash to 0."""
    return b"}(" + b"".join(number(n * (2**61 - 1)) + b"K\x00" for n in range(1, count)) + b"u"


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def array(kind: bytes, state: bytes) -> bytes:
    """An array of NumPy whose dtype is of this kind, with this state."""
    new = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    dtype = b"cnumpy\ndtype\n(U" + bytes([len(kind)]) + kind + b"K\x00K\x01tR" + state
    return new + b"(K\x01(K\x01t" + dtype + b"I00\nU\x08ABCDEFGHtb"


FLAGS_OF_NUMBERS = b"(K\x03U\x01|NNN" + 2 * (b"J" + struct.pack("<i", -1)) + b"K\x00tb"
LONG_ITEMS = b"(K\x03U\x01<NNNJ" + struct.pack("<i", 1 << 30) + b"K\x01K\x00tb"
PICKLES = {
    "tuples of tuples as a key": b"}" + TUPLES + b"Ns",
    "tuples of tuples as keys": b"}(" + TUPLES + b"Nu",
    "tuples of tuples as a dict": b"(" + TUPLES + b"Nd",
    "tuples of tuples in a set": b"\x8f(" + TUPLES + b"\x90",
    "tuples of tuples in a frozen set": b"(" + TUPLES + b"\x91",
    "tuples of tuples in a set of Python 2": b"c__builtin__\nset\n(](" + TUPLES + b"etR",
    "tuples of tuples as an ordered key": b"ccollections\nOrderedDict\n(](](" + TUPLES + b"NeetR",
    "frozen sets as keys": b"}((\x91Nu",
    "numbers of equal hashes": equal_hashes(30_000),
    "addresses as objects": array(b"O8", FLAGS_OF_NUMBERS),
    "items larger than their kind": array(b"f8", LONG_ITEMS),
    "a dtype of parts": b"cnumpy\ndtype\n(}U\x05namesR" + b"]sK\x00K\x01tR",
    "a state of a function": b"cnumpy.core.multiarray\n_reconstruct\nN}U\x0c__defaults__N\x85s\x86b",
    "an array of 2^40 objects": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L1099511627776L\ntU\x01OtR",
    "2^36 zero bytes": b"c__builtin__\nbytearray\n(L68719476736L\ntR",
    "bytes of 2^40": b"\x8e" + struct.pack("<Q", 1 << 40) + b"x",
    "an array of 2^36 bytes": b"\x96" + struct.pack("<Q", 1 << 36) + b"x",
    "text of 2^40": b"\x8d" + struct.pack("<Q", 1 << 40) + b"x",
    "a frame of 2^40": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N",
    "a memo of 2^31": b"Nr" + struct.pack("<I", (1 << 31) - 1),
    "code": pickle.dumps(Runs(), 2)[:-1],
    "code by name": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09mkdir ran\x85R",
    "2^36 zero bytes of Python 3": b"cbuiltins\nbytearray\n(L68719476736L\ntR",
    "a tensor of 2^36 numbers": b"ctorch\nTensor\n(L262144L\nL262144L\ntR",
    "a storage of 2^36 numbers": b"ctorch\nFloatStorage\n(L68719476736L\ntR",
    "a tensor without data": b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\n(K\x02t(K\x01t\x89tR",
    "eval": b"c__builtin__\neval\n(U\x0fos.mkdir('ran')tR",
    "a persistent object": b"Pname\n",
    "an instance": b"(cos\nsystem\nU\x09mkdir rano",
}


def save_objects(path: Path, body: bytes) -> Path:
    with path.open("wb") as file:
        npy.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(b"\x80\x04" + body + b".")
    return path


def save_lmdb(path: Path, body: bytes) -> Path:
    with lmdb.open(str(path), 1 << 20, lock=False) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"x", b"\x80\x04" + body + b".")
    return path


def read_features(path: Path) -> tuple:
    return Features(path, "object features", SaLConfig())(["x"])


def save_torch(path: Path, body: bytes, data: dict[str, bytes] | None = None, **zipped: int) -> Path:
    with zipfile.ZipFile(path, "w", **zipped) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/version", "3\n")
        for name, content in (data or {}).items():
            archive.writestr(f"a/data/{name}", content)
    return path


def save_old_torch(path: Path, body: bytes, names: bytes = b"]") -> Path:
    start = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    parts = [pickle.dumps(part, 2) for part in start] + [b"\x80\x02" + part + b"." for part in (body, names)]
    path.write_bytes(b"".join(parts))
    return path


for title, pickled in PICKLES.items():
    case(f"npy, {title}", pickled)(lambda folder, body: load_dict(save_objects(folder / "x.npy", body), "x"))
    case(f"imdb, {title}", pickled)(lambda folder, body: read_imdb(save_objects(folder / "x.npy", body)))
    case(f"ckpt, {title}", pickled)(lambda folder, body: read_checkpoint(save_torch(folder / "x.ckpt", body)))
    case(f"old ckpt, {title}", pickled)(lambda folder, body: read_checkpoint(save_old_torch(folder / "x.ckpt", body)))
    case(f"mask, {title}", pickled)(lambda f, body: released.load_masks(save_torch(f / "x.pt", body), f / "x.pt"))
    case(f"module, {title}", pickled)(lambda folder, body: released.load_clip(save_torch(folder / "x.pt", body)))
    case(f"value, {title}", pickled)(lambda folder, body: read_features(save_lmdb(folder / "x.lmdb", body)))


def tensor(count: int, size: tuple, stride: tuple, name: str = "0") -> bytes:
    """A pickle of a dict of one tensor, its storage of `count` numbers."""
    storage = b"(" + b"".join(map(text, ("storage",))) + b"ctorch\nFloatStorage\n" + text(name) + text("cpu")
    storage += number(count) + b"tQ"
    shapes = b"".join(b"(" + b"".join(map(number, shape)) + b"t" for shape in (size, stride))
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + shapes + b"\x89"
    return b"}" + text("w") + rebuilt + b"ccollections\nOrderedDict\n)RtRs"


TENSORS = {
    "2^40 numbers of no data": (tensor(1 << 40, (1 << 40,), (1,)), {"0": b""}),
    "numbers beyond its data": (tensor(1 << 20, (1 << 20,), (1,)), {"0": bytes(64), "1": bytes(1 << 22)}),
    "one number 2^40 times": (tensor(1, (1 << 20, 1 << 20), (0, 0)), {"0": bytes(4)}),
    "a tensor larger than its data": (tensor(1, (1 << 40,), (1,)), {"0": bytes(4)}),
    "a million dimensions": (tensor(1, (1 << 62,) * 10_000, (1,) * 10_000), {"0": bytes(4)}),
    "compressed zeros": (tensor(1 << 28, (1 << 28,), (1,)), {"0": b"\0" * (1 << 26)}),
}
for title, (body, data) in TENSORS.items():
    options = {"compression": zipfile.ZIP_DEFLATED} if "compressed" in title else {}
    for kind, read in (("ckpt", read_checkpoint), ("module", released.load_clip), ("mask", released.load_masks)):

        @case(f"{kind}, {title}", body, data, options, read)
        def read_tensor(folder, body, data, options, read):
            return read(save_torch(folder / "x.pt", body, data, **options))


@case("ckpt, names of old data")
def old_names(folder):
    return read_checkpoint(save_old_torch(folder / "x.ckpt", b"}", b"](" + TUPLES + b"e"))


@case("ckpt, a tar")
def tar(folder):
    with tarfile.open(folder / "x.ckpt", "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    return read_checkpoint(folder / "x.ckpt")


# ---- headers


@case("npy, a shape of 2^50", (1 << 50,))
@case("npy, a shape of negative numbers", (-1, 5))
@case("npy, a shape that overflows", (1 << 40, 1 << 40))
def shape(folder, shape):
    with (folder / "x.npy").open("wb") as file:
        npy.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.write(bytes(40))
    return load_features(folder / "x.npy", "x", 5)


@case("npy, a header of 4 GB", b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b"(" * 5_000_000)
@case("npy, a deep header", b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10_000)
@case("npy, a header that calls", b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').mkdir('ran')   ")
@case("npy, an archive", None)
def header(folder, content):
    if content is None:
        with zipfile.ZipFile(folder / "x.npy", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", bytes(1 << 26))
    else:
        (folder / "x.npy").write_bytes(content)
    return load_features(folder / "x.npy", "x", 5)


@case("scores, a shape of 2^50")
def scores(folder):
    for name in ("head_grads.npy", "ffn_grads.npy"):
        with (folder / name).open("wb") as file:
            npy.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 50, 1, 1)})
    (folder / "tmax_q2.txt").write_text("1")
    return released.load_scores(folder)


def safetensors(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


WEIGHT = b'{"w":{"dtype":"F32","shape":[%s],"data_offsets":[0,%s]}}'


@case("safetensors, a header of 2^62", safetensors(b"{}", 1 << 62))
@case("safetensors, a header of 90 MB", safetensors(b"{}", 90_000_000))
@case("safetensors, a shape of 2^60", safetensors(WEIGHT % (b"1152921504606846976", b"4")) + bytes(4))
@case("safetensors, data of 2^60", safetensors(WEIGHT % (b"1152921504606846976", b"4611686018427387904")))
@case("safetensors, a deep header", safetensors(b"[" * 100_000))
def weights(folder, content):
    (folder / "x.safetensors").write_bytes(content)
    return read_checkpoint(folder / "x.safetensors")


def fasttext(entries: int, words: int, dim: int = 4, buckets: int = 8, body: bytes = b"") -> bytes:
    return (
        ARGUMENTS.pack(MAGIC, VERSION, dim, *[0] * 7, buckets, 3, 6, 0, 0.0)
        + ENTRIES.pack(entries, words, 0, 0, -1)
        + body
    )


@case("FastText, 2^31 words of nothing", fasttext((1 << 31) - 1, (1 << 31) - 1))
@case("FastText, 2^31 words, one again and again", fasttext((1 << 31) - 1, 2, body=(b"word\0" + bytes(9)) * 1000))
@case("FastText, vectors of no numbers", fasttext(0, 0, dim=0))
@case("FastText, fewer than no words", fasttext(0, -5))
@case("FastText, no buckets", fasttext(0, 0, buckets=0))
def vectors(folder, content):
    path = folder / "wiki.en.bin"
    path.write_bytes(content)
    os.truncate(path, 200 << 20)  # zeros that take no room
    return FastText(path)


# ---- YAML


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12))


@case("YAML, aliases that multiply", LAUGHS)
@case("YAML, merged aliases", MERGES)
@case("YAML, a list in itself", "default: &a [*a]")
@case("YAML, code", "default: !!python/object/apply:os.mkdir [ran]")
@case("YAML, a class", "default: !!python/name:os.system")
@case("YAML, a list as a key", "? [a, b]\n: c")
@case("YAML, a bad tag", "default: !!bool perhaps")
@case("YAML, no number", "default: !!int ''")
@case("YAML, deep", "[" * 5000)
@case("YAML, an unclosed text", 'default: "')
@case("YAML, a list", "[1, 2]")
@case("YAML, nothing", "")
@case("YAML, bytes", "\udcff\udcfe")
def grid(folder, content):
    (folder / "grid.yaml").write_bytes(content.encode(errors="surrogateescape"))
    return load_grid(f"{folder / 'grid.yaml'}:default")


# ---- JSON

EMPTY = b"[],"
NOISE = EMPTY * (4 * LONGEST // len(EMPTY))
GOOD = b'{"images": [{"id": 1, "file_name": "%s"}], "annotations": [{"id": 1, "image_id": 1, "caption": "x"}]}'
JSON = {
    "deep": b'{"images": ' + b"[" * 1_000_000,
    "deep objects": b'{"images": [' + b'{"a":' * 1_000_000,
    "an item of many lists": b'{"images": [[' + NOISE + b"[]]]}",
    "a value of many lists": b'{"info": {"a": [' + NOISE + b"[]]}}",
    "a text of 4 MB": b'{"images": [{"id": 1, "file_name": "' + b"a" * (4 * LONGEST),
    "a number of 4 MB": b'{"images": [{"id": ' + b"9" * (4 * LONGEST),
    "spaces": b" " * (4 * LONGEST),
    "a number of 5,000 digits": b'{"images": [{"id": ' + b"9" * 5000 + b"}]}",
    "half of it": GOOD[:40],
    "more after it": GOOD + b"{}",
    "a section twice": b'{"images": [], "images": []}',
    "a list": b"[]",
    "nothing": b"",
    "gzip": gzip.compress(GOOD),
    "UTF-16": GOOD.decode().encode("utf-16"),
    "a pickle": pickle.dumps(Runs()),
}


def write_coco(folder: Path, content: bytes) -> Path:
    (folder / "annotations").mkdir()
    (folder / "val2017").mkdir()
    (folder / "annotations/captions_val2017.json").write_bytes(content)
    return folder


def write_labels(folder: Path, content: bytes) -> Path:
    (folder / "labels.json").write_bytes(content)
    return folder / "labels.json"


for title, content in JSON.items():
    case(f"COCO, {title}", content)(lambda folder, made: COCOCaptions(write_coco(folder, made), "val"))
    case(f"labels, {title}", content)(lambda folder, made: read_labels(write_labels(folder, made)))
    if "many" not in title:  # read as COCO's
        case(f"texts, {title}", content)(lambda folder, made: read_texts(write_labels(folder, made)))


@case("COCO, 4 MB of lists and no images")
def noise(folder):
    return COCOCaptions(write_coco(folder, b'{"noise": [' + NOISE + b"[]]}"), "val")


for name in ("../../etc/passwd", "/etc/passwd", "//etc/passwd", "..", "", ".", "a/../../b", "a\\u0000b"):

    @case(f"COCO, an image at {name!r}", name)
    def traversal(folder, name):
        return COCOCaptions(write_coco(folder, GOOD % name.encode()), "val")


def objects(*rows: dict) -> bytes:
    made = np.empty(len(rows), object)
    made[:] = rows
    file = io.BytesIO()
    np.save(file, made)
    return file.getvalue()


ROW = {"image_id": 1, "question_id": 1, "question": "?", "image_width": 9, "image_height": 9}
for title, change in {
    "features elsewhere": {"feature_path": "../../x.npy"},
    "absolute features": {"feature_path": "/etc/x.npy"},
    "features of a number": {"feature_path": 7},
    "an image elsewhere": {"image_id": "../../x"},
    "an absolute image": {"image_id": "/x"},
}.items():

    @case(f"imdb, {title}", ROW | change)
    def paths(folder, row):
        (folder / "x.npy").write_bytes(objects(row))
        return read_imdb(folder / "x.npy")


# ---- images


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


@case("image, 13,000 x 13,000", lambda path: path.write_bytes(png(13_000, 13_000)))
@case("image, 1 x 1,000,000", lambda path: path.write_bytes(png(1, 1_000_000)))
@case(
    "image, a program in PostScript",
    lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
)
@case("image, a pipe", os.mkfifo)
@case("image, a device", lambda path: path.symlink_to("/dev/zero"))
@case("image, a loop", lambda path: path.symlink_to(path))
@case("image, a folder", Path.mkdir)
@case("image, nothing", Path.touch)
def image(folder, make):
    make(write_coco(folder, GOOD % b"a.png") / "val2017/a.png")
    return list(batches(COCOCaptions(folder, "val"), 1, Processor(SHIPPED / "clip-mscoco")))


# ---- text, and files that are none

READERS = {
    "answers": AnswerVocab,
    "pieces": WordPieces,
    "labels": read_labels,
    "vectors": FastText,
    "imdb": read_imdb,
    "checkpoint": read_checkpoint,
    "module": released.load_clip,
    "mask": lambda path: released.load_masks(path, path),
    "texts": read_texts,
    "tokenizer": Pieces,
    "features": read_features,
    "grid": lambda path: load_grid(f"{path}:default"),
}
for title, make in {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a loop": lambda path: path.symlink_to(path),
    "a folder": Path.mkdir,
    "nothing": Path.touch,
    "gzip": lambda path: path.write_bytes(gzip.compress(b"<pad>\n<s>\n</s>\n<unk>\n")),
    "bytes": lambda path: path.write_bytes(b"\xff\xfe\xfd" * 100),
}.items():
    for kind, read in READERS.items():

        @case(f"{kind}, {title}", make, read)
        def odd(folder, make, read):
            make(folder / "x")
            return read(folder / "x")


@case("T5's tokenizer, deep", "[" * 1_000_000)
@case("T5's tokenizer, none of its parts", "{}")
@case("T5's tokenizer, a model of a number", '{"version": "1.0", "added_tokens": [], "model": 3}')
@case(
    "T5's tokenizer, no unknown piece", '{"added_tokens": [], "model": {"type": "Unigram", "unk_id": 9, "vocab": []}}'
)
def tokenizer(folder, content):
    (folder / "tokenizer.json").write_text(content)
    return Pieces(folder)


def forged(offset: int, value: int) -> Callable[[bytearray], None]:
    """A change of a number of eight bytes in both of LMDB's first pages."""
    return lambda pages: [struct.pack_into("<Q", pages, start + offset, value) for start in (0, 4096)]


@case("LMDB, cut", lambda pages: pages.__delitem__(slice(len(pages) - 4096, None)))
@case("LMDB, a last page of 2^60", forged(16 + 128 - 8 - 8, 1 << 60))
@case("LMDB, a root at page 2^40", forged(16 + 24 + 48 + 40, 1 << 40))
@case("LMDB, pages of noise", lambda pages: pages.__setitem__(slice(8192, None), os.urandom(len(pages) - 8192)))
@case("LMDB, a value longer than the file", lambda pages: lengthen(pages))
def environment(folder, change):
    file = save_lmdb(folder / "x.lmdb", pickle.dumps({"features": np.ones((9, 2048), "f")})[2:-1]) / "data.mdb"
    pages = bytearray(file.read_bytes())
    change(pages)
    file.write_bytes(pages)
    return read_features(folder / "x.lmdb")


def lengthen(pages: bytearray) -> None:
    """The only value is on pages of its own; its length is in its node, before its key."""
    at = pages.index(b"\x01\x00\x01\x00x")  # flags, length of the key, key
    struct.pack_into("<I", pages, at - 4, 1 << 30)


@case("cfg.txt, deep", "[" * 1_000_000 + "\n[1]\n")
@case("cfg.txt, code", "__import__('os').mkdir('ran')\n[1]\n")
@case("cfg.txt, a number of 5,000 digits", f"[{'9' * 5000}]\n[1]\n")
def cfg(folder, content):
    (folder / "cfg.txt").write_text(content)
    return released.read_cfg(folder / "cfg.txt", TAPConfig(mmt_layers=1))


@case("CLIP's folder, deep", "config.json", "[" * 100_000)
@case("CLIP's folder, a list", "config.json", "[]")
@case("CLIP's folder, no tokenizer's tokens", "tokenizer.json", '{"model": 3}')
@case("CLIP's folder, a deep tokenizer", "tokenizer.json", "[" * 100_000)
@case("CLIP's folder, bytes", "preprocessor_config.json", "\udcff\udcfe")
@case("CLIP's folder, a list of settings", "preprocessor_config.json", "[1]")
@case("CLIP's folder, images of 10^9", "preprocessor_config.json", {"size": {"shortest_edge": 10**9}})
@case("CLIP's folder, text for a size", "preprocessor_config.json", {"size": {"shortest_edge": "64"}})
@case("CLIP's folder, no spread", "preprocessor_config.json", {"image_std": [0, 1, 1]})
@case("CLIP's folder, NaN", "preprocessor_config.json", {"image_mean": [float("nan")] * 3})
@case("CLIP's folder, one colour", "preprocessor_config.json", {"image_std": [1]})
@case("CLIP's folder, an unknown filter", "preprocessor_config.json", {"resample": 99})
@case("CLIP's folder, a factor of 0", "preprocessor_config.json", {"rescale_factor": 0})
def model_folder(folder, name, content):
    shutil.copytree(SHIPPED / "clip-mscoco", folder, dirs_exist_ok=True, ignore=lambda *_: ["model.safetensors"])
    if isinstance(content, dict):
        content = json.dumps(json.loads((folder / name).read_text()) | content)
    (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    return Processor(folder)


def main(root: Path) -> None:
    os.chdir(root)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30),) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS,) * 2)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, (name, run) in enumerate(CASES.items()):
        folder = root / str(number)
        folder.mkdir()
        try:
            run(folder)
            error, told = "", "read without a word"
        except Exception as raised:
            error, told = type(raised).__name__, str(raised)
            clear = isinstance(raised, ValueError | FileNotFoundError) and str(folder) in told
            error = "clear" if clear else error
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024
        print(json.dumps([name, error, told[:400], round(grown)]), flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
