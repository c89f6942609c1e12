"""Every stage on the CPU and on the GPU, at the real sizes: how fast, how much memory, and whether both agree.

    python benchmarks/gpu.py [--models tap tap12 vit] [--batches 2] [--repeats 3] [--cpu-repeats 1] [--small]
                             [--device auto] [--out TABLE.md]

TAP (hidden 768; 4 MMT layers with 3 TextBERT layers, and 12 with none) and CLIP ViT-B/16 with random weights, on random
inputs that use all positions, in the profile full's batches. Prints a Markdown table, a row a stage: questions (images)
per second on the CPU and on the device, their ratio, and the most memory that the device's tensors took; then how far
importance, masks and outputs of both are apart: the largest relative difference of importance, the share of heads and
neurons kept by both of those kept by either at 40 %, and the largest difference of logits (features). Stages in
"bf16" are those that `eval_precision="bf16"` concerns; their outputs' difference is that from the CPU in float32.

Without an accelerator it says so, and times the CPU alone.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import models
import torch
from torch import Tensor, nn

import lfpr
from lfpr.clip.distil import distillation_loss
from lfpr.clip.objectives import contrastive, image_features
from lfpr.device import OnDevice, describe, find_device, forget_memory, memory_mb, moved, running, synchronise
from lfpr.released import scoring
from lfpr.tap.model import INVALID, TAP
from lfpr.tap.objectives import label_free, labelled

CONSTRAINT, STEP = 0.4, 1


@dataclass
class Subject:
    """A model with its batches, all on one device; `stages`: name -> what one run of it over the batches does."""

    model: nn.Module
    encoder: lfpr.PrunableEncoder
    batches: list
    cost: object
    outputs: Callable[[dict], Tensor]
    objective: Callable[[dict], Tensor]
    stages: dict[str, Callable[[], object]]
    samples: int

    def importance(self) -> lfpr.Importance:
        return lfpr.collect_gradients(self.encoder, self.batches, self.objective).importance()


def tap(layers: int, text_layers: int, batches: int, small: bool, device: torch.device) -> Subject:
    """TAP on `device`: the same weights and questions on every device."""
    model = models.tap(small, layers, text_layers).to(device)
    loaded = [
        _with_targets(model, moved(models.questions(model.config, 8), torch.device("cpu")), i) for i in range(batches)
    ]
    loaded = list(OnDevice(loaded, device))
    encoder = lfpr.prunable(model)
    masks = lfpr.search(lfpr.random_importance(encoder, 0), lfpr.ParameterCost(encoder), CONSTRAINT)

    def rescale() -> None:
        lfpr.rescale(encoder, masks, loaded, lambda batch: model(batch, batch["previous"][:, :2]))

    def decode(precision: str = "no") -> None:
        with running(device, precision):
            for batch in loaded:
                model.generate(batch)

    stages = {
        "time step, pseudo-labels, evaluation: decoding": decode,
        "the same, bf16": partial(decode, "bf16"),
        "importance, a gradient per question": partial(
            lfpr.collect_gradients, encoder, loaded, label_free(model, STEP), per_sample=True
        ),
        "importance, as released": partial(
            lfpr.collect_gradients, encoder, loaded, scoring.label_free(model, STEP, scoring.DROPOUT)
        ),
        "Fisher importance": partial(lfpr.collect_gradients, encoder, loaded, labelled(model)),
        "rescaling": rescale,
        "ReSt, last layer": _retraining(model, encoder, masks, loaded, device),
    }
    return Subject(
        model,
        encoder,
        loaded,
        lfpr.ParameterCost(encoder),
        lambda batch: model.generate(batch, 2)[0],
        label_free(model, STEP),
        stages,
        8 * batches,
    )


def _with_targets(model: TAP, batch: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    config, g = model.config, torch.Generator().manual_seed(seed)
    batch = {name: value.roll(seed, -1) if value.is_floating_point() else value for name, value in batch.items()}
    samples, steps = len(batch["num_ocr"]), config.decoding_steps
    targets = torch.zeros(samples, steps, config.num_answers + config.num_ocr)
    previous = torch.randint(0, config.num_answers, (samples, steps), generator=g)
    mask = (torch.arange(steps) < 3).float().expand(samples, -1).contiguous()
    targets[:, :, 5] = 1
    return batch | {"targets": targets, "previous": previous, "loss_mask": mask}


def _retraining(model: TAP, encoder, masks: lfpr.Masks, batches: list, device: torch.device) -> Callable[[], None]:
    def retrain() -> None:
        small = lfpr.shrink(model, masks).train().to(device)
        heads = [small.classifier, small.ocr_ptr_net]
        loss = labelled(small, reduction="parts")
        lfpr.retrain(small, lfpr.prunable(small), heads, batches, loss, lfpr.ReSt(last_layers=1), progress=False)

    return retrain


def vit(batches: int, small: bool, device: torch.device) -> Subject:
    """CLIP ViT-B/16 on `device`."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    vision = {"patch_size": 16, "image_size": 32 if small else 224} | (sizes if small else {})
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text if small else {})).eval().to(device)
    part, g = model.vision_model, torch.Generator().manual_seed(1)
    encoder, pixels = lfpr.prunable(part), vision["image_size"]
    loaded = []
    for _ in range(batches):
        batch = {"pixel_values": torch.randn(32, 3, pixels, pixels, generator=g)}
        batch |= {name: torch.randn(32, model.config.projection_dim, generator=g) for name in ("text_features",)}
        loaded.append(moved(batch, device))
    with torch.no_grad():
        loaded = [batch | {"image_features": image_features(model, batch)} for batch in loaded]
    tokens = (pixels // 16) ** 2 + 1
    cost = lfpr.MacCost(encoder, tokens)
    masks = lfpr.search(lfpr.random_importance(encoder, 0), cost, CONSTRAINT)
    run = lambda batch: part(pixel_values=batch["pixel_values"])  # noqa: E731

    @torch.no_grad()
    def encode(precision: str = "no") -> None:
        with running(device, precision):
            for batch in loaded:
                image_features(model, batch)

    def retrain() -> None:
        pruned = lfpr.shrink(model, masks, part).to(device)
        settings = lfpr.ReSt(last_layers=2)
        lfpr.retrain(
            pruned, lfpr.prunable(pruned.vision_model), [], loaded, distillation_loss(pruned), settings, progress=False
        )

    stages = {
        "features, evaluation, cascade: encoding": encode,
        "the same, bf16": partial(encode, "bf16"),
        "Fisher importance, a sensitivity step": partial(lfpr.collect_gradients, encoder, loaded, contrastive(model)),
        "rescaling": lambda: lfpr.rescale(encoder, masks, loaded, run),
        "rescaling, as released": lambda: lfpr.released.rescale(encoder, masks, loaded, run),
        "distillation, last two layers": retrain,
    }
    outputs = torch.no_grad()(lambda batch: image_features(model, batch))
    return Subject(model, encoder, loaded, cost, outputs, contrastive(model), stages, 32 * batches)


MODELS = {
    "tap": ("TAP, 4 layers", "questions", partial(tap, 4, 3)),
    "tap12": ("TAP, 12 layers", "questions", partial(tap, 12, 0)),
    "vit": ("CLIP ViT-B/16", "images", vit),
}


def seconds(stage: Callable[[], object], repeats: int) -> float:
    """The median of `repeats` runs, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        synchronise()
        start = time.perf_counter()
        stage()
        synchronise()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:] or times)


def rows(name: str, arguments: argparse.Namespace, device: torch.device) -> Iterator[str]:
    """The lines of a model's table, and what its two devices disagree in."""
    title, what, make = MODELS[name]
    cpu = make(arguments.batches, arguments.small, torch.device("cpu"))
    other = make(arguments.batches, arguments.small, device) if device.type != "cpu" else None
    yield f"\n**{title}**, {what} per second, batches of {cpu.samples // arguments.batches}\n"
    columns = ["stage", "CPU", *([str(device), "ratio", "GB"] if other else [])]
    yield f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
    for stage, run in cpu.stages.items():
        slow = cpu.samples / seconds(run, arguments.cpu_repeats)
        line = f"| {stage} | {slow:.1f} |"
        if other:
            forget_memory()
            fast = cpu.samples / seconds(other.stages[stage], arguments.repeats)
            line += f" {fast:.1f} | {fast / slow:.1f} | {memory_mb() / 1024:.1f} |"
        yield line
    if other:
        yield "\n" + agreement(cpu, other, device)


def agreement(cpu: Subject, other: Subject, device: torch.device) -> str:
    """How far both devices' importance, masks and outputs are apart."""
    ours, theirs = cpu.importance(), other.importance()
    apart = [
        ((a - b).abs().max() / a.abs().max()).item()
        for a, b in ((ours.heads, theirs.heads), (ours.neurons, theirs.neurons))
    ]
    both = [lfpr.search(importance, cpu.cost, CONSTRAINT) for importance in (ours, theirs)]
    kept = [[part != 0 for part in (masks.heads, masks.neurons)] for masks in both]
    shares = [((a & b).sum() / (a | b).sum()).item() for a, b in zip(*kept, strict=True)]
    expected, gaps = cpu.outputs(cpu.batches[0]), {}
    for precision in ("no", "bf16"):
        with running(device, precision):
            gaps[precision] = (expected - other.outputs(other.batches[0]).float().cpu()).abs().max().item()
    reach = expected[expected > INVALID].abs().max()
    return (
        f"Importance differs by {apart[0]:.1e} (heads) and {apart[1]:.1e} (neurons) of the largest; of what either "
        f"keeps at {CONSTRAINT:.0%}, both keep {shares[0]:.2%} and {shares[1]:.2%}; outputs differ by "
        f"{gaps['no']:.1e}, in bf16 by {gaps['bf16']:.1e} (they reach {reach:.1f})."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batches", type=int, default=2, help="of each stage's run")
    parser.add_argument("--repeats", type=int, default=3, help="runs on the device")
    parser.add_argument("--cpu-repeats", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="small models, to try the script")
    parser.add_argument("--out", type=Path, help="file for the table")
    arguments = parser.parse_args()
    device = find_device(arguments.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # as the experiments run
    lines = [f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads, device: {describe(device)}"]
    if device.type == "cpu":
        lines.append("No accelerator: the CPU alone.")
    for line in lines:
        print(line, flush=True)
    for name in arguments.models:
        for line in rows(name, arguments, device):
            lines.append(line)
            print(line, flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
