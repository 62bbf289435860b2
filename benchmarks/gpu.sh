#!/usr/bin/env bash
# Everything for a GPU in one command, under nine minutes, without network.
#
#   benchmarks/gpu.sh --pack          here: writes benchmarks/gpu_pack.tar, at most 60 MiB
#   benchmarks/gpu.sh                 on the GPU: tests, tuning, kd_step, flagship, two processes; results in gpu_results/
#   benchmarks/gpu.sh --dry-run       the same parts on a CPU, as small as they go
#
# OUT: folder of the results. PYTHON: the interpreter. SECONDS_LEFT: for all parts together, 520.
# Each part writes its own tables and a log as it goes; parts.csv says how each ended (124: its time was up).
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
OUT=${OUT:-gpu_results}
PACK=${PACK:-benchmarks/gpu_pack.tar}
SECONDS_LEFT=${SECONDS_LEFT:-520}
export PYTHONPATH=$PWD:$PWD/tests PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

if [ "${1:-}" = --pack ]; then
    exec "$PYTHON" benchmarks/gpu_pack.py pack "$PACK" "${@:2}"
fi
DEVICE=cuda
if [ "${1:-}" = --dry-run ]; then DEVICE=cpu; fi

mkdir -p "$OUT"
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
export DISTILL_LIT_CACHE=$WORK/cache
echo "part,seconds,exit_code" >"$OUT/parts.csv"

# part NAME LIMIT COMMAND…: runs it for at most LIMIT seconds, or what is left of all
part() {
    local name=$1 limit=$2 start=$SECONDS code left=$((SECONDS_LEFT - SECONDS))
    shift 2
    if [ "$left" -le 5 ]; then
        echo "$name,0,skipped" >>"$OUT/parts.csv"
        return
    fi
    timeout --kill-after 5 "$((limit < left ? limit : left))" "$@" >"$OUT/$name.log" 2>&1
    code=$?
    echo "$name,$((SECONDS - start)),$code" >>"$OUT/parts.csv"
    echo "$name: exit code $code after $((SECONDS - start)) s"
}

part unpack 60 "$PYTHON" benchmarks/gpu_pack.py unpack "$PACK" "$WORK"
mkdir -p "$DISTILL_LIT_CACHE"
if [ -d "$WORK/reference_libraries" ]; then mv "$WORK/reference_libraries" "$DISTILL_LIT_CACHE/"; fi
if [ "$DEVICE" = cuda ]; then
    part machine 20 nvidia-smi
    part tests 90 "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu tests/unit/losses
    part tuning 60 "$PYTHON" benchmarks/tune_kernel.py --out "$OUT"
    part kd_step 170 "$PYTHON" benchmarks/kd_step.py --device cuda --rounds 9 --teacher "file:$WORK/model" --out "$OUT"
    part profile 40 "$PYTHON" benchmarks/profile_step.py --device cuda --teacher "file:$WORK/model" --out "$OUT"
    if [ "$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')" -ge 2 ]; then
        for strategy in ddp fsdp; do
            part "two_gpus_$strategy" 60 "$PYTHON" benchmarks/gpu_flagship.py "$WORK" --out "$OUT" --name "two_gpus_$strategy" \
                --depths 6 --steps 50 --rows 8 --devices 2 --strategy "$strategy"
        done
        part one_gpu 40 "$PYTHON" benchmarks/gpu_flagship.py "$WORK" --out "$OUT" --name one_gpu --depths 6 --steps 50 --rows 16
    fi
    part flagship 300 "$PYTHON" benchmarks/gpu_flagship.py "$WORK" --out "$OUT"
else
    part tests 300 "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu tests/unit/losses
    part kd_step 300 "$PYTHON" benchmarks/kd_step.py --quick --lm-head-only --rounds 1 --out "$OUT"
    part flagship 300 "$PYTHON" benchmarks/gpu_flagship.py "$WORK" --out "$OUT" --depths 6 --steps 1 --rows 1 --validation-batches 1
fi
cat "$OUT/parts.csv"
awk -F, 'NR > 1 && $3 != 0 { bad = 1 } END { exit bad }' "$OUT/parts.csv"
