#!/usr/bin/env bash
# One call on a machine with a GPU: builds, tests with CUDA on, looks for bad memory
# accesses and races, measures. A part that fails is recorded and the next one runs.
#
#   bench/gpu.sh [folder]        results, default bench/results; logs go to its logs/
#   bench/gpu.sh --dry [folder]  the same parts without a GPU, as far as they go
#
# PYTHON names the interpreter: one with torch, and with pytest, hypothesis, pybind11,
# setuptools and ninja. Every part has a time limit; together they stay under 9 minutes.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.."
device=cuda
bench=(--device cuda --seconds 2)
if [ "${1:-}" = --dry ]; then
    device=cpu
    bench=(--device cpu --quick --seconds 0.2 --name dry-run)
    shift
fi
results=${1:-bench/results}
python=${PYTHON:-python3}
logs=$results/logs
mkdir -p "$logs"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
failed=0

# part NAME SECONDS COMMAND...
part() {
    local name=$1 limit=$2 start=$SECONDS status
    shift 2
    timeout --kill-after=5 "$limit" "$@" >"$logs/$name.log" 2>&1 </dev/null
    status=$?
    case $status in
        0) echo "$name: passed, $((SECONDS - start)) s" ;;
        124 | 137) echo "$name: ran past $limit s" ;;
        *) echo "$name: FAILED with status $status, see $logs/$name.log" ;;
    esac
    [ $status = 0 ] || { failed=1; tail -n 15 "$logs/$name.log" | sed 's/^/    /'; }
}

skip() { echo "$1: skipped, $2"; }

if [ $device = cuda ]; then
    # For this GPU alone: a build for all takes longer than it may here.
    if capability=$("$python" -c 'import torch
print("%d.%d" % torch.cuda.get_device_capability())' 2>"$logs/device.log"); then
        export TORCH_CUDA_ARCH_LIST=$capability FORCE_CUDA=1
    else
        echo "torch sees no GPU:"
        tail -n 3 "$logs/device.log"
        exit 1
    fi
fi
part build 100 "$python" setup.py --quiet build_ext --inplace

workers=()
if "$python" -c 'import xdist' 2>/dev/null; then workers=(-n "$(($(nproc) / 2))"); fi
if [ $device = cuda ]; then
    part gpu-tests 45 "$python" -m pytest -q -x tests/test_gpu.py
    part tests 120 "$python" -m pytest -q "${workers[@]}"
else
    part gpu-tests 45 "$python" -m pytest -q -rs tests/test_gpu.py
    skip tests "a dry run"
fi

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer \
    2>/dev/null || true)
for tool in memcheck racecheck; do
    if [ -z "$sanitizer" ]; then
        skip $tool "no compute-sanitizer"
    elif [ $device = cpu ]; then
        skip $tool "a dry run"
    else
        part $tool 30 "$sanitizer" --tool $tool --error-exitcode 9 \
            --kernel-regex kns=fastjac "$python" tests/gpu_nets.py
    fi
done

# What the gated kernels reach by the hardware's own counters; the clocks are left alone.
profiler=$(command -v ncu || ls /usr/local/cuda/bin/ncu 2>/dev/null || true)
if [ -z "$profiler" ]; then
    skip ncu "no ncu"
elif [ $device = cpu ]; then
    skip ncu "a dry run"
else
    part ncu 40 "$profiler" --clock-control none --kernel-name regex:gated_conv \
        --section SpeedOfLight --section ComputeWorkloadAnalysis \
        --launch-count 9 "$python" bench/passes.py
fi

left=$((530 - SECONDS))
part benchmarks $left "$python" bench/gpu.py "${bench[@]}" --limit $left \
    --ncu "$logs/ncu.log" --out "$results"
tail -n +2 "$logs/benchmarks.log"
exit $failed
