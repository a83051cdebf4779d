#!/bin/bash
# Several nodes with eight GPUs each, torchrun on every node: sbatch launcher/configs/slurm/several_nodes.sh CHIPS RUN [CONFIG] [key=value ...]
# CHIPS and RUN lie on a file system that all nodes share.
#SBATCH --job-name=aef
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --requeue
# SIGUSR1 to every step two minutes before the time limit; torchrun hands it to its ranks.
#SBATCH --signal=USR1@120
set -euo pipefail
CHIPS=$1 RUN=$2 CONFIG=${3:-large}
shift $(($# < 3 ? $# : 3))

export OMP_NUM_THREADS=8
# torchrun kills its ranks 30 s after the signal, too soon for a step and a large checkpoint (torch 2.11 knows no other time).
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
PORT=$((20000 + SLURM_JOB_ID % 20000))
# Lines that earlier jobs of this run left: what they say is not about this one.
BEFORE=$({ cat "$RUN/events.jsonl" 2>/dev/null || true; } | wc -l)
CODE=0
# Since Slurm 22.05 srun does not take over the CPUs that sbatch was asked for.
srun --cpus-per-task "$SLURM_CPUS_PER_TASK" torchrun --nnodes "$SLURM_NNODES" --nproc_per_node 8 \
  --rdzv_backend c10d --rdzv_endpoint "$HEAD:$PORT" --rdzv_id "$SLURM_JOB_ID" --signals-to-handle SIGTERM,SIGUSR1 \
  launcher/train.py --config "$CONFIG" --data "$CHIPS" --out "$RUN" --resume auto \
  --deepspeed-config zero1 data.workers=8 "$@" || CODE=$?
# torchrun reports a rank's exit code as its own failure: the run itself says whether a signal stopped it. A job that failed
# before its first line must not find the last job's and go back into the queue for ever.
LAST=$({ tail -n +$((BEFORE + 1)) "$RUN/events.jsonl" 2>/dev/null || true; } | tail -n 1)
if [[ $LAST == *'"event": "stopped"'* ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$CODE"
