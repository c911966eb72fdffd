"""Format ``huggingface``: a folder as ``save_pretrained`` writes it, with processor, labels and configuration."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from blda_cli.errors import require_extra
from blda_cli.exporting.content import Content, quiet
from blda_cli.segmenters.huggingface import SemanticOneFormer
from blda_cli.segmenters.network import CORRECTION
from blda_cli.segmenters.spec import SegmenterSpec


def write(content: Content, folder: Path) -> SegmenterSpec:
    """Write the folder.

    Args:
        content: what to write; it has no stages.
        folder: where.

    Returns:
        The description of it.
    """
    transformers = require_extra("transformers", "hf", "to write Hugging Face models")
    model: Any = content.parts.network
    if isinstance(model, SemanticOneFormer):
        model = model.model
    if content.correction:
        setattr(model.config, CORRECTION, content.correction)
    with quiet():
        model.to(content.dtype).save_pretrained(folder)
        for auto in (transformers.AutoImageProcessor, transformers.AutoTokenizer):
            with suppress(Exception):  # the model may have none; what is missing was missing before
                auto.from_pretrained(content.spec.segmenter.path, trust_remote_code=False).save_pretrained(folder)
    return content.weights_described(replace(content.spec.segmenter, path=str(folder), weights=None))
