#!/usr/bin/env bash
# Run a command, and run it again until it is done or cannot be: the same command goes on from its
# newest checkpoint, or with the shards and videos that are missing.
#
#     bash launch/cluster/restart.sh python launch/train.py --config=... --workdir=...
#
# Its exit code decides:
#
#     0          done                                                        end
#     1, 2       a mistake in files, values or flags, which stays            end
#     130        Ctrl-C                                                      end
#     143, 129   SIGTERM or SIGHUP, saved: end if this script was asked to stop too, else again
#     75         a step or a read that does not end, or other processes that are gone      again
#     134, 137   aborted (a process that is gone), or killed (out of memory)               again
#     others     a crash                                                                   again
#
# MAX_RESTARTS (5) runs in a row that end within QUICK_S (600) seconds are too many: then it ends
# with the last code. Before each restart it waits RESTART_WAIT_S (10) seconds.
set -uo pipefail
if (($# == 0)); then
  echo "give the command to run: restart.sh COMMAND [ARGUMENT...]" >&2
  exit 2
fi
max="${MAX_RESTARTS:-5}" quick_s="${QUICK_S:-600}" wait_s="${RESTART_WAIT_S:-10}"
child="" signal="" sent=""
# Once: a second signal would end the command before it has saved.
hand_on() {
  if [[ -n "$child" && -n "$signal" && -z "$sent" ]]; then
    sent=1
    kill -"$signal" "$child" 2>/dev/null
  fi
}
# SIGTERM for SIGINT too, which the shell lets a command in the background ignore.
trap 'signal=TERM; hand_on' TERM INT
trap 'signal=HUP; hand_on' HUP

short=0
while true; do
  began=$SECONDS
  "$@" &
  child=$!
  hand_on  # what came before it was started
  wait "$child"
  code=$?
  # A signal ends the wait, not the command, which saves first.
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
  done
  child=""
  case "$code" in
    0 | 1 | 2 | 130) exit "$code" ;;
  esac
  [[ -n "$signal" ]] && exit "$code"
  if ((SECONDS - began < quick_s)); then short=$((short + 1)); else short=0; fi
  if ((short > max)); then
    echo "restart.sh: exit code $code, $short times in a row within $quick_s s; giving up" >&2
    exit "$code"
  fi
  echo "restart.sh: exit code $code; running the same command again in $wait_s s" >&2
  sleep "$wait_s"
  [[ -n "$signal" ]] && exit "$code"
done
