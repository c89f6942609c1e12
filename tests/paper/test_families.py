"""The page of families and the README's list are what the models say now, and the lines shown there run."""

from pathlib import Path

import pytest
import transformers

import lfpr
from lfpr.__main__ import main
from lfpr.gallery import GALLERY, REFUSED, Example
from lfpr.paper.families import LINES, page, readme, reason

ROOT = Path(__file__).parents[2]


def test_the_committed_page_and_list_are_those_of_the_code():
    again = "run python -m lfpr families --write docs/families.md --readme README.md"
    assert (ROOT / "docs/families.md").read_text() == page(), again
    assert f"<!-- families -->\n{readme()}\n<!-- /families -->" in (ROOT / "README.md").read_text(), again


def test_the_command_writes_both(tmp_path, monkeypatch):
    monkeypatch.setattr("lfpr.paper.families.GALLERY", {"BERT": GALLERY["BERT"]})
    monkeypatch.setattr("lfpr.paper.families.REFUSED", {"Phi-3": REFUSED["Phi-3"]})
    monkeypatch.setattr("lfpr.paper.families.alike", dict)
    (tmp_path / "README.md").write_text("before\n<!-- families -->\nold\n<!-- /families -->\nafter\n")
    assert main(["families", "--write", f"{tmp_path}/page.md", "--readme", f"{tmp_path}/README.md"]) == 0
    assert "| BERT | `BertModel` | self | plain | heads, neurons |" in (tmp_path / "page.md").read_text()
    assert "blocks of different sizes" in (tmp_path / "page.md").read_text()
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n<!-- families -->\n```python") and "old" not in text and text.endswith("after\n")


def test_a_file_without_a_place_for_the_list_is_refused(tmp_path, capsys):
    (tmp_path / "README.md").write_text("nothing")
    assert main(["families", "--readme", f"{tmp_path}/README.md"]) == 2
    assert "expected <!-- families -->" in capsys.readouterr().err


def test_what_is_listed_as_refused_is(monkeypatch):
    assert "mixture of experts" in reason(REFUSED["Mixtral"])
    with pytest.raises(ValueError, match="BertModel is not refused"):
        reason(GALLERY["BERT"])


def test_the_lines_shown_find_an_encoder_a_tower_and_an_encoder_with_its_decoder(tmp_path):
    vision, text = GALLERY["CLIP, vision"].sizes, GALLERY["CLIP, text"].sizes
    both = Example("CLIPModel", {"vision_config": vision, "text_config": text, "projection_dim": 8})
    for name, example in (("bert", GALLERY["BERT"]), ("clip", both), ("t5", GALLERY["T5"])):
        example.model().save_pretrained(tmp_path / name)
    names = vars(transformers) | {"lfpr": lfpr}
    names |= {name: getattr(transformers, name) for name in ("AutoModel", "CLIPModel", "AutoModelForSeq2SeqLM")}
    for line in LINES:
        exec(line.format(bert=tmp_path / "bert", clip=tmp_path / "clip", t5=tmp_path / "t5"), names)
    assert [len(names[name].stacks) for name in ("encoder", "tower", "whole")] == [1, 1, 2]
    assert len(names["whole"].attentions) == 6
