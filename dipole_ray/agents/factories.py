"""Finds a function of the user's own by the name `module:factory`."""

import importlib
from collections.abc import Callable
from typing import Any

from dipole_ray.errors import ConfigError


def is_factory(name: str) -> bool:
    """Whether a setting names a function as `module:factory`."""
    module, colon, factory = name.partition(":")
    return bool(colon and module and factory.isidentifier())


def find_factory(name: str, setting: str) -> Callable[..., Any]:
    """Return the function; ConfigError, which names the `setting`, where its module or the function is not there."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        remedy = "install it, or put its folder on PYTHONPATH"
        raise ConfigError(f"{setting}: cannot import '{module}' ({error}); {remedy}") from error
    if not callable(found):
        raise ConfigError(f"{setting}: '{module}' has no function '{function}'; write one there")
    made: Callable[..., Any] = found
    return made
