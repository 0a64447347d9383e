# Sourced by the others, which run a command until it is done.
# shellcheck shell=bash

# What mtkd_jax ends with when it was asked to stop and has saved: 128 + the signal. The same command goes on.
STOPPED="130 143"

was_stopped() { [[ " $STOPPED " == *" $1 "* ]]; }

# Wait for a child to its end, and say how that was: a trap ends a wait, and not the child.
code_of() {
  local code
  while true; do
    wait "$1"
    code=$?
    if [ "$code" -le 128 ] || ! kill -0 "$1" 2>/dev/null; then return "$code"; fi
  done
}

# local_processes N COMMAND...: N processes of one run on this machine, "--processes=I/N@localhost:PORT" each.
# A SIGTERM is passed on to the first, which stops all. The exit code is the first one's that is not 0.
local_processes() {
  local number=$1 place port code=0 one children=()
  shift
  port=$((20000 + RANDOM % 20000))
  for ((place = 0; place < number; place++)); do
    "$@" "--processes=$place/$number@localhost:$port" &
    children+=("$!")
  done
  trap 'kill -TERM "${children[0]}" 2>/dev/null' TERM INT
  for one in "${children[@]}"; do
    code_of "$one" || { local ended=$?; [ "$code" -ne 0 ] || code=$ended; }
  done
  trap - TERM INT
  return "$code"
}
