"""T5's pieces as transformers has them, answers as the published processor makes them, answers as text."""

import numpy as np
import pytest
import small_sal as small
from reference import sal_rules as rules
from transformers import T5Tokenizer

from lfpr.files import DataError
from lfpr.sal.text import Pieces, label_spellings, plain, spellings
from lfpr.tap.text import write_targets

MARKS = {30: "▁'s", 31: "▁.", 32: "▁,", 33: "▁?", 34: "▁W5", 35: "▁n't", 36: "'s"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.write_tokenizer(tmp_path_factory.mktemp("t5") / "tokenizer.json", MARKS).parent


def test_pieces_are_those_of_transformers(folder):
    pieces, other = Pieces(folder), T5Tokenizer.from_pretrained(folder, local_files_only=True, extra_ids=1)
    assert len(pieces) == rules.VOCABULARY and pieces.separator == rules.SEPARATOR
    for text in ("question: w25 w118", "w26w27", "w28 's , .", "ä", ""):
        assert pieces.encode(text) == other(text)["input_ids"]
    ids = [0, 40, 30, 31, 119, 41, 1, 0]
    decoded = other.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)
    assert pieces.read(ids) == decoded == "w40's. w41"


def test_answers_are_read_as_published(folder):
    pieces = Pieces(folder / "tokenizer.json")
    for ids, text in (
        ([0, 34, 32, 6, 33, 1], "w5 w6"),
        ([0, 40, 36, 41, 1, 0], "w40's w41"),
        ([0, 40, 35, 31, 1], "w40n't."),
        ([0, 1, 0], ""),
        ([], ""),
    ):
        assert pieces.read(ids) == text
    assert plain("Men 's Shirts, Jeans?") == plain("men's shirts jeans") == "men's shirts jeans"


def test_targets_equal_the_published_ones():
    published = np.load(small.REFERENCE / "sal_seed7.npz")
    classes, steps = rules.VOCABULARY, rules.ANSWER_STEPS
    for sample, answers in enumerate(rules.sal_answers(7)):
        targets, previous, mask = np.zeros((steps, classes), "f"), np.zeros(steps, int), np.zeros(steps, "f")
        spelled = spellings(answers, lambda answer: (*answer, 1))
        write_targets(spelled, 0, 1, targets, previous, mask, (sample + 0.5) / 10)
        np.testing.assert_allclose(targets, published["targets"][sample], rtol=1e-6)
        assert (mask == published["loss_mask"][sample]).all()
        used = int(mask.sum())
        assert previous[0] == 0 and (previous[1:used] == published["labels"][sample][: used - 1]).all()


def test_spellings_by_hand():
    encode = {"a": [5, 6, 1], "b": [5, 1], "": [1]}.get
    assert spellings(["a", "b", "b"], encode) == ({5: 1.0}, [(5, 6), (5,), (5,)] * 3 + [(5, 6)])
    first, written = spellings([*["a"] * 9, ""], encode)
    assert first == {5: 1.0, 1: pytest.approx(0.3)} and written[-1] == ()
    for answers in ([], ["a"] * 11):
        with pytest.raises(ValueError, match=f"answers: need 1 to 10 per question, got {len(answers)}"):
            spellings(answers, encode)
    assert label_spellings([7, 8, 1, 0], 9) == ({7: 1.0}, [(7, 8)])
    assert label_spellings([1], 9) == ({1: 1.0}, [()])
    for wrong in ([9], [-1], [0.5], "7"):
        with pytest.raises(ValueError, match="labels"):
            label_spellings(wrong, 9)


def test_other_files_are_no_tokenizer(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer.json is missing \(T5's tokenizer\)"):
        Pieces(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="tokenizer.json .*cannot be read"):
        Pieces(tmp_path)
    text = (folder / "tokenizer.json").read_text()
    for old, new in (("<extra_id_0>", "<extra_id_9>"), ('"</s>"', '"<end>"')):
        (tmp_path / "tokenizer.json").write_text(text.replace(old, new))
        with pytest.raises(DataError, match="tokenizer.json: T5's tokenizer has <pad> 0, </s> 1 at the end"):
            Pieces(tmp_path)
    with pytest.raises(ValueError, match="T5's tokenizer: expected a path"):
        Pieces(None)
