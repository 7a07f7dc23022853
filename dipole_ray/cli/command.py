"""What subcommands have in common: how they are added to the parser, and how they name the files that they wrote."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

CACHE = Path("~/.cache/dipole_ray")  # where a run keeps what it converts too, unless data.cache says otherwise


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, **more: Any
) -> argparse.ArgumentParser:
    """Add a subcommand to the subparsers `commands` and return its parser; `run` returns the exit status.

    `text` is the description, shown with its own line breaks; its first line is the `help` unless `more`, what else
    argparse's `add_parser` takes, has another.
    """
    words = {"help": text.partition("\n")[0], "description": text, **more}
    words["formatter_class"] = argparse.RawDescriptionHelpFormatter
    parser: argparse.ArgumentParser = commands.add_parser(name, **words)
    parser.set_defaults(run=run)
    return parser


def print_files(files: Iterable[Path]) -> None:
    """Print the files that a command wrote, a line each."""
    for path in files:
        print(f"{'picture' if path.suffix == '.png' else 'file':9} {path}")
