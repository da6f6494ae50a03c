#!/usr/bin/env bash
# Train on a slice of TPUs of Google Cloud, of one host or many, by queued resources. From a laptop
# with gcloud; all that is read and written lies in a share (Filestore, NFS) mounted on every host.
#
#     export NAME=xgen ZONE=us-east5-a TYPE=v5litepod-64 RUNTIME=v2-alpha-tpuv5-lite
#     export SHARE=10.0.0.2:/share REPOSITORY=https://example.org/xgen_jax.git
#     bash launch/cluster/tpu_vm.sh create       # ask for the slice; it may wait in the queue
#     bash launch/cluster/tpu_vm.sh status       # until it says ACTIVE
#     bash launch/cluster/tpu_vm.sh setup        # code, environment and share, on every host
#     bash launch/cluster/tpu_vm.sh run train --config=vdit/720p --workdir=/mnt/share/runs/mine \
#         --config.embedder=/mnt/share/runs/vidvae --config.data.source.path=/mnt/share/latents
#     bash launch/cluster/tpu_vm.sh logs         # of the first host, as they come
#     bash launch/cluster/tpu_vm.sh stop         # SIGTERM on every host: saves, and ends
#     bash launch/cluster/tpu_vm.sh delete
#
# The same command runs on every host, one process a host; the hosts find each other by the metadata
# of the VM, nothing has to be set. encode, sample and evaluate likewise.
#
# Resume: the same `run`. On each host restart.sh starts the command again after a crash (see there
# for the exit codes); after a preemption of the slice: create, setup, run.
#
# Logs: ~/xgen.log on each host; the first one speaks, the others print errors alone. Metrics:
# WORKDIR/metrics.jsonl and WORKDIR/tensorboard. A profile of steps 20 to 25:
# --config.loop.profile_steps=20,25, in WORKDIR/profile, opened by xprof.
#
# Variables: NAME, ZONE, and PROJECT (gcloud's own by default); for create TYPE and RUNTIME (see
# `gcloud compute tpus accelerator-types list` and `... versions list`), SPOT=1 for spot capacity;
# for setup SHARE (HOST:/PATH of NFS), REPOSITORY (a git address that the hosts can read), REVISION.
set -euo pipefail
NAME="${NAME:-xgen}"
ZONE="${ZONE:?give ZONE, such as us-east5-a}"
where=(--zone="$ZONE")
[[ -z "${PROJECT:-}" ]] || where+=(--project="$PROJECT")

on_every_host() {
  gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1"
}

action="${1:-}"
(($# == 0)) || shift
case "$action" in
  create)
    spot=()
    [[ "${SPOT:-0}" != 1 ]] || spot=(--spot)
    gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" "${where[@]}" \
      --accelerator-type="${TYPE:?give TYPE, such as v5litepod-64}" \
      --runtime-version="${RUNTIME:?give RUNTIME, such as v2-alpha-tpuv5-lite}" "${spot[@]}"
    ;;
  status)
    gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format="value(state.state)"
    ;;
  setup)
    : "${SHARE:?give SHARE, HOST:/PATH of NFS}" "${REPOSITORY:?give REPOSITORY, a git address}"
    script="$(
      cat <<'ON_THE_HOST'
sudo apt-get -q update
sudo apt-get -q -y install nfs-common python3-venv
sudo mkdir -p /mnt/share
mountpoint -q /mnt/share || sudo mount -t nfs "$SHARE" /mnt/share
[[ -d xgen_jax/.git ]] || git clone -q "$REPOSITORY" xgen_jax
git -C xgen_jax fetch -q origin "$REVISION"
git -C xgen_jax checkout -q FETCH_HEAD
source xgen_jax/launch/environment.sh
make_environment tpu
ON_THE_HOST
    )"
    on_every_host "SHARE=$(printf %q "$SHARE") REPOSITORY=$(printf %q "$REPOSITORY") \
      REVISION=$(printf %q "${REVISION:-main}") bash -euo pipefail -c $(printf %q "$script")"
    ;;
  run)
    if (($# == 0)); then
      echo "give a command and its flags: run train --config=..." >&2
      exit 2
    fi
    name="$1"
    shift
    flags=""
    (($# == 0)) || flags="$(printf '%q ' "$@")"
    # setsid: it outlives the connection. The file holds the process to stop.
    on_every_host "cd xgen_jax || exit 1; setsid nohup bash launch/cluster/restart.sh \
      .venv/bin/python launch/$(printf %q "$name").py $flags >>\$HOME/xgen.log 2>&1 </dev/null & \
      echo \$! >\$HOME/xgen.pid"
    ;;
  logs)
    gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=0 \
      --command='tail -n 100 -F xgen.log'
    ;;
  stop)
    # shellcheck disable=SC2016
    on_every_host 'kill -TERM "$(cat xgen.pid)"'
    ;;
  delete)
    gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force
    ;;
  *)
    echo "give one of create, status, setup, run, logs, stop, delete; this file says what each is" >&2
    exit 2
    ;;
esac
