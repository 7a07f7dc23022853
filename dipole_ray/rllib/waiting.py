"""Waiting for an actor: never in silence, and with the actor's own exceptions."""

from __future__ import annotations

import logging
import time
from typing import Any

import ray

logger = logging.getLogger(__name__)

SILENCE_S = 60.0
"""Longest wait without a word."""


def wait_for(reference: Any, what: str) -> Any:
    """Return the value of `reference`, with a warning for every minute that it does not come.

    Args:
        reference: Ray's reference to the answer of one actor call.
        what: Who is asked for what, for the warning, such as "the replay: sample".

    Raises:
        Exception: What the actor raised, not Ray's wrapper of it; RayActorError when the actor is dead.
    """
    start = time.monotonic()
    while not ray.wait([reference], timeout=SILENCE_S)[0]:
        logger.warning("%s: no answer for %.0f s; waiting on", what, time.monotonic() - start)
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause or error from None
