"""What subcommands have in common: how they are added to the parser, and how they name the files that they wrote."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, **more: Any
) -> argparse.ArgumentParser:
    """Add a subcommand and return its parser.

    Args:
        commands: The subparsers of `dipole` or of one of its commands.
        name: Its name.
        run: What it does with the parsed arguments; returns the exit status.
        text: Its description, shown with its own line breaks; the first line is its `help` unless `more` has another.
        **more: What else argparse's `add_parser` takes.
    """
    words = {"help": text.partition("\n")[0], "description": text, **more}
    parser: argparse.ArgumentParser = commands.add_parser(
        name, formatter_class=argparse.RawDescriptionHelpFormatter, **words
    )
    parser.set_defaults(run=run)
    return parser


def print_files(files: Iterable[Path]) -> None:
    """Print the files that a command wrote, a line each."""
    for path in files:
        print(f"{'picture' if path.suffix == '.png' else 'file':9} {path}")
