#!/usr/bin/env bash
# The driving policy at the published size on a GPU, in two minutes at most: bash benchmarks/gpu/drive.sh [folder of the result]
# Needs torch, numpy, PyYAML, peft and transformers 5; no Ray, no simulator, no scenes and no weights.
set -uo pipefail
cd "$(dirname "$0")/../.."
timeout 120 python3 -m benchmarks.gpu.drive --out "${1:-benchmarks/results}"
