"""The rooms of the package: what `import lfpr` loads, and that imports point one way."""

import ast
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lfpr

PACKAGE = Path(lfpr.__file__).parent
RANKS = {  # room -> its rank: a file may import its own room and rooms of lower rank
    "core": 0,
    "latency": 1,
    "training": 1,
    "tap": 2,
    "clip": 2,
    "sal": 3,
    "released": 4,
    "mini": 4,
    "experiments": 5,
    "paper": 6,
}
HEAVY = ("pandas", "matplotlib", "transformers", "scipy", "accelerate", "torch._dynamo")
MODULES = {
    ".".join(("lfpr", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path.read_text()
    for path in sorted(PACKAGE.rglob("*.py"))
}


def room(module: str) -> str:
    """The room of a module; the package itself, which names all rooms, is core."""
    first = module.split(".")[1] if "." in module else ""
    return first if first in RANKS else "core"


def imported(module: str, source: str, modules: dict[str, str], running: bool = False) -> Iterator[str]:
    """The modules of the package that the syntax tree of `module` imports: anywhere, inside functions and under
    TYPE_CHECKING too, or if `running` only those that importing it loads."""
    package = module if any(name.startswith(f"{module}.") for name in modules) else module.rpartition(".")[0]

    def known(name: str) -> str:
        while name not in modules:
            name = name.rpartition(".")[0]
        return name

    def visit(node: ast.AST) -> Iterator[str]:
        if running and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if running and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        else:
            names = []
        yield from (known(name) for name in names if name.split(".")[0] == "lfpr")
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return visit(ast.parse(source))


def offences(modules: dict[str, str]) -> list[str]:
    """Imports that do not point from a room to itself or to a lower one."""
    return [
        f"{module} ({own}) imports {name} ({other})"
        for module, source in modules.items()
        for name in dict.fromkeys(imported(module, source, modules))
        if (own := room(module)) != (other := room(name)) and RANKS[other] >= RANKS[own]
    ]


def cycles(modules: dict[str, str]) -> list[list[str]]:
    """Circles of modules that import each other while they are loaded."""
    graph = {name: set(imported(name, source, modules, running=True)) - {name} for name, source in modules.items()}
    done, found = set(), []

    def walk(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for other in sorted(graph[name]):
                walk(other, [*path, name])
            done.add(name)

    for name in graph:
        walk(name, [])
    return found


def test_imports_point_one_way():
    found = offences(MODULES)
    assert not found, "\n" + "\n".join(found)


def test_no_modules_import_each_other():
    assert cycles(MODULES) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lfpr.made_up", "from lfpr.tap.model import TAP"),
        ("lfpr.made_up", "def f():\n    import lfpr.experiments.runs"),
        ("lfpr.made_up", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lfpr import released"),
        ("lfpr.made_up", "import importlib\nimportlib.import_module('lfpr.paper')"),
        ("lfpr.made_up", "from .latency import cost"),
        ("lfpr.tap.made_up", "from lfpr.clip import coco"),
        ("lfpr.tap.made_up", "from lfpr.sal import config"),
        ("lfpr.tap.made_up", "from ..released.tap import load_tap"),
        ("lfpr.latency.made_up", "from lfpr.training.retrain import ReSt"),
        ("lfpr.released.made_up", "def f():\n    from lfpr.mini import scenes"),
        ("lfpr.mini.made_up", "from lfpr.released import load_masks"),
        ("lfpr.experiments.made_up", "class A:\n    def f(self):\n        from lfpr.paper import figures"),
    ],
)
def test_an_import_the_wrong_way_is_seen(module, source):
    extra = [offence for offence in offences(MODULES | {module: source}) if offence.startswith(f"{module} (")]
    assert len(extra) == 1


def test_allowed_imports_are_no_offence():
    for module, source in (
        ("lfpr.made_up", "import torch\nfrom lfpr.search import search"),
        ("lfpr.latency.made_up", "from lfpr import masks"),
        ("lfpr.released.made_up", "from lfpr.clip.coco import check\nfrom lfpr.tap import model"),
        ("lfpr.paper.made_up", "from lfpr.experiments import runs\nfrom lfpr.paper import write"),
    ):
        assert not [offence for offence in offences(MODULES | {module: source}) if offence.startswith(f"{module} (")]


def test_a_circle_is_seen():
    made_up = {"lfpr": "", "lfpr.a": "from lfpr import b", "lfpr.b": "from lfpr.a import f"}
    assert cycles(made_up) == [["lfpr.a", "lfpr.b", "lfpr.a"]]
    made_up["lfpr.b"] = "def g():\n    from lfpr.a import f"
    assert cycles(made_up) == []


def test_the_core_knows_nothing_of_what_is_published():
    def flags(source: str) -> list[str]:
        trees = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.Lambda)]
        arguments = [a.arg for node in trees for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        return [name for name in arguments if name in ("published", "released", "accounting")]

    assert flags("def f(a, *, published=False): pass") == ["published"]
    core = {name: source for name, source in MODULES.items() if room(name) in ("core", "latency", "training")}
    assert len(core) > 20 and {name: flags(source) for name, source in core.items() if flags(source)} == {}


def test_importing_the_package_is_cheap():
    code = (
        "import json, sys, lfpr\n"
        "files = [m.__file__ for n, m in list(sys.modules.items()) if n.split('.')[0] == 'lfpr']\n"
        f"print(json.dumps([files, [name for name in {HEAVY} if name in sys.modules]]))"
    )
    environment = {"PYTHONPATH": str(PACKAGE.parent), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    files, heavy = json.loads(done.stdout)
    assert heavy == []
    assert 10 < len(files) <= 20 and sum(len(Path(file).read_text().splitlines()) for file in files) <= 2800


@pytest.mark.parametrize("name", ["sal-textvqa", "clip-mscoco", "minilm-texts"])
def test_to_open_an_experiment_imports_nothing_heavy(name, tmp_path):
    """Whoever only reads finished stages waits for no model."""
    code = (
        f"import sys, lfpr\nexperiment = lfpr.open_experiment({name!r}, runs={str(tmp_path)!r})\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.rstrip().endswith("[]")


def test_an_experiment_of_taps_needs_no_transformers(tmp_path):
    code = (
        f"import sys, lfpr\nexperiment = lfpr.open_experiment('tap-textvqa', runs={str(tmp_path)!r})\n"
        f"print(experiment.encoder, [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert "4 layers" in done.stdout and done.stdout.rstrip().endswith("[]")


def test_all_names_are_there_and_lazy_ones_stay():
    assert set(lfpr.__all__) <= set(dir(lfpr))
    for name in lfpr.__all__:
        assert getattr(lfpr, name) is getattr(lfpr, name)
    importlib.import_module("lfpr.training.retrain")  # a module named like a function must not take its place
    for name in ("rescale", "reconstruct"):
        assert inspect.ismodule(importlib.import_module(f"lfpr.{name}")) and inspect.isfunction(getattr(lfpr, name))
    assert inspect.isfunction(lfpr.retrain) and inspect.isfunction(lfpr.released.search)
    assert inspect.isfunction(lfpr.search) and lfpr.latency.LatencyCost is lfpr.LatencyCost
    with pytest.raises(AttributeError, match="module 'lfpr' has no attribute 'retraining'"):
        _ = lfpr.retraining
    with pytest.raises(AttributeError, match=r"module 'lfpr\.released' has no attribute 'load'"):
        _ = lfpr.released.load
    assert set(lfpr.released.__all__) <= set(dir(lfpr.released))
