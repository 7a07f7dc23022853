"""Settings every test runs under: one thread, no cluster and no tracking server from outside."""

from __future__ import annotations

import os

# Before torch, numpy or Ray are imported: a thread pool per test process would fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)
