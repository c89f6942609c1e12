"""What callers may pass wrongly: every argument of every public function, each refused by its name before any work."""

import inspect
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import small_models as small
import small_sal
import torch
import transformers as hf
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

import lfpr
from lfpr import clip, fisher, kprune, latency, released, sal, tap
from lfpr.clip.retrieval import Encoded, Level, levels_speedup
from lfpr.cost import LinearCost
from lfpr.latency.compare import side_by_side
from lfpr.latency.cost import monotone
from lfpr.masks import PerLayer
from lfpr.sal.data import SaLDataset
from lfpr.tap.data import TAPDataset
from lfpr.tap.evaluate import predict
from lfpr.tap.text import AnswerVocab

ROOMS = {"lfpr": lfpr, "lfpr.latency": latency, "lfpr.released": released, "lfpr.clip": clip, "lfpr.tap": tap}
ROOMS |= {"lfpr.sal": sal}
OTHERS = {  # public, and not in the table: why
    "lfpr": {
        **dict.fromkeys(["BudgetError", "NotEquivalent", "UnsupportedArchitecture"], "raised, not called"),
        **dict.fromkeys(["KPruneRound", "Refit", "Rescaled", "Stepwise", "SubLayerFit"], "returned, not called"),
        **dict.fromkeys(["Family", "PrunableEncoder", "encoders", "prunable"], "models: tests of encoders"),
        **dict.fromkeys(["collect_gradients", "fold", "shrink", "verify_equivalent"], "models: tests of shrinking"),
        **dict.fromkeys(["export_onnx", "load_delta", "load_pruned", "save_delta", "save_pruned"], "tests of saving"),
        "open_experiment": "tests of experiments",
    },
    "lfpr.latency": {"LatencyCost": "in lfpr, too"},
    "lfpr.released": {},
    "lfpr.clip": {
        **dict.fromkeys(["COCOCaptions", "Processor", "batches", "captions", "check", "images"], "files: test_data"),
        **dict.fromkeys(["Encoded", "Level"], "plain tuples: those who take them check them"),
    },
    "lfpr.tap": {
        **dict.fromkeys(
            ["AnswerVocab", "CheckpointError", "FastText", "HashedNgrams", "InputSizes"], "files: tests/tap"
        ),
        **dict.fromkeys(["TAPDataset", "WordPieces", "batches", "check", "read_checkpoint"], "files: tests/tap"),
    },
    "lfpr.sal": dict.fromkeys(["Pieces", "SaLDataset", "batches", "check"], "files: tests/sal"),
}
JUNK = (None, "0.4", b"x", 0.5, 7, True, math.nan, [], {}, set(), object(), int, 1j, torch.ones(2, 3), np.ones(2))


class Kind(NamedTuple):
    """What an argument may be: `fine` types, and values that are wrong all the same; `named` in the error, if it is
    another argument's value."""

    fine: tuple[type, ...] = ()
    wrong: tuple = ()
    named: str | None = None

    @property
    def bad(self) -> list:
        """Values to try: those of no fine type, and the wrong ones."""
        return [value for value in JUNK if not isinstance(value, self.fine)] + list(self.wrong)


