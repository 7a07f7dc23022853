"""`DIPOLEConfig` takes every setting of ours under its own name, and says what is wrong before anything is built."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.callbacks import RLlibCallback

from dipole_ray import DIPOLEConfig, settings
from dipole_ray.agents.adapters import AdapterConfig
from dipole_ray.agents.backbones import BackboneConfig
from dipole_ray.agents.dipole import AgentConfig
from dipole_ray.agents.encoders import EncoderConfig
from dipole_ray.agents.policy_gradient import PolicyGradientConfig
from dipole_ray.errors import ConfigError
from dipole_ray.rllib.sections import TrainingConfig
from dipole_ray.runs.config import RunConfig
from dipole_ray.runs.session import rllib_config
from tests.rllib.small import config

# One allowed value per key, not the default wherever another key allows that; together they contradict nothing.
AGENT_VALUES: dict[str, Any] = {
    "algorithm": "dipole",
    "weight_scheme": "cfgrl",
    "beta": 5.0,
    "shift": 0.0,
    "omega": 2.0,
    "num_candidates": 3,
    "exp_weight_max": 100.0,
    "alpha": 10.0,
    "normalize_q_loss": False,
    "train_bc": True,
    "expectile": 0.7,
    "solver": "midpoint",
    "discount": 0.9,
    "tau": 0.1,
    "bootstrap": "policy",
    "target_candidates": 2,
    "target_choice": "target",
    "target_update": "before",
    "target_omega": 0.5,
    "target_aggregation": "min",
    "value_aggregation": "mean",
    "advantage_aggregation": "min",
    "rho": 0.2,
    "num_critics": 3,
    "n_step": 4,
    "reward_scale": 2.0,
    "reward_shift": 1.0,
    "advantage_normalization": "batch_std",
    "observation_normalization": "dataset",
    "encoder": EncoderConfig(network="my_module:Encoder", sharing="shared"),
    "hidden_dims": (8, 8),
    "denoise_steps": 3,
    "learning_rate": 1e-2,
    "batch_size": 17,
    "backbone": BackboneConfig(network="dit-tiny"),
    "adapters": AdapterConfig(),
    "diffusion": "flow",
    "noise_scale": 0.5,
    "advantage": "critic",
    "learned_score": False,
    "rollout_denoise_steps": 2,
    "policy_gradient": PolicyGradientConfig(),
}
TRAINING_VALUES: dict[str, Any] = {
    "clone_learner_steps": 10,
    "offline_learner_steps": 11,
    "online_env_steps": 12,
    "updates_per_env_step": 0.5,
    "learner_steps_per_call": 13,
    "learner_steps_per_iteration": 14,
    "env_steps_per_iteration": 15,
    "replay_capacity": 16,
    "offline_fraction": 0.25,
}


def test_every_key_of_ours_is_a_key_of_training() -> None:
    assert AGENT_VALUES.keys() == settings.to_mapping(AgentConfig()).keys()
    assert TRAINING_VALUES.keys() == {field.name for field in fields(TrainingConfig)}
    made = DIPOLEConfig().training(**AGENT_VALUES, **TRAINING_VALUES)
    assert made.agent_settings() == AgentConfig(**AGENT_VALUES)
    assert made.training_settings() == TrainingConfig(**TRAINING_VALUES)


def test_preset_is_what_the_other_keys_start_from() -> None:
    made = DIPOLEConfig().training(preset="small", beta=9.0)
    assert made.agent_settings() == AgentConfig.preset("small", beta=9.0)
    with pytest.raises(ConfigError, match="choose one of paper, small"):
        DIPOLEConfig().training(preset="smal")


def test_no_key_of_ours_is_an_attribute_of_rllibs() -> None:
    """A common name would be set twice, with two meanings."""
    ours = {
        *AGENT_VALUES,
        *TRAINING_VALUES,
        "replay_directory",
        "eval_settings",
        "learner_num_threads",
        "learner_matmul_precision",
        "env_runner_stall_s",
    }
    rllibs = set(vars(AlgorithmConfig())) | set(dir(AlgorithmConfig))
    assert ours & rllibs == set()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("betta", "did you mean 'beta'"),
        ("offline_steps", "did you mean 'offline"),
        ("lr", "called 'learning_rate' in DIPOLE"),
        ("gamma", "called 'discount' in DIPOLE"),
        ("train_batch_size", "called 'batch_size' in DIPOLE"),
        ("train_batch_size_per_learner", "called 'batch_size' in DIPOLE"),
        ("zzz", "valid keys: "),
    ],
)
def test_unknown_key_is_refused_with_the_name_that_was_meant(key: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DIPOLEConfig().training(**{key: 1})


def test_description_in_a_checkpoint_gives_the_same_config_back() -> None:
    made = config(Path("/data/pendulum"), workers=2, learners=1, **{**AGENT_VALUES, **TRAINING_VALUES})
    made.environment(env_config={"max_episode_steps": 50}).debugging(seed=7).evaluation(episodes=3)
    plain = json.loads(json.dumps(made.to_plain()))
    again = DIPOLEConfig.from_plain(plain)
    assert again.to_plain() == made.to_plain()
    assert again.agent_settings() == made.agent_settings()
    assert again.env_settings().max_episode_steps == 50
    assert (again.num_env_runners, again.num_learners, again.seed) == (2, 1, 7)


SETTERS = (
    *("python_environment", "resources", "framework", "api_stack", "environment", "env_runners", "learners"),
    *("training", "callbacks", "evaluation", "offline_data", "multi_agent", "reporting", "checkpointing", "debugging"),
    *("fault_tolerance", "rl_module", "experimental"),
)
OF_RLLIB = [
    (setter, parameter)
    for setter in SETTERS
    for parameter in inspect.signature(getattr(AlgorithmConfig, setter)).parameters
    if parameter != "self"
]
OTHER_VALUES: dict[str, Any] = {
    "env": "MountainCarContinuous-v0",
    "env_config": {"max_episode_steps": 7},
    "batch_mode": "complete_episodes",
    "evaluation_config": {"explore": False},
    "callbacks_class": type("Another", (RLlibCallback,), {}),
    **{f"on_{name}": print for name in ("algorithm_init", "train_result", "evaluate_start", "evaluate_end")},
    **{f"on_{name}": print for name in ("env_runners_recreated", "checkpoint_loaded", "environment_created")},
    **{f"on_episode_{name}": print for name in ("created", "start", "step", "end")},
    "on_sample_end": [print, repr],
    "policies": {"another"},
    "policies_to_train": ["default_policy"],
    "count_steps_by": "agent_steps",
    "custom_resources_per_learner": {"disk": 1},
    "num_cpus_per_learner": 2,
    "num_gpus_per_learner": 0.5,
    "placement_strategy": "SPREAD",
    "log_level": "INFO",
}
"""Where a value must be of a kind that its default does not show."""


def another(default: Any) -> Any:
    """Return a value like the default, and not the default."""
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 3
    if isinstance(default, str | list):
        return [*default, "x"] if isinstance(default, list) else f"{default}x"
    return {"CPU": 1.0} if isinstance(default, dict) else 3


@pytest.mark.parametrize(("setter", "parameter"), OF_RLLIB)
def test_every_setting_of_rllibs_is_saved_or_refused_where_it_is_set(setter: str, parameter: str) -> None:
    """A checkpoint gives back what was set; what nothing reads is an error that says what is there instead."""
    made, names = DIPOLEConfig().environment("Pendulum-v1"), (parameter, f"{parameter}_str", f"_{parameter}")
    default = next((vars(made)[name] for name in (*names, f"callbacks_{parameter}") if name in vars(made)), None)
    before = made.to_plain()
    try:
        getattr(made, setter)(**{parameter: OTHER_VALUES.get(parameter, another(default))})
    except ConfigError as refusal:
        said = str(refusal)
        assert re.fullmatch(r"'\w+' is read by nothing in DIPOLE: .+|.*training key '\w+'.*", said) and "\n" not in said
        return
    except ValueError as error:
        assert "deprecated" in str(error), "RLlib's own refusal"
        return
    plain = json.loads(json.dumps(made.to_plain()))
    assert plain != before or parameter == "enable_connectors", "this one RLlib itself drops, with a warning"
    if setter == "callbacks":
        assert plain["callbacks"], "a checkpoint holds no code, only the names"
        return
    again = DIPOLEConfig.from_plain(plain)
    assert again.to_plain() == made.to_plain()
    apart = {key for key, value in vars(made).items() if repr(value) != repr(vars(again)[key])}
    assert apart <= {"policies", "env_config", "input_"}, "the first has no repr, the others are in `to_plain` in full"


def test_what_nothing_reads_is_refused_however_it_is_set() -> None:
    for key, value in (("batch_mode", "complete_episodes"), ("lr", 0.1), ("grad_clip", 1.0)):
        for set_it in (
            lambda c, k=key, v=value: setattr(c, k, v),
            lambda c, k=key, v=value: c.update_from_dict({k: v}),
            lambda c, k=key, v=value: c.__setitem__(k, v),
        ):
            with pytest.raises(ConfigError, match=key):
                set_it(DIPOLEConfig())


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num_env_runners", -1, "a whole number of at least 0"),
        ("num_envs_per_env_runner", 0, "a whole number of at least 1"),
        ("rollout_fragment_length", 2.5, "a whole number of at least 1"),
        ("num_learners", "two", "a whole number of at least 0"),
        ("seed", -1, "a whole number of at least 0"),
        ("num_cpus_per_env_runner", float("inf"), "a finite number of at least 0"),
        ("local_gpu_idx", -7, "a whole number of at least 0"),
        ("placement_strategy", "X", "give one of PACK, SPREAD"),
        ("log_level", "LOUD", "give one of DEBUG, INFO"),
        ("learner_matmul_precision", "half", "give one of float32"),
        ("env_runner_stall_s", -1, "give at least 1"),
        ("env_config", [1], "give a dict"),
        ("input_", "", "input_ is empty"),
        ("num_env_runner", 2, "unknown setting 'num_env_runner': did you mean 'num_env_runners'"),
        ("learning_ratte", 2.0, "did you mean 'learning_rate'"),
    ],
)
def test_what_nothing_could_obey_is_refused_when_it_is_set(key: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        setattr(DIPOLEConfig(), key, value)
    with pytest.raises(ConfigError, match=said):
        DIPOLEConfig()[key] = value


def test_a_config_of_ones_own_has_attributes_of_its_own_and_search_spaces_are_not_judged() -> None:
    class Own(DIPOLEConfig):
        pass

    made = Own()
    made.own = 3  # type: ignore[attr-defined]
    made.env_runners(num_env_runners=tune.choice([0, 2])).debugging(seed=tune.grid_search([1, 2]))
    assert made.own == 3 and made.to_dict()["seed"] == {"grid_search": [1, 2]}  # type: ignore[attr-defined]


def test_automatic_choices_are_made_anew_where_a_checkpoint_is_continued() -> None:
    made = DIPOLEConfig().environment("Pendulum-v1")
    made.validate()
    assert isinstance(made.num_gpus_per_learner, int)
    assert DIPOLEConfig.from_plain(made.to_plain()).num_gpus_per_learner == "auto"
    made.learners(num_gpus_per_learner=0)
    assert DIPOLEConfig.from_plain(made.to_plain()).num_gpus_per_learner == 0


def test_a_description_written_before_all_settings_were_saved_still_loads() -> None:
    made = config(Path("/data/pendulum"), workers=2, learners=1).debugging(seed=3)
    keys = ("env", "input", "agent", "training", "evaluation", "seed", "num_env_runners", "num_envs_per_env_runner")
    keys += ("rollout_fragment_length", "num_cpus_per_env_runner", "num_learners", "learner_num_threads")
    old = {key: value for key, value in made.to_plain().items() if key in keys}
    assert DIPOLEConfig.from_plain(json.loads(json.dumps(old))).to_plain() == made.to_plain()


def test_an_algorithm_whose_candidates_were_chosen_by_the_target_critics_goes_on_so() -> None:
    plain = config(Path("/data/pendulum"), bootstrap="policy", target_candidates=4).to_plain()
    del plain["agent"]["target_choice"]
    assert DIPOLEConfig.from_plain(plain).agent_settings().target_choice == "target"


def test_minus_one_reaches_the_algorithm() -> None:
    """RLlib marks its deprecated keys with -1, and drops every key of that value when it builds an algorithm."""
    minus_one = {"shift": -1.0, "reward_shift": -1.0, "omega": -1.0, "target_omega": -1.0}
    built = DIPOLEConfig.from_state(DIPOLEConfig().training(**minus_one).get_state())
    assert {key: getattr(built, key) for key in minus_one} == minus_one
    assert built.agent_settings() == AgentConfig(**minus_one)


def test_run_config_reaches_every_part() -> None:
    run = RunConfig.from_mapping(
        {
            "env": {"id": "Pendulum-v1", "max_episode_steps": 60},
            "data": {"path": "somewhere"},
            "seed": 5,
            "agent": {"preset": "small", "beta": 2.0},
            "training": {"offline_learner_steps": 10, "offline_fraction": 0.5},
            "rollout": {
                "num_workers": 2,
                "envs_per_worker": 3,
                "fragment_steps": 7,
                "cpus_per_worker": 0.25,
                "stall_s": 90.0,
            },
            "learner": {"num_learners": 2, "num_threads": 2, "matmul_precision": "bf16"},
            "evaluation": {"episodes": 6, "omegas": [1.0], "candidates": [2]},
        }
    )
    made = rllib_config(run, Path("somewhere"), Path("elsewhere"))
    assert made.env_settings() == run.env
    assert made.agent_settings() is run.agent and made.evaluation_settings() is run.evaluation, "handed over whole"
    assert made.agent_settings() == run.agent
    assert made.training_settings() == run.training
    assert made.evaluation_settings() == run.evaluation
    plain = made.to_plain()
    places = [str(Path.cwd() / "somewhere")], str(Path.cwd() / "elsewhere")
    assert (plain["seed"], plain["input"], made.replay_directory) == (5, *places)
    assert (plain["num_env_runners"], plain["num_envs_per_env_runner"], plain["rollout_fragment_length"]) == (2, 3, 7)
    assert (plain["num_cpus_per_env_runner"], plain["num_learners"], plain["learner_num_threads"]) == (0.25, 2, 2)
    assert plain["learner_matmul_precision"] == "bf16"
    assert made.env_runner_stall_s == DIPOLEConfig.from_plain(plain).env_runner_stall_s == 90.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.learners(num_learners=3), "batch_size is 256, which does not divide by 3 learners: make it 255"),
        (lambda c: c.learners(num_learners=2, num_gpus_per_learner=0.5), "a GPU of its own for each learner"),
        (lambda c: c.training(offline_learner_steps=10), r"no dataset: call .offline_data\(input_=FOLDER\)"),
        (lambda c: c.training(online_env_steps=0), "nothing could be learned from"),
        (lambda c: c.training(beta=-1.0), "agent.beta: found -1.0; give a finite number above 0"),
        (lambda c: c.training(beta="steep"), "beta"),
        (lambda c: c.training(learner_steps_per_call=0), "training.learner_steps_per_call is 0: at least 1"),
        (lambda c: c.training(offline_fraction=0.5), "offline_fraction is 0.5 but there is no dataset"),
        (lambda c: c.env_runners(stall_s=0.0), "rollout.stall_s is 0.0: give at least 1 "),
        (lambda c: c.evaluation(episodes=0), "evaluation.episodes must be at least 1"),
        (lambda c: c.evaluation(candidates=(0,)), "evaluation.candidates needs counts of at least 1"),
        (lambda c: c.environment(env_config={"max_steps": 5}), "nearest valid one is 'env.max_episode_steps'"),
        (lambda c: c.environment(dict), "environment is <class 'dict'>: give an id"),
        (lambda c: c.environment("Pendulun-v1"), "Pendulum-v1"),
        (lambda c: c.training(updates_per_env_step=0.0).reporting(min_train_timesteps_per_iteration=9), "is trained"),
    ],
)
def test_contradictions_are_refused_before_anything_is_built(change: Any, said: str) -> None:
    made = DIPOLEConfig().environment("Pendulum-v1")
    with pytest.raises(ConfigError, match=said):
        change(made)
        made.validate()


@pytest.mark.parametrize(
    ("learner", "actors"), [({}, 0), ({"remote": True}, 1), ({"num_learners": 2}, 2), ({"num_learners": 1}, 0)]
)
def test_several_learners_are_actors_and_one_where_asked(learner: dict[str, Any], actors: int) -> None:
    run = RunConfig.from_mapping(
        {"env": {"id": "Pendulum-v1"}, "training": {"offline_learner_steps": 0}, "learner": learner}
    )
    assert rllib_config(run, None, None).num_learners == actors


def test_search_spaces_of_tune_are_kept_for_tune() -> None:
    """`tune.grid_search` is set like a value, and checked once a trial has one."""
    from ray import tune

    made = DIPOLEConfig().environment("Pendulum-v1").training(beta=tune.grid_search([1.0, 3.0]))
    assert made.to_dict()["beta"] == {"grid_search": [1.0, 3.0]}


def test_threads_are_divided_between_learner_and_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread a worker, the rest is the learner's; a process that steps environments itself needs one as well."""
    monkeypatch.setattr("dipole_ray.rllib.config.usable_cores", lambda: 8)
    for workers, learners, threads in ((0, 0, 8), (3, 1, 5), (3, 0, 5), (20, 1, 1), (0, 1, 7), (0, 2, 3), (2, 2, 3)):
        made = DIPOLEConfig().environment("Pendulum-v1")
        made.env_runners(num_env_runners=workers).learners(num_learners=learners)
        made.validate()
        assert made.learner_num_threads == threads, (workers, learners)


def test_dict_of_tune_is_taken_whole_or_refused() -> None:
    """RLlib itself would set keys that nothing reads."""
    made = DIPOLEConfig().environment("Pendulum-v1").training(beta=4.0)
    again = DIPOLEConfig().update_from_dict({**made.to_dict(), "__trial_info__": object(), "omega": 2.0})
    assert (again.env, again.beta, again.omega) == ("Pendulum-v1", 4.0, 2.0)
    for key, said in (("betta", "did you mean 'beta'"), ("lr", "called 'learning_rate'"), ("model", "'model'")):
        with pytest.raises(ConfigError, match=said):
            DIPOLEConfig().update_from_dict({key: {"one": 1}})
