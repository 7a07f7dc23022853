#!/usr/bin/env bash
# Gradients of the driving policy at the published size on a GPU, in two and a half minutes:
#     bash benchmarks/gpu/gradients.sh FILE.npz [folder of the result [first seed [further options]]]
# Further options are of benchmarks.gpu.gradients, such as `--seconds 105 --parts base small`. FILE.npz is of benchmarks.driving.judged_plans. Needs torch, numpy, PyYAML, safetensors and peft; no Ray and no simulator.
set -uo pipefail
cd "$(dirname "$0")/../.."
timeout 150 python3 -m benchmarks.gpu.gradients --plans "$1" --out "${2:-benchmarks/results}" --first-seed "${3:-0}" "${@:4}"
