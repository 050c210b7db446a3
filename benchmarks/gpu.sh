#!/usr/bin/env bash
# All that needs a GPU, in under 6 minutes and without a network: build, tests, compute-sanitizer, benchmark, profile.
# usage: benchmarks/gpu.sh FOLDER [python]; every result is a file in FOLDER. The exit status is 0 if every step passed;
# otherwise it is 1, and the last lines hold the end of each failed step's output and the names of these steps.
set -euo pipefail
out=$(realpath -m "${1:?usage: benchmarks/gpu.sh FOLDER [python]}")
python=${2:-python3}
cd "$(dirname "$0")/.."
mkdir -p "$out"
: >"$out/steps.txt"
rm -f "$out/failed.txt"

# Runs a step under a time limit, keeps its output in a file, and goes on to the next whatever comes of it.
step() {
  local name=$1 limit=$2 start=$SECONDS status=0 outcome
  shift 2
  timeout --kill-after 5 "$limit" "$@" >"$out/$name.txt" 2>&1 || status=$?
  case $status in
    0) outcome="ok, $((SECONDS - start)) s" ;;
    124 | 137) outcome="timed out, its limit is $limit s" ;;
    *) outcome="failed, exit status $status" ;;
  esac
  [ "$status" = 0 ] || echo "$name" >>"$out/failed.txt"
  echo "$name: $outcome" | tee -a "$out/steps.txt"
}

finish() {
  [ -e "$out/failed.txt" ] || exit 0
  while read -r name; do
    echo "--- $(grep "^$name: " "$out/steps.txt"); the end of $out/$name.txt:"
    tail -n 15 "$out/$name.txt"
  done <"$out/failed.txt"
  echo "failed: $(paste -sd ' ' "$out/failed.txt")"
  exit 1
}

step device 10 nvidia-smi &
step build 75 env SLAF_EXT_CUDA=1 "$python" -m pip install --no-build-isolation --no-deps --no-index --editable .
wait
if grep -qsx build "$out/failed.txt"; then finish; fi
step facts 10 "$python" -m slaf_ext
# Side by side: the GPU's own tests, and the CPU's of the operators with every tensor on the GPU, a process for a file.
step cuda 85 "$python" -m pytest -rs tests/test_cuda.py &
for file in values ops tracing nn normalize normalize_kernels fold kan properties numerics default_device; do
  step "$file" 85 "$python" -m pytest --device cuda -rs "tests/test_$file.py" &
done
# gradcheck takes a second a case here: a basis for each way of walking will do.
step gradcheck 85 "$python" -m pytest --device cuda -rs tests/test_gradients.py \
  -k "test_gradcheck[ and (monomial or chebyshev or legendre)" &
step gradients 85 "$python" -m pytest --device cuda -rs tests/test_gradients.py -k "not test_gradcheck[" &
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    # Without torch's pool every tensor is an allocation of its own, so that to leave it is an error.
    step "$tool" 85 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$python" tests/sanitize.py --device cuda &
  done
else
  echo "skipped: there is no compute-sanitizer here" | tee "$out/memcheck.txt" >"$out/racecheck.txt"
fi
wait
step benchmark 100 "$python" -m benchmarks run gpu --output "$out/gpu.jsonl"
step networks 60 "$python" -m benchmarks run gpu-networks --output "$out/gpu-networks.jsonl"
# What a sweep waits for, to explain the bars that it misses. The clocks stay as they are.
if command -v ncu >/dev/null; then
  step profile 25 ncu --clock-control none --kernel-name regex:sweep --section SpeedOfLight --section Occupancy \
    --section WarpStateStats "$python" -m benchmarks run gpu --profile --variant fused --degree 8 16 \
    --dtype fp32 bf16 --pass backward
else
  echo "skipped: there is no ncu here" >"$out/profile.txt"
fi
finish
