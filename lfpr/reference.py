"""The API reference, from docstrings: ``make docs`` writes ``docs/api.md`` and, with the extra ``docs``, HTML pages."""

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from pathlib import Path

import lfpr
from lfpr.tables import write_file

DOCS = Path(__file__).parents[1] / "docs"
PUBLIC = ("lfpr", "lfpr.tap", "lfpr.clip", "lfpr.figures", "lfpr.tables", "lfpr.paper")  # whose __all__ is public
STAGES = {  # in the order of the work: the modules that define the public names of each
    "Data": "experiments files tap.data tap.layout tap.text tap.vectors clip.coco clip.processor",
    "Models": "encoder tap.model tap.config tap.checkpoint",
    "Gradients and importance": "gradients importance tap.label_free clip.objectives",
    "Masks": "masks cost latency search latency_search rearrange rescale sensitivity clip.controls clip.published",
    "Shrink and save": "shrink saving export tap.published",
    "Retrain": "retrain tap.schedule clip.distil",
    "Evaluate": "tap.evaluate tap.metrics clip.retrieval",
    "Figures and tables": "paper figures tables",
}
HELPERS = r"lfpr\.(cells|checks|mini|plan|processes|reference|replay|resume|spool)\b"  # modules without an HTML page
START = """<!-- Written by `make docs` from docstrings: change those. -->
# API reference

All public names, by stage; `make docs` writes all modules as HTML into `docs/api/`. Shapes: B samples or batches,
L layers, H heads and N FFN neurons of a layer, T decoding steps or tokens."""


def public() -> dict[str, object]:
    """What all public names, such as ``lfpr.tap.decode``, stand for."""
    modules = map(importlib.import_module, PUBLIC)
    return {f"{module.__name__}.{name}": getattr(module, name) for module in modules for name in module.__all__}


def members(value: object) -> dict[str, object]:
    """Of a class: the functions behind its methods and properties, and those of its bases in this package."""
    bases = [base for base in reversed(getattr(value, "__mro__", ())) if base.__module__.startswith("lfpr")]
    found = {n: getattr(m, "fget", None) or getattr(m, "__func__", m) for base in bases for n, m in vars(base).items()}
    return {name: m for name, m in found.items() if inspect.isfunction(m) and not name.startswith("_")}


def documentation(name: str, value: object) -> tuple[str, str]:
    """The module that defines a public name, and its docstring: of a constant, the string that follows it."""
    if inspect.isclass(value) or inspect.isroutine(value):
        return value.__module__, inspect.cleandoc(value.__doc__ or "")
    for module in (importlib.import_module(f"lfpr.{module}") for module in " ".join(STAGES.values()).split()):
        if found := re.search(rf'(?ms)^{name.split(".")[-1]}[:= ].*?^"""(.+?)"""', inspect.getsource(module)):
            return module.__name__, found[1]
    return "", ""


def signature(name: str, value: object) -> str:
    """``name`` as it is called, in the words of the source: parameters, or fields of a class without ``__init__``."""
    own = [part for part in getattr(value, "__mro__", (value,)) if getattr(part, "__module__", "").startswith("lfpr")]
    nodes = [ast.parse(textwrap.dedent(inspect.getsource(part))).body[0] for part in own]
    parts = [part for node in nodes for part in (node.body if isinstance(node, ast.ClassDef) else [node])]
    if not (calls := [p for p in parts if isinstance(p, ast.FunctionDef) and p.name in ("__init__", value.__name__)]):
        fields = [ast.unparse(p) for node in nodes[::-1] for p in node.body if isinstance(p, ast.AnnAssign)]
        return f"{name}({', '.join(fields)})" if fields else name
    calls[0].args.args = [argument for argument in calls[0].args.args if argument.arg not in ("self", "cls")]
    end = "" if inspect.isclass(value) else f" -> {ast.unparse(calls[0].returns)}"
    return f"{name}({re.sub('(?<! )=(?! )', ' = ', ast.unparse(calls[0].args))}){end}"


def page() -> str:
    """What ``docs/api.md`` holds: signatures and first paragraphs. KeyError for a name defined outside ``STAGES``."""
    entries = {f"lfpr.{module}": [] for modules in STAGES.values() for module in modules.split()}
    for name, value in public().items():
        module, text = documentation(name, value)
        call = re.sub("(?<!,) ", "\u00a0", signature(name, value))  # a line ends after a comma
        call = textwrap.fill(call, 110, subsequent_indent="    ", break_on_hyphens=False).replace("\u00a0", " ")
        first, methods = text.partition("\n\n")[0], []
        for own, function in members(value).items():
            told = " ".join((function.__doc__ or "").partition("\n\n")[0].split())
            end = "" if isinstance(getattr(value, own), property) else "()"
            methods.append(f"- `{signature(own, function).replace('()', end)}`: {told}")
        entries[module] += filter(None, [f"### `{name}`\n\n```python\n{call}\n```", first, "\n".join(methods)])
    text = [START]
    for stage, modules in STAGES.items():
        text += [f"## {stage}", *(entry for module in modules.split() for entry in entries[f"lfpr.{module}"])]
    return "\n\n".join(text) + "\n"


if __name__ == "__main__":
    from pdoc import pdoc, render

    write_file(DOCS / "api.md", page().encode())
    for name, value in public().items():  # pdoc does not ask a module's __getattr__
        setattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2], value)
    every = [module.name for module in pkgutil.walk_packages(lfpr.__path__, "lfpr.")]
    render.configure(include_undocumented=False, template_directory=DOCS / "templates")
    pdoc("lfpr", *every, f"!{HELPERS}", output_directory=DOCS / "api")
