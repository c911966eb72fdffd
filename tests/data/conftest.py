import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def write_png() -> Callable[..., None]:
    """Writes kinds of PNG that Pillow reads and cannot write."""

    def write(path: Path, array: np.ndarray, color_type: int, bits: int) -> None:
        """A PNG of a kind Pillow cannot write: each row unfiltered, samples big-endian or packed."""
        height, width = array.shape[:2]
        if bits < 8:
            planes = (array[..., None] >> np.arange(bits - 1, -1, -1)) & 1
            rows = [np.packbits(row.reshape(-1)).tobytes() for row in planes]
        else:
            rows = [row.astype(">u2").tobytes() for row in array]

        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
        pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))

    return write
