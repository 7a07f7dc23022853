"""Every error that dipole_ray raises on purpose.

Each message says what failed, where, what was found there and what to do about it. The command line
prints such a message as one sentence; anything else is a defect of ours and keeps its traceback.
"""

import functools
import logging

_log = logging.getLogger(__name__)


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, once a process: a run opens its dataset in several places."""
    _log.warning(message)


def first_line(error: object) -> str:
    """Return the first line of an error or its text: those of libraries run over pages.

    Of a line beyond 300 characters the whole sentences in them stay, or else the whole words.
    """
    line = next(iter(str(error).strip().splitlines()), "")
    if len(line) <= 300:
        return line
    sentences, dot, _ = line[:300].rpartition(". ")
    return sentences if dot else f"{line[:300].rpartition(' ')[0] or line[:300]} ..."


def counted(number: float, noun: str, form: str = ".0f", *, verb: str = "") -> str:
    """Return a count with its noun and a verb, such as `1 trajectory ends` or `12000 trajectories end`."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:{form}} {noun if number == 1 else plural} {agreeing(number, verb)}".rstrip()


def agreeing(number: float, verb: str) -> str:
    """Return a verb, given as it follows several, as it follows a number of things."""
    one = {"have": "has", "are": "is", "touch": "touches", "": ""}.get(verb, f"{verb}s")
    return one if number == 1 else verb


class DipoleError(Exception):
    """Base of all errors a user can cause and mend."""


class ConfigError(DipoleError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another one."""


class FolderTaken(ConfigError):
    """Another process writes into the folder, and did not end in the time there was."""


class DatasetError(DipoleError):
    """A dataset cannot be read, or what it holds cannot be trained on."""


class CorruptSegment(DatasetError):
    """A stored data file differs from what its manifest says (length, checksum or layout)."""


class CheckpointError(DipoleError):
    """A checkpoint cannot be written, read, or does not fit what it is loaded into."""


class NonFiniteError(DipoleError):
    """NaN or infinity where only finite numbers may stand."""


class EnvironmentFault(NonFiniteError):
    """NaN or infinity that an environment gave, whatever the policy."""


class EnvironmentUnavailable(DipoleError):
    """An environment exists by name but cannot be built, stepped or rendered on this machine."""


class CallbackFailed(DipoleError):
    """A callback of RLlib's that the user gave raised in a rollout worker."""


class ResourcesUnavailable(DipoleError):
    """The cluster has no room for a process that the run needs, or keeps losing it."""
