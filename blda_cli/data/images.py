"""Image files: finding them and reading them as 8-bit RGB."""

import glob
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import takewhile
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from blda_cli.errors import BldaError
from blda_cli.files import check_regular, real

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm"})

# What is too large for Pillow is refused by it; what is merely large is not worth a warning.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# EXIF orientations that swap width and height.
_TRANSPOSED = frozenset({5, 6, 7, 8})


@dataclass(frozen=True)
class ImageFile:
    """An image on disk.

    Attributes:
        path: where it is.
        key: its path relative to the searched root, with ``/`` and without the suffix; unique among the images
            found together, and safe to name outputs with (relative, no ``..``).
    """

    path: Path
    key: str


def find_images(source: str | Path) -> list[ImageFile]:
    """Find the images of a folder, a glob or a list.

    Args:
        source: a folder (searched through), one image, a glob (``**`` goes through folders), or a ``.txt`` file
            with one path a line, relative to the list.

    Returns:
        The images, sorted by key.

    Raises:
        BldaError: there is none, a listed one does not exist, or two differ only in their suffix.
    """
    root, paths = find_files(source, IMAGE_SUFFIXES, "images")
    found: dict[str, Path] = {}
    for path in paths:
        key = path.relative_to(root).with_suffix("").as_posix()
        if key in found:
            raise BldaError(
                f"{found[key]} and {path} would both be called {key}: rename one, or choose one kind with a glob"
            )
        found[key] = path
    return [ImageFile(found[key], key) for key in sorted(found)]


def find_files(source: str | Path, suffixes: Iterable[str], what: str) -> tuple[Path, list[Path]]:
    """Find the files with one of some suffixes in a folder, a glob or a list.

    Args:
        source: as for `find_images`.
        suffixes: lower-case suffixes to look for; compared without regard to case. A file named outright or in a
            list is taken whatever its suffix.
        what: what is looked for, for the messages.

    Returns:
        The folder the files' names are relative to, and their paths, sorted.

    Raises:
        BldaError: nothing was found, or a listed file does not exist.
    """
    source = Path(source)
    suffixes = frozenset(suffixes)
    if source.is_dir():
        root, paths = source, [path for path in _walk(source) if path.suffix.lower() in suffixes]
    elif source.is_file() and source.suffix.lower() == ".txt":
        paths = _listed(source)
        root = Path(os.path.commonpath([path.parent for path in paths])) if paths else source.parent
    elif source.is_file():
        root, paths = source.parent, [source]
    elif glob.has_magic(str(source)):
        parts = source.parts
        plain = next(index for index, part in enumerate(parts) if glob.has_magic(part))
        root = Path(*parts[:plain])
        try:
            matches = list(root.glob(str(Path(*parts[plain:]))))
        except ValueError as error:
            raise BldaError(f"{source}: ** stands for whole folders, as in {root}/**/*.png ({error})") from error
        shown = (path for path in matches if not any(part.startswith(".") for part in path.relative_to(root).parts))
        paths = [path for path in shown if path.suffix.lower() in suffixes and path.is_file()]
    else:
        raise BldaError(f"{source} does not exist: give a folder of {what}, a glob or a .txt list")
    if not paths:
        raise BldaError(f"{source} holds no {what} ({', '.join(sorted(suffixes))})")
    return root, sorted(set(paths))


def refuse_among(output: Path, source: str | Path, files: Sequence[ImageFile]) -> None:
    """Refuse an output folder whose pictures would be taken for images the next time.

    Args:
        output: the folder to be.
        source: what `find_images` was given.
        files: what it found.

    Raises:
        BldaError: the folder lies within one of the images' folders, or where ``source`` looks for images.
    """
    place = real(output)
    folders = {real(file.path.parent) for file in files}
    within = any(place.is_relative_to(folder) for folder in folders)
    if not within and glob.has_magic(str(source)) and not Path(source).exists():
        parts = Path(os.path.normpath(Path(source).absolute())).parts[:-1]
        pairs = zip(parts, place.parts, strict=False)
        agreeing = list(takewhile(lambda pair: "**" not in pair[0] and fnmatch(pair[1], pair[0]), pairs))
        within = len(agreeing) == len(parts) or "**" in parts[len(agreeing)]
    elif not within and Path(source).is_dir():
        within = place.is_relative_to(real(Path(source)))
    if within:
        raise BldaError(f"{output} lies in {source}, where its pictures would be taken for images: give another folder")


def _walk(folder: Path) -> Iterator[Path]:
    """All files under a folder, through links too, hidden ones left out."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link back up would go round for ever
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _listed(list_file: Path) -> list[Path]:
    paths = []
    try:
        lines = list_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BldaError(f"{list_file} cannot be read as a list of paths: {error}") from error
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        # normpath, because a ".." left in would end up in the keys
        path = Path(os.path.normpath(list_file.absolute().parent / name))
        if not path.is_file():
            raise BldaError(f"{list_file}, line {number}: {path} does not exist")
        paths.append(path)
    return paths


def read_image(path: Path) -> np.ndarray:
    """Read an image as it is meant to be seen.

    Grey, palette, CMYK and 16-bit images are converted (16 bits to their upper 8), alpha is dropped, the EXIF
    orientation is applied, and of several frames the first is taken.

    Args:
        path: the image.

    Returns:
        uint8 ``[H, W, 3]``, RGB.

    Raises:
        BldaError: it cannot be read.
    """
    try:
        check_regular(path)
        with Image.open(path) as image:
            return np.array(_to_rgb(ImageOps.exif_transpose(image), path))
    except BldaError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise unreadable(path, error) from error


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image as `read_image` will return it, from its header alone.

    An orientation that a PNG keeps after its pixels is not seen.

    Raises:
        BldaError: it cannot be read.
    """
    try:
        check_regular(path)
        with Image.open(path) as image:
            width, height = image.size
            # Pillow decodes a whole PNG to see whether EXIF follows the pixels.
            exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
            turned = exif.get(ExifTags.Base.Orientation) in _TRANSPOSED
    except BldaError:
        raise
    except Exception as error:
        raise unreadable(path, error) from error
    return (width, height) if turned else (height, width)


def unreadable(path: Path, error: Exception) -> BldaError:
    """The error for a picture that cannot be read, in one line that says why."""
    if isinstance(error, FileNotFoundError):
        return BldaError(f"{path} does not exist")
    if isinstance(error, UnidentifiedImageError):
        return BldaError(f"{path} is not an image, or of a format that Pillow cannot read")
    reason = " ".join(str(error).split()) or type(error).__name__
    return BldaError(f"{path} cannot be read as an image ({reason}): is the file complete?")


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F":
        raise BldaError(f"{path} holds floating-point values: save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(wide >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P":  # a transparent entry is dropped with the alpha channel, not blended
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
