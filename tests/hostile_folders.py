"""Saved folders, masks and deltas that someone damaged or made up, and what loading each of them says.

Run as a script, it loads all of them with 500 MB more of memory than the imports and one model took, without a network,
other processes and pickles, and prints what was raised, as JSON by the name of the case.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import small_models
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import lfpr
from lfpr.tap.model import TAP, TAPConfig

MEGABYTES = 500
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "pickle.find")
Edit = Callable[[Path], object]
WEIGHTS = "model.safetensors"
HUGE, NOT_COUNTS = 10**9, (10**9, 10**30, -1, 0, 1.5, "48", None, True, [48], {})


def change(file: str, path: str, value: Any) -> Edit:
    """Puts a value, by the names on the way to it, in a JSON file."""

    def edit(folder: Path) -> None:
        whole = here = json.loads((folder / file).read_text())
        *way, last = path.split("/")
        for name in way:
            here = here[name]
        here[last] = value
        (folder / file).write_text(json.dumps(whole))

    return edit


def whole(file: str, content: str | bytes) -> Edit:
    """Replaces a file."""
    return lambda folder: (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def header(make: Callable[[dict], object]) -> Edit:
    """Changes the header of the safetensors file in place, or replaces it by what `make` returns."""

    def edit(folder: Path) -> None:
        raw = (folder / WEIGHTS).read_bytes()
        (size,) = struct.unpack("<Q", raw[:8])
        names = json.loads(raw[8 : 8 + size])
        text = json.dumps(make(names) or names).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])

    return edit


def tensors(make: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Edit:
    """Writes other tensors."""
    return lambda folder: save_file(make(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def instead(file: str, make: Callable[[Path], object]) -> Edit:
    """Puts something that is no file in the place of one."""

    def edit(folder: Path) -> None:
        (folder / file).unlink()
        make(folder / file)

    return edit


def first(names: dict) -> dict:
    return names[next(name for name in names if name != "__metadata__")]


def named(names: dict, name: str) -> None:
    names[name] = names.pop(next(name for name in names if name != "__metadata__"))


def numbered(count: int) -> bytes:
    """A safetensors file of so many empty tensors."""
    text = json.dumps({str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(count)}).encode()
    return struct.pack("<Q", len(text)) + text


def cases() -> Iterator[tuple[str, str, Edit, str]]:
    """Name, the folder that is edited, how, and a part of what is said."""
    for value in ("org/kernel", "org/kernel@main:f", "flash_attention_2", "x", 3, ["org/kernel"], {"": "org/kernel"}):
        for key in ("attn_implementation", "_attn_implementation", "_experts_implementation"):
            yield f"{key} = {value}", "bert", change("config.json", key, value), "must be one of ['eager', 'sdpa'"
        where = "pruning.json: attn_implementation"
        yield f"pruned {value}", "bert", change("pruning.json", "attn_implementation", value), where
    remote = {"AutoModel": "org/code--m.C", "AutoConfig": "org/code--m.C"}
    yield "auto_map", "bert", change("config.json", "auto_map", remote), "config.json: auto_map = "
    for folder, part in (("clip", "text_config"), ("clip", "vision_config"), ("pair", "encoder"), ("pair", "decoder")):
        for key, value, said in (
            ("attn_implementation", "org/kernel", "must be one of ['eager'"),
            ("_attn_implementation_internal", "org/kernel", "must be one of ['eager'"),
            ("auto_map", remote, "names code outside transformers"),
            ("dtype", "load", "must be a dtype of PyTorch"),
            ("hidden_size", HUGE, "more than the tensors say"),
            ("num_hidden_layers", HUGE, "must be at most"),
            ("intermediate_size", HUGE, "more than the tensors say"),
        ):
            yield f"{part}.{key} = {value}", folder, change("config.json", f"{part}/{key}", value), said
        for value in ("x", [1], None, 3):
            said = "" if value is None else "builds no"  # None stands for the usual sizes
            yield f"{part} = {value}", folder, change("config.json", part, value), said
    for value, said in (("os", "builds no"), ("timm_backbone", "names code outside"), ("gpt2", "the model has")):
        yield f"model_type = {value}", "pair", change("config.json", "decoder/model_type", value), said
    for value in ("load", "os.system", "float33", "__doc__"):
        for key in ("dtype", "torch_dtype"):
            yield f"{key} = {value}", "bert", change("config.json", key, value), "must be a dtype of PyTorch"
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    for key in (*sizes, "max_position_embeddings", "type_vocab_size"):
        for value in NOT_COUNTS:
            yield f"{key} = {value}", "bert", change("config.json", key, value), ""
    yield "num_labels", "bert", change("config.json", "num_labels", HUGE), "config.json: num_labels = 1000000000"
    for key in ("dim", "n_layers", "max_position_embeddings", "vocab_size"):
        for value in (10**5, HUGE):  # with a table that is computed in Python
            sinusoidal = change("config.json", "sinusoidal_pos_embds", True)
            both = [change("config.json", key, value), sinusoidal]
            yield f"sinusoidal {key} = {value}", "distilbert", lambda at, both=both: [one(at) for one in both], ""
    for key in ("hidden_size", "image_size", "patch_size", "num_channels", "num_hidden_layers"):
        for value in (10**6, HUGE, "x"):
            yield f"vit {key} = {value}", "vit", change("config.json", key, value), "config.json: "
    for key in ("text_layers", "mmt_layers", "text_vocab_size", "num_answers", "hidden_size", "intermediate_size"):
        for value in (HUGE, -1, "x", None):
            yield f"tap {key} = {value}", "tap", change("config.json", key, value), "config.json: "
    yield "tap unknown", "tap", change("config.json", "code", "os"), "TAPConfig has no field ['code']"

    for value in (None, True, 1.0, "1", 2, [], {}):
        yield f"format = {value}", "bert", change("pruning.json", "format", value), "pruning.json: format "
    for key in ("library", "class"):
        for value in (None, 3, [], {}, "os.system", "__class__", "AutoModel", "Trainer", "x" * 10**6):
            yield f"{key} = {value!s:.20}", "bert", change("pruning.json", key, value), "cannot build the class"
    for value in ("PreTrainedModel", "TimmBackbone", "TimmWrapperModel", "RagModel", "GPT2Model", "BertForMaskedLM"):
        yield f"class = {value}", "bert", change("pruning.json", "class", value), ".json"
    sizes = {"heads": [4, 4, 4], "neurons": [40, 40, 40]}
    for value in (None, [], 3, "x", {"a": 3}, {"encoder.layer": {}}, {"encoder.layer": {"heads": [4, 4, 4]}}):
        yield f"parts = {value}", "bert", change("pruning.json", "parts", value), "must be lists of heads and neurons"
    for path in ("../x", "", "embeddings", "encoder.layer.0", "encoder"):
        yield (
            f"parts of {path}",
            "bert",
            change("pruning.json", "parts", {path: sizes}),
            "the model has ['encoder.layer']",
        )
    for name in sizes:
        for value in (-1, 41, 10**30, True, 1.5, "4", None, [4], {}):
            edit = change("pruning.json", f"parts/encoder.layer/{name}", [value, 4, 4])
            yield f"{name} {value}", "bert", edit, f"parts.encoder.layer.{name}[0] = "
        for value in ([], [4], [4] * 4, [4] * 10**6, {}, "444"):
            edit = change("pruning.json", f"parts/encoder.layer/{name}", value)
            yield f"all {name} {value!s:.20}", "bert", edit, "pruning.json: parts"
    drop = "encoder.layer.0.attention.self.dropout.p"
    for path, value in (
        *((path, None) for path in ("encoder.layer.0", "forward", "__class__", "_modules", "config", "", ".", "a.b")),
        *((drop, value) for value in ("x", True, [1], {})),
        *(("pooler", value) for value in (3, "x", {}, [])),
        ("forward", 3),
        ("state_dict", "x"),
        ("x" * 10**6, 1),
    ):
        edit = change("pruning.json", "attributes", {path: value})
        yield f"{path:.40} = {value!s:.20}", "bert", edit, "cannot have that"
    for path in ("embeddings.word_embeddings.num_embeddings", "pooler.dense.out_features"):
        edit = change("pruning.json", "attributes", {path: 10**12})
        yield f"{path} of 10¹²", "bert", edit, "of another shape"
    for value in ([], 3, "x", None):
        yield (
            f"attributes = {value}",
            "bert",
            change("pruning.json", "attributes", value),
            "must be values by their paths",
        )

    for file in ("config.json", "pruning.json"):
        for what, content in {
            "empty": "",
            "null": "null",
            "list": "[]",
            "number": "3",
            "not UTF-8": b"\xff\xfe{}",
            "twice": '{"a": 1, "a": 2}',
            "NaN": '{"a": NaN}',
            "infinity": '{"a": -Infinity}',
            "deep list": "[" * 10**5,
            "deep object": '{"a":' * 10**5,
            "long": " " * 9 * 2**20,
            "digits": '{"a": ' + "9" * 10**5 + "}",
            "two": "{} {}",
            "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        }.items():
            yield f"{file}: {what}", "bert", whole(file, content), f"{file} is not "
        deep = '{"a": ' * 900 + "1" + "}" * 900
        yield f"{file}: 900 deep", "bert", whole(file, deep), ".json"
        yield f"{file}: no names", "bert", whole(file, "{}"), ".json"
    for what, content in {
        "empty": b"",
        "seven bytes": b"1234567",
        "huge header": struct.pack("<Q", 2**63),
        "header of a terabyte": struct.pack("<Q", 2**40) + b"{}",
        "header of 99 MB": struct.pack("<Q", 99 * 10**6) + b"{}",
        "long header": struct.pack("<Q", 2**23) + b"{" + b" " * (2**23 - 2) + b"}",
        "deep header": struct.pack("<Q", 5 * 10**5) + b'{"a":' * 10**5,
        "zip": b"PK\3\4" * 100,
        "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    }.items():
        yield f"{WEIGHTS}: {what}", "bert", whole(WEIGHTS, content), f"{WEIGHTS} is not a complete safetensors file"
    for what, make in {
        "shape of 2¹²⁴": lambda names: first(names).update(shape=[2**62, 2**62]),
        "negative shape": lambda names: first(names).update(shape=[-1]),
        "far offset": lambda names: first(names).update(data_offsets=[0, 2**60]),
        "unknown dtype": lambda names: first(names).update(dtype="X"),
        "list": lambda names: [1],
    }.items():
        yield f"{WEIGHTS}: {what}", "bert", header(make), f"{WEIGHTS} is not a complete safetensors file"
    yield "other integers", "bert", header(lambda names: first(names).update(dtype="I32")), "1 tensors of another kind"
    yield "a path as a name", "bert", header(lambda names: named(names, "../../x")), "1 tensors unknown: ['../../x']"
    yield "many tensors", "bert", whole(WEIGHTS, numbered(50_000)), "50000 tensors unknown"
    for dtype in (torch.int64, torch.bool, torch.complex64, torch.uint8):
        cast = tensors(lambda found, dtype=dtype: {name: value.to(dtype) for name, value in found.items()})
        yield f"weights of {dtype}", "bert", cast, "tensors of another kind"
    positions = "embeddings.position_ids"
    for what, extra, said in (
        ("extra", {"x": torch.ones(1)}, "1 tensors unknown: ['x']"),
        ("short buffer", {positions: torch.arange(10)[None]}, "1 tensors of another shape"),
        ("float buffer", {positions: torch.ones(1, 40)}, "1 tensors of another kind"),
    ):
        yield what, "bert", tensors(lambda found, extra=extra: found | extra), said
    yield "no tensors", "bert", tensors(lambda found: {}), "tensors missing"
    for file in ("config.json", "pruning.json", WEIGHTS):
        yield f"{file}: a folder", "bert", instead(file, Path.mkdir), f"no file {{folder}}/{file}"
        yield f"{file}: a loop", "bert", instead(file, lambda at: at.symlink_to(at)), f"no file {{folder}}/{file}"
        yield f"{file}: a pipe", "bert", instead(file, os.mkfifo), f"no file {{folder}}/{file}"
        yield (
            f"{file}: a device",
            "bert",
            instead(file, lambda at: at.symlink_to("/dev/zero")),
            f"no file {{folder}}/{file}",
        )
        yield f"{file}: gone", "bert", instead(file, lambda at: None), f"no file {{folder}}/{file}"


def single_files() -> Iterator[tuple[str, Callable[[Path], object], str]]:
    """Files that are neither masks nor deltas: name, what writes them, and a part of what is said."""
    masks = {"heads": torch.ones(3, 4), "neurons": torch.ones(3, 40)}
    complete = "is not a complete safetensors file"
    for what, content in {"empty": b"", "huge": b"\xff" * 100, "zip": b"PK\3\4" * 9, "many": b"\0" * 7}.items():
        yield what, lambda path, content=content: path.write_bytes(content), complete
    yield "long header", lambda path: path.write_bytes(struct.pack("<Q", 2**23) + b" " * 2**23), complete
    yield "a folder", Path.mkdir, "no file"
    yield "a pipe", os.mkfifo, "no file"
    yield "a loop", lambda path: path.symlink_to(path), "no file"
    yield "gone", lambda path: None, "no file"
    yield "no metadata", lambda path: save_file(masks, path), "x.safetensors "
    for what, heads, neurons in (
        ("one dimension", torch.ones(3), torch.ones(3)),
        ("other layers", torch.ones(2, 4), torch.ones(3, 40)),
    ):
        for kind in ("Masks", "delta"):
            prefix = "masks." if kind == "delta" else ""
            pair = {f"{prefix}heads": heads, f"{prefix}neurons": neurons}
            yield (
                f"{kind}: {what}",
                lambda path, p=pair, k=kind: save_file(p, path, metadata={"kind": k}),
                "x.safetensors",
            )
    for what, edit in {
        "another width": {"masks.heads": torch.ones(3, 5)},
        "NaN": {"masks.heads": torch.full((3, 4), torch.nan)},
        "unknown": {"../x": torch.ones(1)},
        "integers": {"pooler.dense.bias": torch.ones(48, dtype=torch.int64)},
        "shape": {"pooler.dense.bias": torch.ones(1)},
        "value": {"pooler.dense.bias": torch.ones(48)},
    }.items():
        pair = {f"masks.{name}": value for name, value in masks.items()} | edit
        yield f"delta: {what}", lambda path, p=pair: save_file(p, path, metadata={"kind": "delta"}), "x.safetensors"


def folders(root: Path) -> None:
    """The models that are damaged, saved as they are."""
    decoder = hf.BertConfig(**small_models.BERT, is_decoder=True, add_cross_attention=True)
    pair = hf.EncoderDecoderConfig.from_encoder_decoder_configs(hf.BertConfig(**small_models.BERT), decoder)
    tap = TAPConfig(text_layers=1, mmt_layers=2, text_vocab_size=50, num_answers=9, hidden_size=24, num_heads=3)
    models = {name: small_models.build(name) for name in ("bert", "distilbert", "vit")}
    models |= {"clip": small_models.reference_clip(), "pair": hf.EncoderDecoderModel(pair), "tap": TAP(tap)}
    for name, model in models.items():
        lfpr.save_pruned(model, root / name)


def main(root: Path) -> None:
    hf.logging.set_verbosity_error()
    torch.set_num_threads(1)
    folders(root)
    unpruned = lfpr.load_pruned(root / "bert")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEGABYTES * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    before, used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    sys.addaudithook(lambda event, args: used.append(event) if event.startswith(FORBIDDEN) else None)
    found = {}

    def note(name: str, load: Callable[[], object]) -> None:
        started = time.process_time()
        try:
            said = ["nothing", type(load()).__name__]
        except BaseException as error:
            said = [type(error).__name__, str(error)]
        found[name] = [*said, time.process_time() - started]

    folder = root / "x"
    for name, source, edit, _ in cases():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(root / source, folder)
        edit(folder)
        note(name, lambda: lfpr.load_pruned(folder))
    for name, write, _ in single_files():
        path = root / "file" / "x.safetensors"
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        write(path)
        note(f"masks: {name}", partial(lfpr.Masks.load, path))
        note(f"delta: {name}", partial(lfpr.load_delta, unpruned, path))
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"found": found, "used": used, "megabytes": more}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
