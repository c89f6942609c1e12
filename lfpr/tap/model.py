"""TAP: text-aware pre-training's multimodal transformer for scene-text VQA, with cached greedy decoding.

A question, the object tags and the OCR tags go through TextBERT; objects and OCR tokens through linear encoders; a
multimodal transformer (MMT) reads all of them and decodes an answer step by step, each step choosing a word of a fixed
vocabulary or copying an OCR token (Hu et al., M4C, CVPR 2020; Yang et al., TAP, CVPR 2021). The MMT is a stack of BERT
layers (`lfpr.tap.bert`). State-dict names are those of the released checkpoints.

Encoder positions never attend to decoding positions, so the encoder part does not depend on the answer: its keys and
values are computed once per question and kept for all decoding steps. Padding that no sample of a batch uses is cut
before any work; masked positions have zero attention weight, so the result does not change.

Shapes: B samples, T decoding steps, D hidden size, V answers in the fixed vocabulary, S encoder positions.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfpr.checks import check_count, check_entries, check_flag, check_kind
from lfpr.files import CheckpointError, a_path
from lfpr.rebuild import MODELS
from lfpr.tap.bert import Cache, Embeddings, Encoder, KeyValueCache
from lfpr.tap.checkpoint import check_fits, read_checkpoint
from lfpr.tap.config import TAPConfig

Batch = dict[str, Tensor]
INPUTS = ("text", "obj_features", "obj_boxes", "num_obj")
INPUTS += ("ocr_fasttext", "ocr_phoc", "ocr_features", "ocr_boxes", "num_ocr")
INVALID = -10000.0  # logit of an OCR slot that holds no token, as released


class TextBert(nn.Module):
    """BERT embeddings and `text_layers` layers over [question | OCR tags | object tags]."""

    def __init__(self, config: TAPConfig) -> None:
        super().__init__()
        self.question_tokens = config.question_tokens
        sizes = config.bert(config.text_layers)
        self.embeddings = Embeddings(config.text_vocab_size, config.text_positions, sizes)
        self.encoder = Encoder(sizes)

    def forward(self, text: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        segments = (positions >= self.question_tokens).long().expand_as(text)
        x = self.embeddings(text, segments, positions[None].expand_as(text))
        return self.encoder(x, valid[:, None, None])


class Fc7(nn.Module):
    """The last layer of the object detector, fine-tuned with TAP; its parameters are named `module.lc`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.module = nn.ModuleDict({"lc": nn.Linear(size, size)})

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.module["lc"](x))


