#!/usr/bin/env bash
# Train on several nodes with GPUs under Slurm. From a checkout on a file system that all nodes see,
# with an environment made by `source launch/environment.sh; make_environment gpu`:
#
#     mkdir -p logs
#     sbatch launch/cluster/slurm.sh train --config=finetune/vdit --workdir=runs/mine \
#         --config.embedder=runs/vidvae --config.data.source.path=my_latents
#     sbatch launch/cluster/slurm.sh encode --embedder=runs/vidvae --data=my_videos --out=my_latents
#     sbatch launch/cluster/slurm.sh sample --model=runs/mine --prompts_file=prompts.txt --out=videos
#     sbatch --nodes=1 --gpus-per-node=2 --ntasks-per-node=2 launch/cluster/slurm.sh train ...
#
# One task a GPU. jax gives a task the GPU of its number on the node, encode and sample divide shards
# and prompts over tasks, so that all GPUs work, and an error names its GPU. (One task a node works
# for train too: it then has all GPUs of the node and one loader.) The tasks find each other by
# Slurm's own variables; nothing has to be set.
#
# Resume: the same sbatch line, in a new job or by itself. A run ends on SIGTERM, which Slurm sends
# five minutes before the time limit and at preemption; it saves, and the job is queued again. Failed
# runs are started again within the job: see restart.sh for the exit codes. A job whose node failed
# is queued again by Slurm (--requeue).
#
# Logs: logs/NAME-JOB.out, each line with the number of its task; task 0 speaks, the others print
# errors alone. Metrics: WORKDIR/metrics.jsonl and WORKDIR/tensorboard. A profile of steps 20 to 25:
# --config.loop.profile_steps=20,25, in WORKDIR/profile, opened by xprof.
#
# In a batch script of your own: `srun python launch/train.py ...` is all that is needed.
#SBATCH --job-name=xgen
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%j.out
set -euo pipefail
if (($# == 0)); then
  echo "give a command and its flags: sbatch launch/cluster/slurm.sh train --config=..." >&2
  exit 2
fi
cd "${REPOSITORY:-$SLURM_SUBMIT_DIR}"
python="${VENV:-$PWD/.venv}/bin/python"
name="$1"
shift

# Compiled programs, shared by the tasks and by the next job.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/xgen_jax/compiled}"
# A proxy for the web keeps tasks from each other.
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY

stopping=0 child=""
# The batch script alone gets the signal (B:); srun hands it on to every task.
trap 'stopping=1; [[ -z "$child" ]] || kill -TERM "$child"' TERM
# --wait: where one task has ended, the others end by themselves within two minutes, and are ended
# after five. Not --kill-on-bad-exit: it would replace the exit code that says why.
bash launch/cluster/restart.sh \
  srun --label --wait=300 "$python" "launch/$name.py" "$@" &
child=$!
code=0
wait "$child" || code=$?
while kill -0 "$child" 2>/dev/null; do
  code=0
  wait "$child" || code=$?
done
if ((stopping && code != 0)); then
  echo "stopped by Slurm (exit code $code); queued again, and goes on from the last checkpoint" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
