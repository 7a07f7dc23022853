"""A suite's file becomes runs: what each is made of, what is refused, and by what a result is known again."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from dipole_ray.bench.job import Job
from dipole_ray.bench.scores import Way
from dipole_ray.bench.suite import SUITES, Suite, from_mapping, load_suite, published, suites
from dipole_ray.data.download.catalogue import dataset_names
from dipole_ray.envs.registry import ogbench_ids
from dipole_ray.errors import ConfigError
from tests.bench.small import suite_mapping

OMEGA_4 = {"agent": {"omega": 4.0}}
CLONING = {"weight_scheme": "bc", "omega": 0.0}
ONLINE = {"training": {"online_env_steps": 60}}


def small(**sections: Any) -> Suite:
    return from_mapping(suite_mapping(**sections))


def job(**sections: Any) -> Job:
    return small(**sections).job("pendulum", "dipole", 1)


def test_a_run_is_base_then_task_then_method_then_both_then_the_command_line(tmp_path: Path) -> None:
    agent: dict[str, Any] = {"beta": 1.0, "tau": 0.1, "omega": 0.0, "expectile": 0.6}
    mapping = suite_mapping(
        base={"agent": agent, "evaluation": {"omegas": [0.0, 1.0, 4.0]}},
        tasks={"a": {"agent": {"beta": 2.0, "tau": 0.2}, "methods": {"m": OMEGA_4}}, "b": {}},
        methods={"m": {"agent": {"beta": 3.0, "omega": 1.0}}, "n": {}},
    )
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(mapping))
    suite = load_suite(path, ["agent.expectile=0.8", "suite.seeds=[7]", "methods.n.agent.beta=9"])

    def of(task: str, method: str) -> tuple[float, ...]:
        found = suite.job(task, method, 7).config.agent
        return found.beta, found.tau, found.omega, found.expectile

    assert of("a", "m") == (3.0, 0.2, 4.0, 0.8)
    assert of("b", "m") == (3.0, 0.1, 1.0, 0.8)
    assert of("a", "n") == (9.0, 0.2, 0.0, 0.8)
    assert suite.config.name == "mine" and [one.seed for one in suite.jobs()] == [7] * 4


def test_a_cell_runs_in_one_process_over_the_grid_with_episodes_of_its_seed() -> None:
    mapping = {"rollout": {"num_workers": 2}, "learner": {"remote": True, "num_threads": 4}, "seed": 99}
    suite = small(base=mapping, suite={"resources": {"cpus": 2.0}})
    one, two = (suite.job("pendulum", "dipole", seed).config for seed in (0, 1))
    assert one.rollout.num_workers == 0 and not one.learner.actors and one.learner.num_threads == 2
    assert one.evaluation.interval_grid and not one.tracking.mlflow
    assert (one.seed, two.seed) == (0, 1)
    assert suite.job("pendulum", "ifql", 1).config.evaluation.seed == two.evaluation.seed, "methods meet alike episodes"
    most = one.training.offline_learner_steps // one.evaluation.every_learner_steps
    assert two.evaluation.seed > one.evaluation.seed + most, "seeds share none"


def test_jobs_come_seed_by_seed_and_in_parts() -> None:
    suite = small()
    names = [(one.seed, one.method) for one in suite.jobs()]
    assert names == [(0, "dipole"), (0, "ifql"), (1, "dipole"), (1, "ifql")]
    assert [one.seed for one in suite.jobs({"method": ["dipole"]})] == [0, 1]
    assert [one.method for one in suite.jobs({"method": ["bc"], "seed": ["1"]})] == ["ifql"], "bc shows IFQL's runs"
    with pytest.raises(ConfigError, match=r"method=dipol: .*nearest is 'dipole'"):
        suite.jobs({"method": ["dipol"]})
    with pytest.raises(ConfigError, match="choose by method, task, seed"):
        suite.jobs({"colour": ["red"]})


def test_a_task_may_be_run_with_some_methods_only() -> None:
    suite = small(tasks={"pendulum": {}, "short": {"only": ["ifql", "bc"], "env": {"max_episode_steps": 20}}})
    assert {(one.task, one.method) for one in suite.jobs()} == {
        ("pendulum", "dipole"),
        ("pendulum", "ifql"),
        ("short", "ifql"),
    }


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"suite": {"metrics": "return"}}, r"suite\.metrics'; the nearest valid one is 'suite\.metric'"),
        ({"suite": {"seeds": [0, 0]}}, "different whole numbers"),
        ({"suite": {"baseline": "dipol"}}, r"suite\.baseline is 'dipol'.*nearest is 'dipole'"),
        ({"base": {"agent": {"betta": 1.0}}}, r"agent\.betta'; the nearest valid one is 'agent\.beta'"),
        ({"base": {"evaluation": {"every_learner_steps": 0}}}, "suite.evaluations=1"),
        ({"tasks": {"a": {"envv": {}}}}, r"tasks\.a\.envv'; the nearest is 'env'"),
        ({"tasks": {"a/b": {}}}, "make a folder's name"),
        ({"tasks": {"a": {"methods": {"x": {}}}}}, r"tasks\.a\.methods is 'x'"),
        ({"tasks": {"a": {"only": ["x"]}}}, r"tasks\.a\.only is 'x'"),
        ({"tasks": {}}, "no tasks"),
        ({"methods": {"a": {"runs_of": "b"}}}, r"runs_of is 'b'"),
        ({"methods": {"a": {}, "b": {"runs_of": "a", "agent": {"beta": 1.0}}}}, "mean nothing in it"),
        ({"methods": {"a": {}, "b": {"runs_of": "a"}, "c": {"runs_of": "b"}}}, "no runs of its own either"),
        ({"methods": {"a": {"agent": {"omega": 1.0, "weight_scheme": "bc"}}}}, "task pendulum, method a: agent.omega"),
        ({"methods": {"a": {"x": 3.0}}}, "on no axis"),
        ({"more": {}}, "unknown section 'more'"),
        ({"tasks": {"a": {"only": ["dipole", "bc"]}}}, r"tasks\.a\.only has 'bc', .* runs of 'ifql'.*add 'ifql'"),
        (
            {"tasks": {"a": {"methods": {"bc": OMEGA_4}}}},
            r"tasks\.a\.methods\.bc: .*set them in tasks\.a\.methods\.ifql",
        ),
        ({"suite": {"paper": "exorll"}}, r"suite\.paper is 'exorll': paper_numbers\.yaml has exorl"),
        (
            {"methods": {"a": {"candidates": [1, 3]}}},
            r"methods\.a\.candidates has 3, and evaluation\.candidates \[1, 2\]",
        ),
        ({"methods": {"a": {"omega": 3}}}, r"methods\.a\.omega is 3, and .* with \[0\.0, 1\.0\]"),
        ({"methods": {"a": {}, "b": {"runs_of": "a", "omega": 3}}}, r"method b: methods\.b\.omega is 3"),
        ({"methods": {"a": {"omega": 0, "agent": CLONING}}}, r"methods\.a\.omega is 0, and .* with no omega"),
        ({"methods": {"a": OMEGA_4}}, r"method a: agent\.omega is 4, and evaluation\.omegas \[0\.0, 1\.0\]"),
        (
            {"methods": {"a": {"agent": {"num_candidates": 8}}}},
            r"agent\.num_candidates is 8, and evaluation\.candidates",
        ),
        ({"base": {"evaluation": {"interval_episodes": 1}}}, r"interval_episodes=2, or suite\.evaluations=1"),
        (
            {"suite": {"evaluations": 4}},
            r"suite\.evaluations is 4, and the offline phase has 3 .* suite\.evaluations=3",
        ),
        ({"base": ONLINE}, r"suite\.evaluations is 2, and the online phase has 1 "),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        small(**sections)


def test_settings_that_came_later_leave_the_digests_of_results_as_they_were() -> None:
    kept = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "small_precision.json").read_text())
    recorded = {(run["task"], run["method"], run["seed"]): run["digest"] for run in kept["runs"]}
    found = {(one.task, one.method, one.seed): one.digest for one in load_suite("small_precision").jobs()}
    assert found == recorded


def test_the_digest_knows_what_shapes_a_result_and_nothing_else() -> None:
    before = job().digest
    for elsewhere in (
        {"folder": "x"},
        {"tracking": {"mlflow": True}},
        {"checkpoint": {"keep": 7}},
        {"data": {"cache": "/tmp/x"}},
    ):
        assert job(base=elsewhere).digest == before, elsewhere
    assert job(base={"agent": {"tau": 0.005}}).digest == before, "a default that is written out"
    for shaping in (
        {"agent": {"tau": 0.01}},
        {"data": {"path": "other"}},
        {"env": {"max_episode_steps": 41}},
        {"evaluation": {"episodes": 3, "interval_episodes": 3}},
    ):
        assert job(base=shaping).digest != before, shaping
    assert small().job("pendulum", "dipole", 0).digest != before


def test_a_result_made_with_another_default_is_not_taken(tmp_path: Path) -> None:
    """A setting that stands at its default enters no digest, so a later version's other default must be noticed."""
    one = job(base={"folder": str(tmp_path)})
    assert one.stored() is None
    mapping = one.config.located().to_mapping()
    one.folder.mkdir(parents=True)
    (one.folder / "result.json").write_text('{"format": 1, "status": "finished"}')
    (one.folder / "run.yaml").write_text(yaml.safe_dump(mapping))
    assert one.stored() == {"format": 1, "status": "finished"}
    mapping["agent"]["rho"] = 0.7
    (one.folder / "run.yaml").write_text(yaml.safe_dump(mapping))
    with pytest.raises(ConfigError, match=r"agent\.rho: 0\.7 -> 0\.5"):
        one.stored()


