"""The command line: `dipole train | evaluate | latency | sweep | bench | data | drive | doctor`, each a file here."""

import argparse
import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from dipole_ray import __version__
from dipole_ray.cli import bench, data, doctor, drive, evaluate, latency, sweep, train
from dipole_ray.errors import DipoleError
from dipole_ray.stopping import Stopped, ending_on_stops

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What disks answer that take nothing more, which is no defect of ours."""
_DESCRIPTION = """\
Dichotomous Diffusion Policy Optimization, from offline data to a fine-tuned policy, on Ray.

  dipole train quickstart              five minutes on two cores: data, offline phase, online phase, table, pictures
  dipole evaluate runs/RUN             one checkpoint over a grid of omega and candidates
  dipole latency runs/RUN --hz 50      how long an action takes, and the best setting for a control rate
  dipole sweep beta_expectile          many settings, each scored over omega and candidates; the same command continues
  dipole bench run|report|list         methods x tasks x seeds with intervals; the same command continues
  dipole data download|collect|import|inspect
                                       fetch, make, convert and check datasets
  dipole drive score SCENE.json.gz     plans of a car, scored as NAVSIM scores them
  dipole doctor                        what this machine has and lacks, with remedies
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    keeps_lines = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="dipole", description=_DESCRIPTION, formatter_class=keeps_lines)
    top.add_argument("--version", action="version", version=f"dipole_ray {__version__}")
    subparsers = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (train, evaluate, latency, sweep, bench, data, drive, doctor):
        command.add_parser(subparsers)
    return top


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; KEY=VALUE words and names may follow options, where argparse alone would not take them."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    words = next((name for name in ("overrides", "names") if hasattr(arguments, name)), "")
    unknown = [word for word in rest if word.startswith("-") or not words or (words == "overrides" and "=" not in word)]
    if unknown:
        top.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        setattr(arguments, words, [*getattr(arguments, words), *rest])
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors of the user's, and full disks, are one sentence on standard error and status 2."""
    with _readers_may_leave():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parse(argv)
    try:
        Path.cwd()
    except OSError:  # in which libraries fail in ways of their own
        print("error: the working directory is gone: change to one that exists", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if getattr(arguments, "address", None):  # of the commands that run on a cluster
        os.environ["RAY_ADDRESS"] = arguments.address
    try:
        with ending_on_stops():
            return int(arguments.run(arguments))
    except DipoleError as error:
        print(f"error: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in FULL:
            raise
        what = f"{error.filename or 'a file'} cannot be written ({error.strerror})"
        said = [*getattr(error, "__notes__", ())] or ["free space, then give the same command again"]
        print(f"error: {what}: what was finished before is kept", *said, sep="\n", file=sys.stderr)
        return 2
    except Stopped as stop:
        print("interrupted", file=sys.stderr)
        return 128 + stop.number


class _Output:
    """A standard stream whose reader may leave, as in `dipole train | head -1`, or whose terminal may be closed.

    What is written after that goes nowhere, and the command ends with its own status.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text."""
        with self._unread():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand over what was written."""
        with self._unread():
            self._stream.flush()

    @contextlib.contextmanager
    def _unread(self) -> Iterator[None]:
        """Send the rest of the stream nowhere where nobody can read it any more."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def _readers_may_leave() -> Iterator[None]:
    """Let the readers of both standard streams leave."""
    streams: list[Any] = [None if stream is None else _Output(stream) for stream in (sys.stdout, sys.stderr)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            yield
        finally:
            for stream in filter(None, streams):
                stream.flush()