@cache
def good() -> SimpleNamespace:
    """One of each."""
    model, bare = small.build("bert"), nn.Linear(2, 2)
    encoder = lfpr.prunable(model)
    batches = [small.batch("bert"), small.batch("bert", seed=2)]
    gradients = lfpr.collect_gradients(encoder, batches, lambda b: small.forward(model, b)[:, 0].square().sum())
    cost, importance = lfpr.ParameterCost(encoder), gradients.importance()
    masks = lfpr.search(importance, cost, 0.5)
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sizes = small.CLIP_TEXT | text, text | {"image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    config = hf.CLIPConfig(text_config=sizes[0], vision_config=sizes[1], projection_dim=8)
    pixels = {"pixel_values": torch.rand(3, 3, 8, 8), "image_id": torch.arange(3), "image_features": torch.rand(3, 8)}
    ids = {"input_ids": torch.tensor([[97, 5, 98]] * 3), "attention_mask": torch.ones(3, 3).long()}
    answers, inputs, _ = small.tap()
    questions = TAPDataset.__new__(TAPDataset)
    questions.records, questions.dataset, questions.path = [], "stvqa", "file"
    pieces = SaLDataset.__new__(SaLDataset)
    pieces.records, pieces.config = [], small_sal.CONFIG
    return SimpleNamespace(
        **locals(),
        forward=lambda b: small.forward(model, b),
        logits=lambda net, b: small.forward(net, b)[:, 0],
        objective=lambda b: small.forward(model, b)[:, 0].square().sum(),
        small=lfpr.shrink(model, masks),
        sal=small_sal.sal(),
        samples=small_sal.batch(),
        times=latency.LatencyCost(range(5), range(41), 3),
        ones=lfpr.Masks.ones(encoder),
        clip=hf.CLIPModel(config).eval(),
        pairs=pixels | ids | {"caption_id": torch.arange(3), "text_features": torch.rand(3, 8)},
        features=torch.rand(3, 8),
        encoded=Encoded(torch.rand(3, 8), torch.arange(3), torch.arange(3)),
        vocab=AnswerVocab(["<pad>", "<s>", "</s>", "<unk>", "yes"]),
        generator=torch.Generator(),
    )


G = good()
NAN, INF = math.nan, math.inf
NONE = type(None)
NUMBERS = (
    True,
    NAN,
    INF,
    -INF,
    10**400,
    np.True_,
    np.float64(NAN),
    torch.tensor(NAN),
    torch.tensor(True),
    torch.ones(1),
)
NUMBER = Kind((int, float), NUMBERS)
ABOVE = Kind((int, float), (*NUMBERS, 0, -1, np.float32(-0.5)))
SHARE = Kind((int, float), (*NUMBERS, -0.5, 1.5, torch.tensor(2)))
CONSTRAINT = Kind((int, float), (*NUMBERS, 0, -5, 1.01, 7, torch.tensor(7)))
COUNT = Kind((int, float), (*NUMBERS, -1, 1.5, np.float32(0.5), torch.tensor(1.5)))
COUNT1 = Kind((int, float), (*COUNT.wrong, 0))
FLAG = Kind((bool,), ("false", "true", 0, 1, np.int64(1)))
TEXT = Kind((str,))
TITLE = Kind((str, NONE))
ENCODER = Kind((), (G.model, G.masks))
MODEL = Kind((), (G.encoder, G.masks))
PART = Kind((NONE,), (G.encoder, small.build("vit")))
MASKS = Kind((), (G.importance, G.gradients, G.encoder, G.model, [G.masks]))
IMPORTANCE = Kind((), (G.masks, G.gradients, (G.importance.heads, G.importance.neurons)))
GRADIENTS = Kind((), (G.masks, G.importance, lfpr.MaskGradients(torch.ones(0, 3, 4), torch.ones(0, 3, 40))))
COST = Kind((), (G.masks, G.encoder))
BATCHES = Kind((list, set), ([], (), iter([]), (b for b in ()), G.batches[0], G.model, G.masks))
AGAIN = Kind((list, set), ([], iter(G.batches), G.batches[0], G.model))
FUNCTION = Kind((type,), (G.batches, G.masks))
MAYBE_FUNCTION = Kind((type, NONE), (G.masks,))
FOLDER = Kind((NONE,), ("no/such/folder", Path(__file__)))
PATH = Kind((str,))
MAYBE_PATH = Kind((str, NONE))
TENSOR = Kind((torch.Tensor,), (G.masks, [[1.0, 2.0]]))
MATRIX = Kind((), (G.masks, torch.ones(2), torch.ones(2, 2, 2), torch.ones(2, 2).long()))
LIST = Kind((list,))
CLIP = Kind((), (G.bare, G.encoder))
TAP = Kind((), (G.model, G.encoder))
PIXELS = Kind((), ({"image_id": torch.ones(2)}, [G.pixels], {"pixel_values": None}))
CAPTIONS = Kind((), ({"input_ids": torch.ones(2)}, [G.ids]))
INPUTS = Kind((), ({"text": torch.ones(2, 2)}, [G.inputs]))
SAL = Kind((), (G.model, G.answers))
SAMPLES = Kind((), ({"question_ids": torch.ones(2, 2)}, [G.samples]))
SETTINGS = Kind((), ({"lr": 1e-3}, G.masks))
MODELS = Kind((), ({"a": None}, {"a": G.encoder}, G.model, [G.model]))
SIZES = Kind((list, set, np.ndarray), ([0.5], ["2"], [-1], [True], [NAN], "12", {2: 3}))


class Row(NamedTuple):
    """A function, arguments that it takes, and what is wrong for each; `cheap`: it can be called here."""

    function: Callable
    given: dict[str, Any]
    kinds: dict[str, Kind]
    cheap: bool = True


def row(function: Callable, /, *, cheap: bool = True, **arguments: tuple[Any, Kind] | Kind) -> Row:
    """Each argument as (good value, kind), or the kind alone where the default is good."""
    pairs = {name: pair for name, pair in arguments.items() if not isinstance(pair, Kind)}
    kinds = {name: pair if isinstance(pair, Kind) else pair[1] for name, pair in arguments.items()}
    return Row(function, {name: value for name, (value, _) in pairs.items()}, kinds, cheap)


def enough(model: nn.Module, batch: dict) -> torch.Tensor:
    return model(**batch).last_hidden_state


RUN = {"batches": (G.batches, BATCHES), "forward": (G.forward, FUNCTION)}
WHOLE = {"importance": (G.importance, IMPORTANCE), "constraint": (0.5, CONSTRAINT)}
WIDTHS = {"multiple_of": (2, COUNT1), "min_heads": (1, COUNT), "min_neurons": (3, COUNT)}
ON = {"encoder": (G.encoder, ENCODER)}
WRITTEN = {"model": (G.sal, SAL), "batch": (G.samples, SAMPLES)}
PREFIX = Kind((), ([5], [5, 1], [5, 6, 7], [0.5, 5], "56", {5: 6, 7: 8}))
DECODED = {"model": (G.answers, TAP), "batch": (G.inputs, INPUTS)}
RECALL = {
    "k": ((1, 5), SIZES),
    "pairs": Kind((list, NONE, torch.Tensor), (torch.ones(3), [0.5] * 3, ["a"] * 3, [9] * 3)),
}
LOGITS = Kind(
    (torch.Tensor,), (torch.ones(2), torch.ones(0, 3), torch.ones(3, 3, 3)), "forward"
)  # what it has returned
ANYTHING = Kind(tuple(map(type, JUNK)))
REDUCTION = Kind((), ("max", True, 1))
TABLE = {
    "lfpr.search": row(lfpr.search, **WHOLE, cost=(G.cost, COST), **WIDTHS),
    "lfpr.search_proportional": row(lfpr.search_proportional, **WHOLE, cost=(G.cost, COST)),
    "lfpr.search_threshold": row(
        lfpr.search_threshold,
        importance=(G.importance, IMPORTANCE),
        percentile=(30, Kind((int, float), (*NUMBERS, -1, 100))),
    ),
    "lfpr.ParameterCost": row(lfpr.ParameterCost, **ON),
    "lfpr.MacCost": row(lfpr.MacCost, **ON, sequence_length=(9, COUNT1)),
    "lfpr.summary": row(lfpr.summary, model=(G.model, MODEL), sequence_length=(9, COUNT1)),
    "LinearCost": row(
        LinearCost,
        unit=("units", TEXT),
        full=(9, COUNT1),
        fixed=(1, COUNT),
        head=(2, COUNT1),
        neuron=(1, COUNT1),
        shapes=((), ANYTHING),
    ),
    "LinearCost.of": row(G.cost.of, heads=(2, COUNT), neurons=(3, COUNT)),
    "LinearCost.kept": row(G.cost.kept, masks=(G.masks, MASKS)),
    "LinearCost.fraction": row(G.cost.fraction, masks=(G.masks, MASKS)),
    "lfpr.Masks": row(lfpr.Masks, heads=(torch.ones(2, 3), TENSOR), neurons=(torch.ones(2, 5), TENSOR)),
    "lfpr.Importance": row(lfpr.Importance, heads=(torch.ones(2, 3), TENSOR), neurons=(torch.ones(2, 5), TENSOR)),
    "lfpr.MaskGradients": row(
        lfpr.MaskGradients, heads=(torch.ones(1, 2, 3), TENSOR), neurons=(torch.ones(1, 2, 5), TENSOR)
    ),
    "Masks.ones": row(lfpr.Masks.ones, **ON),
    "Masks.equal": row(G.masks.equal, other=(G.masks, Kind((), (G.model, G.masks.heads)))),
    "Masks.load": row(lfpr.Masks.load, cheap=False, path=("file", PATH)),
    "Masks.save": row(G.masks.save, cheap=False, path=("file", PATH)),
    "MaskGradients.importance": row(G.gradients.importance, kind=("absolute", Kind((), ("fisher", 2)))),
    "lfpr.magnitude": row(lfpr.magnitude, **ON, norm=(1, Kind((int,), (True, 3, 1.0, NAN)))),
    "lfpr.random_importance": row(lfpr.random_importance, **ON, seed=(3, Kind((int, float), (*NUMBERS, 1.5, 2**64)))),
    "lfpr.activation_importance": row(lfpr.activation_importance, **ON, **RUN),
    "lfpr.surgeon_importance": row(
        lfpr.surgeon_importance,
        **ON,
        batches=(G.batches, BATCHES),
        objective=(G.objective, FUNCTION),
        damping=(0.1, ABOVE),
        progress=TITLE,
    ),
    "lfpr.removal_costs": row(
        lfpr.removal_costs,
        gram=(torch.eye(4).double(), MATRIX),
        kernel=(torch.eye(4).double(), MATRIX),
        size=(2, COUNT1),
        damping=(0.1, ABOVE),
        block=(2, COUNT1),
    ),
    "lfpr.rearrange": row(lfpr.rearrange, masks=(G.masks, MASKS), grads=(G.gradients, GRADIENTS)),
    "lfpr.all_but_one": row(
        lfpr.all_but_one,
        **ON,
        batches=(G.batches, Kind((list, set), AGAIN.wrong[1:])),
        objective=(G.objective, FUNCTION),
        masks=(G.ones, Kind((NONE,), MASKS.wrong)),
        cost=(G.cost, Kind((NONE,), (G.masks, G.encoder))),
        per_sample=(False, FLAG),
        progress=TITLE,
    ),
    "lfpr.rescale": row(
        lfpr.rescale,
        **ON,
        **RUN,
        masks=(G.masks, MASKS),
        teacher=Kind((NONE,), MASKS.wrong),
        ridge=(1, Kind((int, float), (*NUMBERS, -1))),
        limit=(5, Kind((int, float, NONE), (True, NAN, -INF, 1, 0, torch.tensor(NAN)))),
        tokens=MAYBE_FUNCTION,
        first_token=(True, FLAG),
        folder=FOLDER,
        step_sizes=([1], SIZES._replace(wrong=([], [1.5], [-1], [NAN], [INF], ["0.1"], [True], "0.1", 0.1, {0.1: 1}))),
    ),
    "lfpr.reconstruct": row(
        lfpr.reconstruct,
        model=(G.model, MODEL),
        small=(G.small, MODEL),
        batches=(G.batches, BATCHES),
        forward=(enough, FUNCTION),
        part=PART,
        ridges=([0.1], SIZES._replace(wrong=([], [0], [-1], [NAN], [INF], ["0.1"], [True], "0.1", 0.1, {0.1: 1}))),
        tokens=MAYBE_FUNCTION,
        folder=FOLDER,
    ),
    "lfpr.prune_in_steps": row(
        lfpr.prune_in_steps,
        model=(G.model, MODEL),
        cost=(G.cost, COST),
        constraint=(0.5, CONSTRAINT),
        steps=(1, COUNT1),
        score=(lfpr.magnitude, FUNCTION),
        batches=(lambda: G.batches, FUNCTION),
        forward=(enough, FUNCTION),
        part=PART,
        find=(lfpr.search_proportional, FUNCTION),
        ridges=([0.1], SIZES._replace(wrong=([], [0], "0.1"))),
    ),
    "kprune": row(
        kprune.kprune,
        model=(G.model, MODEL),
        batches=(G.batches, AGAIN),
        forward=(G.logits, FUNCTION),
        cost=(G.cost, COST),
        constraint=(0.5, CONSTRAINT),
        settings=(lfpr.KPrune(), SETTINGS),
        part=PART,
        folder=FOLDER,
    ),
    "kprune.tune": row(
        kprune.tune,
        model=(G.model, MODEL),
        batches=(G.batches, Kind((list, set), (G.batches[0], G.model))),
        forward=(G.logits, FUNCTION),
        cost=(G.cost, COST),
        constraint=(0.5, CONSTRAINT),
        candidates=([lfpr.KPrune()], Kind((), ([], [None], lfpr.KPrune()))),
        held_back=(0.5, Kind((int, float), (*NUMBERS, 0, 1, -1))),
        part=PART,
        folder=FOLDER,
    ),
    "kprune.divergence": row(
        kprune.divergence,
        teacher=(torch.ones(2, 3), LOGITS),
        student=(torch.ones(2, 3), LOGITS),
        temperature=(2, ABOVE),
    ),
    "lfpr.KPrune": row(
        lfpr.KPrune,
        temperature=(2, ABOVE),
        predictive=(0, Kind((int, float), (*NUMBERS, -1))),
        representational=(1, ABOVE),
        heads=(8, ABOVE),
    ),
    "fisher.best": row(fisher.best, logits=(torch.ones(2, 3), Kind((torch.Tensor,), (torch.ones(2),)))),
    "fisher.gaussian_projection": row(
        fisher.gaussian_projection,
        cheap=False,
        values=(torch.ones(2, 3), Kind((torch.Tensor,), (torch.ones(2),))),
        generator=(G.generator, Kind()),
    ),
    "fisher.independent_projection": row(
        fisher.independent_projection,
        cheap=False,
        logits=(torch.ones(2, 3), Kind((torch.Tensor,), (torch.ones(2),))),
        weights=(torch.ones(2), Kind((), (torch.ones(3),))),
        generator=(G.generator, Kind()),
    ),
    # ---- latency
    "lfpr.LatencyCost": row(
        lfpr.LatencyCost,
        attention=([0, 1], SIZES._replace(wrong=([], [1], [0, -1], [0, NAN], [0, INF], ["1", "2"], [0, 0], [[0, 1]]))),
        ffn=([0, 1], SIZES._replace(wrong=([], [1], [0, -1], [0, NAN], [True, True]))),
        num_layers=(2, COUNT1),
        unit=("ms", TEXT),
        measured=Kind((dict, NONE)),
    ),
    "LatencyCost.of": row(
        G.times.of,
        heads=([1, 2, 3], Kind((), ([1, 2], [1, 2, 9], [1, 2, -1], [1, 2, 0.5]))),
        neurons=([1, 2, 3], Kind((), ([1, 2], [1, 2, 99], [1, 2, NAN]))),
    ),
    "LatencyCost.kept": row(G.times.kept, masks=(G.masks, MASKS)),
    "LatencyCost.fraction": row(G.times.fraction, masks=(G.masks, MASKS)),
    "LatencyCost.measure": row(
        latency.LatencyCost.measure,
        cheap=False,
        **ON,
        batch=(G.batches[0], ANYTHING),  # whatever forward takes
        forward=(G.forward, FUNCTION),
        heads=([2], Kind((list, set, np.ndarray, NONE), ([9], [-1], [0.5], ["2"], "2"))),
        neurons=([2], Kind((list, set, np.ndarray, NONE), ([99], [-1], [0.5], ["2"], [True]))),
        repeats=(1, COUNT1),
        warmup=(0, COUNT),
        clock=(lambda: 0.0, FUNCTION),
    ),
    "LatencyCost.save": row(G.times.save, cheap=False, path=("file", PATH)),
    "LatencyCost.load": row(latency.LatencyCost.load, cheap=False, path=("file", PATH)),
    "lfpr.latency.search_latency": row(latency.search_latency, **WHOLE, cost=(G.times, COST), **WIDTHS),
    "lfpr.latency.take_turns": row(
        latency.take_turns, cheap=False, calls=({"a": int}, Kind((), ({"a": None}, {"a": 1}))), repeats=(1, COUNT1)
    ),
    "lfpr.latency.monotone": row(monotone, values=([2, 1], SIZES._replace(wrong=([], [NAN], ["1"], "12")))),
    "lfpr.latency.side_by_side": row(
        side_by_side,
        cheap=False,
        models=({"a": G.model}, MODELS),
        run=(G.forward, FUNCTION),
        encoder=(lfpr.prunable, FUNCTION),
        sequence_length=(9, COUNT1),
        samples=(1, COUNT1),
        sample=("text", TEXT),
        repeats=(1, COUNT1),
    ),
    # ---- training
    "lfpr.ReSt": row(
        lfpr.ReSt,
        last_layers=(1, COUNT),
        lr=(1e-3, ABOVE),
        mask_lr=(1e-2, ABOVE),
        clip=(0.5, Kind((int, float), (True, NAN, -INF, 0, -1, torch.tensor(NAN)))),
        cosine=(True, FLAG),
        mixed_precision=("no", Kind((), ("fp8", "BF16", 16))),
    ),
    "lfpr.TrainableMasks": row(lfpr.TrainableMasks, cheap=False, **ON),
    "TrainableMasks.spread": row(
        lfpr.TrainableMasks(lfpr.prunable(G.small)).spread, masks=(G.masks, Kind((), (*MASKS.wrong, G.ones)))
    ),
    "lfpr.retrain": row(
        lfpr.retrain,
        cheap=False,
        model=(G.model, MODEL),
        encoder=(G.encoder, Kind((), (G.model, lfpr.prunable(G.small)))),
        heads=([], Kind((list, set), ([1], G.bare, [G.bare, None]))),
        batches=(G.batches, BATCHES),
        loss=(G.objective, FUNCTION),
        settings=(lfpr.ReSt(), SETTINGS),
        progress=(False, FLAG),
        parameters=Kind((list, set), ([1], [G.bare])),
        fold=(True, FLAG),
        checkpoint=Kind((str, NONE), (Path(__file__),)),
        checkpoint_every=(1, COUNT1),
        score=MAYBE_FUNCTION,
        score_every=(0, Kind((int, float), (*COUNT.wrong, 5))),
    ),
    # ---- what others released
    "lfpr.released.search": row(released.search, **WHOLE, cost=(G.cost, COST)),
    "lfpr.released.parameter_cost": row(released.parameter_cost, **ON),
    "lfpr.released.latency_cost": row(
        released.latency_cost,
        attention=([1, 2], SIZES._replace(wrong=([], [-1], [NAN], ["1"]))),
        ffn=([1, 2], SIZES._replace(wrong=([], [-1], [NAN], ["1"]))),
        num_layers=(2, COUNT1),
    ),
    "lfpr.released.fit_plateau": row(
        released.fit_plateau, table=([1, 2, 3], SIZES._replace(wrong=([], [-1], [NAN], [0])))
    ),
    "lfpr.released.rescale": row(
        released.rescale,
        **ON,
        **RUN,
        masks=(G.masks, MASKS),
        teacher=Kind((NONE,), MASKS.wrong),
        tokens=MAYBE_FUNCTION,
        folder=FOLDER,
        first_token=Kind((bool, NONE), ("false", 0)),
    ),
    "lfpr.released.draw": row(
        released.draw,
        total=(200, COUNT1),
        count=(5, COUNT),
        seed=(1, Kind((int, float), (*COUNT.wrong, 2**32))),
        first=Kind((int, float, NONE), (True, 0, -1, 1.5, NAN)),
    ),
    "lfpr.released.outputs": row(
        released.outputs, root=(".", PATH), model=("openai/clip", TEXT), constraint=(0.5, CONSTRAINT), seed=(1, COUNT)
    ),
    "lfpr.released.load_masks": row(
        released.load_masks,
        cheap=False,
        path=("file", PATH),
        neuron_mask=MAYBE_PATH,
        encoder=(G.encoder, Kind((NONE,), (G.model,))),
    ),
    "lfpr.released.save_masks": row(released.save_masks, cheap=False, masks=(G.masks, MASKS), folder=("folder", PATH)),
    "lfpr.released.save_head_mask": row(
        released.save_head_mask, cheap=False, masks=(G.masks, MASKS), step=(1, COUNT1), folder=("folder", PATH)
    ),
    "lfpr.released.save_scores": row(
        released.save_scores, cheap=False, folder=("folder", PATH), gradients=(G.gradients, GRADIENTS), step=(1, COUNT)
    ),
    "lfpr.released.load_scores": row(released.load_scores, cheap=False, folder=("folder", PATH)),
    "lfpr.released.save_tap": row(
        released.save_tap,
        cheap=False,
        pruned=(G.answers, TAP),
        folder=("folder", PATH),
        masks=Kind((NONE,), (G.ones,)),
        unpruned=MAYBE_PATH,
    ),
    "lfpr.released.load_tap": row(
        released.load_tap,
        cheap=False,
        folder=("folder", PATH),
        config=(G.answers.config, Kind()),
        checkpoint=("file", PATH),
    ),
    "lfpr.released.read_cfg": row(
        released.read_cfg, cheap=False, path=("file", PATH), config=(G.answers.config, Kind())
    ),
    "lfpr.released.save_clip": row(released.save_clip, cheap=False, model=(G.clip, MODEL), path=("file", PATH)),
    "lfpr.released.load_clip": row(released.load_clip, cheap=False, path=("file", PATH), config=Kind((NONE,))),
    "released.scoring.label_free": row(
        released.scoring.label_free,
        cheap=False,
        model=(G.answers, TAP),
        step=(1, Kind((int, float), (*COUNT.wrong, 99))),
        dropout=(0.1, Kind((int, float), (*NUMBERS, -0.1, 1))),
        seed=(0, Kind((int, float), (*NUMBERS, 1.5))),
    ),
    # ---- CLIP
    "lfpr.clip.image_features": row(clip.image_features, clip=(G.clip, CLIP), batch=(G.pixels, PIXELS)),
    "lfpr.clip.text_features": row(clip.text_features, clip=(G.clip, CLIP), batch=(G.ids, CAPTIONS)),
    "lfpr.clip.contrastive_loss": row(
        clip.contrastive_loss,
        images=(G.features, Kind((torch.Tensor,), (torch.ones(2),))),
        texts=(G.features, Kind((torch.Tensor,), (torch.ones(2), torch.ones(2, 8)))),
        logit_scale=(1.0, Kind((int, float, torch.Tensor), (True, NAN, torch.ones(2)))),
    ),
    "lfpr.clip.contrastive": row(clip.contrastive, cheap=False, clip=(G.clip, CLIP)),
    "clip.contrastive()": row(clip.contrastive(G.clip), batch=(G.pairs, PIXELS)),
    "lfpr.clip.label_free": row(clip.label_free, cheap=False, clip=(G.clip, CLIP)),
    "clip.label_free()": row(clip.label_free(G.clip), batch=(G.pairs, PIXELS)),
    "lfpr.clip.distillation_loss": row(clip.distillation_loss, cheap=False, clip=(G.clip, CLIP)),
    "clip.distillation_loss()": row(clip.distillation_loss(G.clip), batch=(G.pairs, PIXELS)),
    "lfpr.clip.Attached": row(
        clip.Attached,
        cheap=False,
        batches=(G.batches, Kind((list, set), (G.batches[0], G.model))),
        name=("text_features", TEXT),
        encode=(G.forward, FUNCTION),
        key=Kind((tuple,)),
        rows=Kind((dict, NONE)),
    ),
    "lfpr.clip.distil": row(
        clip.distil,
        cheap=False,
        clip=(G.clip, CLIP),
        batches=([G.pairs], BATCHES),
        settings=(lfpr.ReSt(), SETTINGS),
        trained=("last", Kind((), ("none", 1))),
        progress=(False, FLAG),
    ),
    "lfpr.clip.loader": row(
        clip.loader,
        cheap=False,
        reader=([], ANYTHING),
        features=(G.features, TENSOR),
        rows=([0, 1], SIZES._replace(wrong=([], [9], [-1], [0.5]))),
        batch_size=(1, COUNT1),
        steps=(1, COUNT1),
        seed=(1, COUNT),
        workers=(0, COUNT),
        pin_memory=(False, FLAG),
    ),
    "lfpr.clip.encode_images": row(
        clip.encode_images, clip=(G.clip, CLIP), batches=([G.pixels], BATCHES), progress=TITLE
    ),
    "lfpr.clip.encode_texts": row(clip.encode_texts, clip=(G.clip, CLIP), batches=([G.pairs], BATCHES), progress=TITLE),
    "lfpr.clip.match": row(clip.match, images=(G.encoded, Kind()), texts=(G.encoded, Kind())),
    "lfpr.clip.recall": row(
        clip.recall, image_features=(G.features, TENSOR), text_features=(G.features, TENSOR), **RECALL
    ),
    "lfpr.clip.ranks": row(
        clip.ranks, image_features=(G.features, TENSOR), text_features=(G.features, TENSOR), pairs=RECALL["pairs"]
    ),
    "lfpr.clip.cascade": row(
        clip.cascade,
        pruned_features=(G.features, Kind((torch.Tensor,))),
        full=(G.features, Kind((torch.Tensor, type))),
        text_features=(G.features, Kind((torch.Tensor,))),
        m=(2, Kind((int, float), (*COUNT1.wrong, 99))),
        **RECALL,
    ),
    "lfpr.clip.cascade_levels": row(
        clip.cascade_levels,
        levels=([Level(G.features, G.features)] * 2, Kind((), ([1, 2], [Level(None, None)] * 2))),
        m=([2], SIZES),
        **RECALL,
    ),
    "lfpr.clip.image_speedup": row(
        clip.image_speedup, full_time=(2, ABOVE), pruned_time=(1, ABOVE), fraction=(0.5, SHARE)
    ),
    "levels_speedup": row(
        levels_speedup,
        times=([1, 2], SIZES._replace(wrong=([], [0], [NAN], ["1"]))),
        shares=([0.5], SIZES._replace(wrong=([], [2], [-1], [0.5, 0.5], ["1"]))),
    ),
    "lfpr.clip.compare": row(
        clip.compare, cheap=False, models=({"a": G.clip}, MODELS), batch=(G.pixels, PIXELS), repeats=(1, COUNT1)
    ),
    "lfpr.clip.eccv_metrics": row(
        clip.eccv_metrics,
        cheap=False,
        image_features=(G.features, TENSOR),
        text_features=(G.features, TENSOR),
        image_id=(torch.arange(3), TENSOR),
        caption_id=(torch.arange(3), TENSOR),
    ),
    "lfpr.clip.vision_cost": row(clip.vision_cost, clip=(G.clip, CLIP)),
    # ---- TAP
    "lfpr.tap.TAP": row(tap.TAP, cheap=False, config=(G.answers.config, Kind((), ({"hidden_size": 8},)))),
    "TAP.generate": row(
        G.answers.generate,
        batch=(G.inputs, INPUTS),
        steps=(2, Kind((int, float, NONE), (*COUNT1.wrong, 101))),
        stop=(True, FLAG),
    ),
    "TAP.encode": row(G.answers.encode, cheap=False, batch=(G.inputs, INPUTS)),
    "TAP.load_checkpoint": row(G.answers.load_checkpoint, cheap=False, path=("file", PATH)),
    "lfpr.tap.TAPConfig": row(
        tap.TAPConfig,
        **{
            name: COUNT if name in ("text_layers", "order_size", "bos_index", "eos_index") else COUNT1
            for name in tap.TAPConfig().to_dict()
            if name != "dropout"
        },
        dropout=(0.5, Kind((int, float), (*NUMBERS, -0.1, 1.1))),
    ),
    "TAPConfig.from_dict": row(tap.TAPConfig.from_dict, values=({}, Kind((dict,)))),
    "lfpr.tap.peak_step": row(tap.peak_step, model=(G.answers, TAP), batches=([G.inputs], BATCHES)),
    "lfpr.tap.peak_steps": row(tap.peak_steps, **DECODED),
    "lfpr.tap.first_logits": row(tap.first_logits, **DECODED),
    "lfpr.tap.label_free": row(
        tap.label_free, cheap=False, model=(G.answers, TAP), step=(1, Kind((int, float), (*COUNT.wrong, 99)))
    ),
    "lfpr.tap.labelled": row(tap.labelled, cheap=False, model=(G.answers, TAP), reduction=("sum", REDUCTION)),
    "tap.labelled()": row(tap.labelled(G.answers), cheap=False, batch=(G.inputs, Kind((), (G.inputs,)))),
    "lfpr.tap.decoding_loss": row(
        tap.decoding_loss,
        logits=(torch.zeros(1, 2, 3), Kind((), (torch.ones(2, 3),))),
        targets=(torch.zeros(1, 2, 3), Kind((), (torch.ones(1, 2, 4),))),
        mask=(torch.ones(1, 2), Kind((), (torch.ones(1, 3),))),
        reduction=("sum", REDUCTION),
    ),
    "lfpr.tap.decode": row(
        tap.decode,
        predictions=([4, 2], Kind((list, set, np.ndarray), ([0.5], ["a"], [NAN], [-1], [True]))),
        ocr_tokens=([], LIST),
        vocab=(G.vocab, Kind()),
    ),
    "lfpr.tap.phoc": row(tap.phoc, word=("word", TEXT)),
    "lfpr.tap.answers": row(
        tap.answers,
        cheap=False,
        logits=(torch.ones(1, 2, 9), Kind((torch.Tensor,))),
        batch=(G.inputs, Kind((), (G.inputs,))),
    ),
    "lfpr.tap.evaluate": row(
        tap.evaluate, cheap=False, model=(G.answers, TAP), data=(G.questions, Kind()), batch_size=(1, COUNT1)
    ),
    "predict": row(predict, cheap=False, model=(G.answers, TAP), data=(G.questions, Kind()), batch_size=(1, COUNT1)),
    **{
        f"lfpr.tap.{write.__name__}": row(
            write,
            cheap=False,
            path=("file", PATH),
            answers=([], Kind((list,), (["stop"], [None]))),
            data=(G.questions, Kind()),
        )
        for write in (tap.write_evalai, tap.write_rrc)
    },
    "lfpr.tap.compare": row(
        tap.compare, cheap=False, models=({"a": G.answers}, MODELS), batch=(G.inputs, INPUTS), repeats=(1, COUNT1)
    ),
    **{
        f"lfpr.tap.{metric.__name__}": row(
            metric,
            predictions=(["yes"], Kind((str, list, set, np.ndarray, torch.Tensor), ([1], [None], [NAN]))),
            answers=([["yes"] * 10], Kind((list, set, np.ndarray, torch.Tensor), ([[1] * 10], [[]], ["yes"], [None]))),
        )
        for metric in (tap.vqa_accuracy, tap.stvqa_accuracy, tap.anls)
    },
    # ---- SaL
    "lfpr.sal.SaL": row(sal.SaL, cheap=False, config=(small_sal.CONFIG, Kind((), ({"d_model": 8},)))),
    "SaL.generate": row(G.sal.generate, batch=(G.samples, SAMPLES), steps=(2, Kind((int, float, NONE), COUNT1.wrong))),
    "SaL.encode": row(G.sal.encode, cheap=False, batch=(G.samples, SAMPLES)),
    "SaL.forward": row(
        G.sal.forward,
        batch=(G.samples, SAMPLES),
        previous=(torch.zeros(4, 2).long(), Kind((torch.Tensor,))),
        counted=(None, Kind((torch.Tensor, NONE))),
    ),
    "SaL.load_checkpoint": row(G.sal.load_checkpoint, cheap=False, path=("file", PATH)),
    "lfpr.sal.read_config": row(
        sal.read_config, cheap=False, path=("file", PATH), scp=("auto", Kind((), ("on", True, 0)))
    ),
    "lfpr.sal.compare": row(
        sal.compare, cheap=False, models=({"a": G.sal}, MODELS), batch=(G.samples, SAMPLES), repeats=(1, COUNT1)
    ),
    "lfpr.sal.SaLConfig": row(
        sal.SaLConfig,
        **dict.fromkeys(set(small_sal.CONFIG.to_dict()) - {"dropout", "scp", "separator"}, COUNT1)
        | dict.fromkeys(("ocr_prefix", "obj_prefix"), PREFIX),
        dropout=(0.5, Kind((int, float), (*NUMBERS, -0.1, 1.1))),
        scp=("off", Kind((), ("on", True, 0))),
        separator=(5, Kind((int, float), (*COUNT.wrong, 1, 32128))),
    ),
    "SaLConfig.from_dict": row(sal.SaLConfig.from_dict, values=({}, Kind((dict,)))),
    "lfpr.sal.peak_step": row(sal.peak_step, model=(G.sal, SAL), batches=([G.samples], BATCHES)),
    "lfpr.sal.peak_steps": row(sal.peak_steps, **WRITTEN),
    "lfpr.sal.first_logits": row(sal.first_logits, **WRITTEN),
    "lfpr.sal.label_free": row(
        sal.label_free, cheap=False, model=(G.sal, SAL), step=(1, Kind((int, float), (*COUNT.wrong, 25)))
    ),
    "lfpr.sal.labelled": row(sal.labelled, cheap=False, model=(G.sal, SAL), reduction=("sum", REDUCTION)),
    "sal.labelled()": row(sal.labelled(G.sal), cheap=False, batch=(G.samples, Kind((), (G.samples,)))),
    **{
        f"lfpr.sal.{function.__name__}": row(
            function, cheap=False, model=(G.sal, SAL), data=(G.pieces, Kind()), batch_size=(1, COUNT1)
        )
        for function in (sal.predict, sal.evaluate)
    },
}

PAIRS = [(name, argument) for name, row in TABLE.items() for argument in row.kinds]


@pytest.mark.parametrize(("name", "argument"), PAIRS)
def test_a_bad_argument_is_refused_by_its_name(name, argument):
    function, good, kinds, _ = TABLE[name]
    for value in kinds[argument].bad:
        with pytest.raises(ValueError, match=rf"\b{kinds[argument].named or argument}\b"):
            function(**good | {argument: value})
            pytest.fail(f"{argument} = {value!r:.80} was taken")


def test_good_arguments_are_taken():
    for _, function, good in cheap_rows():
        function(**good)


def test_every_public_function_and_argument_is_tried():
    for room, module in ROOMS.items():
        public = {name for name in module.__all__ if callable(getattr(module, name))}
        tried = {name.rpartition(".")[2] for name in TABLE if name.rpartition(".")[0] == room}
        assert public - tried == OTHERS[room].keys(), room
    for name, (function, good, kinds, _) in TABLE.items():
        wanted = {n for n, p in inspect.signature(function).parameters.items() if p.kind not in (p.VAR_KEYWORD,)}
        assert wanted <= kinds.keys(), name
        assert good.keys() <= kinds.keys(), name


def test_how_many_are_tried():
    assert sum(len(TABLE[name].kinds[argument].bad) for name, argument in PAIRS) > 4000


def cheap_rows():
    return [(name, row.function, row.given) for name, row in TABLE.items() if row.cheap]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, PerLayer):
        return type(a) is type(b) and a.equal(b) and same(vars(a).get("report"), vars(b).get("report"))
    if isinstance(a, torch.Tensor | np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and a.tolist() == b.tolist()
    if isinstance(a, nn.Module):
        return same(list(a.state_dict().values()), list(b.state_dict().values()))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b or a != a
    if hasattr(a, "__dict__"):
        return type(a) is type(b) and same(vars(a), vars(b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize(
    "name", [name for name, _, given in cheap_rows() if any(type(v) in (int, float) for v in given.values())]
)
def test_numbers_of_numpy_and_torch_give_the_same(name):
    function, good, *_ = TABLE[name]
    numbers = {argument: value for argument, value in good.items() if type(value) in (int, float)}
    expected = function(**good)
    for change in (np.array, lambda value: np.array(value)[()], lambda value: torch.from_numpy(np.array(value))):
        assert same(function(**good | {argument: change(value) for argument, value in numbers.items()}), expected)


@pytest.mark.parametrize(
    "name", [name for name, *_ in cheap_rows() if name not in ("lfpr.all_but_one", "lfpr.reconstruct")]
)
def test_the_default_device_makes_no_difference(name):
    function, good, *_ = TABLE[name]
    expected = function(**good)
    with torch.device("meta"):
        found = function(**good)
    assert same(found, expected)


NEVER_RIGHT = st.one_of(
    st.none(),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.complex_numbers(),
    st.fractions(),
    st.decimals(),
    st.dates(),
    st.uuids(),
    st.builds(object),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.floats().map(lambda value: torch.tensor([[value]], dtype=torch.complex64)),
    st.text(max_size=3).map(np.array),
)


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.sampled_from(PAIRS), NEVER_RIGHT)
def test_whatever_is_passed_the_error_is_clear(pair, value):
    name, argument = pair
    function, good, kinds, _ = TABLE[name]
    assume(not isinstance(value, kinds[argument].fine) and (argument, value) != ("folder", ""))  # where one is
    with pytest.raises(ValueError, match=rf"\b{kinds[argument].named or argument}\b"):
        function(**good | {argument: value})
