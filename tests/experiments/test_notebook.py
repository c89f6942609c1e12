"""The head of a notebook: parameters checked before any work, the experiment opened, the command printed."""

import shlex
from dataclasses import replace

import pytest

from lfpr.experiments import Cell, from_parameters, open_experiment
from lfpr.experiments.notebook import command, is_own
from lfpr.experiments.parameters import declared
from lfpr.masks import Masks
from lfpr.paper.collect import saved_score
from lfpr.released import save_masks

DEFAULTS = declared("03_prune")


def head(tmp_path, injected=None, **values):
    """What the header of 03 gives, as papermill would run it."""
    cells = ["", "experiment = ...", *([f"# Parameters\n{injected}\n"] if injected else []), "from_parameters(...)"]
    return from_parameters("03_prune", DEFAULTS | {"runs": str(tmp_path), "In": cells} | values)


def test_parameters_name_the_experiment_and_the_cell(tmp_path, capsys):
    exp, cell = head(tmp_path, experiment="clip-mscoco", constraint=0.6, seed=2)
    assert exp.name == "clip-mscoco" and exp.runs.folder == tmp_path / "clip-mscoco" / "mini"
    assert cell == exp.cell(Cell(constraint=0.6, seed=2)) and cell.method == "fisher" and cell.rescaled
    first, *_, last = capsys.readouterr().out.splitlines()
    printed = shlex.split(first)
    assert printed[:3] == ["papermill", "03_prune.ipynb", "OUT.ipynb"]
    named = dict(zip(printed[4::3], printed[5::3], strict=True))
    assert named == {"experiment": "clip-mscoco", "constraint": "0.6", "seed": "2", "runs": str(tmp_path)}
    assert last.startswith("cell: method fisher, constraint 0.6, seed 2")


def test_any_setting_of_the_profile_goes_through_one_mapping(tmp_path, capsys):
    exp, _ = head(tmp_path, experiment="clip-mscoco", settings={"on_error": "skip", "lr": 2e-5, "shortlists": [8, 4]})
    assert (exp.settings.on_error, exp.settings.rest.lr, exp.settings.shortlists) == ("skip", 2e-5, (8, 4))
    printed = shlex.split(capsys.readouterr().out.splitlines()[0])
    assert printed[printed.index("-y") + 1] == '{"settings": {"on_error": "skip", "lr": 2e-05, "shortlists": [8, 4]}}'
    exp, cell = head(tmp_path, settings={"num_samples": 7})  # what a cell leaves to the profile
    assert exp.settings.num_samples == cell.num_samples == 7
    with pytest.raises(ValueError, match="num_samples is a parameter of its own"):
        head(tmp_path, settings={"num_samples": 7}, num_samples=8)
    exp, _ = head(tmp_path, settings=None, device="cpu")
    assert exp.device.type == "cpu" and exp.settings == open_experiment(runs=tmp_path).settings


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"on_error": "skip"}, "unknown setting 'on_error' of tap-textvqa: there are .*'lr'"),
        ({"lrr": 1}, "unknown setting 'lrr' of tap-textvqa: did you mean lr"),
        ({"profile": "full"}, "profile is a parameter of its own"),
        ({"constraint": 0.4}, "unknown setting 'constraint'"),
        ({"lr": "1e-5"}, "lr = '1e-5': must be of type float, .*; YAML reads 1e-5 as text, and 1.0e-5 as a number"),
        ({"eval_precision": False}, "eval_precision = False: must be of type str, such as 'no'; YAML reads .*quote"),
        ({1: 2}, "unknown setting '1' of tap-textvqa"),
        ("lr", "settings = 'lr': must be a mapping"),
    ],
)
def test_wrong_settings_are_said_before_any_work(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        head(tmp_path, settings=settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "injected, values, message",
    [
        ("constrain = 0.6", {}, "parameter constrain: 03_prune has none of this name; did you mean constraint?"),
        ("a = 1\nrescale = True", {}, "parameter a: 03_prune has none"),
        ("rescaled = 'false'", {"rescaled": "false"}, "rescaled = 'false': must be True, False, 'released' or None"),
        ("constraint = 6", {"constraint": 6}, r"constraint = 6: must be in \(0, 1\]"),
        ("constraint = 'sixty'", {"constraint": "sixty"}, "constraint = 'sixty': must be"),
        ("experiment = 'tap'", {"experiment": "tap"}, "experiment = 'tap': must be one of"),
        ("method = 'l2'", {"method": "l2"}, "method = 'l2': must be one of"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(tmp_path, injected, values, message):
    with pytest.raises(ValueError, match=message):
        head(tmp_path, injected, **values)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "values, message",
    [
        ({"studies": "scoring"}, r"studies = 'scoring': must be a list of some of \['scoring'\]"),
        ({"studies": ["scales"]}, r"studies = \['scales'\]: must be a list of some of \['scoring'\]"),
        ({"submission": True}, "submission = True: must be a file"),
        ({"submission": "x.json"}, "the profile 'mini' has no test split"),
        ({"submission": "x.json", "experiment": "clip-mscoco"}, "clip-mscoco: has no test split"),
        ({"step": 2, "experiment": "clip-mscoco"}, "step = 2: clip-mscoco decodes no steps"),
        ({"masks": "nowhere", "experiment": "clip-mscoco"}, "masks = 'nowhere': no mask file"),
    ],
)
def test_what_05_would_find_at_its_end_is_said_at_once(tmp_path, values, message):
    values = declared("05_evaluate") | {"runs": str(tmp_path)} | values
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        from_parameters("05_evaluate", values, own=["studies", "submission"])
    assert not list(tmp_path.iterdir())


def test_lists_are_given_as_yaml():
    assert command("05_evaluate", {"studies": ["scoring"], "seed": 1}) == (
        """papermill 05_evaluate.ipynb OUT.ipynb -y '{"studies": ["scoring"]}' -p seed 1"""
    )


def test_only_the_place_may_differ_from_the_own_way(tmp_path):
    exp, cell = head(tmp_path, constraint=0.6, seed=3, method="random")
    assert is_own(exp, cell)
    for option in (
        {"rescaled": True},
        {"num_samples": 3},
        {"scoring": "batched"},
        {"percent": 5},
        {"trained": "masks"},
    ):
        assert not is_own(exp, exp.cell(Cell(constraint=0.6, **option)))


def test_masks_without_a_search_are_their_method_s_own_way(tmp_path):
    """03 and 04 ask of every cell; these have no constraint to be placed by."""
    exp, walked = head(tmp_path, experiment="clip-mscoco", heads_removed=7, seed=8)
    save_masks(Masks.ones(exp.encoder), tmp_path / "masks")
    for cell in (walked, exp.cell(Cell(masks=str(tmp_path / "masks")))):
        assert is_own(exp, cell) and not is_own(exp, replace(cell, trained="all"))
        assert saved_score(exp, cell, retrained=False) is None
