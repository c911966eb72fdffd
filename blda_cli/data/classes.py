"""The classes a segmenter decides between: their names, colours and the value that marks pixels without one."""

from dataclasses import dataclass

IGNORE_INDEX = 255

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassSet:
    """The classes in the order of the logits' channels.

    Attributes:
        names: one name per class, unique.
        palette: one RGB colour (0..255) per class.
        ids: the data set's original id of each class, for servers that want them (``--ids``); the class ids
            themselves where the data set has no other.
    """

    names: tuple[str, ...]
    palette: tuple[Color, ...]
    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)
