from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from blda_cli.data.classes import class_set
from blda_cli.data.pillow_images import PillowImage
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.segmenters.base import Segmenter
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.store.provenance import Provenance


@dataclass
class RandomSegmenter(Segmenter):
    """Random logits that depend on the image's key, a letter, alone.

    Attributes:
        bad: keys that cannot be read.
        seen: keys that were run, in order.
    """

    bad: set[str] = field(default_factory=set)
    seen: list[str] = field(default_factory=list)

    def read(self, file: ImageSource) -> np.ndarray:
        if file.key in self.bad:
            raise BldaError("cannot be read")
        return np.array(ord(file.key))

    def logits(self, arrays: Tensor, *_: object) -> Tensor:
        self.seen += map(chr, arrays.tolist())
        noise = [torch.randn(3, 24, 30, generator=torch.Generator().manual_seed(key)) for key in arrays.tolist()]
        return torch.stack(noise) + torch.tensor([1.0, 0.0, -0.5]).view(1, 3, 1, 1)


@pytest.fixture
def segmenter() -> RandomSegmenter:
    classes = class_set(["road", "tree", "car"])
    return RandomSegmenter(classes, {"kind": "python", "weights": "sha256:1"}, torch.device("cpu"))


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[ImageSource]:
    """Images that the segmenter does not read, so that there are no files."""
    monkeypatch.setattr(PillowImage, "declared", lambda _: None)
    return [PillowImage(Path(f"/x/{name}.png"), name) for name in "abcdef"]


@pytest.fixture
def collect(segmenter: RandomSegmenter, files: list[ImageSource]) -> Callable[..., Any]:
    """Calls ``collect_statistics`` with what a test does not care about."""
    from blda_cli.core.choices import LabelSource
    from blda_cli.pipelines.collect import CountingOptions, collect_statistics
    from blda_cli.pipelines.job import Job
    from blda_cli.runtime.shards import Shard

    def call(output: Path, **changes: Any) -> Any:
        settings = {
            "counting": CountingOptions((LabelSource.PSEUDO, LabelSource.SOFT), bins=64),
            "inference": InferenceOptions(),
            "labels": None,
        }
        job: dict[str, Any] = {"provenance": Provenance("blda collect-stats", source="/x"), "shard": Shard()}
        job |= {name: changes.pop(name) for name in ("provenance", "overwrite", "monitor", "shard") if name in changes}
        return collect_statistics(segmenter, files, Job(output, **job), **{**settings, **changes})

    return call
