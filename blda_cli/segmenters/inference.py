"""Ways to run a network over images: sliding windows, scales and flips, and copies to a GPU ahead of their use."""

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from blda_cli.data.loader import SampleBatch
from blda_cli.data.source import ImageSource
from blda_cli.data.windows import window_starts
from blda_cli.errors import BldaError
from blda_cli.runtime.read_ahead import one_behind
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.preprocessing import resize_images, scaled


def slide(
    score: Callable[[Tensor], Tensor],
    images: Tensor,
    window: tuple[int, int],
    stride: tuple[int, int],
    core: tuple[int, int, int, int] | None = None,
) -> Tensor:
    """Run window by window and average with weights that fall off linearly towards a window's edges.

    Scores near an edge, where the window has context on one side only, hardly count, so that no seams are left.

    Args:
        score: scores ``[N, C, h, w]`` of images ``[N, B, h, w]``.
        images: ``[N, B, H, W]``.
        window: (height, width); cut to the image where that is smaller.
        stride: (height, width).
        core: top, left, height and width of the part that is wanted; None: all.

    Returns:
        ``[N, C, height, width]`` float32.

    Raises:
        BldaError: the stride is larger than the window, or ``score`` gives no maps.
    """
    _refuse_gaps(window, stride)
    top, left, rows, columns = core or (0, 0, *images.shape[-2:])
    height, width = (min(one, whole) for one, whole in zip(window, images.shape[-2:], strict=True))
    weight = _ramp(height, images.device)[:, None] * _ramp(width, images.device)
    total: Tensor | None = None
    weights = torch.zeros(rows, columns, device=images.device)
    places = itertools.product(
        window_starts(images.shape[2], height, stride[0]), window_starts(images.shape[3], width, stride[1])
    )
    for first, leftmost in places:
        # The window's part that lies in the core.
        begin = max(first, top), max(leftmost, left)
        end = min(first + height, top + rows), min(leftmost + width, left + columns)
        if begin[0] >= end[0] or begin[1] >= end[1]:
            continue
        scores = _maps(score(images[..., first : first + height, leftmost : leftmost + width]))
        if total is None:
            total = scores.new_zeros(*scores.shape[:2], rows, columns, dtype=torch.float32)
        in_core = slice(begin[0] - top, end[0] - top), slice(begin[1] - left, end[1] - left)
        own = slice(begin[0] - first, end[0] - first), slice(begin[1] - leftmost, end[1] - leftmost)
        total[(..., *in_core)] += scores[(..., *own)] * weight[own]
        weights[in_core] += weight[own]
    assert total is not None
    return total.div_(weights)


def _ramp(length: int, device: torch.device) -> Tensor:
    """Weights that fall off linearly from the middle to both ends, where they are not 0."""
    return 1 - (2 * torch.arange(length, device=device) - length + 1).abs() / (length + 1)


def _refuse_gaps(window: tuple[int, int], stride: tuple[int, int]) -> None:
    if any(step > side for step, side in zip(stride, window, strict=True)):
        raise BldaError(f"--stride {stride[0]}x{stride[1]} leaves gaps between windows of {window[0]}x{window[1]}")


def _maps(scores: Tensor) -> Tensor:
    if scores.ndim != 4:
        raise BldaError("--slide needs a segmenter; this model gives one answer per image")
    return scores


def average_views(logits: Callable[[float, bool], Tensor], options: InferenceOptions) -> Tensor:
    """Average over scaled and mirrored views of the images.

    Args:
        logits: logits ``[N, C, H, W]`` (or ``[N, C]``) by the view of this scale, mirrored or not, at the images' own
            size and turned back.
        options: the scales, and whether each is run as it is, mirrored, or both.

    Returns:
        The logits themselves where there is one view; else ``log`` of the mean of the views' softmax probabilities
        (float32), as the ecosystems average probabilities, not logits.
    """
    sides = (False, True) if options.flip else (options.mirrored,)
    views = [(scale, mirrored) for scale in options.scales for mirrored in sides]
    if len(views) == 1:
        return logits(*views[0])
    mean: Tensor | None = None
    for view in views:
        result = logits(*view).float().log_softmax(dim=1) - float(np.log(len(views)))
        mean = result if mean is None else torch.logaddexp(mean, result)
    assert mean is not None
    return mean


def view_of(images: Tensor, scale: float, mirrored: bool) -> Tensor:
    """Images ``[N, B, H, W]`` at a factor of their sides, mirrored left to right if wanted."""
    view = resize_images(images, scaled(images.shape[-2:], scale))
    return view.flip(-1) if mirrored else view


def upload(
    batches: Iterable[SampleBatch], device: torch.device
) -> Iterator[tuple[list[ImageSource], Tensor, Tensor | None]]:
    """Bring batches to the device.

    On CUDA each batch is copied from pinned memory, on a stream of its own, while the one before is worked on.

    Args:
        batches: the batches read.
        device: where to.

    Yields:
        The files, their arrays and their labels.
    """
    if device.type != "cuda":
        for batch in batches:
            labels = None if batch.labels is None else torch.from_numpy(batch.labels).to(device)
            yield batch.files, torch.from_numpy(batch.arrays).to(device), labels
        return

    copying = torch.cuda.Stream(device)

    def send(batch: SampleBatch) -> tuple[list[ImageSource], Tensor, Tensor | None, torch.cuda.Event]:
        with torch.cuda.stream(copying):
            arrays, labels = (
                None if values is None else torch.from_numpy(values).pin_memory().to(device, non_blocking=True)
                for values in (batch.arrays, batch.labels)
            )
            done = torch.cuda.Event()
            done.record(copying)
        assert arrays is not None
        return batch.files, arrays, labels, done

    def receive(
        sent: tuple[list[ImageSource], Tensor, Tensor | None, torch.cuda.Event],
    ) -> tuple[list[ImageSource], Tensor, Tensor | None]:
        files, arrays, labels, done = sent
        working = torch.cuda.current_stream(device)
        working.wait_event(done)
        # The allocator must not give their memory to the copying stream while the working one still reads it.
        for tensor in (arrays, labels):
            if tensor is not None:
                tensor.record_stream(working)
        return files, arrays, labels

    for sent in one_behind(map(send, batches)):
        yield receive(sent)
