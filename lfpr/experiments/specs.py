"""The experiments, a row each: what they are called, what they measure, and which way of pruning is their own.

Nothing elsewhere asks for an experiment's name: what differs between them is in its row here, and in its `Task`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PROJECTED = ("true-fisher", "surgeon")
"""Methods by random projections of what the model says (`lfpr.fisher`)."""
UNLABELLED = ("self-fisher", *PROJECTED)
"""Methods by the model's own answers, which every experiment has beside its own."""
Way = tuple[str | None, str, bool]
"""A row of results.csv: method (None: the experiment's own), variant, retrained."""


def _ladder(rescaled: str, retraining: str) -> dict[str, Way]:
    """Of an experiment whose own way is rescaled or not (`rescaled`, a variant), and retrained by `retraining`."""
    ways = {
        "Pruned": (None, "" if rescaled else "rearranged=False, rescaled=False", False),
        "Rescaled": (None, rescaled, False),
        "K-prune": ("kprune", "", False),
        "Reconstructed": ("surgeon", "reconstructed=True", False),
        "Reconstructed in 3 steps": ("surgeon", "reconstructed=True, steps=3", False),
    }
    if retraining:
        ways[retraining] = (None, "", True)
        ways[f"Reconstructed, {retraining}"] = ("surgeon", "reconstructed=True", True)
    return ways


@dataclass(frozen=True)
class ExperimentSpec:
    """One experiment.

    task: where its `Task` is, "module:class", with `arguments` for it; pictures: the module that draws what notebooks
    show. title: model and data; metrics: column of a stage's result -> label, the first one being the score of figures
    and tables, `tabulated` those that get a table; samples: what scores count; kept: what a constraint counts. method,
    rearranged, rescaled, trained: the experiment's own way; methods, controls (methods that only compare), direct
    (those that give masks without a search), whole (those that also refit the weights), ways (values of trained): what
    else there is; retraining: its name. alternatives: what one figure compares, label -> Way; ladder: ways of winning
    back what pruning loses, the same. studies: what else can be studied, downstream: what else is measured of each
    pruned or retrained model (names in `lfpr.experiments.studies`). constraint: what is kept by default; tolerance:
    points that label-free, retrained, may lie there below the unpruned model on mini's data.
    """

    name: str
    task: str
    pictures: str
    title: str
    metrics: Mapping[str, str]
    samples: str
    kept: str
    method: str
    methods: tuple[str, ...]
    ways: tuple[str, ...]
    retraining: str
    tolerance: float
    alternatives: Mapping[str, Way]
    ladder: Mapping[str, Way] = field(default_factory=dict)
    controls: tuple[str, ...] = ()
    direct: tuple[str, ...] = ("given",)
    whole: tuple[str, ...] = ("kprune", "kprune-published")
    tabulated: tuple[str, ...] = ("score",)
    studies: tuple[str, ...] = ()
    downstream: tuple[str, ...] = ()
    rearranged: bool = False
    rescaled: bool = False
    constraint: float = 0.4
    arguments: Mapping[str, object] = field(default_factory=dict)

    @property
    def trained(self) -> str:
        """The experiment's own way of retraining; "" if it is not retrained."""
        return self.ways[0] if self.ways else ""

    @property
    def score(self) -> str:
        """What the column `score` measures."""
        return self.metrics["score"]


METRICS = {"textvqa": {"score": "TextVQA accuracy"}, "stvqa": {"score": "ST-VQA accuracy", "anls": "ST-VQA ANLS"}}
"""Data set of questions about text in images -> metrics."""


def _questions(name: str, title: str, dataset: str, **own: object) -> ExperimentSpec:
    """Of a model that answers questions about text in images; `own`: fields that are TAP's or SaL's."""
    alternatives = {
        "Pruned": (None, "", False),
        "Pruned, rescaled": (None, "rescaled=True", False),
        "Pruned, released scoring": (None, "scoring=released", False),
        "Pruned, scored per sample": (None, "scoring=per-sample", False),
        "Masks alone retrained": (None, "trained=masks", True),
        "ReSt": (None, "", True),
        "Random + ReSt": ("random", "", True),
    }
    shared = {
        "pictures": "lfpr.paper.pictures.tap",
        "title": title,
        "metrics": METRICS[dataset],
        "samples": "questions",
        "method": "label-free",
        "methods": ("label-free", "fisher", "absolute", "magnitude", "l1", "random", *UNLABELLED),
        "ways": ("ReSt", "masks"),
        "retraining": "ReSt",
        "alternatives": alternatives,
        "ladder": _ladder("rescaled=True", "ReSt"),
        "tabulated": tuple(METRICS[dataset]),
    }
    return ExperimentSpec(name, **shared | own)


