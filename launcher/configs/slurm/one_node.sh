#!/bin/bash
# One node with eight GPUs: sbatch launcher/configs/slurm/one_node.sh CHIPS RUN [CONFIG] [key=value ...]
#SBATCH --job-name=aef
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --requeue
# SIGUSR1 two minutes before the time limit: every rank writes a checkpoint and leaves with exit code 75.
#SBATCH --signal=B:USR1@120
set -euo pipefail
CHIPS=$1 RUN=$2 CONFIG=${3:-base}
shift $(($# < 3 ? $# : 3))

export OMP_NUM_THREADS=8
PORT=$((20000 + SLURM_JOB_ID % 20000))
deepspeed --num_gpus 8 --master_port "$PORT" launcher/train.py \
  --config "$CONFIG" --data "$CHIPS" --out "$RUN" --resume auto data.workers=8 "$@" &
RUNNER=$!

# The batch shell gets the signal and hands it to one rank (runner -> launcher -> ranks): all of them stop together.
# Where no rank runs (yet, or any more) the signal has nobody to go to, which must not end the job.
trap 'kill -USR1 "$(pgrep -P "$(pgrep -P "$RUNNER")" | head -n 1)" || true' USR1
# A trapped signal ends wait early. Its code does not tell: a runner whose rank was killed leaves with one above 128 too.
while kill -0 "$RUNNER" 2>/dev/null; do wait "$RUNNER" || true; done
CODE=0
wait "$RUNNER" || CODE=$?
# 75: stopped with a checkpoint; put the job back in the queue, where --resume auto goes on.
if [ "$CODE" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$CODE"
