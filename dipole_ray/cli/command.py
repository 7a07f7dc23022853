"""What subcommands have in common: how they are added to the parser, and how they name the files that they wrote."""

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dipole_ray.errors import ConfigError
from dipole_ray.files.durable import write_text

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


def to_cluster(arguments: argparse.Namespace) -> list[str]:
    """Return the words that a next command needs to run on the cluster that this one was given."""
    return [] if arguments.address is None else [f"--address={arguments.address}"]


def require_place(option: str, path: Path | None) -> None:
    """Raise ConfigError where the file that an option asks for cannot be written, before the work for it is done."""
    if path is None:
        return
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{option} {path}: the folder does not exist; make it first")
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder; give a file, such as {path / option.strip('-')}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ConfigError(f"{option} {path}: it may not be written; choose another place")


def write_file(option: str, path: Path, text: str) -> None:
    """Write the file that an option asks for; ConfigError where the disk refuses."""
    try:
        write_text(path, text)
    except OSError as error:
        raise refusal(option, path, error) from error


def refusal(option: str, path: Path, error: OSError) -> ConfigError:
    """Return the error of a disk that refuses the file that an option asks for."""
    why = f"cannot be written ({error.strerror or error})"
    return ConfigError(f"{option} {path}: {why}; free space there, or choose another place")


def print_files(files: Iterable[Path]) -> None:
    """Print the files that a command wrote, a line each."""
    for path in files:
        print(f"{'picture' if path.suffix == '.png' else 'file':9} {path}")