def _tap(name: str, title: str, dataset: str, text_layers: int, mmt_layers: int, published: str) -> ExperimentSpec:
    arguments = {
        "dataset": dataset,
        "text_layers": text_layers,
        "mmt_layers": mmt_layers,
        "checkpoint": f"{dataset}_tap_{published}_best.ckpt",
        "labels": f"{name.split('-')[0].upper()}_predicted_labels",
    }
    return _questions(
        name,
        title,
        dataset,
        task="lfpr.experiments.tap:TAPTask",
        kept="MMT parameters kept",
        tolerance=2.4,  # the paper's
        studies=("scoring",),
        arguments=arguments,
    )


def _sal(name: str, title: str, dataset: str) -> ExperimentSpec:
    return _questions(
        name,
        title,
        dataset,
        task="lfpr.experiments.sal:SaLTask",
        kept="T5 parameters kept",
        tolerance=2.9,  # the paper's
        constraint=0.5,
        whole=(),  # K-prune takes one stack of layers
        ladder={label: way for label, way in _ladder("rescaled=True", "ReSt").items() if way[0] != "kprune"},
        arguments={"dataset": dataset},
    )


SPECS: dict[str, ExperimentSpec] = {
    spec.name: spec
    for spec in (
        _tap("tap-textvqa", "TAP, TextVQA", "textvqa", 3, 4, "base"),
        _tap("tap-stvqa", "TAP, ST-VQA", "stvqa", 3, 4, "base"),
        _tap("tap12-textvqa", "TAP12, TextVQA", "textvqa", 0, 12, "ocrcc"),
        _tap("tap12-stvqa", "TAP12, ST-VQA", "stvqa", 0, 12, "ocrcc"),
        _sal("sal-textvqa", "SaL, TextVQA", "textvqa"),
        _sal("sal-stvqa", "SaL, ST-VQA", "stvqa"),
        ExperimentSpec(
            "clip-mscoco",
            "lfpr.experiments.clip:CLIPTask",
            "lfpr.paper.pictures.clip",
            "CLIP, MSCOCO",
            metrics={
                "score": "MSCOCO Recall@1",
                "r5": "MSCOCO Recall@5",
                "r10": "MSCOCO Recall@10",
                "i2t_r1": "MSCOCO image→text Recall@1",
            },
            samples="captions",
            kept="vision encoder MACs kept",
            method="fisher",
            methods=("fisher", "label-free", "activation", "magnitude", "random", *UNLABELLED),
            controls=("uniform", "split-activation", "split-magnitude", "split-random"),
            direct=("sensitivity", "given"),
            ways=("last", "masks", "all"),
            retraining="distillation",
            tolerance=12.0,
            rearranged=True,
            rescaled=True,
            tabulated=("score", "r10"),
            studies=("sensitivity", "scales"),
            downstream=("cascade", "levels"),
            alternatives={
                "Searched": (None, "rearranged=False, rescaled=False", False),
                "Searched, rearranged": (None, "rearranged=True, rescaled=False", False),
                "Pruned, rescaled": (None, "", False),
                "Pruned, rescaled as released": (None, "rescaled=released", False),
                "Distilled: masks, norms": (None, "trained=masks", True),
                "Distilled: last layers": (None, "", True),
                "Distilled: all layers": (None, "trained=all", True),
                "Random, distilled": ("random", "", True),
            },
            ladder=_ladder("", "distilled"),
            arguments={"model": "openai/clip-vit-base-patch16"},
        ),
        ExperimentSpec(
            "minilm-texts",
            "lfpr.experiments.sentences:SentenceTask",
            "lfpr.paper.pictures.sentences",
            "all-MiniLM-L6-v2, texts",
            metrics={"score": "Nearest neighbours kept"},
            samples="texts",
            kept="parameters of the layers kept",
            method="label-free",
            methods=("label-free", "magnitude", "l1", "random", *UNLABELLED),
            ways=(),
            retraining="",
            tolerance=0.0,
            alternatives={"Pruned": (None, "", False), "Pruned, rescaled": (None, "rescaled=True", False)},
            ladder=_ladder("rescaled=True", ""),
        ),
    )
}
"""Name -> its spec, in the order of tables and figures."""
