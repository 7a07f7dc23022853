#!/usr/bin/env bash
# Adapters on a GPU, in two minutes: bash benchmarks/gpu/adapters.sh [folder of the result]
# Needs torch, numpy, PyYAML, safetensors and peft; no Ray and no simulator. What an ended part found is kept in any case.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-benchmarks/results}
timeout 150 python3 -m benchmarks.gpu.adapters --out "$out"
