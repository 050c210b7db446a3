#!/usr/bin/env bash
# All that needs a GPU, in under 8 minutes and without a network: build, tests, compute-sanitizer, benchmark, profile.
# usage: benchmarks/gpu.sh FOLDER [python]; every result is a file in FOLDER.
set -euo pipefail
out=$(realpath -m "${1:?usage: benchmarks/gpu.sh FOLDER [python]}")
python=${2:-python3}
cd "$(dirname "$0")/.."
mkdir -p "$out"
rm -f "$out/failed.txt"

# Runs a step under a time limit, keeps its output in a file, and goes on to the next whatever comes of it.
step() {
  local name=$1 limit=$2
  shift 2
  if timeout "$limit" "$@" >"$out/$name.txt" 2>&1; then
    echo "$name: ok"
  else
    echo "$name: failed, see $out/$name.txt"
    echo "$name" >>"$out/failed.txt"
  fi
}

step build 180 env SLAF_EXT_CUDA=1 "$python" -m pip install --no-build-isolation --no-deps --no-index --editable .
step facts 15 "$python" -m slaf_ext
step device 10 nvidia-smi
# The CPU's tests of the operators, with every tensor on the GPU; the GPU's own meanwhile.
step suite 115 "$python" -m pytest --device cuda -rs tests/test_values.py tests/test_ops.py tests/test_nn.py \
  tests/test_normalize.py tests/test_properties.py tests/test_numerics.py tests/test_gradients.py &
step tests 115 "$python" -m pytest tests/test_cuda.py -rs
wait
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    step "$tool" 25 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$python" -m pytest tests/test_cuda.py -x -k "misaligned or (test_parity and float32) or normalized_graph"
  done
else
  echo "skipped: there is no compute-sanitizer here" | tee "$out/memcheck.txt" >"$out/racecheck.txt"
fi
step benchmark 100 "$python" -m benchmarks run gpu --output "$out/gpu.jsonl"
step networks 60 "$python" -m benchmarks run gpu-networks --output "$out/gpu-networks.jsonl"
# What a sweep waits for, to explain the bars that it misses. The clocks stay as they are.
if command -v ncu >/dev/null; then
  step profile 40 ncu --clock-control none --kernel-name regex:sweep --section SpeedOfLight --section Occupancy \
    --section WarpStateStats "$python" -m benchmarks run gpu --profile --variant fused --degree 8 16 \
    --dtype fp32 bf16 --pass backward
else
  echo "skipped: there is no ncu here" >"$out/profile.txt"
fi
[ ! -e "$out/failed.txt" ]
