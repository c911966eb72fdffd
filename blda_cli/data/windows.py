"""Positions of windows that cover an image."""


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one axis so that they cover it.

    Args:
        length: of the axis, in pixels.
        window: length of a window, at most ``length``.
        stride: step between windows, at most ``window``.

    Returns:
        Multiples of ``stride``; the last is moved back so that its window ends with the axis.
    """
    return [*range(0, length - window, stride), length - window]


def touching(start: int, stop: int, length: int, window: int, stride: int) -> tuple[int, int]:
    """The range of an axis that is covered by the windows touching a part of the axis.

    Args:
        start: of the part.
        stop: its end, not in it.
        length: of the axis.
        window: length of a window; cut to the axis where that is shorter.
        stride: step between windows.

    Returns:
        Where the first of these windows begins and the last ends.
    """
    window = min(window, length)
    starts = [one for one in window_starts(length, window, stride) if one < stop and one + window > start]
    return starts[0], starts[-1] + window
