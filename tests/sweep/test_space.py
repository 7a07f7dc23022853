"""Search spaces: what can be written, what is drawn, and that it is drawn again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dipole_ray.errors import ConfigError
from dipole_ray.sweep.space import Domain, draw, read_domain


def test_grids_are_crossed_in_the_order_of_the_file() -> None:
    space = {"a": Domain("grid", (1, 2)), "b": Domain("grid", ("x", "y"))}
    trials = draw(space, num_samples=1, seed=0)
    assert trials == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]


def test_every_combination_of_grids_gets_draws_of_the_rest() -> None:
    space = {"a": Domain("grid", (1, 2)), "b": Domain("uniform", (0.0, 1.0)), "c": Domain("choice", ("x", "y"))}
    trials = draw(space, num_samples=50, seed=3)
    assert [trial["a"] for trial in trials] == [1] * 50 + [2] * 50
    assert len({trial["b"] for trial in trials}) == 100 and {trial["c"] for trial in trials} == {"x", "y"}
    assert trials == draw(space, num_samples=50, seed=3), "another start of the sweep finds the same trials"
    assert trials != draw(space, num_samples=50, seed=4)


def test_draws_follow_their_distribution() -> None:
    space = {"u": Domain("uniform", (2.0, 4.0)), "l": Domain("loguniform", (0.01, 100.0))}
    trials = draw(space, num_samples=4000, seed=0)
    uniform, log = (np.array([trial[key] for trial in trials]) for key in ("u", "l"))
    assert uniform.min() >= 2 and uniform.max() <= 4 and abs(uniform.mean() - 3) < 0.05
    assert log.min() >= 0.01 and log.max() <= 100 and abs(np.log(log).mean()) < 0.2, "as many below 1 as above"


def test_mutations_are_kept_in_range() -> None:
    assert Domain("uniform", (0.6, 0.95)).clip(0.9 * 1.2) == 0.95
    assert Domain("loguniform", (1.0, 2.0)).clip(0.8) == 1.0
    assert Domain("choice", (1, 5)).clip(5) == 5
    assert math.isclose(Domain("uniform", (0.0, 1.0)).clip(0.3), 0.3)


@pytest.mark.parametrize("plain", [{"grid": [1, 3]}, {"choice": ["a"]}, {"uniform": [0.0, 1.0]}])
def test_domains_come_back_from_plain_values(plain: dict[str, Any]) -> None:
    assert read_domain("k", plain).to_plain() == plain


def test_numbers_that_yaml_leaves_as_text_are_meant() -> None:
    assert read_domain("k", {"loguniform": ["1e-4", "1e-2"]}) == Domain("loguniform", (1e-4, 1e-2))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1, 3], r"agent\.beta is \[1, 3\]: write agent\.beta: \{grid: \[1, 3\]\}"),
        (3, "write agent.beta"),
        ({"grd": [1]}, "write agent.beta"),
        ({"grid": [1], "choice": [2]}, "write agent.beta"),
        ({"grid": []}, "a list is needed"),
        ({"grid": 3}, "a list is needed"),
        ({"grid": [1, 1]}, r"names a value twice; to repeat trials, add seed: \{grid: \[0, 1\]\}"),
        ({"uniform": [1]}, "two numbers"),
        ({"uniform": ["a", "b"]}, "two numbers"),
        ({"uniform": [2, 1]}, "a smaller and a larger"),
        ({"uniform": [0, ".inf"]}, "two numbers"),
        ({"uniform": [0, float("inf")]}, "finite"),
        ({"loguniform": [0, 1]}, "above 0"),
    ],
)
def test_what_is_no_domain_is_refused_with_the_way_to_write_one(value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_domain("agent.beta", value)
