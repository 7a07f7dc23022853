"""Typed settings: frozen dataclasses to and from nested plain mappings, with errors that name the remedy.

A section is a dataclass whose every field has a type, mostly a default, and a string under it that explains it.
This file turns YAML or `key=value` into such sections and back; it knows nothing about what they configure.
"""

import ast
import contextlib
import copy
import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from dipole_ray.errors import ConfigError

Section = TypeVar("Section")
Keys = Callable[[], list[str]]  # asked only for a message: what they are gathered from is worth milliseconds

MAX_YAML_CHARACTERS = 1 << 18  # of the longest text that is read; also the most values it may stand for


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FieldDoc:
    """One setting as the user meets it in help texts and documentation."""

    key: str  # dotted, such as `agent.beta`
    type: str  # the accepted values, in words such as `number or null`
    default: str  # as YAML, or `required`
    text: str  # the explanation that stands under the field in its class

    def __str__(self) -> str:
        """Return the two lines of `--help-config`."""
        return f"{self.key}: {self.type} = {self.default}\n    {self.text}"


class Tagged(type):
    """Metaclass of a section in several classes: the value of one setting, whose dotted key is `tag`, chooses one.

    Calling any of the classes makes the one chosen. A key that only others have may be given with its default there,
    as in a file that holds all keys.
    """

    tag: str
    variants: dict[str, Any]

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
        super().__init__(name, bases, namespace)
        if "tag" in namespace:
            cls.variants = {}
        else:
            cls.variants[namespace[cls.tag.rpartition(".")[2]]] = cls

    def __call__(cls, **values: Any) -> Any:
        """Return the section that the values describe; ConfigError says which class would read what this one cannot."""
        section, _, tag = cls.tag.rpartition(".")
        chosen = values.get(tag, getattr(cls, tag))
        if chosen not in cls.variants:
            raise ConfigError(f"{cls.tag}: found '{chosen}'; choose one of {', '.join(cls.variants)}")
        variant, own = cls.variants[chosen], {}
        for key, value in values.items():
            readers = {name: one for name, one in cls.variants.items() if key in one.__dataclass_fields__}
            if key in variant.__dataclass_fields__ or not readers:
                own[key] = value
            elif value != (neutral := _fields(cls)[key].default):
                reader = next((name for name, one in readers.items() if _takes(one, key, value)), [*readers][-1])
                why = f"{tag} '{chosen}' does not read it"
                raise unread(*_differing(f"{section}.{key}", value, neutral), why, f"{cls.tag}={reader}")
        return type.__call__(variant, **own)


def _differing(key: str, value: Any, neutral: Any) -> tuple[str, Any, Any]:
    """Return the dotted key, the value and the neutral value of a setting, of a section its first that differs."""
    if not dataclasses.is_dataclass(value):
        return key, value, neutral
    names = [field.name for field in dataclasses.fields(value)]
    first = next(name for name in names if getattr(value, name) != getattr(neutral, name))
    return _differing(f"{key}.{first}", getattr(value, first), getattr(neutral, first))


def _takes(variant: Any, key: str, value: Any) -> bool:
    """Return whether a section, otherwise at its defaults, reads this value of a setting."""
    try:
        variant(**{key: value})
    except ConfigError:
        return False
    return True


def unread(key: str, value: Any, neutral: Any, why: str, remedy: str) -> ConfigError:
    """Return the error of a setting that nothing would read: the `neutral` value says nothing, `remedy` has it read."""
    found, instead = (
        "null" if one is None else str(one).lower() if isinstance(one, bool) else str(one) for one in (value, neutral)
    )
    return ConfigError(f"{key}: found {found}, but {why}; set {key}={'0' if instead == '0.0' else instead} or {remedy}")


def from_mapping(cls: type[Section], mapping: Mapping[str, Any], where: str = "") -> Section:
    """Build a config section, and the sections in it, from nested plain values as YAML or JSON gives them.

    Fields may be numbers, strings, paths, literals, tuples, dicts, unions and dataclasses; what `mapping` leaves out
    takes its default. `where` is the dotted key of the section, put before every key that a message names.

    Raises:
        ConfigError: An unknown key (the nearest valid one is named), a missing one, or a value of the wrong type.
    """
    return _read_section(cls, mapping, where, lambda: [doc.key for doc in describe(cls, where)])


def to_mapping(instance: Any) -> dict[str, Any]:
    """Return a config section as nested JSON-able values that `from_mapping` reads back to an equal section.

    Keys that only other classes of a `Tagged` section have are there with their defaults: whatever is chosen, the
    mappings of two runs then differ in nothing but their settings.
    """
    own = {field.name for field in dataclasses.fields(instance)}
    declared = _fields(type(instance)).items()
    return {name: _plain(getattr(instance, name) if name in own else field.default) for name, field in declared}


def merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `update` on top; sections are merged, everything else is replaced."""
    merged = copy.deepcopy(dict(base))
    for key, value in update.items():
        below: Any = merged.get(key)
        are_sections = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(below, value) if are_sections else copy.deepcopy(value)
    return merged


def apply_overrides(mapping: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `mapping` with assignments such as `agent.omegas=[0, 1]` on top; values are YAML, the later ones win.

    Raises:
        ConfigError: A text is no assignment, its value is not YAML, or it reaches into something that is no section.
    """
    result = merge({}, mapping)
    for override in overrides:
        key, equals, text = override.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path) or not text.strip():
            raise ConfigError(f"'{override}' is no setting: write key=value, such as agent.beta=5 (null for no value)")
        try:
            value = parse_yaml(text)
        except ValueError as error:
            shown = f"{text[:200]}..." if len(text) > 200 else text
            raise ConfigError(f"{key}: the value '{shown}' is not YAML ({error}); put it in quotes") from None
        section = result
        for depth, name in enumerate(path[:-1], start=1):
            if section.get(name) is None:
                section[name] = {}
            section = section[name]
            if not isinstance(section, dict):
                raise ConfigError(f"'{override}': {'.'.join(path[:depth])} is {section!r}, which holds no further keys")
        section.update(merge(section, {path[-1]: value}))
    return result


def parse_yaml(text: str) -> Any:
    """Return the values in a YAML text, or raise ValueError: no tag makes an object, no alias grows without end."""
    if len(text) > MAX_YAML_CHARACTERS:
        raise ValueError(f"{len(text)} characters, at most {MAX_YAML_CHARACTERS} are read")
    loader = yaml.SafeLoader(text)  # in two steps, to count what the aliases stand for before anything is built
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded_size(node, {}) > MAX_YAML_CHARACTERS:
            raise ValueError("its aliases expand to more values than any config has")
        return loader.construct_document(node)
    except Exception as error:  # PyYAML lets out whatever its constructors raise: KeyError for `!!bool x`, ...
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
    finally:
        loader.dispose()


def _expanded_size(node: yaml.Node, sizes: dict[int, float]) -> float:
    """Return how many values a node stands for with its aliases written out; infinite for one that holds itself."""
    if id(node) not in sizes:
        sizes[id(node)] = math.inf  # until it is counted: met again before that, it is inside itself
        below = [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else []
        below += node.value if isinstance(node, yaml.SequenceNode) else []
        sizes[id(node)] = 1 + sum(_expanded_size(child, sizes) for child in below)
    return sizes[id(node)]


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested sections as one flat dict with dotted keys; an empty section stays as an empty dict."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        flat |= flatten(value, dotted) if isinstance(value, Mapping) and value else {dotted: value}
    return flat


def describe(cls: type, prefix: str = "") -> Iterator[FieldDoc]:
    """Yield every setting of a config section, sections in it included, in the order of the source."""
    texts, hints = _field_texts(cls), _hints(cls)
    for name, field in _fields(cls).items():
        key, hint, text = f"{prefix}.{name}" if prefix else name, hints[name], texts.get(name, "")
        if dataclasses.is_dataclass(hint):
            yield FieldDoc(key=key, type="section", default="", text=text)
            yield from describe(hint, key)  # type: ignore[arg-type]
        else:
            yield FieldDoc(key=key, type=_words(hint), default=_default_text(field), text=text)


def _classes(cls: Any) -> tuple[Any, ...]:
    """Return a section's class, and all that it may come in; where two declare a key, the earlier counts."""
    return (cls, *getattr(cls, "variants", {}).values())


def _fields(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of a section by name, in the order of the source."""
    fields: dict[str, dataclasses.Field[Any]] = {}
    for one in _classes(cls):
        for field in dataclasses.fields(one):
            fields.setdefault(field.name, field)
    return fields


def _hints(cls: Any) -> dict[str, Any]:
    """Return the types of a section's fields by name."""
    return {name: hint for one in reversed(_classes(cls)) for name, hint in _own_hints(one).items()}


_own_hints = functools.cache(get_type_hints)  # which evaluates the text of every annotation


def _read_section(cls: type[Section], mapping: Any, where: str, valid: Keys) -> Section:
    """Build the dataclass `cls` from `mapping`; `valid` tells all keys of the root, to suggest from."""
    if isinstance(mapping, cls):
        return mapping
    mapping = {} if mapping is None else mapping  # `agent:` with nothing below it is an empty section in YAML
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where or 'the config'} is {mapping!r}: a section of keys is needed")
    fields, hints = _fields(cls), _hints(cls)
    values: dict[str, Any] = {}
    for name, value in mapping.items():
        key = f"{where}.{name}" if where else str(name)
        if name not in fields:
            raise ConfigError(f"unknown setting '{key}'{_suggestion(key, valid())}")
        values[name] = _convert(hints[name], value, key, valid)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            key, text = f"{where}.{name}" if where else name, _field_texts(cls).get(name, "")
            raise ConfigError(f"{key} is missing: give {_words(hints[name])}. {text}".strip())
    return cls(**values)


def _suggestion(key: str, valid: Sequence[str]) -> str:
    """Return the part of a message that names the nearest valid key: by whole key first, then by last name."""
    nearest = functools.partial(difflib.get_close_matches, n=1)
    last = {name.rpartition(".")[2]: name for name in reversed(valid)}
    near = nearest(key, valid, cutoff=0.75)
    near = near or [last[name] for name in nearest(key.rpartition(".")[2], list(last), cutoff=0.6)]
    near = near or nearest(key, valid, cutoff=0.0)
    return f"; the nearest valid one is '{near[0]}'" if near else ""


def _convert(hint: Any, value: Any, key: str, valid: Keys) -> Any:
    """Return `value` as the type `hint`, or raise ConfigError naming `key`, the expectation and the finding."""
    if dataclasses.is_dataclass(hint):
        return _read_section(hint, value, key, valid)  # type: ignore[arg-type]
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(hint, value, key, valid)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = get_args(hint)
        kinds = (kinds[0],) * len(value) if kinds[-1:] == (Ellipsis,) else kinds
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_convert(kind, item, f"{key}[{index}]", valid) for index, (kind, item) in pairs)
    if origin is dict and isinstance(value, Mapping):
        kind = get_args(hint)[1]
        return {str(name): _convert(kind, item, f"{key}.{name}", valid) for name, item in value.items()}
    try:
        return _scalar(hint, value)
    except (ValueError, OverflowError):
        raise ConfigError(f"{key} is {value!r}: {_words(hint)} is needed{_hint_at(hint, value)}") from None


