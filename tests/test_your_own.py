"""docs/your-own.md does what it says: its files are written, its commands and programs run in order, only smaller."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import dipole

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "your-own.md").read_text()
PROGRAMS = dict(
    zip(("reach.py", "record.py", "act.py"), re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL), strict=True)
)
COMMANDS = re.findall(r"^    ((?:python|dipole) .*)$", PAGE, re.MULTILINE)
SMALLER = ("evaluation.episodes=1", "agent.hidden_dims=[16,16]", "agent.denoise_steps=2", "rollout.num_workers=0")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stranger_comes_from_an_environment_and_a_table_to_a_policy_that_acts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    for name, program in PROGRAMS.items():
        assert f"`{name}`" in PAGE
        (tmp_path / name).write_text(program)
    printed = {}
    for command in COMMANDS:
        run = next(iter(sorted((tmp_path / "runs").glob("run-*"))), "")
        smaller = command.replace("runs/RUN", str(run)).replace("_steps=2000", "_steps=400").replace("=4000", "=600")
        words = [*shlex.split(smaller), *(SMALLER if "dipole train data" in smaller else [])]
        if words[0] == "python":
            done = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True)
        else:
            done = dipole(*words[1:], cwd=tmp_path, timeout=600)
        assert done.returncode == 0, f"{smaller}\n{done.stdout}\n{done.stderr}"
        printed[" ".join(words[:3])] = done.stdout
    assert "ok" in printed["dipole data inspect"] and "velocity" in printed["dipole data columns"]
    assert re.search(r"reached|m away", printed[f"python act.py {run}"])
