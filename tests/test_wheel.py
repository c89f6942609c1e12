"""The package, built as a wheel and installed, works outside a checkout."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
USED = """
import sys
from pathlib import Path
import torch
import transformers
import lfpr
from lfpr.files import checkout
assert checkout() is None and Path(lfpr.__file__).with_name("py.typed").is_file(), lfpr.__file__
sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
model = transformers.BertModel(transformers.BertConfig(**sizes)).eval()
encoder = lfpr.prunable(model)
masks = lfpr.search(lfpr.random_importance(encoder, 0), lfpr.ParameterCost(encoder), constraint=0.5)
print(lfpr.summary(lfpr.shrink(model, masks)))
experiment = lfpr.open_experiment("tap-textvqa", runs=sys.argv[1], device="cpu")
print(experiment.task.checkpoint, experiment.task.encoder)
try:
    lfpr.open_experiment("tap-textvqa")
except ValueError as error:
    print(error)
from lfpr.__main__ import main
sys.exit(main(["run", "03_prune"]))
"""


pytestmark = pytest.mark.skipif("$" in sys.prefix, reason="setuptools takes a $ of its own path for a variable")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what a wheel of this checkout installs."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("lfpr", "data/mini"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    for command in (
        ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source],
        ["install", "--no-deps", "--no-index", "--find-links", folder, "--target", folder / "site", "lfpr"],
    ):
        done = subprocess.run([*pip, *command], cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    return folder / "site"


def test_a_wheel_prunes_opens_experiments_and_says_what_needs_a_checkout(installed, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", USED, tmp_path / "runs"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert str(installed / "lfpr" / "shipped" / "tap-textvqa.safetensors") in done.stdout
    assert "runs = None: outside a checkout of the project, say where artifacts are to be kept" in done.stdout
    assert "lfpr is not used from a checkout: there are no notebooks/ and no workflow/" in done.stderr


def test_the_wheel_has_all_rooms_and_baselines(installed):
    def files(folder):
        paths = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        return {path for path in paths if "__pycache__" not in path.parts and "shipped" not in path.parts}

    assert files(installed / "lfpr") == files(ROOT / "lfpr")
    shipped = {path.relative_to(ROOT / "data/mini") for path in (ROOT / "data/mini").rglob("*") if path.is_file()}
    assert all((installed / "lfpr" / "shipped" / path).is_file() for path in shipped) and len(shipped) > 12


def test_the_citation_and_the_changelog_are_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(citation)
    assert citation["version"] == project["version"] and citation["license"] == project["license"]
    assert citation["preferred-citation"]["year"] == 2024 and citation["preferred-citation"]["authors"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()