def _convert_union(hint: Any, value: Any, key: str, valid: Keys) -> Any:
    """Return `value` as the arm that takes it unchanged, else as the first arm that takes it at all."""
    results = []
    for arm in get_args(hint):
        with contextlib.suppress(ConfigError):
            results.append(_convert(arm, value, key, valid))
    if not results:
        raise ConfigError(f"{key} is {value!r}: {_words(hint)} is needed")
    # The type first, or `1` for "a number or a whole number" would become 1.0.
    return next((result for result in results if type(result) is type(value)), results[0])


def _scalar(hint: Any, value: Any) -> Any:
    """Return `value` as the scalar type `hint`, or raise ValueError or OverflowError where it cannot stand for one."""
    is_choice = get_origin(hint) is Literal and (type(value), value) in [(type(one), one) for one in get_args(hint)]
    is_null = value is None and hint in (type(None), None)
    if hint is Any or is_choice or is_null or (hint in (bool, str) and isinstance(value, hint)):
        return value
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        number = value if isinstance(value, int) else float(value)  # PyYAML leaves `1e-3` and `1e6` as text
        if hint is float and not math.isnan(number):
            return float(number)
        if hint is int and number == int(number):
            return int(number)
    raise ValueError(value)


def _hint_at(hint: Any, value: Any) -> str:
    """Return the remedy for the common slips: a bare number for text, a bare value for a list."""
    if hint is str and isinstance(value, bool | int | float):
        return f"; put it in quotes: '\"{value}\"'"
    if get_origin(hint) is tuple and not isinstance(value, list | tuple | Mapping | None):
        return f"; write [{value}]"
    return ""


def _plain(value: Any) -> Any:
    """Return a setting's value as JSON can hold it; infinities become text, which floats are read from."""
    if dataclasses.is_dataclass(value):
        return to_mapping(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value


def _words(hint: Any) -> str:
    """Return a type in the words of a user, such as `a whole number or null`."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(arm) for arm in inner)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in inner) if len(inner) > 1 else str(inner[0])
    if origin is tuple:
        if inner[-1:] == (Ellipsis,):
            return f"a list (each {_words(inner[0])})"
        return f"a list of {len(inner)} ({', '.join(_words(kind) for kind in inner)})"
    if origin is dict:
        return f"a mapping (each value {_words(inner[1])})"
    if dataclasses.is_dataclass(hint):
        return "a section of keys"
    if hint is Any:
        return "anything"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return "null" if hint in (type(None), None) else names.get(hint, str(hint))


def _default_text(field: dataclasses.Field[Any]) -> str:
    """Return a field's default as YAML on one line."""
    value = field.default
    if value is dataclasses.MISSING:
        if field.default_factory is dataclasses.MISSING:
            return "required"
        value = field.default_factory()
    return yaml.safe_dump(_plain(value), default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def _field_texts(cls: type) -> dict[str, str]:
    """Return the string under each field of a section; of base classes, the derived one's counts."""
    bases = [base for one in reversed(_classes(cls)) for base in reversed(one.__mro__)]
    return {name: text for base in bases for name, text in _texts_in(base).items()}


@functools.cache
def _texts_in(cls: type) -> dict[str, str]:
    """Return the string under each field in the source of a class."""
    if not dataclasses.is_dataclass(cls):
        return {}
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError, SyntaxError):  # no source at hand, as in a frozen program
        return {}
    texts: dict[str, str] = {}
    assert isinstance(body, ast.ClassDef)
    for statement, below in itertools.pairwise(body.body):
        match statement, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
    return texts
