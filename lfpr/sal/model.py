"""SaL ("Separate and Locate", Fang et al., ACM MM 2023) on transformers' own T5, with cached greedy decoding.

The encoder reads a question, OCR pieces and pieces of objects' names, each part padded to its length; OCR and objects
also have a box and an appearance. Each word ends with a separator (Text Semantic Separate). T5's decoder writes the
answer piece by piece. State-dict names are those of the published checkpoints.

The Spatial Circle Position adds to the attention between OCR pieces, for each head, a number that depends on their
distance in the image. Its attention part was not published; here it is a table of distances and heads in layer 0 of the
encoder, whose bias of *all* heads T5 itself hands on from layer to layer, as it does with its relative positions.

Shapes: B samples, S encoder positions, O of them OCR's, T decoding steps, D model size, H heads, V pieces.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfpr.checks import check_choice, check_count, check_entries, check_kind
from lfpr.files import CheckpointError
from lfpr.sal.checkpoint import SHARED, fitting
from lfpr.sal.config import EOS, PAD, SCP, SaLConfig
from lfpr.save import MODELS
from lfpr.tap.checkpoint import read_checkpoint
from lfpr.tap.model import check_logits

if TYPE_CHECKING:  # seconds, which those who only look at finished stages need not wait
    from transformers.cache_utils import EncoderDecoderCache

Batch = dict[str, Tensor]
INPUTS = ("question_ids", "ocr_ids", "ocr_boxes", "ocr_features", "obj_ids", "obj_boxes", "obj_features")
EPS = 1e-6


@dataclass
class Encoded:
    """The encoder's outputs `x` [B, S, D], and where there is a piece, `mask` [B, S] bool."""

    x: Tensor
    mask: Tensor


