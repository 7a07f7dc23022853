"""Scenes as a source of experience: groups of plans, judged; one loop, replay, checkpoint and table with the rest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("shapely")

from dipole_ray.cli import main
from dipole_ray.collect.scenes import scene_dataset
from dipole_ray.data.dataset import open_dataset
from dipole_ray.driving import scene_set
from dipole_ray.driving.actions import ACTION_DIM, WAY_DIM, actions_of, explored, plans_of
from dipole_ray.driving.container import SceneFolder
from dipole_ray.driving.encoders import train_small
from dipole_ray.driving.group import group_advantages
from dipole_ray.driving.observations import observe
from dipole_ray.driving.scene_set import SceneSet
from dipole_ray.driving.score import PDMScorer
from dipole_ray.driving.way import Way
from dipole_ray.envs.make import EnvConfig, make_env
from dipole_ray.envs.scenes import DrivingConfig
from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.evaluation.cells import EvalConfig
from dipole_ray.evaluation.parallel import evaluate_policy
from dipole_ray.evaluation.report import print_table, sort_rows
from dipole_ray.evaluation.table import rows_of
from dipole_ray.files.checkpoint import newest_valid, read_checkpoint
from dipole_ray.replay.replay import Replay
from dipole_ray.runs.config import RunConfig, load, read_yaml
from dipole_ray.runs.run import Run
from dipole_ray.runs.start import resume_run, start_run
from dipole_ray.serving.policy import load_policy
from dipole_ray.settings import merge
from dipole_ray.tracking.metrics_file import read_metrics
from tests.driving.folders import made_folder

PLANS, TRAIN, VALIDATION = 3, 6, 4
GROUP = PLANS + 1
ROUND = TRAIN * GROUP


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("scenes")
    return made_folder(place / "train", TRAIN), made_folder(place / "validation", VALIDATION)


SCORED: dict[str, Any] = {"learned_score": True, "num_candidates": 4}


def settings(folders: tuple[Path, Path], place: Path, *, scored: bool = False, **training: Any) -> dict[str, Any]:
    """Return the preset drive_tiny on scenes made by hand, and smaller still: two rounds after a short clone phase."""
    driving = {"scenes": [str(folders[0])], "validation": [str(folders[1])], "plans": PLANS}
    driving |= {"observation": "vector", "actions": "way"}
    loop = {
        "updates_per_env_step": 1.0,
        "learner_steps_per_call": 8,
        "learner_steps_per_iteration": 20,
        "env_steps_per_iteration": ROUND,
    }
    agent = {"hidden_dims": [32, 32], "batch_size": 16, "denoise_steps": 3}
    smaller = {
        "folder": str(place / "runs"),
        "env": {"id": "drive", "driving": {**driving, "noise": 0.1, "noise_rounds": 1}},
        "data": {"cache": str(place / "cache")},
        "agent": {"advantage": "group", "omega": 1.0, **agent, **(SCORED if scored else {"num_candidates": 1})},
        "training": {"offline_learner_steps": 20, "online_env_steps": 2 * ROUND, **loop, **training},
        "rollout": {"envs_per_worker": 2, "fragment_steps": 3},
        "learner": {"num_threads": 1},
        "evaluation": {
            **{"episodes": 100, "omegas": [0.0, 1.0], "candidates": [1, 4]},
            **{"every_learner_steps": 20, "interval_episodes": 2},
        },
        "tracking": {"mlflow": False},
    }
    return merge(read_yaml("drive_tiny"), smaller)


@pytest.fixture(scope="module")
def run(cluster: None, folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return start_run(RunConfig.from_mapping(settings(folders, tmp_path_factory.mktemp("run"), scored=True)))


def test_an_advantage_is_a_plans_place_in_its_group_and_none_where_all_are_alike() -> None:
    scores = np.array([[0.0, 0.5, 1.0], [0.1, 0.1, 0.1], [1.0, 1.0, 0.0]])
    found = group_advantages(scores)
    np.testing.assert_allclose(found[[0, 2]].mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(found[[0, 2]].std(axis=1), 1, atol=1e-5)
    assert found[1].tolist() == [0, 0, 0] and found.dtype == np.float32


def test_a_plan_survives_as_an_action_to_a_millimetre() -> None:
    random = np.random.default_rng(0)
    speeds, bend = random.uniform(0, 30, (50, 1)), random.normal(0, 0.3, (50, 1)) * np.arange(1, 9) / 8
    times = 0.5 * np.arange(1, 9)
    plans = np.stack([speeds * times * np.cos(bend / 2), speeds * times * np.sin(bend / 2), bend], axis=-1)
    actions = actions_of(plans)
    assert actions.shape == (50, ACTION_DIM) and actions.dtype == np.float32 and np.abs(actions).max() <= 1
    np.testing.assert_allclose(plans_of(actions), plans, atol=1e-3)
    wild = explored(plans, 0.2, random)
    assert np.isfinite(wild).all() and 0.1 < (wild[:, -1, 0] / plans[:, -1, 0] - 1).std() < 0.4
    np.testing.assert_allclose(explored(plans, 0.0, random), plans, atol=1e-12)


def test_rows_refer_to_scenes_stored_once_and_hold_whole_groups(run: Run, folders: tuple[Path, Path]) -> None:
    """Of each scene every round has G drawn plans and the driven one, whose advantages are its place among them."""
    scenes, driving = SceneSet([folders[0]]), run.config.env.driving
    dataset = open_dataset(scene_dataset(driving, Path(run.config.data.cache)))
    assert len(dataset.tables["scenes"]) == TRAIN and dataset.num_transitions == TRAIN
    np.testing.assert_array_equal(dataset.tables["scenes"][2], observe(scenes.read(2), "vector"))
    checkpoint = read_checkpoint(newest_valid(run.folder / "checkpoints"))
    assert checkpoint.metadata["env_steps"] == 2 * ROUND
    assert not [name for name in checkpoint.tensors["agent"] if "target_critic" in name or "value." in name]
    ring: Any = {"capacity": checkpoint.metadata["replay"]["online"]["capacity"]}
    ring["online"] = run.folder / "replay" / "online.arrow"
    schema = dataset.schema.keeping(run.config.agent.kept_columns(WAY_DIM))
    replay = Replay(schema=schema, offline=[dataset.directory], **ring)
    replay.load_state(checkpoint.metadata["replay"])
    assert replay._ring is not None and replay.num_online == 2 * ROUND
    columns = replay._ring.columns
    rows = np.arange(0, 4 * ROUND, 2)  # each plan's closing row follows it
    assert not columns["masks"][rows].any() and not columns["remaining"][rows + 1].any()
    numbers = columns["observations"][rows].reshape(2, TRAIN, GROUP)
    assert (numbers == numbers[..., :1]).all() and (np.sort(numbers[..., 0]) == np.arange(TRAIN)).all()
    advantages = columns["rewards"][rows].reshape(-1, GROUP)
    actions = columns["actions"][rows].reshape(-1, GROUP, WAY_DIM)
    scored = columns["scores"][rows].reshape(-1, GROUP)
    for number, group, own, told in zip(numbers[..., 0].ravel(), actions, advantages, scored, strict=True):
        scene = scenes.read(int(number))
        way = Way(scene)
        np.testing.assert_array_equal(group[-1], actions_of(scene.human, way))
        scores = PDMScorer(scene.scene, "clipped").score(plans_of(group, way)).pdms
        np.testing.assert_allclose(own, group_advantages(scores[None])[0], atol=1e-5)
        np.testing.assert_allclose(told, scores, atol=1e-6)
    replay.close()


def test_sub_scores_are_in_metrics_progress_and_table(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    lines = read_metrics(run.folder)
    rounds = [line for line in lines if "rollout/nc" in line]
    assert len(rounds) == 2
    of_groups = ("best_of_group", "has_spread", "logged_pdms", "chosen_pdms", "chosen_beats_mean")
    for name in ("pdms", "nc", "dac", "ep", "ttc", "c", *of_groups):
        assert all(0 <= line[f"rollout/{name}"] <= 1 for line in rounds), name
    assert all(line["rollout/best_of_group"] >= line["rollout/pdms"] for line in rounds)
    assert all(line["rollout/best_of_group"] >= line["rollout/chosen_pdms"] for line in rounds)
    assert all(any(f"eval/ttc/omega_1_candidates_{count}" in line for line in lines) for count in (1, 4))
    assert {"critic/loss", "critic/correlation"} <= rounds[-1].keys()
    rows = run.evaluation["online"]
    assert {(row["omega"], row["candidates"]) for row in rows} == {(0.0, 1), (1.0, 1), (0.0, 4), (1.0, 4)}
    for row in rows:
        assert row["episodes"] == VALIDATION and row["return"] == pytest.approx(row["scores"]["pdms"])
        assert row["score_errors"]["pdms"] is not None
    print_table(run.evaluation)
    shown = capsys.readouterr().out
    assert "pdms" in shown and "+-" in shown and "4 scenes per row" in shown


def test_an_evaluation_afterwards_finds_what_the_run_found_and_drives_elsewhere(run: Run, folders: Any) -> None:
    """Of four plans the published score takes the one that the run's took."""
    trained = load_policy(run.folder)
    found = evaluate_policy(trained, EvalConfig(episodes=100, omegas=(0.0, 1.0), candidates=(1, 4)), progress=False)
    assert sort_rows(rows_of(found, run.config.agent)) == sort_rows(run.evaluation["online"])
    trained = trained.driving_in([str(folders[0])])
    once = EvalConfig(episodes=100, omegas=(1.0,), candidates=(1,))
    (elsewhere,) = evaluate_policy(trained, once, progress=False)
    assert len(elsewhere.returns) == TRAIN and set(elsewhere.clusters) == {f"train-log{i}" for i in range(TRAIN // 2)}


def test_a_run_that_is_continued_ends_bitwise_as_one_that_was_not(run: Run, folders: Any, tmp_path: Path) -> None:
    """How many candidates it acts with elsewhere is nothing to its training: groups are drawn, not chosen."""
    given = settings(folders, tmp_path, scored=True, online_env_steps=ROUND)
    given["agent"]["num_candidates"] = 1
    half = start_run(RunConfig.from_mapping(given))
    more = [f"training.online_env_steps={2 * ROUND}", "training.replay_capacity=null", "agent.num_candidates=4"]
    longer = resume_run(half.folder, more)
    ends = [newest_valid(one.folder / "checkpoints") for one in (run, longer)]
    agents = [(end / "agent.safetensors").read_bytes() for end in ends if end is not None]
    assert len(agents) == 2 and agents[0] == agents[1]


def test_tokens_are_stored_once_a_scene_beside_what_the_car_knows(folders: Any, tmp_path: Path) -> None:
    """Rows hold a scene's number in both columns."""
    driving = DrivingConfig(scenes=(str(folders[0]),), observation="tokens")
    dataset = open_dataset(scene_dataset(driving, tmp_path))
    seen: Any = observe(SceneSet([folders[0]]).read(1), "tokens")
    for name in ("ego", "context"):
        np.testing.assert_array_equal(dataset.tables[name][1], seen[name])
        assert dataset.segments[0].columns[f"observations.{name}"][:4].tolist() == [0, 0, 1, 1]
    assert seen["context"].shape == (64, 82) and 0 < seen["context"][:, :-2].max() <= 1


@pytest.mark.slow
def test_a_head_that_plans_learns_from_tokens_by_adapters_on_the_clone(
    cluster: None, folders: Any, tmp_path: Path
) -> None:
    given = settings(folders, tmp_path, clone_learner_steps=10, offline_learner_steps=0, online_env_steps=ROUND)
    given["env"]["driving"] |= {"observation": "tokens", "actions": "poses"}
    adapters = {"rank": 2, "targets": ["attention", "mlp"]}
    given["agent"] |= {"backbone": {"network": "dipole_ray.agents.plan_heads:tiny"}, "adapters": adapters}
    made = start_run(RunConfig.from_mapping(given))
    found = evaluate_policy(load_policy(made.folder), EvalConfig(episodes=100, omegas=(1.0,)), progress=False)
    assert found[-1].returns.mean() == pytest.approx(made.evaluation["online"][-1]["return"])


@pytest.mark.slow
def test_a_policy_on_a_backbone_that_lies_elsewhere_is_loaded(cluster: None, folders: Any, tmp_path: Path) -> None:
    """Of critics and V, which others have, there is nothing in its checkpoint: the networks are in the other file."""
    given = settings(folders, tmp_path, clone_learner_steps=10, offline_learner_steps=0, online_env_steps=ROUND)
    given["agent"] |= {"adapters": {"rank": 2}, "hidden_dims": [128, 128]}
    first = start_run(RunConfig.from_mapping(given))
    (backbone,) = (first.folder / "checkpoints").glob("backbone-*.safetensors")
    given["agent"]["backbone"] = {"path": str(backbone)}
    given["training"]["clone_learner_steps"] = 0
    second = start_run(RunConfig.from_mapping(given))
    found = evaluate_policy(load_policy(second.folder), EvalConfig(episodes=100, omegas=(1.0,)), progress=False)
    assert found[-1].returns.mean() == pytest.approx(second.evaluation["online"][-1]["return"])


def test_rounds_end_early_and_the_run_goes_back_to_the_networks_of_its_best_evaluation(
    cluster: None, folders: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it was interrupted in between; once ended it stays so, until nobody waits for better ones."""
    given = settings(folders, tmp_path, online_env_steps=8 * ROUND, offline_learner_steps=1200)
    given["agent"] |= {"learning_rate": 0.003, "hidden_dims": [64, 64], "omega": 0.0}
    given["evaluation"] |= {"patience": 2, "interval_episodes": 100, "omegas": [0.0], "seed": 1}
    ended = start_run(RunConfig.from_mapping(given))
    scores = [line["eval/return"] for line in read_metrics(ended.folder) if line["env_steps"] and "eval/return" in line]
    *watched, final = scores
    assert 3 <= len(watched) <= 8 and ended.algorithm.env_steps == len(watched) * ROUND
    assert len(watched) == 8 or max(watched[-2:]) <= max(watched[:-2])
    assert len(set(scores)) > 1, "there is something to tell apart"
    assert final == max(watched) == ended.evaluation["online"][0]["return"]
    again = resume_run(ended.folder, [])
    assert (again.algorithm.env_steps, again.evaluation) == (ended.algorithm.env_steps, ended.evaluation)
    with pytest.raises(ConfigError, match=r"set evaluation\.every_learner_steps"):
        EvalConfig(patience=2)
    assert main(["evaluate", str(ended.folder), "--candidates", "4"]) == 2
    assert "no critics that could choose" in capsys.readouterr().err


def test_what_contradicts_scenes_is_refused_with_the_remedy(folders: tuple[Path, Path], tmp_path: Path) -> None:
    plain = settings(folders, tmp_path)

    def refusal(*changes: tuple[str, str, Any]) -> str:
        changed = json.loads(json.dumps(plain))
        for section, key, value in changes:
            changed[section][key] = value
        with pytest.raises(ConfigError) as refused:
            RunConfig.from_mapping(changed)
        return str(refused.value)

    assert "set agent.advantage=group" in refusal(("agent", "advantage", "critic"))
    assert "leave the section data out" in refusal(("data", "collect_transitions", 10))
    assert "evaluation.videos" in refusal(("evaluation", "videos", 1))
    assert "is one plan; leave it out" in refusal(("env", "max_episode_steps", 5))
    assert "env.driving names 1 folders" in refusal(("env", "id", "Pendulum-v1"))
    assert "set env.driving.actions=poses" in refusal(
        ("env", "driving", {"scenes": ["x"], "observation": "tokens", "actions": "way"})
    )
    assert "give both, or set both to 0" in refusal(("env", "driving", {"scenes": ["x"], "noise": 0.1}))
    assert "agent.advantage=critic" in refusal(
        ("env", "id", "Pendulum-v1"), ("env", "driving", {}), ("training", "offline_learner_steps", 0)
    )
    assert "set agent.learned_score=false" in refusal(
        *(("env", "id", "Pendulum-v1"), ("env", "driving", {}), ("training", "online_env_steps", 0)),
        *(("agent", "learned_score", True), ("evaluation", "patience", 0)),
    )
    with pytest.raises(ConfigError, match="is not stepped"):
        make_env(EnvConfig(id="drive", driving=DrivingConfig(scenes=(str(folders[0]),))))
    with pytest.raises(ConfigError, match="write sumo:MAP:SCENES"):
        SceneSet(["sumo:berlin"])
    with pytest.raises(DatasetError, match=r"no scenes\.json|cannot be read"):
        SceneSet([tmp_path])


def test_a_scene_that_two_folders_share_is_refused_and_not_counted_twice(folders: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(folders[0], tmp_path / "copy")
    with pytest.raises(DatasetError, match=r"scene train-\S+ is in .*train and in .*copy; give each scene once"):
        SceneSet([folders[0], folders[1], copy])
    with pytest.raises(DatasetError, match="give each scene once"):
        train_small([SceneFolder(folders[0]), SceneFolder(copy)], tmp_path / "encoder")


def test_folders_of_scenes_are_meant_relative_to_where_they_are_given(folders: Any, tmp_path: Path) -> None:
    given = settings(folders, tmp_path)
    given["env"]["driving"] |= {"scenes": ["train", "sumo:berlin:5"], "validation": ["/elsewhere"]}
    located = RunConfig.from_mapping(given).located("/base").env.driving
    assert located.scenes == ("/base/train", "sumo:berlin:5") and located.validation == ("/elsewhere",)


@pytest.mark.slow
def test_drive_tiny_records_its_scenes_and_learns_from_them(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As users start it; it takes minutes, and SUMO."""
    pytest.importorskip("sumo")
    monkeypatch.setattr(scene_set, "CACHE", tmp_path / "recorded")
    places = [f"folder={tmp_path / 'runs'}", f"data.cache={tmp_path / 'cache'}", "tracking.mlflow=false"]
    done = start_run(load("drive_tiny", places))
    assert sorted(path.name for path in (tmp_path / "recorded").glob("ing*")) == [
        "ingolstadt-16-seed1-v2",
        "ingolstadt-24-seed0-v2",
    ]
    assert done.finished and {len(rows) for rows in done.evaluation.values()} == {3}
    assert all(row["episodes"] == 16 for row in done.evaluation["online"])
