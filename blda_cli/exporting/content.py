"""The content of an export: a segmenter, its network with the correction in it, and its description."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from blda_cli.data.classes import ClassSet
from blda_cli.exporting.correct import Parts
from blda_cli.exporting.modules import ArgMax, Corrected, FirstChannels, Groups, LogProbabilities, Tail
from blda_cli.segmenters.network import CORRECTION, NetworkSegmenter
from blda_cli.segmenters.spec import ClassesSection, NetworkSection, SegmenterSpec


@dataclass(frozen=True)
class Content:
    """The content of an export.

    Attributes:
        spec: the description of the original segmenter.
        segmenter: that segmenter, as it was.
        parts: a copy of its network with the correction in it, and the stages behind it; on the CPU.
        correction: the correction in a few words; None: none.
        images: ``[2, 3, h, w]``, preprocessed, on the CPU.
        groups: the groups of classes are the outputs.
        argmax: class ids are the output.
        half: weights and computation in float16.
    """

    spec: SegmenterSpec
    segmenter: NetworkSegmenter
    parts: Parts
    correction: str | None
    images: Tensor
    groups: bool = False
    argmax: bool = False
    half: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.float16 if self.half else torch.float32

    @property
    def fixed_size(self) -> bool:
        """Whether the network takes images of one size only."""
        return self.segmenter.preprocessor.section.size is not None

    @property
    def outputs(self) -> ClassSet:
        """The classes of the outputs: those of the network's channels that are kept, or the groups of them."""
        if self.groups or self.segmenter.grouping is None:
            return self.segmenter.classes
        names = tuple(self.segmenter.identity["classes"])
        return ClassSet(names, ((0, 0, 0),) * len(names), tuple(range(len(names))))

    @property
    def gives_logits(self) -> bool:
        """Whether the exported scores are logits, or equivalent to them, and not probabilities."""
        return self.parts.logits or self.groups

    def tail(self) -> Tail:
        """The stages behind the network's scores."""
        segmenter, parts = self.segmenter, self.parts
        stages: list[nn.Module] = [FirstChannels(segmenter.outputs)] if segmenter.cut else []
        stages += parts.stages
        grouped = any(isinstance(stage, Groups) for stage in stages)
        if self.groups and segmenter.grouping is not None and not grouped:
            stages += [] if parts.logits else [LogProbabilities()]
            stages.append(Groups(segmenter.grouping.members))
        if self.argmax:
            stages.append(ArgMax())
        return Tail(stages, at_input_size=parts.at_input_size or self.argmax or self.groups)

    def whole(self) -> nn.Module:
        """The network and the stages behind it: images ``[N, 3, h, w]`` to one tensor."""
        network = self.parts.network.to(self.dtype)
        whole = Corrected(network, self.tail(), read=self.segmenter.port.read, half=self.half)
        return whole.eval().requires_grad_(False)

    def described(self, network: NetworkSection) -> SegmenterSpec:
        """The description of an export that gives scores of the outputs as one tensor.

        Args:
            network: where it is.
        """
        section = self.segmenter.preprocessor.section
        section = replace(
            section,
            output="logits" if self.gives_logits else "probabilities",
            normalised=None if self.gives_logits else False,
        )
        return SegmenterSpec(self._marked(network), section, self._classes(), self.spec.labels, self.spec.folder)

    def weights_described(self, network: NetworkSection) -> SegmenterSpec:
        """The description of an export that is the same network with other weights.

        Args:
            network: where it is.
        """
        return replace(self.spec, segmenter=self._marked(network))

    def metadata(self) -> dict[str, str]:
        """Metadata for users of the network, as text by key: classes, preprocessing, correction."""
        section = self.segmenter.preprocessor.section
        return {
            "classes": json.dumps(list(self.outputs.names), ensure_ascii=False),
            "preprocessing": json.dumps({key: value for key, value in vars(section).items() if value is not None}),
            **({CORRECTION: self.correction} if self.correction else {}),
        }

    def _marked(self, network: NetworkSection) -> NetworkSection:
        adapted = self.segmenter.adapted_norms or "norms" in self.segmenter.identity
        corrected = "; ".join(filter(None, (self.segmenter.corrected, self.correction))) or None
        return replace(network, adapted_norms=adapted, corrected=corrected)

    def _classes(self) -> ClassesSection:
        given, classes = self.spec.classes, self.outputs
        if self.groups:
            return ClassesSection(classes.names, classes.palette)
        return given if given.names is not None else replace(given, names=classes.names)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep PyTorch's exporters from printing: what concerns the user is in their errors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