class SaL(nn.Module):
    """SaL on batches of `lfpr.sal.batches`: dicts of the tensors listed at `embed`."""

    prunable_path = "latr"  # what lfpr.prunable(sal) prunes

    def __init__(self, config: SaLConfig) -> None:
        from transformers import T5ForConditionalGeneration
        from transformers.models.t5.modeling_t5 import T5LayerNorm

        super().__init__()
        check_kind("config", config, SaLConfig)
        self.config = config
        self.latr = T5ForConditionalGeneration(config.t5())
        self.embedding = self.latr.shared
        self.type_embed = nn.Embedding(3, config.d_model)
        for part in ("obj", "ocr"):
            setattr(self, f"{part}_vit_fc7", nn.Linear(config.feature_size, config.d_model))
            setattr(self, f"{part}_bbox", nn.Linear(4, config.d_model))
            setattr(self, f"{part}_feat_layer_norm", T5LayerNorm(config.d_model, EPS))
            setattr(self, f"{part}_bbox_layer_norm", T5LayerNorm(config.d_model, EPS))
        self.dropout = nn.Dropout(config.dropout)
        if config.scp != "off":
            block = self.latr.encoder.block[0]
            table = nn.Embedding(config.num_circles, config.num_heads)
            nn.init.zeros_(table.weight)  # begins as T5 is
            block.layer[0].SelfAttention.spatial_circle_bias = table
            add = partial(_add_circles, start=config.question_length, replace=config.scp == "replace")
            block.register_forward_pre_hook(add, with_kwargs=True)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.type_embed.weight.device

    def embed(self, batch: Batch) -> Tensor:
        """The encoder's inputs [B, S, D].

        `batch`: question_ids [B, Q], ocr_ids [B, O], obj_ids [B, N], 0 where there is no piece; of OCR and objects also
        `…_boxes` [B, …, 4] relative to the image and `…_features` [B, …, F]. Raises ValueError if one of them is not
        there, or there are no samples.
        """
        check_entries("batch", batch, *INPUTS)
        if not len(batch["question_ids"]):
            raise ValueError("batch: it has no samples")
        parts = [self.embedding(batch["question_ids"])]
        for part in ("ocr", "obj"):
            ids, boxes, features = (batch[f"{part}_{name}"] for name in ("ids", "boxes", "features"))
            place, look = (getattr(self, f"{part}_{name}") for name in ("bbox", "vit_fc7"))
            place_norm, look_norm = (getattr(self, f"{part}_{name}_layer_norm") for name in ("bbox", "feat"))
            parts.append(self.embedding(ids) + self.dropout(place_norm(place(boxes)) + look_norm(look(features))))
        return torch.cat([x + kind for x, kind in zip(parts, self.type_embed.weight, strict=True)], 1)

    def encode(self, batch: Batch) -> Encoded:
        """The encoder's outputs for a batch as at `embed`. Raises as that."""
        x = self.embed(batch)
        mask = torch.cat([batch[f"{part}_ids"] != PAD for part in ("question", "ocr", "obj")], 1)
        options = {}
        if self.config.scp != "off":
            options["circles"] = circles(batch["ocr_boxes"], self.config.circle_grid, self.config.circle_scale)
        return Encoded(self.latr.encoder(inputs_embeds=x, attention_mask=mask, **options).last_hidden_state, mask)

    def decode(
        self,
        encoded: Encoded,
        previous: Tensor,
        cache: EncoderDecoderCache | None = None,
        counted: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V] after the pieces `previous` [B, T], which follow those whose keys and values are in
        `cache`; `counted` [B, T]: 0 where these only fill up a row."""
        return self.latr(
            encoder_outputs=(encoded.x,),
            attention_mask=encoded.mask,
            decoder_input_ids=previous,
            decoder_attention_mask=counted,
            past_key_values=cache,
            use_cache=cache is not None,
        ).logits

    def forward(self, batch: Batch, previous: Tensor, counted: Tensor | None = None) -> Tensor:
        """Teacher-forced logits [B, T, V] after the answers so far, `previous` [B, T], 0 first; `counted` [B, T]: 0 at
        steps after an answer's end, None if all count."""
        check_kind("previous", previous, Tensor)
        check_kind("counted", counted, Tensor, None)
        return self.decode(self.encode(batch), previous, counted=counted)

    @torch.no_grad()
    def generate(self, batch: Batch, steps: int | None = None) -> tuple[Tensor, Tensor]:
        """Greedy decoding: logits [B, T, V] of the T steps done, and pieces [B, 1 + steps], of which the first is the
        start 0; what has ended with 1 goes on with 0. It stops when all have ended, after `steps` (default: the
        config's) at most.

        Raises ValueError for other batches, and logits that are NaN or infinite, which would be read as some answer.
        """
        steps = self.config.new_tokens if steps is None else check_count("steps", steps, 1)
        logits, ids = self.greedy(self.encode(batch), steps)
        return logits, F.pad(ids, (0, 1 + steps - ids.shape[1]), value=PAD)

    @torch.no_grad()
    def greedy(self, encoded: Encoded, steps: int) -> tuple[Tensor, Tensor]:
        """`generate` on what `encode` has made of a batch; pieces [B, 1 + T] of the T steps done."""
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        ids = self.begin(len(encoded.x))
        ended = torch.zeros_like(ids[:, 0], dtype=torch.bool)
        logits, cache = [], EncoderDecoderCache(DynamicCache(), DynamicCache())
        while len(logits) < steps and not ended.all():
            logits.append(self.decode(encoded, ids[:, -1:], cache))
            piece = logits[-1][:, 0].argmax(-1).masked_fill(ended, PAD)
            ids = torch.cat([ids, piece[:, None]], 1)
            ended |= piece == EOS
        logits = torch.cat(logits, 1)
        check_logits(logits)
        return logits, ids

    def begin(self, samples: int) -> Tensor:
        """The answer so far before the first step: 0 for each sample [B, 1]."""
        return torch.full((samples, 1), PAD, device=self.device)

    def load_checkpoint(self, path: str | Path) -> SaL:
        """Load a published checkpoint (`.ckpt`, `.pth`) or `.safetensors`; pickled code is never run. Returns self.

        Raises `CheckpointError` if the file is missing or unreadable, or has other entries than this model, or of other
        shapes, or NaN. A published Spatial Circle Position, whose name and size nobody knows, is taken if it is one
        table [distances, heads] with all distances; otherwise it is refused, too.
        """
        self.load_state_dict(fitting(path, self))
        return self


