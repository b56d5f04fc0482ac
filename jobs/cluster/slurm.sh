#!/usr/bin/env bash
# A labelling job on Slurm: Ray on every node of the allocation, the driver on the first. Edit what says CHANGE, then
#
#   sbatch slurm.sh job.yaml label.replicas.max=64
#
# job.yaml says `label: {engine: ray, address: auto, replicas: {gpus: 1, …}}`. Five minutes before the time limit, and
# when Slurm preempts the job, units in flight finish and the job is queued again; the same command goes on.
#SBATCH --job-name=decant
#SBATCH --nodes=8                     # CHANGE
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8             # CHANGE
#SBATCH --cpus-per-task=64            # CHANGE
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00               # CHANGE
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=decant-%j.log
set -euo pipefail

# shellcheck source=/dev/null
. "${VENV:-$HOME/decant/.venv}/bin/activate"    # CHANGE: where `make install EXTRAS=teacher,s3` put it
# The batch script runs from Slurm's copy of it: this is where it was submitted.
cluster=${DECANT_CLUSTER:-$SLURM_SUBMIT_DIR/jobs/cluster}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(getent ahostsv4 "$head" | awk 'NR == 1 {print $1}')
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')    # srun hands the environment on
export RAY_AUTH_TOKEN
export RAY_START_OPTIONS="--num-cpus=$SLURM_CPUS_PER_TASK --num-gpus=${SLURM_GPUS_ON_NODE:-0} --object-store-memory=200000000"

# shellcheck disable=SC2016  # SLURM_PROCID is each task's own
srun --kill-on-bad-exit=0 bash -c 'exec "$0" "$SLURM_PROCID" "$@"' \
    "$cluster/with_ray.sh" "$address" "$SLURM_JOB_NUM_NODES" decant label "$@" &
step=$!
stopped=
trap 'stopped=1; kill -TERM "$step"' TERM
code=0
while kill -0 "$step" 2>/dev/null; do
    code=0
    wait "$step" || code=$?
done
if [[ $code -ne 0 && -n $stopped ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
