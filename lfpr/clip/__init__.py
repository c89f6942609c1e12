"""CLIP: its inputs from MSCOCO, objectives for mask gradients, label-free distillation, retrieval and cascades.

The experiment itself is `lfpr.open_experiment("clip-mscoco")`.
"""

from lfpr.clip.coco import COCOCaptions, batches, captions, check, images
from lfpr.clip.distil import distil, distillation_loss, loader
from lfpr.clip.objectives import Attached, contrastive, contrastive_loss, image_features, label_free, text_features
from lfpr.clip.processor import Processor
from lfpr.clip.retrieval import (
    Encoded,
    Level,
    cascade,
    cascade_levels,
    compare,
    eccv_metrics,
    encode_images,
    encode_texts,
    image_speedup,
    match,
    ranks,
    recall,
    vision_cost,
)

__all__ = [
    "Attached",
    "COCOCaptions",
    "Encoded",
    "Level",
    "Processor",
    "batches",
    "captions",
    "cascade",
    "cascade_levels",
    "check",
    "compare",
    "contrastive",
    "contrastive_loss",
    "distil",
    "distillation_loss",
    "eccv_metrics",
    "encode_images",
    "encode_texts",
    "image_features",
    "image_speedup",
    "images",
    "label_free",
    "loader",
    "match",
    "ranks",
    "recall",
    "text_features",
    "vision_cost",
]
