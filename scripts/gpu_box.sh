#!/usr/bin/env bash
# A sweep on one machine with several GPUs: a shard of the cells on each, side by side.
#
#     scripts/gpu_box.sh --config=... --over ... --workdir=FOLDER
#     LOCAL=2 scripts/gpu_box.sh --config=... --over ... --workdir=FOLDER     two shards on the CPU
#
# One run needs no script: one process uses all GPUs (runtime.how=auto). GPUS: such as 0,2,3; if unset all that
# nvidia-smi knows. PYTHON: the interpreter (python). Shard I writes FOLDER.shard-I.log. SIGTERM and Ctrl-C stop
# all shards, saved, and the same command goes on. A shard that was killed, by whatever, is started again, at
# most RESTARTS times (3).
set -u
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"
folder=
for argument in "$@"; do
  case $argument in --workdir=*) folder=${argument#--workdir=} ;; esac
done
if [ -z "$folder" ]; then
  echo "gpu_box.sh: --workdir=FOLDER is missing" >&2
  exit 2
fi
if [ -n "${LOCAL:-}" ]; then
  mapfile -t gpus < <(seq 0 $((LOCAL - 1)))
elif [ -n "${GPUS:-}" ]; then
  IFS=, read -r -a gpus <<<"$GPUS"
else
  mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader)
fi
number=${#gpus[@]}
if [ "$number" = 0 ]; then
  echo "gpu_box.sh: nvidia-smi knows no GPU; set GPUS=0,1 or LOCAL=2" >&2
  exit 2
fi

# shard PLACE GPU: one shard to its end.
shard() {
  local code tries=0 child asked=
  while true; do
    if [ -z "${LOCAL:-}" ]; then export CUDA_VISIBLE_DEVICES=$2; else export JAX_PLATFORMS=cpu; fi
    "${PYTHON:-python}" -m mtkd_jax.sweep "${arguments[@]}" "--shard=$1/$number" &
    child=$!
    trap 'asked=1; kill -TERM "$child" 2>/dev/null' TERM
    code_of "$child"
    code=$?
    if [ -n "$asked" ] || [ "$code" -le 128 ] || was_stopped "$code"; then return "$code"; fi
    tries=$((tries + 1))
    if [ "$tries" -gt "${RESTARTS:-3}" ]; then return "$code"; fi
    echo "gpu_box.sh: shard $1 ended with $code; started again ($tries)"
  done
}

arguments=("$@")
mkdir -p "$(dirname "$folder")"
children=()
for ((place = 0; place < number; place++)); do
  shard "$place" "${gpus[place]}" >>"$folder.shard-$place.log" 2>&1 &
  children+=("$!")
done
trap 'kill -TERM "${children[@]}" 2>/dev/null' TERM INT
code=0
for place in "${!children[@]}"; do
  code_of "${children[place]}" || {
    ended=$?
    echo "gpu_box.sh: shard $place ended with $ended; see $folder.shard-$place.log" >&2
    [ "$code" -ne 0 ] || code=$ended
  }
done
exit "$code"
