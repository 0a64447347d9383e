#!/usr/bin/env bash
# One run on the nodes of a Slurm job, a process on each. A sweep has its own array job: mtkd_jax.sweep --slurm.
#
#     sbatch --nodes=2 --time=4:00:00 --gres=gpu:4 scripts/slurm.sh --config=... --workdir=SHARED
#     LOCAL=2 scripts/slurm.sh --config=... --workdir=FOLDER       the same with two processes here, no Slurm
#
# PYTHON: the interpreter (python). The job is requeued when it is out of time or preempted; it then goes on.
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
#SBATCH --signal=B:TERM@120
set -u
# Slurm runs a copy of this file, so that the others are looked for where it was submitted, or in SCRIPTS.
here=${SCRIPTS:-}
if [ -z "$here" ]; then
  here=$(dirname "$0")
  [ -f "$here/common.sh" ] || here=${SLURM_SUBMIT_DIR:-.}/scripts
fi
# shellcheck source=scripts/common.sh
. "$here/common.sh"
run=("${PYTHON:-python}" -m mtkd_jax.main "$@")

if [ -n "${LOCAL:-}" ]; then
  local_processes "$LOCAL" "${run[@]}"
  exit
fi

# The signal comes to this shell alone (B: above); scancel passes it on to the processes.
trap 'scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM
# --kill-on-bad-exit: where one dies the others cannot go on.
srun --kill-on-bad-exit=1 "${run[@]}" --processes=auto &
child=$!
code_of "$child"
code=$?
if was_stopped "$code"; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
