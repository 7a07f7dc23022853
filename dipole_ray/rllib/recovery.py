"""A learner that replaces a dead one: from the run's newest valid checkpoint, or from the first weights.

Only the learner goes back. The replay keeps every row, the workers go on acting with the policy last published, and
the environment steps stay counted. Updates made after the checkpoint are lost: offline they are made again, because
the phase ends at a number of updates; online they are not owed again, so that no burst of updates follows.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from dipole_ray.errors import CheckpointError, ResourcesUnavailable
from dipole_ray.files.checkpoint import Checkpoint, newest_valid, read_checkpoint, steps_of
from dipole_ray.rllib.learner_client import LearnerClient, LearnerDied

logger = logging.getLogger(__name__)

MAX_DEATHS = 5
"""Learners lost without one finished update between them, after which the run ends."""
AGENT_FILE = "agent"


def replace_learner(
    learner: LearnerClient, death: LearnerDied, newest: Path | None, steps: int, begin: Callable[[], None]
) -> int:
    """Start another learner from the newest valid checkpoint, and return the updates that it has made.

    One warning names what is lost of the `steps` so far. `newest` is the checkpoint written or restored last; without
    one, `begin` prepares a learner with the first weights.

    Raises:
        CheckpointError: The run has saved before, and none of its checkpoints is left and whole.
        ResourcesUnavailable: Learners die one after the other, or no node has room for another.
    """
    while learner.deaths_in_a_row < MAX_DEATHS:
        checkpoint = _restart_checkpoint(newest)
        saved_steps, source = 0, "its first weights (no checkpoint was written yet)"
        if checkpoint is not None:
            saved_steps, source = checkpoint.learner_steps, str(checkpoint.path)
        logger.warning(
            "the learner died (%s); another starts from %s: %d updates are lost", death, source, steps - saved_steps
        )
        try:
            learner.start_again()
            if checkpoint is None:
                begin()
            else:
                learner.load_agent_state(checkpoint.tensors[AGENT_FILE])
        except LearnerDied as next_death:
            death = next_death
        else:
            return saved_steps
    raise ResourcesUnavailable(
        f"the learner's process was lost {MAX_DEATHS} times without one update in between, the last time with: "
        f"{death}; usually memory ran out: lower agent.batch_size or training.learner_steps_per_call, or give "
        "the run a larger machine, then go on with --resume"
    )


def _restart_checkpoint(newest: Path | None) -> Checkpoint | None:
    """Return the checkpoint to go back to: `newest`, or where it is damaged the one before it."""
    if newest is None:
        return None
    path = newest_valid(newest.parent, not_after=steps_of(newest))
    if path is None:
        raise CheckpointError(f"{newest}: the learner died, and no valid checkpoint is left to go back to; train anew")
    return read_checkpoint(path)
