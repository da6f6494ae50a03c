# Make the Python environment of the other scripts in this folder. Source it, from any folder:
#
#     source launch/environment.sh
#     make_environment test      # extras of setup.py to install, comma separated; optional
#
# It sets PYTHON to the interpreter of the environment, which is .venv in the repository or the
# folder in VENV. Packages are installed once, and again when setup.py or the extras change.

REPOSITORY="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${VENV:-$REPOSITORY/.venv}"
[[ "$VENV" == /* ]] || VENV="$PWD/$VENV"
PYTHON="$VENV/bin/python"
NEW_ENOUGH='import sys; sys.exit(sys.version_info < (3, 11))'

say() { printf "%s\n" "$@" >&2; }

# The first interpreter that is new enough; some systems have it only under its version.
find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11; do
    if "$name" -c "$NEW_ENOUGH" 2>/dev/null; then
      printf '%s\n' "$name"
      return
    fi
  done
  say "Python 3.11 or newer is needed; python3 here is: $(python3 --version 2>&1 || true)."
  say "Install one (https://www.python.org/downloads) and see that python3, or python3.11 and the" \
    "like, is on PATH."
  return 1
}

# Prints the extra for the GPU of this machine: gpu, or gpu12 where the driver is too old for CUDA
# 13; nothing without a GPU.
gpu_extra() {
  local driver
  driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)" ||
    return 0
  [[ "$driver" =~ ^[0-9]+ ]] || return 0
  if ((BASH_REMATCH[0] >= 580)); then echo gpu; else echo gpu12; fi
}

make_environment() {
  local extras="${1:-}" python wanted stamp="$VENV/installed"
  # Without pip the environment is incomplete; making it again completes it.
  if [[ ! -x "$PYTHON" || ! -e "$VENV/bin/pip" ]]; then
    python="$(find_python)" || return 1
    say "Making the environment $VENV with $("$python" --version) ..."
    "$python" -m venv "$VENV" || {
      say "Could not make it. On Debian and Ubuntu the package python3-venv is needed."
      return 1
    }
  elif ! "$PYTHON" -c "$NEW_ENOUGH"; then
    say "$VENV holds $("$PYTHON" --version 2>&1); 3.11 or newer is needed." \
      "Remove that folder and run this again."
    return 1
  fi
  # The stamp is written only after a complete installation, so an interrupted one runs again.
  wanted="$REPOSITORY [$extras] $(cksum <"$REPOSITORY/setup.py")"
  if [[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]]; then
    say "Installing xgen_jax${extras:+ with [$extras]} into $VENV;" \
      "a minute or two the first time ..."
    "$PYTHON" -m pip install --quiet --disable-pip-version-check \
      -e "$REPOSITORY${extras:+[$extras]}" >&2 || {
      say "The installation failed; see pip's message above. Run this again."
      return 1
    }
    printf '%s\n' "$wanted" >"$stamp"
  fi
}
