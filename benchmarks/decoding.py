"""Greedy decoding and label-free mask gradients of TAP with cached keys and values, against recomputing all per step.

    OMP_NUM_THREADS=1 python benchmarks/decoding.py [--batch 8] [--steps 12] [--scored-step 1] [--repeats 2] [--small]

One model of the real size (hidden 768, 4 MMT and 3 TextBERT layers, 5,000 answers; 170 text, 100 object and 100 OCR
positions, all in use) with random weights. The two ways alternate in one run; prints the seconds of each (best of the
repeats), their ratio, and whether what they compute is equal.

- "recomputed": as published. Every decoding step runs TextBERT and MMT over all positions; for mask gradients, all of
  these passes carry gradients.
- "cached": `TAP.generate`, `lfpr.tap.label_free`.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

import lfpr
from lfpr.tap.model import TAP, Batch, TAPConfig
from lfpr.tap.objectives import label_free


def build(small: bool) -> TAP:
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "intermediate_size": 384, "feature_size": 128} if small else {}
    model = TAP(TAPConfig(**sizes)).eval()
    for parameter in model.parameters():  # answers that differ between questions and steps
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=2 / model.config.hidden_size**0.5)
    return model


def questions(config: TAPConfig, batch: int) -> Batch:
    """Random inputs that use all positions."""
    g, slots = torch.Generator().manual_seed(1), (batch, 100)
    return {
        "text": torch.randint(1, config.text_vocab_size, (batch, 170), generator=g),
        "obj_features": torch.rand(*slots, config.feature_size, generator=g),
        "obj_boxes": torch.rand(*slots, 4, generator=g),
        "num_obj": torch.full((batch,), 100),
        "ocr_fasttext": torch.randn(*slots, 300, generator=g),
        "ocr_phoc": (torch.rand(*slots, 604, generator=g) < 0.1).float(),
        "ocr_features": torch.rand(*slots, config.feature_size, generator=g),
        "ocr_boxes": torch.rand(*slots, 4, generator=g),
        "num_ocr": torch.full((batch,), 100),
    }


def recompute(model: TAP, batch: Batch, steps: int) -> Tensor:
    """Logits [B, 12, V + 100] after `steps` passes over all encoder and all 12 decoding positions."""
    encoded = model.encode(batch)
    kept = torch.arange(batch["text"].shape[1])
    inputs = encoded.x[:, len(kept) :]
    previous = torch.zeros(len(batch["text"]), model.config.decoding_steps, dtype=torch.long)
    previous[:, 0] = model.config.bos_index
    for step in range(steps):
        if step:
            words = model.text_bert(batch["text"], kept, batch["text"] != 0)
            encoded.x = torch.cat([words, inputs], 1)
        logits = model.decode(encoded, previous)
        previous = torch.cat([previous[:, :1], logits.argmax(-1)[:, :-1]], 1)
    return logits


def race(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, object]:
    """Run the ways in turn, print their times, return their results."""
    results: dict[str, object] = {}
    seconds: dict[str, float] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.process_time()
            results[name] = way()
            seconds[name] = min(seconds.get(name, float("inf")), time.process_time() - start)
    slow, fast = seconds.values()
    for name, value in seconds.items():
        print(f"  {name:11} {value:8.2f} CPU s")
    print(f"  ratio       {slow / fast:8.1f}")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--scored-step", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="hidden 96, for a quick look")
    args = parser.parse_args()
    model = build(args.small)
    batch, step = questions(model.config, args.batch), args.scored_step

    print(f"greedy decoding, batch {args.batch}, {args.steps} steps, {torch.get_num_threads()} threads")
    with torch.no_grad():
        ways = {
            "recomputed": lambda: recompute(model, batch, args.steps)[:, : args.steps],
            "cached": lambda: model.generate(batch, args.steps)[0],
        }
        theirs, ours = race(ways, args.repeats).values()
    same = torch.equal(theirs.argmax(-1), ours.argmax(-1))
    print(
        f"  predictions {'equal' if same else 'DIFFER'}, largest difference of logits {(theirs - ours).abs().max():.1e}"
    )
    print(f"  {len(ours.argmax(-1).unique())} different answer words")

    print(f"label-free mask gradients of one batch at step {step}")
    encoder = lfpr.prunable(model)

    def mask_gradients(objective: Callable[[Batch], Tensor]) -> Tensor:
        gradients = lfpr.collect_gradients(encoder, [batch], objective)
        return torch.cat([gradients.heads.flatten(), gradients.neurons.flatten()])

    ways = {
        "recomputed": lambda: mask_gradients(lambda batch: recompute(model, batch, step + 1)[:, step].amax(-1).sum()),
        "cached": lambda: mask_gradients(label_free(model, step)),
    }
    theirs, ours = race(ways, args.repeats).values()
    print(
        f"  largest difference of mask gradients {(theirs - ours).abs().max() / theirs.abs().max():.1e} of the largest"
    )


if __name__ == "__main__":
    main()
