"""The rollout workers as the driver sees them: who can be asked, who answered, who failed, and how often.

Nothing here waits for a worker that is dead, restarting or stuck: the others' answers come meanwhile.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from dipole_ray.envs.registry import family, is_registered_by_hand
from dipole_ray.errors import CallbackFailed, ConfigError, EnvironmentUnavailable
from dipole_ray.rllib.core_privates import actor_id
from dipole_ray.rllib.env_runner import DIPOLEEnvRunner
from dipole_ray.rllib.heartbeat import Silence
from dipole_ray.rllib.privates import manager_of, requests_in_flight

logger = logging.getLogger(__name__)

MAX_FAILURES = 5  # in a row, after which a worker is asked no more
MAX_PAUSE_S = 60.0
PING_EVERY_S = 0.5
STOP_S = 10.0
NAMED_WITHIN = 0.9  # of the deadline, after which a silent worker is replaced: named within the deadline, not after it
PING = "ping"


class Workers:
    """Requests to, and answers from, the remote workers of an RLlib EnvRunnerGroup.

    A worker fails when its environment raises, when its process dies on a request, or when an environment does not
    return from one call for `stall_s` (then its process is ended as well). It is asked again after 1, 2, 4, ... s, and
    no more after five failures in a row: an environment that kills its process at every start is a crash loop, too.
    """

    def __init__(self, group: EnvRunnerGroup, *, env_id: str, stall_s: float) -> None:
        self._manager = manager_of(group)
        self._env_id, self._stall_s = env_id, stall_s
        self._silences = {i: Silence(actor_id(actor), stall_s) for i, actor in self._manager.actors().items()}
        self._asked: dict[int, float] = {}  # when
        self._in_a_row: Counter[int] = Counter()
        self._rests_until: dict[int, float] = {}
        self._next_ping = 0.0
        self.num_failures = 0  # of all workers so far
        self.back: list[int] = []  # those that answered again, which nobody has been told of

    def __len__(self) -> int:
        return int(self._manager.num_actors())

    @property
    def num_healthy(self) -> int:
        """Workers whose process runs."""
        return int(self._manager.num_healthy_actors())

    @property
    def num_retired(self) -> int:
        """Workers that failed too often to be asked again."""
        return sum(count >= MAX_FAILURES for count in self._in_a_row.values())

    def usable(self) -> list[int]:
        """Return the healthy workers that are neither retired nor resting after a failure."""
        now, healthy = time.monotonic(), self._manager.healthy_actor_ids()
        rested = [worker for worker in healthy if self._rests_until.get(worker, now) <= now]
        return [worker for worker in rested if self._in_a_row[worker] < MAX_FAILURES]

    def busy(self, tag: str) -> set[int]:
        """Return the workers that have not answered a request with `tag` yet."""
        return {worker for request_tag, worker in self._in_flight.values() if request_tag == tag}

    def idle(self, tag: str) -> list[int]:
        """Return the usable workers that owe no answer to a request with `tag`."""
        busy = self.busy(tag)
        return [worker for worker in self.usable() if worker not in busy]

    def ask(self, workers: Sequence[int], tag: str, method: str, **how: Any) -> None:
        """Call `method` of each of `workers` with `how`; its answer comes under `tag`."""
        owing = {worker for _, worker in self._in_flight.values()}
        for worker in workers:
            if worker not in owing:
                self._asked[worker] = time.monotonic()
            self._silences[worker].reset()
        if workers:  # RLlib takes an empty list for all of them
            call = partial(_answer, method=method, **how)
            self._manager.foreach_actor_async(call, tag=tag, remote_actor_ids=list(workers))

    def tell(self, call: Callable[[DIPOLEEnvRunner], Any]) -> None:
        """Send `call` to every healthy worker, before anything that is asked of it later; nobody waits for it."""
        self._manager.foreach_actor(call, timeout_seconds=0.0)

    def answers(self, timeout_s: float) -> list[tuple[str, Any]]:
        """Wait at most `timeout_s` for answers; return them with their tags. EnvironmentUnavailable: all retired."""
        if timeout_s and self._in_flight:
            ray.wait(list(self._in_flight), num_returns=1, timeout=timeout_s)
        elif timeout_s:
            time.sleep(timeout_s)
        came = []
        for result in self._manager.fetch_ready_async_reqs(timeout_seconds=0.0, mark_healthy=True):
            worker, answer = result.actor_id, result.get()
            if result.tag == PING:  # its coming alone marked the worker as healthy
                self.back += [worker] if result.ok else []
                continue
            if not result.ok:
                logger.warning("rollout worker %d died when asked to %s; Ray starts it again", worker, result.tag)
                self._note_failure(worker, f"its process died ({type(answer).__name__})")
            elif isinstance(answer, CallbackFailed):  # it would fail again, and anywhere
                raise answer
            elif isinstance(answer, _Failure):
                self._note_failure(worker, answer.error)
            else:
                self._in_a_row[worker] = 0
                came.append((result.tag, answer))
        self._replace_stalled()
        self._ping()
        return came

    def stop(self) -> None:
        """Close the environments and end the workers; one that does not answer is not waited for."""
        self._manager.foreach_actor("stop", healthy_only=False, timeout_seconds=STOP_S)
        self._manager.clear()

    @property
    def _in_flight(self) -> dict[Any, tuple[str, int]]:
        return requests_in_flight(self._manager)

    def _note_failure(self, worker: int, error: str) -> None:
        """Let the worker rest, or retire it; raise once no worker is left."""
        self.num_failures += 1
        self._in_a_row[worker] += 1
        count = self._in_a_row[worker]
        if count < MAX_FAILURES:
            pause_s = min(2.0 ** (count - 1), MAX_PAUSE_S)
            self._rests_until[worker] = time.monotonic() + pause_s
            logger.info("rollout worker %d failed, %d in a row: %s; it rests for %g s", worker, count, error, pause_s)
            return
        left = len(self) - self.num_retired
        if not left:
            raise EnvironmentUnavailable(
                f"every rollout worker failed {MAX_FAILURES} times in a row, the last with {error}; "
                "try the environment in one process with rollout.num_workers=0"
            )
        logger.warning(
            f"rollout worker {worker} is retired: environment '{self._env_id}' failed {count} times in a row, the "
            f"last time with {error}; {left} go on"
        )

    def _replace_stalled(self) -> None:
        """End the process of every worker of which nothing was heard for too long; Ray starts it again."""
        owing = {worker: tag for tag, worker in self._in_flight.values() if worker in self._asked and tag != PING}
        for worker, tag in owing.items():
            silence_s = self._silences[worker].seconds()
            # Doubled, so that an environment which is only slow to build is not ended for ever.
            if silence_s < NAMED_WITHIN * self._stall_s * 2 ** self._in_a_row[worker]:
                continue
            logger.warning(
                f"rollout worker {worker} stalls: environment '{self._env_id}' returned from no call for "
                f"{silence_s:.0f} s (asked to {tag} {time.monotonic() - self._asked[worker]:.0f} s ago); the worker is "
                "replaced"
            )
            ray.kill(self._manager.actors()[worker], no_restart=False)
            self._manager.set_actor_state(worker, healthy=False)  # until it answers a ping
            self._note_failure(worker, f"no return from one call for {silence_s:.0f} s")

    def _ping(self) -> None:
        """Ask the workers that are out of service whether they are back, without waiting for their answer."""
        now = time.monotonic()
        if now < self._next_ping:
            return
        self._next_ping = now + PING_EVERY_S
        away = {*self._manager.actor_ids()} - {*self._manager.healthy_actor_ids()} - self.busy(PING)
        if away:
            self._manager.foreach_actor_async("ping", tag=PING, healthy_only=False, remote_actor_ids=sorted(away))


def require_found_by_workers(config: Any) -> None:
    """Raise ConfigError where workers would not find the environment: what a script registers is known to it alone."""
    if not (config.num_env_runners or config.evaluation_num_env_runners) or not is_registered_by_hand(config.env):
        return
    finds: Any = ray.remote(num_cpus=0)(_finds)
    if not ray.get(finds.remote(config.env)):
        found = f"environment '{config.env}' is registered in this script alone, and a worker does not find it"
        remedy = f"register it in a module and give the id 'your_module:{config.env}', or set num_env_runners=0"
        raise ConfigError(f"{found}; {remedy}")


def _finds(env_id: str) -> bool:
    try:
        return bool(family(env_id))
    except ConfigError:
        return False


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a worker answers when its environment or policy raised: left to RLlib, the actor would end in silence."""

    error: str  # type and message


def _answer(worker: DIPOLEEnvRunner, *, method: str, **how: Any) -> Any:
    """Call a method in the worker; whatever an environment raises comes back as a value."""
    try:
        return getattr(worker, method)(**how)
    except CallbackFailed as error:
        return error
    except Exception as error:  # any environment's any error
        worker.stop()
        return _Failure(f"{type(error).__name__}: {error}")
