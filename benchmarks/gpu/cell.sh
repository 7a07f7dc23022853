#!/usr/bin/env bash
# One cell of the paper's protocol and the cube study of adapters beside it, in nine minutes at most:
#   bash benchmarks/gpu/cell.sh rows.parquet FOLDER [options of benchmarks.gpu.cell]
# Needs torch, triton, numpy, numba, pyarrow, safetensors and peft; no Ray, no simulator. The study's 25 runs of 20 000 updates
# finish on 16 cores; of 30 000, rank 64 alone did not (it makes 66 to 76 updates/s there, the others 88 to 107).
# The rows: dipole data collect cube-single-play-v0 --transitions 400000 --seed 0 --out data
#           dipole data import data/cube-single-play-v0.npz --env cube-single-play-singletask-v0 --out data/rows
#           python -m benchmarks.gpu.cell.carried data/rows rows.parquet
# Then, where there are simulators: python -m benchmarks.cell FOLDER --part cell, and --part study.
set -uo pipefail
cd "$(dirname "$0")/../.."
rows=$1 out=$2
shift 2
PYTHONUNBUFFERED=1 timeout 545 python3 -m benchmarks.gpu.cell "$rows" --out "$out" "$@"
