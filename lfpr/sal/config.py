"""The sizes of a SaL model and of its inputs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from lfpr.checks import check_choice, check_count, check_list, check_number, from_fields

if TYPE_CHECKING:  # seconds, which those who only look at finished stages need not wait
    from transformers import T5Config

PAD, EOS = 0, 1  # of T5's vocabulary; an answer begins with the first and ends with the second
SCP = ("off", "add", "replace")
PREFIX = 3  # positions that the OCR part and the object part begin with: two pieces and a separator


@dataclass(frozen=True)
class SaLConfig:
    """Sizes of a SaL model and its inputs; the defaults are the published SaL-Base (Fang et al., ACM MM 2023).

    `scp`: what the Spatial Circle Position does with T5's bias between OCR pieces: "add" to it, "replace" it, or "off".
    Its attention part was not published: "add" and "replace" are this package's definition. Prefixes and the separator
    are ids of T5's pieces.

    Raises ValueError naming a field that is no number, too small or too large.
    """

    d_model: int = 768
    d_kv: int = 64  # of a head
    d_ff: int = 3072
    num_layers: int = 12
    num_decoder_layers: int = 12
    num_heads: int = 12
    vocab_size: int = 32128
    num_buckets: int = 32
    max_distance: int = 128
    dropout: float = 0.1
    feature_size: int = 2048
    max_features: int = 512  # rows of features that are read of an image
    question_length: int = 45
    ocr_length: int = 350
    obj_length: int = 250
    ocr_prefix: tuple[int, ...] = (2625, 10)  # "context:"
    obj_prefix: tuple[int, ...] = (4820, 10)  # "objects:"
    separator: int = 32099  # <extra_id_0>, after each word
    answer_steps: int = 24  # that are trained
    new_tokens: int = 25  # that are decoded
    scp: str = "add"
    circle_grid: int = 11  # cells of an image's side
    circle_scale: int = 5  # distances are whole fifths of a cell

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            object.__setattr__(self, field.name, self._checked(f"SaLConfig.{field.name}", field.name, value))
        if self.max_distance <= self.num_buckets // 2:  # the decoder's near positions have a bucket each
            raise ValueError(f"SaLConfig.max_distance = {self.max_distance}: must be above num_buckets / 2")

    def _checked(self, name: str, field: str, value: object) -> object:
        piece = lambda name, value: check_count(name, value, EOS + 1, self.vocab_size - 1)  # noqa: E731
        if field == "dropout":
            return check_number(name, value, "in [0, 1]", lambda share: 0 <= share <= 1)
        if field == "scp":
            return check_choice(name, value, SCP)
        if field == "separator":
            return piece(name, value)
        if field.endswith("_prefix"):
            found = check_list(name, value, piece, PREFIX - 1, "pieces")
            if len(found) != PREFIX - 1:
                raise ValueError(f"{name} = {found}: must be {PREFIX - 1} pieces")
            return found
        least = {"vocab_size": EOS + 2, "num_buckets": 4, "ocr_length": PREFIX, "obj_length": PREFIX}
        return check_count(name, value, least.get(field, 1))

    @property
    def length(self) -> int:
        """Positions of the encoder (645 as published)."""
        return self.question_length + self.ocr_length + self.obj_length

    @property
    def num_circles(self) -> int:
        """Distances between cells, from 0 on (71 as published)."""
        return math.floor(self.circle_scale * math.hypot(self.circle_grid - 1, self.circle_grid - 1)) + 1

    def to_dict(self) -> dict:
        """The fields by name, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> SaLConfig:
        """What `to_dict` gave. Raises ValueError naming unknown fields, and as `SaLConfig`."""
        return from_fields(cls, values)

    def t5(self) -> T5Config:
        """The configuration of its T5: ReLU, embeddings tied."""
        from transformers import T5Config

        return T5Config(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            d_kv=self.d_kv,
            d_ff=self.d_ff,
            num_layers=self.num_layers,
            num_decoder_layers=self.num_decoder_layers,
            num_heads=self.num_heads,
            relative_attention_num_buckets=self.num_buckets,
            relative_attention_max_distance=self.max_distance,
            dropout_rate=self.dropout,
            pad_token_id=PAD,
            eos_token_id=EOS,
            decoder_start_token_id=PAD,
        )
