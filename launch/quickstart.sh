#!/usr/bin/env bash
# From a clean clone to a report: environment, video autoencoder, text-to-video transformer, scores
# and a sample. It uses an NVIDIA GPU where there is one.
#
#     bash launch/quickstart.sh [folder]        default folder: runs/quickstart
#
# Run it again after an interruption: finished stages are kept, and training continues from its last
# checkpoint.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
started=$SECONDS
gpu="$(gpu_extra)"
if [[ -n "$gpu" ]]; then
  say "This machine has an NVIDIA GPU: the models are trained on it (extra [$gpu])."
else
  say "This machine has no NVIDIA GPU: the models are trained on the CPU."
fi
make_environment "$gpu"
cd "$REPOSITORY"
root="${1:-runs/quickstart}"
mkdir -p "$root"
timings="$root/.timings"
touch "$timings"

# stage NAME COMMAND...: runs a stage and writes its time to the timings. Times of a stage that is run
# again add up; of an interrupted one the last part counts.
stage() {
  local name="$1" stage_started=$SECONDS
  shift
  say "" "== $name"
  "$PYTHON" "$@" >&2
  printf '%s\t%s\n' "$name" "$((SECONDS - stage_started))" >>"$timings"
}

printf 'environment\t%s\n' "$((SECONDS - started))" >>"$timings"
stage "train the video autoencoder" \
  launch/train.py --config=quickstart/vidvae --workdir="$root/vidvae"
# Once, instead of in each step of the transformer.
stage "encode clips" launch/encode.py \
  --embedder="$root/vidvae" --data=synthetic --count=16000 --seed=1 --out="$root/latents"
stage "train the text-to-video transformer" \
  launch/train.py --config=quickstart/vdit --workdir="$root/vdit" --config.embedder="$root/vidvae" \
  --config.data.source.path="$root/latents"
stage "score reconstructions" launch/evaluate.py \
  --suite=reconstruction --embedder="$root/vidvae" --out="$root/evaluation"
stage "score samples" launch/evaluate.py \
  --suite=captions --model="$root/vdit" --out="$root/evaluation"
[[ -e "$root/red-circle.mp4" ]] || stage "generate a sample" launch/sample.py \
  --model="$root/vdit" --prompt="a red circle moving left" --out="$root/red-circle.mp4"
"$PYTHON" - "$timings" "$root/timings.json" <<'PY'
import json, sys
times = {}
for line in open(sys.argv[1]):
    name, seconds = line.rstrip("\n").split("\t")
    times[name] = times.get(name, 0.0) + float(seconds)
json.dump(times, open(sys.argv[2], "w"), indent=1)
PY
"$PYTHON" launch/evaluate.py --suite=report --out="$root" >&2
say "" "Done in $((SECONDS - started)) s. Open $root/report.html"
