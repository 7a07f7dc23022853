"""The table of RLlib's settings in docs/rllib.md is what happens when each of them is set."""

import re
from pathlib import Path

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from dipole_ray import DIPOLEConfig
from dipole_ray.errors import ConfigError
from tests.rllib.test_config import OF_RLLIB, OTHER_VALUES, SETTERS, another

DOCS = Path(__file__).resolve().parents[2] / "docs" / "rllib.md"


def verdict(setter: str, parameter: str) -> str:
    """Return what the table says about a parameter: `obeyed`, or why it is refused."""
    made, names = DIPOLEConfig().environment("Pendulum-v1"), (parameter, f"{parameter}_str", f"_{parameter}")
    default = next((vars(made)[name] for name in (*names, f"callbacks_{parameter}") if name in vars(made)), None)
    try:
        getattr(made, setter)(**{parameter: OTHER_VALUES.get(parameter, another(default))})
    except ConfigError as refusal:
        said = re.sub("^unknown training key .*", "refused: no key of AgentConfig or TrainingConfig", str(refusal))
        return re.sub(r"^'\w+' is read by nothing in DIPOLE: ", "refused: ", re.sub("^training key", "refused:", said))
    except ValueError:
        return "refused by RLlib itself: deprecated"
    return "dropped by RLlib itself, with a warning" if parameter == "enable_connectors" else "obeyed"


def table() -> list[str]:
    """Return the lines of the table."""
    rows = ["| setter | parameters | |", "|---|---|---|"]
    for setter in SETTERS:
        verdicts: dict[str, list[str]] = {}
        for name, parameter in OF_RLLIB:
            if name == setter:
                verdicts.setdefault(verdict(setter, parameter), []).append(f"`{parameter}`")
        rows += [f"| `{setter}` | {', '.join(names)} | {said} |" for said, names in verdicts.items()]
    return rows


def test_the_table_of_settings_is_true() -> None:
    lines = DOCS.read_text().splitlines()
    wrong = [row for row in table() if row not in lines]
    assert wrong == [], "docs/rllib.md: put these lines into the table:\n" + "\n".join(wrong)


def test_the_table_has_every_public_setter() -> None:
    others = {
        "copy",
        "from_dict",
        "from_state",
        "get_config_for_module",
        "update_from_dict",
    }  # set nothing, or all keys one by one
    annotated = {
        name
        for name, one in vars(AlgorithmConfig).items()
        if "Self" in str(getattr(one, "__annotations__", {}).get("return"))
    }
    assert {name for name in annotated if not name.startswith("_")} - others == set(SETTERS)
