"""The runs of the cube study, each a process of one thread, side by side with the cell on cores that it leaves free."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.cell.fields import CLONED, METHODS
from dipole_ray.columns import Schema
from dipole_ray.data.dataset import write_dataset
from dipole_ray.data.schema import Rows

NICE = 10
"""So that the process which feeds the GPU goes first."""
CLONES_END_S = 60.0
"""How long the runs wait for clones that are late."""


class Study:
    """Starts runs, and gathers what they say.

    Attributes:
        policies: The folder of what they save.
    """

    def __init__(self, work: Path, seeds: int, marks: Sequence[int], until: float) -> None:
        self.work, self.policies, self.seeds, self.marks, self.until = work, work / "study", seeds, list(marks), until
        self._running: dict[str, subprocess.Popen] = {}
        self._beginning: threading.Thread | None = None

    def _start(self, name: str, *words: object, until: float) -> None:
        command = ["nice", "-n", str(NICE), sys.executable, "-m", "benchmarks.gpu.cell.fields", *map(str, words)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with (self.work / f"{name}.out").open("w") as out:
            self._running[name] = subprocess.Popen(
                [*command, "--until", str(until)], stdout=out, stderr=subprocess.STDOUT, env=environment
            )

    def clone(self, data: Path, updates: int, until: float) -> None:
        """Start to clone a backbone a seed, and compile beside what the full networks will call."""
        self.work.mkdir(parents=True, exist_ok=True)
        for seed in range(self.seeds):
            self._start(f"clone-{seed}", "clone", seed, data, self._backbone(seed), "--marks", updates, until=until)
        self._start("compiling", "full", 0, data, self.work / "compiling", "--marks", 1, until=until)

    def begin(self, rows: Rows, schema: Schema, advantages: np.ndarray) -> None:
        """Start all runs once the clones are there; `advantages` are those of the transitions, in their order."""
        self._beginning = threading.Thread(target=self._begin, args=(rows, schema, advantages))
        self._beginning.start()

    def _begin(self, rows: Rows, schema: Schema, advantages: np.ndarray) -> None:
        scaled = np.zeros(len(rows["rewards"]), np.float32)
        scaled[rows["remaining"] > 0] = advantages / advantages.std()
        data = self.work / "advantages"
        write_dataset(data, [{**rows, "rewards": scaled}], schema, {"format": "advantages over their deviation"})
        self._wait(min(self.until, time.time() + CLONES_END_S))
        for seed in range(self.seeds):
            for method in METHODS:
                name = f"{method}-seed{seed}"
                words: list[object] = [method, seed, data, self.policies / name, "--marks", *self.marks]
                words += ["--backbone", self._backbone(seed)] if method in CLONED else []
                self._start(name, *words, until=self.until)

    def end(self, grace_s: float = 10.0) -> list[dict[str, Any]]:
        """Wait for all runs, which end by themselves, and return what they found, or the end of what they said."""
        if self._beginning is not None:
            self._beginning.join()
        self._wait(self.until + grace_s)
        found = []
        for name, process in self._running.items():
            text = (self.work / f"{name}.out").read_text()
            if text.endswith("}\n"):
                found.append({"name": name, **json.loads(text.splitlines()[-1])})
            else:
                print(f"{name}: exit {process.returncode}\n{text[-1500:]}", flush=True)
                found.append({"name": name, "failed": text[-300:]})
        return found

    def _wait(self, until: float) -> None:
        """Wait for what was started so far, and end what does not end by then."""
        for process in list(self._running.values()):
            try:
                process.wait(max(0.1, until - time.time()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _backbone(self, seed: int) -> Path:
        return self.work / f"backbone-{seed}.safetensors"
