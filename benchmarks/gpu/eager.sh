#!/usr/bin/env bash
# Today's eager agent on a GPU, in about three minutes: bash benchmarks/gpu/eager.sh [folder of the result]
# Needs torch, numpy and PyYAML, and pytest with hypothesis for the tests; no Ray and no simulator.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-benchmarks/results}
python3 -m benchmarks.gpu.eager --out "$out"
DIPOLE_TEST_DEVICE=cuda python3 -m pytest -p no:cacheprovider -p no:timeout -q --durations=5 -o addopts= tests/agents
