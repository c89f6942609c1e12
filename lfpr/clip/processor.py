"""What a CLIP model's folder says about its inputs: preprocessor_config.json for images, its tokenizer for captions.

The image settings are read by transformers; the pixels take a shorter path than its own (uint8 until the batch is
whole), two to four times as fast and equal up to float32 rounding.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lfpr.checks import check_count, check_number
from lfpr.files import CheckpointError, a_path

BYTES = 256  # a tokenizer knows each of them, at least
LARGEST = 2048  # shortest edge: an image is resized to it whatever its shape


class Processor:
    """Inputs of the CLIP model in `model`, a Hugging Face folder or hub id.

    Raises ValueError for image settings other than resizing, a centre crop, rescaling and normalising by numbers that
    make sense, and CheckpointError for a folder that is broken, or lacks image settings or the model's tokenizer, as a
    cache does whose owner only ever loaded the model.
    """

    def __init__(self, model: str | Path) -> None:
        from transformers import CLIPConfig, CLIPTokenizer
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        a_path(model, "model")
        try:
            self.tokenizer, config = (kind.from_pretrained(model) for kind in (CLIPTokenizer, CLIPConfig))
            settings = CLIPImageProcessorPil.from_pretrained(model)
        except Exception as error:  # a broken file raises nearly anything
            raise CheckpointError(f"model {model} lacks what says how to read images and captions: {error}") from error
        if len(self.tokenizer) < BYTES:  # without its files it is made all the same, of two tokens
            found = f"its tokenizer has {len(self.tokenizer)} tokens"
            raise CheckpointError(f"model {model}: {found}; it needs tokenizer.json, or vocab.json and merges.txt")
        self.max_length = min(self.tokenizer.model_max_length, config.text_config.max_position_embeddings)
        needed = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
        off = [name for name in needed if not getattr(settings, name)]
        if off or not settings.size.shortest_edge or settings.size.longest_edge or settings.do_pad:
            values = {name: getattr(settings, name) for name in (*needed, "do_pad", "size")}
            raise ValueError(
                f"model {model}: image settings {values}; expected a shortest edge, {list(needed)} and no pad"
            )
        said = f"model {model}: "
        self.shortest = check_count(f"{said}shortest_edge", settings.size.shortest_edge, 1, LARGEST)
        self.height = check_count(f"{said}crop_size.height", settings.crop_size.height, 1)
        self.width = check_count(f"{said}crop_size.width", settings.crop_size.width, 1)
        self.resample = Image.Resampling(check_count(f"{said}resample", settings.resample, 0, 5))
        if max(self.height, self.width) > self.shortest:
            raise ValueError(f"model {model}: crop_size {settings.crop_size} is larger than the size {settings.size}")
        factor = _positive(f"{said}rescale_factor", settings.rescale_factor)
        mean, std = _channels(f"{said}image_mean", settings.image_mean), settings.image_std
        std = torch.tensor([_positive(f"{said}image_std", value) for value in _channels(f"{said}image_std", std)])
        self._scale = (factor / std).view(3, 1, 1)
        self._shift = (-torch.tensor(mean) / std).view(3, 1, 1)

    def crop(self, image: Image.Image) -> np.ndarray:
        """An RGB image resized to the shortest edge and cropped at its centre: uint8 [H, W, 3]."""
        short, long = sorted(image.size)
        size = tuple(self.shortest if side == short else int(self.shortest * long / short) for side in image.size)
        if size != image.size:
            image = image.resize(size, self.resample)
        left, top = (size[0] - self.width) // 2, (size[1] - self.height) // 2
        return np.array(image.crop((left, top, left + self.width, top + self.height)))

    def normalise(self, pixels: np.ndarray | Tensor) -> Tensor:
        """`pixel_values` [B, 3, H, W] float32 of uint8 pixels [B, H, W, 3]."""
        pixels = torch.as_tensor(pixels).permute(0, 3, 1, 2)
        return pixels.to(torch.float32, memory_format=torch.contiguous_format).mul_(self._scale).add_(self._shift)

    def tokens(self, captions: list[str]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` [B, T], padded to the longest, cut at the model's positions."""
        inputs = self.tokenizer(
            captions, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return {name: inputs[name] for name in ("input_ids", "attention_mask")}


def _positive(name: str, value: Any) -> float:
    return check_number(name, value, "above 0", lambda number: number > 0)


def _channels(name: str, values: Any) -> list[float]:
    """A number for each colour."""
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise ValueError(f"{name} = {values!r:.80}: must be three numbers")
    return [check_number(name, value) for value in values]