@pytest.mark.parametrize("name", suites())
def test_every_suite_that_comes_along_is_valid(name: str) -> None:
    suite = load_suite(name)
    assert suite.config.question
    if suite.config.paper is not None:
        rows = published(suite.config.paper)["offline"]
        known = {*suite.tasks, *(task.group for task in suite.tasks.values())}
        assert known & set(rows), "no row of the published table is a task or group of the suite"
    if name.startswith("small") and name != "small_fql":  # which finds a setting, and reports nothing
        assert len(suite.config.seeds) >= 5
    if name.startswith("paper"):
        config = suite.jobs({"seed": ["0"]})[0].config
        assert len(suite.config.seeds) == 8 and suite.config.evaluations == 3
        assert config.training.offline_learner_steps == 1_000_000
        assert config.evaluation.every_learner_steps == 100_000
        assert config.evaluation.episodes == config.evaluation.interval_episodes == 50
        assert config.evaluation.candidates == (1, 32) and config.env.success_timing in (None, "post")


def test_the_papers_tables_have_all_their_rows() -> None:
    ogbench = load_suite("paper_ogbench")
    assert set(ogbench.tasks) >= {f"{name}-task{k}" for name in published("ogbench")["offline"] for k in range(1, 6)}
    assert set(load_suite("paper_exorl").tasks) == set(published("exorl")["offline"])
    online = load_suite("paper_ogbench_online")
    assert set(online.tasks) == set(published("ogbench_online")["online"])
    assert {one.config.env.success_timing for one in online.jobs({"seed": ["0"]})} == {"post"}
    assert {one.config.training.online_env_steps for one in online.jobs({"seed": ["0"]})} == {1_000_000}


