"""Settings: a typed section is what was written, and whatever cannot be is refused with the key and the remedy."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dipole_ray import settings
from dipole_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    """A section."""

    beta: float = 1.0
    """Steepness, > 0,
    per reward unit."""
    steps: int | None = None
    """Count."""
    mode: Literal["min", "mean"] = "min"
    """How."""
    omegas: tuple[float, ...] = (0.5,)
    """Values."""
    sizes: tuple[int, int] = (1, 2)
    """A pair."""
    folder: Path | None = None
    """Place."""
    columns: dict[str, float] = field(default_factory=dict)
    """By name."""
    threads: Literal["auto"] | int = "auto"
    """Threads."""
    enabled: bool = True
    """Switch."""

    def __post_init__(self) -> None:
        """Reject what cannot be."""
        if self.beta <= 0:
            raise ConfigError(f"agent.beta is {self.beta}: it must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    """A root."""

    name: str
    """Name of it all."""
    agent: Inner = field(default_factory=Inner)
    """The algorithm."""


@dataclass(frozen=True, kw_only=True)
class Shape(metaclass=settings.Tagged):
    """A section in several classes."""

    tag: ClassVar[str] = "shape.kind"
    kind: str = "ball"
    """Which."""
    size: float = 1.0
    """Of all."""


@dataclass(frozen=True, kw_only=True)
class Ball(Shape):
    """One."""

    kind: str = "ball"
    bounce: float = 0.0
    """How high."""


@dataclass(frozen=True, kw_only=True)
class Brick(Shape):
    """Another."""

    kind: str = "brick"
    edges: tuple[int, ...] = (1, 1, 1)
    """How long."""


def read(*overrides: str) -> Outer:
    """Return the root with overrides."""
    return settings.from_mapping(Outer, settings.apply_overrides({"name": "x"}, overrides))


@pytest.mark.parametrize(
    ("override", "attribute", "expected"),
    [
        ("agent.beta=3", "beta", 3.0),
        ("agent.beta=1e-3", "beta", 0.001),  # YAML 1.1 leaves this one as text
        ("agent.beta=.inf", "beta", math.inf),
        ("agent.steps=1e6", "steps", 1_000_000),
        ("agent.steps=1_000", "steps", 1000),
        ("agent.steps=null", "steps", None),
        ("agent.mode=mean", "mode", "mean"),
        ("agent.omegas=[0, 2.5]", "omegas", (0.0, 2.5)),
        ("agent.omegas=[]", "omegas", ()),
        ("agent.sizes=[3, 4]", "sizes", (3, 4)),
        ("agent.folder=/data/x", "folder", Path("/data/x")),
        ("agent.columns={a: 1}", "columns", {"a": 1.0}),
        ("agent.threads=4", "threads", 4),
        ("agent={beta: 2}", "beta", 2.0),
    ],
)
def test_values_take_their_declared_type(override: str, attribute: str, expected: object) -> None:
    value = getattr(read(override).agent, attribute)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["agent.bta=3"], "unknown setting 'agent.bta'; the nearest valid one is 'agent.beta'"),
        (["beta=3"], "'agent.beta'"),
        (["agnt.beta=3"], "'agent"),
        (["agent.beta=true"], "agent.beta is True: a number is needed"),
        (["agent.beta=.nan"], "agent.beta is nan"),
        (["agent.beta=-1"], "must be positive"),
        (["agent.steps=1.5"], "a whole number or null is needed"),
        (["agent.mode=max"], "one of min, mean is needed"),
        (["agent.omegas=3"], "write [3]"),
        (["agent.omegas=[a]"], "agent.omegas[0] is 'a'"),
        (["agent.sizes=[1, 2, 3]"], "a list of 2"),
        (["agent.columns={a: b}"], "agent.columns.a is 'b'"),
        (["agent.enabled=1"], "true or false is needed"),
        (["agent.threads=x"], "auto or a whole number"),
        (["agent=5"], "a section of keys is needed"),
        (["name=5"], "put it in quotes"),
        (["agent=5", "agent.beta=1"], "holds no further keys"),
        (["agent.beta"], "write key=value"),
        (["agent.beta="], "write key=value"),
        (["agent..beta=1"], "write key=value"),
        (["name=[1"], "not YAML"),
    ],
)
def test_wrong_settings_are_refused_with_key_and_remedy(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(*overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_setting_is_named_with_its_explanation() -> None:
    with pytest.raises(ConfigError, match=r"name is missing: give text\. Name of it all\."):
        settings.from_mapping(Outer, {})


def test_where_is_put_before_every_key() -> None:
    with pytest.raises(ConfigError, match=r"'agent\.bta'; the nearest valid one is 'agent\.beta'"):
        settings.from_mapping(Inner, {"bta": 1}, where="agent")


def test_an_empty_yaml_section_means_its_defaults() -> None:
    assert settings.from_mapping(Outer, yaml.safe_load("name: x\nagent:\n")) == Outer(name="x")


@given(
    beta=st.floats(min_value=0, exclude_min=True, allow_nan=False),
    steps=st.none() | st.integers(),
    omegas=st.lists(st.floats(allow_nan=False)),
    columns=st.dictionaries(st.text(), st.floats(allow_nan=False)),
    threads=st.just("auto") | st.integers(),
)
def test_a_section_survives_json(
    beta: float, steps: int | None, omegas: list[float], columns: dict[str, float], threads: int | str
) -> None:
    inner = Inner(beta=beta, steps=steps, omegas=tuple(omegas), columns=columns, threads=threads, folder=Path("a/b"))  # type: ignore[arg-type]
    outer = Outer(name="x", agent=inner)
    text = json.dumps(settings.to_mapping(outer), allow_nan=False)
    assert settings.from_mapping(Outer, json.loads(text)) == outer


def test_overrides_leave_their_input_alone_and_the_later_wins() -> None:
    base = {"name": "x", "agent": {"beta": 1}}
    assert settings.apply_overrides(base, ["agent.beta=2", "agent.beta=3"])["agent"] == {"beta": 3}
    assert base == {"name": "x", "agent": {"beta": 1}}


def test_describe_lists_every_setting_with_its_explanation() -> None:
    docs = {doc.key: doc for doc in settings.describe(Outer)}
    assert list(docs)[:3] == ["name", "agent", "agent.beta"]
    assert docs["name"].default == "required"
    assert docs["agent.beta"].text == "Steepness, > 0, per reward unit."
    assert (docs["agent.omegas"].type, docs["agent.omegas"].default) == ("a list (each a number)", "[0.5]")
    assert all(doc.text for doc in docs.values())


def test_a_tagged_section_is_of_the_class_that_the_tag_names() -> None:
    assert type(settings.from_mapping(Shape, {"size": 2})) is Ball
    brick = settings.from_mapping(Shape, {"kind": "brick", "edges": [1, 2, 3], "size": 2})
    assert brick == Brick(edges=(1, 2, 3), size=2.0) == Shape(kind="brick", edges=(1, 2, 3), size=2.0)
    assert not hasattr(brick, "bounce") and type(replace(brick, kind="ball", edges=(1, 1, 1))) is Ball
    with pytest.raises(ConfigError, match=r"shape\.kind: found 'cone'; choose one of ball, brick"):
        settings.from_mapping(Shape, {"kind": "cone"})
    with pytest.raises(ConfigError, match=r"unknown setting 'shape\.bounc'; the nearest valid one is 'shape\.bounce'"):
        settings.from_mapping(Shape, {"kind": "brick", "bounc": 1}, where="shape")


def test_a_key_of_another_class_is_taken_at_its_default_alone() -> None:
    everything = settings.to_mapping(Brick())
    assert everything == {"kind": "brick", "size": 1.0, "bounce": 0.0, "edges": [1, 1, 1]}
    assert settings.from_mapping(Shape, everything) == Brick()
    with pytest.raises(ConfigError) as caught:
        settings.from_mapping(Shape, {**everything, "bounce": 2})
    assert str(caught.value) == (
        "shape.bounce: found 2.0, but kind 'brick' does not read it; set shape.bounce=0 or shape.kind=ball"
    )
    assert [doc.key for doc in settings.describe(Shape)] == ["kind", "size", "bounce", "edges"]
