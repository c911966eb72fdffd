"""The entry point of ``blda`` and ``python -m blda_cli``."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from blda_cli.commands import cli

        cli(prog_name="blda")
    except KeyboardInterrupt:  # before the command line can say it
        sys.stderr.write("blda: stopped\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