class PreviousPredictions(nn.Module):
    """Embeds the answer so far: a vocabulary answer by its classifier row, an OCR copy by its input vector."""

    def __init__(self, config: TAPConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, 1e-12
        self.position_embeddings = nn.Embedding(100, width)
        self.token_type_embeddings = nn.Embedding(5, width)
        self.ans_layer_norm = nn.LayerNorm(width, eps=eps)
        self.ocr_layer_norm = nn.LayerNorm(width, eps=eps)
        self.emb_layer_norm = nn.LayerNorm(width, eps=eps)
        self.emb_dropout = nn.Dropout(config.dropout)

    def forward(self, answers: Tensor, ocr: Tensor, previous: Tensor, start: int = 0) -> Tensor:
        """answers [V, D], ocr [B, O, D], previous [B, T] at decoding positions start … start + T - 1 -> [B, T, D]."""
        copied = previous >= len(answers)
        words = self.ans_layer_norm(answers[previous.clamp(max=len(answers) - 1)])
        slots = (previous - len(answers)).clamp(0, ocr.shape[1] - 1)
        copies = self.ocr_layer_norm(ocr.gather(1, slots[..., None].expand(-1, -1, ocr.shape[2])))
        positions = torch.arange(start, start + previous.shape[1], device=previous.device)
        slot = self.position_embeddings(positions) + self.token_type_embeddings(copied.long())
        return torch.where(copied[..., None], copies, words) + self.emb_dropout(self.emb_layer_norm(slot))


class MMT(nn.Module):
    """The multimodal transformer and the embedding of the answer so far; parts only, `TAP` runs them."""

    def __init__(self, config: TAPConfig) -> None:
        super().__init__()
        self.prev_pred_embeddings = PreviousPredictions(config)
        self.encoder = Encoder(config.bert(config.mmt_layers))


class OcrPointer(nn.Module):
    """Logits of copying each OCR token: scaled dot products of decoder outputs and OCR outputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, decoded: Tensor, keys: Tensor) -> Tensor:
        return self.query(decoded) @ keys.transpose(1, 2) / math.sqrt(keys.shape[-1])


@dataclass
class Encoded:
    """What the encoder positions become before the MMT, OCR tokens last; and what `TAP.prefill` keeps of them after."""

    x: Tensor  # [B, S, D]
    valid: Tensor  # [B, S]
    num_ocr: Tensor  # [B]
    slots: int  # OCR slots that the batch uses
    cache: Cache | None = None  # the MMT's keys and values of all positions so far
    copy_keys: Tensor | None = None  # the pointer's keys [B, slots, D]

    @property
    def ocr(self) -> Tensor:
        return self.x[:, self.x.shape[1] - self.slots :]  # [B, slots, D]


class TAP(nn.Module):
    """TAP (Yang et al., CVPR 2021) with M4C's decoder (Hu et al., CVPR 2020), on batches of `lfpr.tap.batches`.

    Batches are dicts of the tensors listed at `encode`; logits are over V answers and `num_ocr` copies.
    """

    prunable_path = "mmt.encoder"  # what lfpr.prunable(tap) prunes

    def __init__(self, config: TAPConfig) -> None:
        super().__init__()
        check_kind("config", config, TAPConfig)
        self.config = config
        width = config.hidden_size
        self.text_bert = TextBert(config)
        self.obj_faster_rcnn_fc7 = Fc7(config.feature_size)
        self.linear_obj_feat_to_mmt_in = nn.Linear(config.feature_size, width)
        self.linear_obj_bbox_to_mmt_in = nn.Linear(4, width)
        self.obj_feat_layer_norm = nn.LayerNorm(width)  # the four input norms have eps 1e-5, all others 1e-12
        self.obj_bbox_layer_norm = nn.LayerNorm(width)
        self.ocr_faster_rcnn_fc7 = Fc7(config.feature_size)
        self.linear_ocr_feat_to_mmt_in = nn.Linear(config.ocr_size, width)
        self.linear_ocr_bbox_to_mmt_in = nn.Linear(4, width)
        self.ocr_feat_layer_norm = nn.LayerNorm(width)
        self.ocr_bbox_layer_norm = nn.LayerNorm(width)
        self.mmt = MMT(config)
        self.ocr_ptr_net = OcrPointer(width)
        self.classifier = nn.ModuleDict({"module": nn.Linear(width, config.num_answers)})
        self.input_dropout = nn.Dropout(config.dropout)
        self.apply(_initialise)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.classifier["module"].weight.device

    def encode(self, batch: Batch) -> Encoded:
        """Inputs of the MMT's encoder positions, padding that no sample uses cut away.

        `batch`: text [B, L]; obj_features [B, O, F], obj_boxes [B, O, 4], num_obj [B]; ocr_fasttext [B, C, 300],
        ocr_phoc [B, C, 604], ocr_features [B, C, F], ocr_boxes [B, C, 4], num_ocr [B]. Boxes are relative to the image.
        Raises ValueError if one of them is not there, or there are no samples.
        """
        check_entries("batch", batch, *INPUTS)
        if not len(batch["text"]):
            raise ValueError("batch: it has no samples")
        text, num_obj, num_ocr = batch["text"], batch["num_obj"], batch["num_ocr"]
        kept = (text != 0).any(0).nonzero()[:, 0]
        text, objects, slots = text[:, kept], int(num_obj.max()), max(1, int(num_ocr.max()))  # copying needs a slot
        obj = F.normalize(self.obj_faster_rcnn_fc7(batch["obj_features"][:, :objects]), dim=-1)
        obj = self.obj_feat_layer_norm(self.linear_obj_feat_to_mmt_in(obj)) + self.obj_bbox_layer_norm(
            self.linear_obj_bbox_to_mmt_in(batch["obj_boxes"][:, :objects])
        )
        ocr = [
            F.normalize(batch["ocr_fasttext"][:, :slots], dim=-1),
            F.normalize(batch["ocr_phoc"][:, :slots].to(obj.dtype), dim=-1),
            F.normalize(self.ocr_faster_rcnn_fc7(batch["ocr_features"][:, :slots]), dim=-1),
        ]
        # the released model multiplies order_size zeros by the last columns: leave both out
        linear = self.linear_ocr_feat_to_mmt_in
        used = linear.in_features - self.config.order_size
        ocr = F.linear(torch.cat(ocr, -1), linear.weight[:, :used], linear.bias)
        ocr = self.ocr_feat_layer_norm(ocr) + self.ocr_bbox_layer_norm(
            self.linear_ocr_bbox_to_mmt_in(batch["ocr_boxes"][:, :slots])
        )
        words = self.text_bert(text, kept, text != 0)
        x = torch.cat([words, self.input_dropout(obj), self.input_dropout(ocr)], 1)  # [B, S, D]
        valid = torch.cat([text != 0, _valid(num_obj, objects), _valid(num_ocr, slots)], 1)  # [B, S]
        return Encoded(x, valid, num_ocr, slots)

    def forward(self, batch: Batch, previous: Tensor) -> Tensor:
        """Teacher-forced logits [B, T, V + num_ocr] after the answers so far, `previous` [B, T], `<s>` first."""
        check_kind("previous", previous, Tensor)
        return self.decode(self.encode(batch), previous)

    def encodes_as(self, other: TAP) -> bool:
        """Whether `encode` gives what `other`'s does: all weights before the MMT are equal, as pruning and ReSt leave
        them."""
        later = ("mmt.", "classifier.", "ocr_ptr_net.")
        own, others = ({n: p for n, p in m.state_dict().items() if not n.startswith(later)} for m in (self, other))
        if own.keys() != others.keys():
            return False
        return all(torch.equal(value, others[name].to(value.device)) for name, value in own.items())

    @torch.no_grad()
    def generate(self, batch: Batch | Encoded, steps: int | None = None, stop: bool = False) -> tuple[Tensor, Tensor]:
        """Greedy decoding: logits [B, T, V + num_ocr] and predictions [B, T] of `steps` steps (default: all).

        With `stop`, decoding ends early once every sample has produced `</s>`; T is then the steps done. Instead of a
        batch, what `encode` has made of it will do. Raises ValueError for other batches, steps that cannot be decoded,
        and logits that are NaN or infinite, which would be read as some answer.
        """
        most = self.mmt.prev_pred_embeddings.position_embeddings.num_embeddings
        steps = self.config.decoding_steps if steps is None else check_count("steps", steps, 1, most)
        check_flag("stop", stop)
        return self.greedy(self.prefill(batch, KeyValueCache(steps)), steps, stop)

    def prefill(self, batch: Batch | Encoded, cache: Cache) -> Encoded:
        """`encode`, then the MMT over the encoder positions alone, whose keys and values `cache` keeps for `decode`."""
        encoded = replace(batch if isinstance(batch, Encoded) else self.encode(batch), cache=cache)
        y = self.mmt.encoder(encoded.x, encoded.valid[:, None, None], encoded.cache)
        encoded.copy_keys = self._copy_keys(y, encoded)
        return encoded

    def decode(self, encoded: Encoded, previous: Tensor, start: int = 0) -> Tensor:
        """Logits [B, T, V + num_ocr] at decoding positions start … start + T - 1, whose inputs are `previous` [B, T].

        After `prefill` only these positions run, and join those before them in the cache. After `encode` alone, encoder
        and decoding positions run together in one pass, from `start` 0.
        """
        (samples, positions), steps = encoded.valid.shape, previous.shape[1]
        x = self.mmt.prev_pred_embeddings(self.classifier["module"].weight, encoded.ocr, previous, start)
        before = encoded.valid.new_ones(steps, start + steps).tril(start).expand(samples, -1, -1)
        mask = torch.cat([encoded.valid[:, None].expand(-1, steps, -1), before], 2)  # [B, T, S + start + T]
        if encoded.cache is not None:
            return self._logits(self.mmt.encoder(x, mask[:, None], encoded.cache), encoded.copy_keys, encoded)
        inputs = F.pad(encoded.valid, (0, steps))[:, None].expand(-1, positions, -1)  # attend to each other only
        y = self.mmt.encoder(torch.cat([encoded.x, x], 1), torch.cat([inputs, mask], 1)[:, None])
        return self._logits(y[:, positions:], self._copy_keys(y[:, :positions], encoded), encoded)

    @torch.no_grad()
    def greedy(self, encoded: Encoded, steps: int, stop: bool = False) -> tuple[Tensor, Tensor]:
        """`generate` on what `prefill` has made of a batch, whose cache it extends. Raises as that for its logits."""
        token = self.begin(len(encoded.num_ocr))
        ended = torch.zeros_like(token[:, 0], dtype=torch.bool)
        logits, predictions = [], []
        for step in range(steps):
            logits.append(self.decode(encoded, token, step))
            token = logits[-1].argmax(-1)
            predictions.append(token)
            ended |= token[:, 0] == self.config.eos_index
            if stop and ended.all():
                break
        logits = torch.cat(logits, 1)
        check_logits(logits)
        return logits, torch.cat(predictions, 1)

    def begin(self, samples: int) -> Tensor:
        """The answer so far before the first step: `<s>` for each sample [B, 1]."""
        return torch.full((samples, 1), self.config.bos_index, device=self.device)

    def _copy_keys(self, y: Tensor, encoded: Encoded) -> Tensor:
        """The pointer's keys [B, slots, D] of the MMT's outputs at the encoder positions."""
        return self.ocr_ptr_net.key(y[:, y.shape[1] - encoded.slots :])

    def _logits(self, decoded: Tensor, copy_keys: Tensor, encoded: Encoded) -> Tensor:
        words = self.classifier["module"](decoded)
        copies = self.ocr_ptr_net(decoded, copy_keys)
        copies = copies.masked_fill(~_valid(encoded.num_ocr, encoded.slots)[:, None], INVALID)
        return torch.cat([words, F.pad(copies, (0, self.config.num_ocr - encoded.slots), value=INVALID)], -1)

    def load_checkpoint(self, path: str | Path) -> TAP:
        """Load a released checkpoint (`.ckpt`/`.pth`: a state dict, or one under "model") or `.safetensors`.

        Entries of other tasks' heads (TAP's pre-training) are left out. Raises `CheckpointError` if the file is
        missing or unreadable, has fewer or more layers, lacks an entry of this model, a shape differs, or a value is
        NaN or infinite. Pickled code is never run. Returns self.
        """
        a_path(path, "path")
        state = read_checkpoint(path)
        own = self.state_dict()
        missing = [name for name in own if name not in state]
        wrong = [f"lacks {len(missing)} of the {len(own)} entries of TAP, first {missing[0]}"] if missing else []
        for stack, layers in (("text_bert", self.config.text_layers), ("mmt", self.config.mmt_layers)):
            numbers = [re.match(rf"{stack}\.encoder\.layer\.(\d+)\.", name) for name in state]
            if (found := len({match[1] for match in numbers if match})) != layers:
                wrong.append(f"{found} layers in {stack}, this TAPConfig has {layers}")
        if wrong:
            raise CheckpointError(f"{path}: {'; '.join(wrong)}")
        check_fits(path, state, own, "TAPConfig")
        self.load_state_dict({name: state[name] for name in own})
        return self


MODELS["TAP"] = lambda config: TAP(TAPConfig.from_dict(config))


def check_logits(logits: Tensor) -> None:
    """ValueError if some are NaN or infinite: the largest of them is no answer."""
    if not logits.isfinite().all():
        raise ValueError("logits: NaN or infinite: the model's weights or its inputs are broken")


def _valid(count: Tensor, slots: int) -> Tensor:
    return torch.arange(slots, device=count.device) < count[:, None]  # [B, slots]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
