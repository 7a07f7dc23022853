"""Waiting for an actor: never in silence, and with the actor's own exceptions."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import ray

logger = logging.getLogger(__name__)

SILENCE_S = 60.0  # longest wait without a word


def wait_for(references: Sequence[Any], what: str) -> list[Any]:
    """Return the values of `references`, with a warning for every minute that none of them comes.

    The first failure is raised at once: where actors work together, the others may wait for the failed one for ever.
    `what` says who is asked for what, such as "the replay: sample".

    Raises:
        Exception: What an actor raised, not Ray's wrapper of it; RayActorError when the actor is dead.
    """
    start, waiting, values = time.monotonic(), list(references), {}
    while waiting:
        arrived, waiting = ray.wait(waiting, timeout=SILENCE_S)
        if not arrived:
            logger.warning("%s: no answer for %.0f s; waiting on", what, time.monotonic() - start)
        for reference in arrived:
            try:
                values[reference] = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise error.cause or error from None
    return [values[reference] for reference in references]
