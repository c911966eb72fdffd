"""HDF5 files that appear under their name only when they are complete."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from blda_cli.files import replacing


@contextmanager
def writing(path: Path) -> Iterator[h5py.File]:
    """Put an HDF5 file together in memory and write it when the block ends without an error.

    In memory, because the HDF5 library does not survive a full disk: it prints tracebacks, and may crash when the
    file is closed.

    Args:
        path: where to; what is there is replaced.

    Yields:
        The file to fill.

    Raises:
        BldaError: it cannot be written; what was at ``path`` before is still there.
    """
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        yield file
        file.flush()
        image = file.id.get_file_image()
    with replacing(path) as temporary:
        temporary.write_bytes(image)
