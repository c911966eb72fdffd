"""The classes that the outputs stand for, and groups of classes."""

import torch
from torch import Tensor

from blda_cli.data.classes import ClassSet, class_set, group_members, grouped
from blda_cli.errors import BldaError
from blda_cli.segmenters.outputs import OutputMeaning
from blda_cli.segmenters.spec import ClassesSection, SegmenterSpec


class Grouping:
    """Turns logits of classes into logits of groups of them; differentiable.

    A group's probability is the sum of its members', so its logit is the logsumexp of theirs.

    Attributes:
        members: for each group the channels it is made of.
    """

    def __init__(self, members: tuple[tuple[int, ...], ...]) -> None:
        self.members = members

    def __call__(self, logits: Tensor) -> Tensor:
        """Group logits.

        Args:
            logits: ``[N, C, *spatial]``.

        Returns:
            ``[N, G, *spatial]``.
        """
        return torch.stack(
            [logits[:, one[0]] if len(one) == 1 else logits[:, one].logsumexp(dim=1) for one in self.members], dim=1
        )


def resolve_classes(section: ClassesSection, own: ClassSet) -> tuple[ClassSet, Grouping | None]:
    """The classes to work in.

    Args:
        section: ``[classes]`` of the TOML file.
        own: the classes of the outputs that are kept.

    Returns:
        ``own`` and None, or the groups as classes and the :class:`Grouping` that makes their logits.

    Raises:
        BldaError: the groups or the palette do not fit the classes.
    """
    if section.groups:
        return grouped(own, section.groups, section.palette), Grouping(group_members(own, section.groups))
    return (own if section.palette is None else class_set(own.names, section.palette)), None


def with_background(own: ClassSet, background: str | None) -> tuple[ClassSet, int | None]:
    """The classes with the one that no channel stands for.

    Args:
        own: the classes that are named.
        background: its name; None where every class has a channel.

    Returns:
        The classes, and its place among them: where it is named, else the first.
    """
    if background is None:
        return own, None
    if background in own.names:
        return own, own.names.index(background)
    return class_set([background, *own.names]), 0


def check_channels(spec: SegmenterSpec, meaning: OutputMeaning) -> None:
    """Refuse a description whose keys about the channels contradict each other.

    Raises:
        BldaError: they do.
    """
    channels = spec.segmenter.channels
    if channels is not None and channels != meaning.channels:
        raise BldaError(f"channels = {channels}, but {meaning.channels} classes are named; make them agree")
    if meaning.background is not None and meaning.output == "probabilities":
        raise BldaError(
            f"background = {spec.classes.background!r} is for sigmoids and logits, where no class may be above ½; a "
            "softmax always has one: remove it"
        )
    if meaning.classes < 2:
        raise BldaError("one class leaves nothing to decide: name two, or the other one as background under [classes]")
