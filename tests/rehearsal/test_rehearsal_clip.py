"""The dress rehearsal of CLIP on MSCOCO: its files are like the real ones, and stages run on them."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from rehearsal import rehearse as rehearsal
from rehearsal.coco_files import LONG, ODD, SIZES, TEXT, VISION, write_clip, write_coco_files
from transformers import CLIPConfig, CLIPModel

import lfpr
from lfpr.clip import COCOCaptions, Processor, check
from lfpr.clip.objectives import text_features
from lfpr.experiments import Cell
from lfpr.files import CheckpointError
from lfpr.paper.pictures import clip as pictures

SAMPLES = Path(__file__).parents[1] / "real_samples"
IMAGES = {"train": 6, "val": 5}
NARROW = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = {"text": TEXT | NARROW, "vision": VISION | NARROW, "projection": 16}  # inputs as large as the real ones
START, END = 49406, 49407


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("mscoco") / "coco"
    write_coco_files(root, IMAGES)
    return root


@pytest.fixture(scope="module")
def folder(root):
    """A model folder of real files and vocabulary but little width and depth."""
    folder = root.parent / "model"
    torch.manual_seed(0)
    write_clip(folder, texts(root), **SMALL)
    return folder


def texts(root):
    return [pair.text for split in IMAGES for pair in COCOCaptions(root, split, "all").pairs]


def table(root, split):
    return json.loads((root / f"annotations/captions_{split}2017.json").read_text())


@pytest.mark.parametrize("split", IMAGES)
def test_files_are_laid_out_as_the_real_ones(root, split):
    found = check(root, split)
    assert (found["images"], found["captions_per_image"], found["strays"]) == (IMAGES[split], (5, 7), 0)
    assert (found["checked"], found["bad"], found["first_bad"]) == (IMAGES[split], 0, None)
    written = table(root, split)
    real = json.loads((SAMPLES / f"captions_{split}2017_100.json").read_text())
    assert written.keys() == real.keys() and written["info"].keys() == real["info"].keys()
    assert all(written[part][0].keys() == real[part][0].keys() for part in ("licenses", "images", "annotations"))
    described, ids = ([row[name] for row in written["annotations"]] for name in ("image_id", "id"))
    assert described != sorted(described) and ids != sorted(ids) and len(set(ids)) == len(ids)
    assert {row["license"] for row in written["images"]} <= {row["id"] for row in written["licenses"]}
    modes = []
    for row, size in zip(written["images"], SIZES, strict=False):
        assert row["file_name"] == f"{row['id']:012}.jpg"
        with Image.open(root / f"{split}2017" / row["file_name"]) as image:
            assert image.size == (row["width"], row["height"]) == size and image.format == "JPEG"
            modes.append(image.mode)
    assert modes.count("L") == 1 and modes.count("RGB") == IMAGES[split] - 1


def test_captions_and_images_are_as_odd_as_the_real_ones(root, folder):
    train, val = (COCOCaptions(root, split) for split in IMAGES)
    assert not set(train.image_ids) & set(val.image_ids)
    first = [pair.text for pair in val.pairs]
    assert set(ODD) <= set(first)  # a model meets them with its first captions alone
    assert any(text.endswith("\n") for text in ODD) and any("  " in text for text in ODD)
    assert sum(not text.isascii() for text in ODD) == 2
    processor = Processor(folder)
    pixels = [processor.crop(val.image(i)) for i in range(len(val))]
    assert {crop.shape for crop in pixels} == {(224, 224, 3)}
    assert sum(bool((crop == crop[..., :1]).all()) for crop in pixels) == 1  # greyscale


def test_the_processor_reads_the_model_s_folder(root, folder):
    processor = Processor(folder)
    assert (processor.shortest, processor.height, processor.width, processor.max_length) == (224, 224, 224, 77)
    assert len(processor.tokenizer) == 49408 and processor.tokenizer.convert_ids_to_tokens([START, END]) == [
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    found = processor.tokens(texts(root))
    ids, lengths = found["input_ids"], found["attention_mask"].sum(1)
    assert ids.shape[1] == lengths.max() == 77 and (ids[:, 0] == START).all()
    assert (ids[torch.arange(len(ids)), lengths - 1] == END).all()  # of the text that was cut, too
    assert (ids[found["attention_mask"] == 0] == END).all() and ids.max() == END
    assert len(processor.tokenizer(LONG)["input_ids"]) > 77
    spaced, plain = (processor.tokens([text])["input_ids"] for text in (ODD[0], ODD[0].replace("  ", " ").strip()))
    assert torch.equal(spaced, plain)


def test_the_tokenizer_is_the_same_in_parts(root, folder, tmp_path):
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "preprocessor_config.json", "config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    whole, parts = (Processor(place).tokens(texts(root)) for place in (folder, tmp_path))
    assert torch.equal(whole["input_ids"], parts["input_ids"])


def test_a_folder_of_the_model_alone_is_refused(folder, tmp_path):
    """As a cache has it whose owner never read a caption or an image: a tokenizer without files knows two tokens."""
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(CheckpointError, match="its tokenizer has 2 tokens; it needs tokenizer.json"):
        Processor(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    assert len(Processor(tmp_path).tokenizer) == 49408
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="lacks what says how to read images and captions.*preprocessor_config"):
        Processor(tmp_path)


@pytest.mark.parametrize("end", [END, 2])  # 2: as configurations of 2021 have it, which no tokenizer means
def test_text_features_are_those_of_the_end_token(root, folder, end):
    config = CLIPConfig.from_pretrained(folder)
    assert (config.text_config.bos_token_id, config.text_config.eos_token_id) == (START, END)
    config.text_config.eos_token_id = end
    model = CLIPModel.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    tokens = Processor(folder).tokens([*ODD, "A cat"])
    with torch.no_grad():
        found = text_features(model, tokens)
        hidden = model.text_model(**tokens).last_hidden_state
        alone = text_features(model, Processor(folder).tokens(["A cat"]))
    ends = tokens["attention_mask"].sum(1) - 1
    assert torch.equal(found, model.text_projection(hidden[torch.arange(len(ends)), ends]))
    assert torch.allclose(found[-1:], alone, atol=1e-6)


def test_a_model_has_the_published_sizes():
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=512))
    assert sum(parameter.numel() for parameter in model.parameters()) == 149_620_737


def test_stages_run_on_the_profile_full(root, folder, tmp_path):
    exp = lfpr.open_experiment("clip-mscoco", "full", tmp_path, root, folder, workers=0)
    assert exp.model.dtype == torch.float32 and exp.encoder.num_layers == 2
    baseline = exp.baseline().result
    assert baseline["questions"] == 5 and baseline["r5"] == 1
    assert exp.with_settings(eval_captions="all").baseline().result["questions"] == 28
    pruned = exp.prune(Cell("label-free", 0.4))
    assert 0.35 < pruned.result["fraction"] <= 0.4
    retrained = exp.retrain(Cell("label-free", 0.4))
    assert retrained.result["iterations"] == 1 and retrained.result["heads"] == pruned.result["heads"]
    stages = exp.stages(Cell("label-free", 0.4))
    table, figure = pictures.changes(exp, stages)
    figure.draw_without_rendering()
    assert len(figure.axes) == 2 * len(table)
    counts = pictures.kinds(exp, stages).axes[0].texts
    assert sum(int(text.get_text()) for text in counts) == 5
    cascade = exp.downstream(retrained)["cascade"].result
    assert cascade["m"] == 5 and cascade["score"] == baseline["score"]  # all five images are re-ranked
    small = lfpr.load_pruned(retrained.folder / "model")
    assert exp.task.evaluate(small)["score"] == retrained.result["score"]


def test_pictures_have_room_for_long_captions(root, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "QUERIES", 5)  # all captions
    exp = lfpr.open_experiment("clip-mscoco", "full", tmp_path, root, folder, workers=0)
    figure, same = pictures.compare(exp, {"unpruned": exp.model, "same": exp.model})
    figure.draw_without_rendering()
    titles = [part.get_suptitle() for part in figure.subfigs]
    first = [" ".join(pair.text.split()) for pair in exp.task.data("val").pairs]
    assert [" ".join(title.split()) for title in titles] == first and " ".join(LONG.split()) in first
    assert len(figure.axes) == 5 * 2 * 5 and same == {"unpruned": 1, "same": 1}
    for panel in figure.axes:
        box = panel.get_position(original=True)
        assert box.width > 0.15 and box.height > 0.3, panel
    dollars = pictures.examples(exp)
    shown = [panel.title.get_parse_math() for panel in dollars.axes if "$" in panel.get_title()]
    assert shown == [False]  # no formula


def test_files_of_a_rehearsal_are_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "IMAGES", IMAGES)
    monkeypatch.setattr(rehearsal, "write_clip", partial(write_clip, **SMALL))
    inputs = rehearsal.PREPARE["clip-mscoco"](tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert rehearsal.PREPARE["clip-mscoco"](tmp_path) == inputs
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    exp = lfpr.open_experiment("clip-mscoco", "full", **{name: tmp_path / value for name, value in inputs.items()})
    assert len(exp.task.data("train")) == 6 and exp.task.check("val")["bad"] == 0
