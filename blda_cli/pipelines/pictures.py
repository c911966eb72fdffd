"""Pictures and videos of predictions, for ``blda align --overlay`` and ``--video``."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.files import replacing
from blda_cli.reporting.gallery import choose_frames
from blda_cli.reporting.overlays import overlay
from blda_cli.runtime.monitor import Monitor
from blda_cli.store.predictions import ARGMAX, OVERLAYS, PREDICTIONS, AlignedFolder

_RATE = 10.0
"""Frames per second of a video made of images that are not frames of a video."""


def write_overlays(folder: AlignedFolder, count: int | None, monitor: Monitor) -> None:
    """Write pictures of predictions over their images, as ``overlays/KEY.jpg``.

    Args:
        folder: the predictions.
        count: how many images: those that changed most, none next to another; None: all.
        monitor: receives the progress.

    Raises:
        BldaError: an image or a prediction cannot be read, or a picture cannot be written.
    """
    files = {file.key: file for file in folder.files}
    changed = {key: folder.record.changed[key] for key in files}
    chosen = list(files) if count is None else choose_frames(changed, count)
    if not chosen:
        monitor.say("--overlay: no prediction changed, so none is drawn; --overlay all draws all images")
    monitor.start("drawing", len(chosen))
    for key in chosen:
        picture = _overlay(folder, files[key])
        with replacing(folder.path / OVERLAYS / f"{key}.jpg") as temporary:
            picture.save(temporary, format="JPEG", quality=90)
        monitor.advance(1)
        monitor.check()


def write_video(folder: AlignedFolder, path: Path, monitor: Monitor) -> None:
    """Write the same pictures of all images as a video, in the order of their keys.

    Args:
        folder: the predictions.
        path: the video, e.g. ``drive.mp4``; it is replaced.
        monitor: receives the progress.

    Raises:
        BldaError: the extra ``video`` is not installed, an image or a prediction cannot be read, or the video cannot be
            written.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise BldaError("--video needs PyAV: pip install 'blda-cli[video]'") from error
    files = folder.files
    first = _overlay(folder, files[0])
    size = (first.width // 2 * 2, first.height // 2 * 2)
    codec = next(name for name in ("libx264", "mpeg4") if name in av.codecs_available)
    monitor.start("filming", len(files))
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=Fraction(_rate(files)).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for file in files:
            picture = _overlay(folder, file)
            page = Image.new("RGB", size, "white")  # legends differ in height
            page.paste(picture, (0, 0))
            container.mux(stream.encode(av.VideoFrame.from_image(page)))
            monitor.advance(1)
            monitor.check()
        container.mux(stream.encode(None))


def _overlay(folder: AlignedFolder, file: ImageSource) -> Image.Image:
    before, after = (folder.read(file.key, kind) for kind in (ARGMAX, PREDICTIONS))
    picture = file.picture()
    if picture.shape[:2] != before.shape:
        picture = np.asarray(Image.fromarray(picture).resize((before.shape[1], before.shape[0])))
    titles = ("argmax with norms" if folder.record.norms_adapted else "argmax", "aligned")
    return overlay(picture, before, after, folder.record.class_set, titles)


def _rate(files: list[ImageSource]) -> float:
    """Frames a second: of the frames of the first video."""
    times = [seconds for file in files if file.path == files[0].path and (seconds := file.seconds()) is not None]
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else _RATE