def test_the_papers_baselines_have_the_settings_that_fqls_authors_published() -> None:
    found: dict[str, dict[str, Any]] = {}
    for job in load_suite("paper_ogbench").jobs({"seed": ["0"]}):
        found.setdefault(job.task.rpartition("-")[0], {})[job.method] = job.config.agent
    betas = {"humanoidmaze-medium": 10, "humanoidmaze-large": 10, "antsoccer-arena": 1}
    betas |= {"cube-single": 1, "cube-double": 0.3, "scene": 10}
    assert {task: agents["iql"].beta for task, agents in found.items()} == betas
    for task, agents in found.items():
        is_manipulation = task.startswith(("cube", "scene"))
        assert agents["iql"].hidden_dims == (256 if is_manipulation else 512,) * 4
        assert agents["ifql"].hidden_dims == agents["fql"].hidden_dims == (512,) * 4
        assert agents["ifql"].num_candidates == (64 if task.startswith("antsoccer") else 32)
        assert {agents[name].discount for name in ("iql", "ifql", "fql")} == {0.99 if is_manipulation else 0.995}
        assert {agents[name].target_update for name in ("iql", "ifql", "fql")} == {"before"}


def test_one_config_names_every_single_task_of_ogbench() -> None:
    """All tasks of all sizes with published navigate or play data, as the package registers them; none twice."""
    suite = load_suite("ogbench_names")
    tasks = [one.config.env.id for one in suite.jobs({"seed": ["0"]})]
    assert len(tasks) == len(set(tasks)) == 110
    same = re.findall(r"# (\S+-singletask)-v0 is (task) (\d)", (SUITES / "ogbench_names.yaml").read_text())
    assert {f"{name}-{task}{number}-v0" for name, task, number in same} <= set(tasks)
    named = [*tasks, *(f"{name}-v0" for name, _, _ in same)]
    assert len(named) == len(set(named)) == 132
    states = [name for name in dataset_names("ogbench") if not name.startswith("visual-")]
    published = [name for name in states if name.split("-")[-2] in ("navigate", "play")]
    possible = {name for name in ogbench_ids() if f"{name.partition('-singletask')[0]}-v0" in published}
    assert set(named) == possible
    for one in suite.jobs({"seed": ["0"]}):
        path = one.config.data.path
        assert path is not None and Path(path).stem == one.config.env.id.partition("-singletask")[0] + "-v0"


def test_the_suite_that_the_documentation_shows_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    shown = page.partition("## A suite of your own")[2].partition("Precedence:")[0]
    (tmp_path / "own.yaml").write_text(textwrap.dedent(shown))
    suite = load_suite(tmp_path / "own.yaml")
    assert len(suite.jobs()) == 2 * 3 * 5


def test_ways_of_acting_read_as_words() -> None:
    assert [str(Way("named", 1)), str(Way("tuned", 32))] == ["1 candidate", "tuned omega, 32 candidates"]
