"""The sizes of a TAP model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from transformers import BertConfig


@dataclass(frozen=True)
class TAPConfig:
    """Sizes of a TAP model; the defaults are the released 4-layer TAP. `text_layers=0, mmt_layers=12` is TAP12.

    Raises ValueError naming a field that is too small, or a hidden size that is no multiple of the heads.
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
            value = getattr(self, field.name)
            least = 0 if field.name in {"text_layers", "order_size", "dropout", "bos_index", "eos_index"} else 1
            if value < least:
                raise ValueError(f"TAPConfig.{field.name} = {value}: must be at least {least}")
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
        """What `to_dict` gave. Raises ValueError naming unknown fields."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"TAPConfig has no field {sorted(unknown)}; it has {[f.name for f in fields(cls)]}")
        return cls(**values)

    def bert(self, layers: int) -> BertConfig:
        """The BERT configuration of a stack of `layers` layers: GELU (erf), post-LayerNorm with eps 1e-12."""
        config = BertConfig(
            vocab_size=self.text_vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=self.num_heads,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=self.text_positions,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            layer_norm_eps=1e-12,
        )
        config._attn_implementation = "sdpa"
        return config
