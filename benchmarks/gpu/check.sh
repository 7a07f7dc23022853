#!/usr/bin/env bash
# The captured updates on a GPU, in four minutes at most (SKIP_TESTS=1: two and a half): bash benchmarks/gpu/check.sh [folder of the result]
# Needs torch, numpy and PyYAML, and pytest with hypothesis for the tests; no Ray and no simulator.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-benchmarks/results}
if [ -z "${SKIP_TESTS:-}" ]; then
    DIPOLE_TEST_DEVICE=cuda timeout 90 python3 -m pytest -p no:cacheprovider -p no:timeout -q --tb=short -o addopts= \
        tests/agents/test_fused.py tests/agents/test_captured.py tests/agents/test_stacked.py -k "not hundred"
fi
timeout 150 python3 -m benchmarks.gpu.check --out "$out"
