"""`--help` says what the golden files in tests/cli/help say; whoever means to change a text writes them anew."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dipole_ray.cli import parser

GOLDEN = Path(__file__).resolve().parent / "help"


def parsers(top: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and all below it."""
    yield top
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in dict.fromkeys(action.choices.values()):
                yield from parsers(below)


def test_help_texts_are_those_of_the_golden_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    texts = {f"{one.prog.replace(' ', '_')}.txt": one.format_help() for one in parsers(parser())}
    if "DIPOLE_WRITE_GOLDEN" in os.environ:
        for path in GOLDEN.glob("*.txt"):
            path.unlink()
        for name, text in texts.items():
            (GOLDEN / name).write_text(text)
    found = {path.name: path.read_text() for path in GOLDEN.glob("*.txt")}
    assert found.keys() == texts.keys(), "a command came or went: DIPOLE_WRITE_GOLDEN=1 writes the files anew"
    for name, text in texts.items():
        assert text == found[name], f"{name}: if that is meant, DIPOLE_WRITE_GOLDEN=1 writes the files anew"
