"""Where the code of an environment fails, in one line."""

import sysconfig
import traceback
from pathlib import Path

import gymnasium

from dipole_ray.errors import EnvironmentUnavailable

_OURS = (str(Path(__file__).parents[1]), str(Path(gymnasium.__file__).parent), "<")
_INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def described(error: BaseException) -> str:
    """Return type, message and place of an error, on one line: the deepest line that is the user's own."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
    if isinstance(error, SyntaxError):
        return text  # names file and line itself
    frames = traceback.extract_tb(error.__traceback__)
    others = [frame for frame in frames if not frame.filename.startswith(_OURS)]
    own = [frame for frame in others if not frame.filename.startswith(_INSTALLED)]
    if not (own or others):
        return text
    frame = (own or others)[-1]
    return f"{text} ({frame.filename}, line {frame.lineno}: {frame.line})"


def failure(env_id: str, name: str, error: BaseException) -> EnvironmentUnavailable:
    """Return the error of an environment whose method `name` raised."""
    return EnvironmentUnavailable(f"environment '{env_id}' fails in {name}: {described(error)}; mend it there")
