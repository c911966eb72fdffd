"""How images are run through a segmenter. No torch, so that options can be made from it."""

from dataclasses import dataclass
from typing import Literal

from blda_cli.errors import OptionError
from blda_cli.settings import setting


@dataclass(frozen=True)
class InferenceOptions:
    """How images are run through a segmenter.

    Attributes:
        mirrored: not an option: without ``flip``, whether the images are run mirrored left to right.
    """

    batch_size: int = setting(1, "Images of one size to run together.", at_least=1, at_most=1 << 16)
    workers: int = setting(2, "Threads that read images ahead.", at_least=1, at_most=1024)
    slide: tuple[int, int] | None = setting(
        None,
        "Run window by window of this size; where they overlap, the nearer one's middle counts more.",
        at_least=1,
        at_most=999999,
        metavar="HxW",
        form="a size such as 512x1024 (height first)",
    )
    stride: tuple[int, int] | None = setting(
        None,
        "Step between windows.  [default: two thirds of the window]",
        at_least=1,
        at_most=999999,
        metavar="HxW",
        form="a size such as 512x1024 (height first)",
    )
    scales: tuple[float, ...] = setting(
        (1.0,),
        "Average the probabilities over these image scales.",
        at_least=0.01,
        at_most=100,
        metavar="S,S,...",
        form="a list of scales such as 0.5,0.75,1.0",
    )
    flip: bool = setting(False, "Average with the horizontally flipped image.")
    amp: bool = setting(False, "Run the network in mixed precision.")
    device: str = setting("auto", "Where to run; auto takes a GPU where there is one.", metavar="auto|cpu|cuda[:N]|mps")
    on_error: Literal["stop", "skip"] = setting("stop", "At an unreadable image: stop, or name it, count it and go on.")
    mirrored: bool = False

    def __post_init__(self) -> None:
        if self.slide is None and self.stride is not None:
            raise OptionError("--stride is the step between the windows of --slide; give that too")
        if self.slide is not None and self.stride is None:
            height, width = self.slide
            object.__setattr__(self, "stride", (max(1, height * 2 // 3), max(1, width * 2 // 3)))
