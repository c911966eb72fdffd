"""The entry point of ``blda`` and ``python -m blda_cli``."""

from blda_cli.commands import cli


def main() -> None:
    """Run the command line."""
    cli(prog_name="blda")


if __name__ == "__main__":
    main()
