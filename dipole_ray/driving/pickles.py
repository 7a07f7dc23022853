"""The pickles that NAVSIM keeps its logs and metric caches in, read without running anything that they name.

A pickle is a program for a stack machine, and its harm is in three things: functions that it names, attributes that it
sets, and memory or time that it asks for. Here Python's own machine in Python runs with the few instructions that data
need. Functions that may be named are those in `_FUNCTIONS`, each with its arguments checked; a class of nuPlan's or
NAVSIM's becomes a `Stub`, which holds what was given to it and does nothing; any other name is refused.
"""

import io
import lzma
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from dipole_ray.driving.wkb import read_polygons
from dipole_ray.errors import DatasetError

MAX_BYTES = 1 << 30  # of a log; OpenScene's are below 100 MB
MAX_STEPS = 50_000_000  # of the stack machine


@dataclass(slots=True, eq=False)
class Stub:
    """An object of a class that is not here: what it was made with, and the state set on it."""

    kind: str
    """the class, dotted"""
    arguments: tuple[Any, ...] = ()
    state: dict[str, Any] = field(default_factory=dict)


def read_pickle(path: Path, *, compressed: bool = False) -> Any:
    """Return what a pickle holds: plain values, numpy arrays, and `Stub` for objects of nuPlan's and NAVSIM's.

    Args:
        path: The file.
        compressed: Whether it is packed by lzma, as metric caches are.

    Raises:
        DatasetError: The file is missing, cut off or too large, or names or does anything but data; says what.
    """
    try:
        if not path.is_file():
            raise ValueError("there is no such file" if not path.exists() else "not a regular file")
        with lzma.open(path) if compressed else path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"longer than {MAX_BYTES >> 20} MiB")
        return loads(content)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DatasetError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except ValueError as error:
        raise DatasetError(f"{path}: {error}; nothing in the file was run") from None


def loads(content: bytes) -> Any:
    """Return what a pickle in memory holds; see `read_pickle`.

    Raises:
        ValueError: It is damaged, or names or does anything but data.
    """
    try:
        return _Machine(content).load()
    except ValueError:
        raise
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"a damaged pickle ({error})") from None
    # A damaged program fails wherever it happens to.
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError, UnicodeError) as error:
        raise ValueError(f"a damaged pickle ({type(error).__name__})") from None


def dumps(frames: Sequence[dict[str, Any]]) -> bytes:
    """Return the pickle of a log's frames, which hold plain values and numpy arrays."""
    return pickle.dumps(list(frames), protocol=4)


@dataclass(frozen=True, slots=True)
class _Name:
    """A class that a pickle names, to be stubbed."""

    kind: str

    def __call__(self, *arguments: Any) -> Stub:
        return Stub(self.kind, arguments)


def _reconstructed(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """Return the empty array whose content comes next."""
    if kind is not np.ndarray or shape != (0,):
        raise ValueError("an array of another kind than numpy's own")
    return np.ndarray((0,), np.int8)


def _dtype(text: Any, *flags: Any) -> np.dtype:
    if not isinstance(text, str) or not re.fullmatch(r"[<>|=]?([?biufcO]\d{0,2}|[SU]\d{1,6})", text):
        raise ValueError("an array of a type that is not plain")
    return np.dtype(text, False, True)  # type: ignore[call-overload, no-any-return]


def _scalar(kind: Any, content: Any) -> Any:
    if not isinstance(kind, np.dtype) or kind.hasobject or not isinstance(content, bytes):
        raise ValueError("a number of a type that is not plain")
    return np.frombuffer(content, kind, count=1)[0]


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(content, bytes | bytearray) or not isinstance(kind, np.dtype) or kind.hasobject:
        raise ValueError("an array of a type that is not plain")
    if order not in ("C", "F") or not _is_shape(shape) or prod(shape) * kind.itemsize != len(content):
        raise ValueError("an array of another size than its content")
    return np.frombuffer(content, kind).reshape(shape, order=order)


def _from_wkb(content: Any, *options: Any) -> Any:
    if not isinstance(content, bytes):
        raise ValueError("a geometry that is not bytes")
    return read_polygons([content])[0]


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("bytes that are no bytes")
    return text.encode("latin1")


def _attribute(kind: Any, name: Any) -> Stub:
    """Return the member of an enumeration: `getattr` of a class and a name."""
    if not isinstance(kind, _Name) or not isinstance(name, str):
        raise ValueError("names builtins.getattr, which is not data")
    return Stub(kind.kind, (name,))


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _dtype,
    ("shapely.geometry.base", "from_wkb"): _from_wkb,
    ("shapely.io", "from_wkb"): _from_wkb,
    ("shapely", "from_wkb"): _from_wkb,
    ("_codecs", "encode"): _encode,
    ("builtins", "getattr"): _attribute,
}
for _core in ("numpy.core", "numpy._core"):
    _FUNCTIONS[f"{_core}.multiarray", "_reconstruct"] = _reconstructed
    _FUNCTIONS[f"{_core}.multiarray", "scalar"] = _scalar
    _FUNCTIONS[f"{_core}.numeric", "_frombuffer"] = _from_buffer
