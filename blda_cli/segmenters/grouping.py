"""Which classes the outputs stand for, and working in groups of them."""

import difflib

import torch
from torch import Tensor

from blda_cli.data.classes import ClassSet, class_set
from blda_cli.errors import BldaError
from blda_cli.segmenters.spec import ClassesSection


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
        section: what the TOML file says.
        own: the classes of the outputs that are kept.

    Returns:
        ``own`` and None, or the groups as classes (each with its first member's colour, unless there is a palette) and
        what makes their logits.

    Raises:
        BldaError: a member is not among the classes or is in two groups, or the palette is of another length.
    """
    if not section.groups:
        return (own if section.palette is None else class_set(own.names, section.palette)), None
    index = {name: position for position, name in enumerate(own.names)}
    taken: dict[str, str] = {}
    for group, names in section.groups.items():
        for name in names:
            if name not in index:
                nearest = difflib.get_close_matches(name, index, n=1, cutoff=0.0)[0]
                raise BldaError(f"classes.groups.{group}: there is no class {name!r}; the nearest is {nearest!r}")
            if name in taken:
                raise BldaError(
                    f"classes.groups: class {name!r} is in {taken[name]!r} and in {group!r}; leave it in one"
                )
            taken[name] = group
    members = tuple(tuple(index[name] for name in names) for names in section.groups.values())
    palette = section.palette or tuple(own.palette[one[0]] for one in members)
    return class_set(list(section.groups), palette), Grouping(members)
