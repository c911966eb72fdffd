"""The entry point of ``blda`` and ``python -m blda_cli``."""

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGINT, _stop)
    try:
        from blda_cli.commands import cli

        cli(prog_name="blda")
    except KeyboardInterrupt:  # before the command line can say it
        sys.stderr.write("blda: stopped\n")
        sys.exit(130)


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # a signal handler's arguments
    """Ctrl-C; within an import an exception may be printed and forgotten, so the process ends there and then."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"blda: stopped\n")
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