_STUBBED = re.compile(
    r"(nuplan|navsim)(\.\w+)+|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path|shapely\.strtree\.STRtree"
)


class _Machine(pickle._Unpickler):
    """Python's stack machine with the instructions of data alone."""

    stack: list[Any]  # these three are set when it starts
    append: Callable[[Any], None]
    read: Callable[[int], bytes]

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._size = len(content)
        self._steps = 0

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name."""
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (function := _FUNCTIONS.get((module, name))) is not None:
            return function
        if _STUBBED.fullmatch(f"{module}.{name}"):
            return _Name(f"{module}.{name}")
        raise ValueError(f"names {f'{module}.{name}'!r:.80}, which is neither numpy's nor a class of nuPlan or NAVSIM")

    def load_reduce(self) -> None:
        """Call a function of the table, or stub an object."""
        arguments = self.stack.pop()
        function = self.stack[-1]
        known = any(function is one for one in _FUNCTIONS.values())  # by identity: to hash it may take for ever
        if not isinstance(arguments, tuple) or not (isinstance(function, _Name) or known):
            raise ValueError("calls something that is not data")
        self.stack[-1] = function(*arguments)

    def load_newobj(self) -> None:
        """Stub an object."""
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, _Name) or not isinstance(arguments, tuple):
            raise ValueError("makes an object that is not data")
        self.append(kind(*arguments))

    def load_build(self) -> None:
        """Set the state of a stub or of an array."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Stub):
            for part in state if isinstance(state, tuple) else (state,):
                if isinstance(part, dict):
                    target.state.update(part)
                elif part is not None:
                    raise ValueError(f"a {target.kind} of another form")
        elif isinstance(target, np.dtype):
            # Another size or other flags than the type's own would make numbers into pointers.
            plain = isinstance(state, tuple) and all(isinstance(part, str | int | None) for part in state)
            if not plain or state[1] not in tuple("<>|=") or state != target.newbyteorder(state[1]).__reduce__()[2]:
                raise ValueError("an array of a type that is not plain")
            target.__setstate__(state)  # type: ignore[attr-defined]
        elif isinstance(target, np.ndarray):
            self._fill(target, state)
        else:
            raise ValueError("sets the state of something that is not data")

    def _fill(self, array: np.ndarray, state: Any) -> None:
        _, shape, kind, _, content = state
        if not _is_shape(shape) or not isinstance(kind, np.dtype):
            raise ValueError("an array of another size than its content")
        held = len(content) if kind.hasobject else len(content) / max(kind.itemsize, 1)
        if not isinstance(content, list if kind.hasobject else bytes) or prod(shape) != held:
            raise ValueError("an array of another size than its content")
        array.__setstate__(state)

    def load_bytearray8(self) -> None:
        """Read bytes; the length is not believed beforehand."""
        size = int.from_bytes(self.read(8), "little")
        if size > self._size:
            raise ValueError("longer than itself")
        self.append(bytearray(self.read(size)))


def _checked(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return an instruction that counts itself, and whose keys take no time to compare."""

    def instruction(machine: Any) -> None:
        machine._steps += 1
        if machine._steps > MAX_STEPS:
            raise ValueError(f"more than {MAX_STEPS} steps long")
        function(machine)

    return instruction


def _with_plain_keys(function: Callable[[Any], None], start: int | None) -> Callable[[Any], None]:
    """Return an instruction that fills a dict or a set, whose keys are plain; nested ones take for ever to hash."""

    def instruction(machine: Any) -> None:
        keys = machine.stack[-2:-1] if start is None else machine.stack[::start]
        if not all(isinstance(key, str | int | float | bytes) for key in keys):
            raise ValueError("a dict with keys that are not plain")
        function(machine)

    return instruction


_PLAIN = {
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.DUP, pickle.NONE),
    *(pickle.NEWTRUE, pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG),
    *(pickle.LONG1, pickle.FLOAT, pickle.BINFLOAT, pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE),
    *(pickle.BINUNICODE8, pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.BINBYTES),
    *(pickle.SHORT_BINBYTES, pickle.BINBYTES8, pickle.BYTEARRAY8, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1),
    *(pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT),
    *(pickle.DICT, pickle.SETITEM, pickle.SETITEMS, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.GET),
    *(pickle.BINGET, pickle.LONG_BINGET, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.GLOBAL),
    *(pickle.STACK_GLOBAL,),
}
_Machine.dispatch = {code[0]: _checked(pickle._Unpickler.dispatch[code[0]]) for code in _PLAIN}  # type: ignore[attr-defined]
for _code, _own in (
    (pickle.REDUCE, _Machine.load_reduce),
    (pickle.NEWOBJ, _Machine.load_newobj),
    (pickle.BUILD, _Machine.load_build),
    (pickle.BYTEARRAY8, _Machine.load_bytearray8),
):
    _Machine.dispatch[_code[0]] = _checked(_own)
for _code, _start in (
    (pickle.SETITEM, None),
    (pickle.SETITEMS, 2),
    (pickle.DICT, 2),
    (pickle.ADDITEMS, 1),
    (pickle.FROZENSET, 1),
):
    _Machine.dispatch[_code[0]] = _with_plain_keys(_Machine.dispatch[_code[0]], _start)
