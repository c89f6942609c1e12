"""The sizes of a TAP model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from lfpr.checks import check_count, check_number, from_fields
from lfpr.tap.bert import BertSizes

MAY_BE_0 = {"text_layers", "order_size", "bos_index", "eos_index"}


@dataclass(frozen=True)
class TAPConfig:
    """Sizes of a TAP model; the defaults are the released 4-layer TAP. `text_layers=0, mmt_layers=12` is TAP12.

    Raises ValueError naming a field that is no number or too small, or a hidden size that is no multiple of the heads.
    """

    text_layers: int = 3
    mmt_layers: int = 4
    text_vocab_size: int = 30522
    num_answers: int = 5000
    hidden_size: int = 768
    num_heads: int = 12
    intermediate_size: int = 3072
    question_tokens: int = 20  # text positions of segment 0; the OCR and object tags after them are segment 1
    text_positions: int = 512
    num_ocr: int = 100
    feature_size: int = 2048
    fasttext_size: int = 300
    phoc_size: int = 604
    order_size: int = 100  # zeros at the end of the OCR input, kept for the released weights' shape
    decoding_steps: int = 12
    bos_index: int = 1
    eos_index: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = f"TAPConfig.{field.name}", getattr(self, field.name)
            if field.name == "dropout":
                value = check_number(name, value, "in [0, 1]", lambda share: 0 <= share <= 1)
            else:
                value = check_count(name, value, int(field.name not in MAY_BE_0))
            object.__setattr__(self, field.name, value)
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"TAPConfig.hidden_size = {self.hidden_size}: must be a multiple of num_heads = {self.num_heads}"
            )

    @property
    def ocr_size(self) -> int:
        """Width of the OCR input: FastText, PHOC, appearance, zeros (3052 as released)."""
        return self.fasttext_size + self.phoc_size + self.feature_size + self.order_size

    def to_dict(self) -> dict:
        """The fields by name, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> TAPConfig:
        """What `to_dict` gave. Raises ValueError naming unknown fields, and as `TAPConfig`."""
        return from_fields(cls, values)

    def bert(self, layers: int) -> BertSizes:
        """The sizes of a stack of `layers` layers."""
        return BertSizes(layers, self.hidden_size, self.num_heads, self.intermediate_size, self.dropout)