MODELS["SaL"] = lambda config: SaL(SaLConfig.from_dict(config))


def read_config(path: str | Path, scp: str = "auto") -> SaLConfig:
    """The sizes of a published checkpoint by its shapes, the inputs' lengths being the published ones. `scp`: as of
    `SaLConfig`, or "auto", which is "add" if the checkpoint has what T5 has not, else "off". Raises ValueError for
    another `scp`, CheckpointError for what is no SaL."""
    check_choice("scp", scp, ("auto", *SCP))
    state = read_checkpoint(path)
    attention, ffn = (f"latr.encoder.block.0.layer.{name}" for name in ("0.SelfAttention", "1.DenseReluDense"))
    try:
        vocab_size, d_model = state[SHARED].shape
        num_buckets, num_heads = state[f"{attention}.relative_attention_bias.weight"].shape
        encoder, decoder = (
            len({name.split(".")[3] for name in state if name.startswith(f"latr.{side}.block.")})
            for side in ("encoder", "decoder")
        )
        config = SaLConfig(
            d_model=d_model,
            d_kv=len(state[f"{attention}.q.weight"]) // num_heads,
            d_ff=len(state[f"{ffn}.wi.weight"]),
            num_layers=encoder,
            num_decoder_layers=decoder,
            num_heads=num_heads,
            vocab_size=vocab_size,
            num_buckets=num_buckets,
            feature_size=state["ocr_vit_fc7.weight"].shape[1],
            scp="off",
        )
    except KeyError as error:
        raise CheckpointError(f"checkpoint {path} lacks the entry {error} of a SaL model") from None
    except (ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(f"checkpoint {path} has other shapes than a SaL model: {error}") from error
    if scp == "auto":
        with torch.device("meta"):
            plain = SaL(config).state_dict()
        scp = "off" if state.keys() <= plain.keys() else "add"
    return replace(config, scp=scp)


def steps_of(ids: Tensor) -> Tensor:
    """Decoding steps [B] of each sample's answer in `ids` [B, 1 + T], start first: up to and with its 1, or all T."""
    ended = ids[:, 1:] == EOS
    return torch.where(ended.any(1), ended.int().argmax(1) + 1, ended.shape[1])


def circles(boxes: Tensor, grid: int, scale: int) -> Tensor:
    """Distances [B, O, O], int64, between the cells of a `grid` × `grid` that the boxes' centres are in, in whole parts
    of a cell: floor(scale · distance). `boxes` [B, O, 4]: x1, y1, x2, y2 relative to the image; what lies beyond it is
    in the cell at its border."""
    centres = ((boxes[..., :2] + boxes[..., 2:]) / 2).clamp(0, 0.999)
    cells = (centres * grid).floor()
    squares = (cells[:, :, None] - cells[:, None]).square().sum(-1)
    return (scale * squares.sqrt()).long()


def _add_circles(block: nn.Module, args: tuple, kwargs: dict, start: int, replace: bool) -> tuple[tuple, dict]:
    """Before the encoder's first block: T5's bias of all heads and, between OCR pieces, that of their distances, as if
    a block before it had made it."""
    x, mask, _, *others = args
    attention, distances = block.layer[0].SelfAttention, kwargs["circles"]
    bias = attention.compute_bias(x.shape[1], x.shape[1], x.device).repeat(len(x), 1, 1, 1)  # [B, H, S, S]
    part = slice(start, start + distances.shape[1])
    own = attention.spatial_circle_bias(distances).permute(0, 3, 1, 2)  # [B, H, O, O]
    bias[:, :, part, part] = own if replace else bias[:, :, part, part] + own
    return (x, mask, bias, *others), kwargs
