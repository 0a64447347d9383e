#!/usr/bin/env bash
# One run on a Cloud TPU slice of any number of hosts, asked for as a queued resource; asked for again, and gone
# on with, each time a spot slice is preempted.
#
#     NAME=mtkd ZONE=us-central1-a SETUP='...' scripts/tpu_pod.sh --config=... --workdir=MOUNTED/RUN
#     LOCAL=2 scripts/tpu_pod.sh --config=... --workdir=FOLDER     two processes here instead of hosts; no gcloud
#
# NAME, ZONE   of the queued resource; its node is NAME-node
# SETUP        what every host does first, again after a preemption: install the package, mount what all share
# TYPE         of the slice (v5litepod-16); RUNTIME: the software of that type (v2-alpha-tpuv5-lite)
# TIER         --spot, --guaranteed, or nothing for on demand (--spot)
# PYTHON       the interpreter on the hosts (python3)
# POLL, GRACE  seconds between two looks at the state (30), and to save before the slice is given back (20)
# RESTARTS     of a run that fails on a slice that is still there (3)
#
# --workdir lies on what SETUP mounts (Filestore or another NFS): checkpoints must outlive the slice. The exit
# code is the run's. The slice is given back when the run is done or has failed, and when this script is stopped.
set -u
# shellcheck source=scripts/common.sh
. "$(dirname "$0")/common.sh"

if [ -n "${LOCAL:-}" ]; then
  local_processes "$LOCAL" "${PYTHON:-python3}" -m mtkd_jax.main "$@"
  exit
fi

: "${NAME:?the name of the queued resource}" "${ZONE:?the zone}" "${SETUP:?what every host does first}"
TYPE=${TYPE:-v5litepod-16} RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite} TIER=${TIER---spot} POLL=${POLL:-30}

queued() { gcloud compute tpus queued-resources "$@" --zone="$ZONE"; }
on_all_hosts() { gcloud compute tpus tpu-vm ssh "$NAME-node" --zone="$ZONE" --worker=all --command="$1"; }
state() { queued describe "$NAME" --format='value(state.state)' 2>/dev/null; }
give_back() { queued delete "$NAME" --force --quiet; } # --force: its node as well

# Until the slice is there. SUSPENDED or FAILED: it was preempted, or could not be had; asked for again.
get_slice() {
  while true; do
    case $(state) in
      ACTIVE) return ;;
      "") # shellcheck disable=SC2086 # TIER may be nothing
        queued create "$NAME" --node-id="$NAME-node" --accelerator-type="$TYPE" \
          --runtime-version="$RUNTIME" $TIER || sleep "$POLL" ;;
      SUSPENDED | FAILED) give_back ;;
      *) sleep "$POLL" ;; # WAITING_FOR_RESOURCES, PROVISIONING, CREATING, ACCEPTED, SUSPENDING, DELETING
    esac
  done
}

# shellcheck disable=SC2317,SC2329 # the trap calls it
stop() {
  # The hosts' processes save; whoever started this script again goes on from there.
  on_all_hosts "pkill -TERM -f 'm mtkd_jax[.]main'"
  sleep "${GRACE:-20}"
  give_back
  exit 143
}
trap stop TERM INT

command=$(printf '%q ' "${PYTHON:-python3}" -m mtkd_jax.main "$@" --processes=auto)
tries=0
while true; do
  get_slice
  # ssh in the background, so that a signal is heard at once and not at the end of the run.
  on_all_hosts "$SETUP" &
  code_of $!
  code=$?
  if [ "$code" = 0 ]; then
    on_all_hosts "$command" &
    code_of $!
    code=$?
    # 0: done. 2: something to mend, which another slice would not mend.
    if [ "$code" = 0 ] || [ "$code" = 2 ]; then break; fi
  fi
  sleep "$POLL"
  if [ "$(state)" = ACTIVE ]; then tries=$((tries + 1)); fi # else it was preempted, which is nobody's fault
  if [ "$tries" -gt "${RESTARTS:-3}" ]; then break; fi
  echo "tpu_pod.sh: ended with $code; going on" >&2
done
give_back
exit "$code"
