"""A policy gradient in the loop of judged plans: rows keep chains; what has no likelihood is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("shapely")

from dipole_ray.collect.scenes import scene_dataset
from dipole_ray.data.dataset import open_dataset
from dipole_ray.errors import ConfigError
from dipole_ray.evaluation.cells import EvalConfig
from dipole_ray.evaluation.parallel import evaluate_policy
from dipole_ray.files.checkpoint import newest_valid, read_checkpoint
from dipole_ray.replay.replay import Replay
from dipole_ray.runs.config import RunConfig
from dipole_ray.runs.start import resume_run, start_run
from dipole_ray.serving.policy import load_policy
from dipole_ray.tracking.metrics_file import read_metrics
from tests.driving.folders import made_folder
from tests.driving.test_learning import PLANS, TRAIN, VALIDATION, settings

ROUND, STEPS = TRAIN * PLANS, 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("scenes")
    return made_folder(place / "train", TRAIN), made_folder(place / "validation", VALIDATION)


def own_settings(folders: tuple[Path, Path], place: Path, rounds: int = 2) -> dict[str, Any]:
    """Return the settings of the tests of learning for a policy gradient with adapters on a clone."""
    steps = {"clone_learner_steps": 20, "offline_learner_steps": 0, "online_env_steps": rounds * ROUND}
    given = settings(folders, place, **steps, replay_capacity=2 * ROUND, offline_fraction=0.25)
    given["env"]["driving"] |= {"logged_plan": False, "noise": 0.0, "noise_rounds": 0}
    given["agent"] |= {"weight_scheme": "dppo", "omega": 0.0, "adapters": {"rank": 2}, "rollout_denoise_steps": STEPS}
    given["training"]["env_steps_per_iteration"] = ROUND
    given["evaluation"] |= {"every_learner_steps": 0, "omegas": [0.0]}
    return given


def test_a_policy_gradient_learns_from_its_own_plans_and_resumes_bitwise(
    cluster: None, folders: Any, tmp_path: Path
) -> None:
    """Two rounds, once as one run and once as a run that is continued, by the workers' own denoise steps."""
    run = start_run(RunConfig.from_mapping(own_settings(folders, tmp_path)))
    half = start_run(RunConfig.from_mapping(own_settings(folders, tmp_path / "half", rounds=1)))
    longer = resume_run(half.folder, [f"training.online_env_steps={2 * ROUND}"])
    ends = [newest_valid(one.folder / "checkpoints") for one in (run, longer)]
    files = [{path.name: path.read_bytes() for path in (end or tmp_path).glob("*.safetensors")} for end in ends]
    assert files[0] == files[1] and "agent.safetensors" in files[0]

    state = read_checkpoint(ends[0]).metadata["replay"]
    dataset = scene_dataset(run.config.env.driving, Path(run.config.data.cache))
    schema = open_dataset(dataset).schema
    schema = schema.keeping(run.config.agent.kept_columns(schema.action_dim))
    online: Any = {"online": run.folder / "replay" / "online.arrow", "capacity": state["online"]["capacity"]}
    with Replay(schema=schema, offline=[dataset], **online) as replay:
        replay.load_state(state)
        batch = replay.sample(64, offline_fraction=0.25)
    drawn = batch["is_offline"] == 0
    assert drawn.sum() == 48 and batch["chains"].shape == (64, STEPS + 1, schema.action_dim)
    assert not batch["chains"][~drawn].any() and batch["log_likelihoods"][drawn].all(axis=1).all()
    ends_of_chains = batch["chains"][drawn, -1].clip(-1, 1)  # of which backward speeds become 0, but offsets stay
    np.testing.assert_allclose(batch["actions"][drawn, 8:], ends_of_chains[:, 8:], atol=1e-3)

    last = read_metrics(run.folder)[-2]
    assert {"actor/loss_positive", "actor/kl", "actor/clip_fraction", "rollout/pdms"} <= last.keys()
    found = evaluate_policy(load_policy(run.folder), EvalConfig(episodes=100, omegas=(0.0,)), progress=False)
    assert found[-1].returns.mean() == pytest.approx(run.evaluation["online"][-1]["return"])


REFUSED: dict[str, tuple[str, str, Any]] = {
    "and no policy drew the driver's; set it to false": ("env", "driving", {"logged_plan": True}),
    "set env.driving.noise=0 env.driving.noise_rounds=0": ("env", "driving", {"noise": 0.1, "noise_rounds": 1}),
    "or set agent.weight_scheme=bc": ("training", "online_env_steps", 0),
    f"the rows of a round or two, such as {2 * ROUND}": ("training", "replay_capacity", None),
    "by likelihoods in float32; set float32": ("learner", "matmul_precision", "bf16"),
}


@pytest.mark.parametrize("remedy", REFUSED)
def test_what_has_no_likelihood_or_is_too_old_is_refused_with_the_remedy(
    remedy: str, folders: Any, tmp_path: Path
) -> None:
    given = own_settings(folders, tmp_path)
    section, key, value = REFUSED[remedy]
    given[section][key] = {**given[section][key], **value} if isinstance(value, dict) else value
    with pytest.raises(ConfigError) as refused:
        RunConfig.from_mapping(given)
    assert remedy in str(refused.value) and "dppo" in str(refused.value)
