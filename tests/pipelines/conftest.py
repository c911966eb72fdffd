from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from blda_cli.data.classes import class_set
from blda_cli.data.images import ImageFile
from blda_cli.data.labels import LabelReader
from blda_cli.data.loader import SkippedFile
from blda_cli.errors import BldaError
from blda_cli.segmenters.base import InferenceOptions, LogitBatch, Segmenter


@dataclass
class RandomSegmenter(Segmenter):
    """Random logits that depend on the image's key alone.

    Attributes:
        bad: keys that cannot be read.
        seen: keys that were run, in order.
    """

    bad: set[str] = field(default_factory=set)
    seen: list[str] = field(default_factory=list)

    def stream(
        self,
        files: Sequence[ImageFile],
        options: InferenceOptions,
        labels: LabelReader | None = None,
        skipped: list[SkippedFile] | None = None,
    ) -> Iterator[LogitBatch]:
        for file in files:
            if file.key in self.bad:
                if options.on_error == "stop":
                    raise BldaError(f"{file.path} cannot be read")
                assert skipped is not None
                skipped.append(SkippedFile(file, "cannot be read"))
                continue
            self.seen.append(file.key)
            generator = torch.Generator().manual_seed(sum(map(ord, file.key)))
            logits = torch.randn(1, 3, 24, 30, generator=generator) + torch.tensor([1.0, 0.0, -0.5]).view(1, 3, 1, 1)
            yield LogitBatch([file], logits)


@pytest.fixture
def segmenter() -> RandomSegmenter:
    classes = class_set(["road", "tree", "car"])
    return RandomSegmenter(classes, {"kind": "python", "weights": "sha256:1"}, torch.device("cpu"))


@pytest.fixture
def files() -> list[ImageFile]:
    return [ImageFile(Path(f"/x/{name}.png"), name) for name in "abcdef"]


@pytest.fixture
def collect(segmenter: RandomSegmenter, files: list[ImageFile]) -> Callable[..., Any]:
    """Calls ``collect_statistics`` with what a test does not care about."""
    from blda_cli.core.choices import LabelSource
    from blda_cli.pipelines.collect import CountingOptions, collect_statistics
    from blda_cli.runtime.monitor import SilentMonitor
    from blda_cli.runtime.shards import Shard

    def call(output: Path, **changes: Any) -> Any:
        settings = {
            "counting": CountingOptions((LabelSource.PSEUDO, LabelSource.SOFT), bins=64),
            "inference": InferenceOptions(),
            "labels": None,
            "provenance": {"command": "blda collect-stats", "source": "/x"},
            "overwrite": False,
            "monitor": SilentMonitor(),
            "shard": Shard(),
        }
        return collect_statistics(segmenter, files, output, **{**settings, **changes})

    return call
