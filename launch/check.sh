#!/usr/bin/env bash
# Check the source without running it: lint, format, types, scripts for clusters. Makes .venv (or
# $VENV), and installs what is missing.
#
#     bash launch/check.sh            report
#     bash launch/check.sh --fix      apply the fixes of ruff; lower the counts of type errors
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment dev
cd "$REPOSITORY"
if [[ "${1:-}" == --fix ]]; then
  "$PYTHON" -m ruff check --fix
  "$PYTHON" -m ruff format
  "$PYTHON" .ci/check_types.py --update
else
  "$PYTHON" -m ruff check
  "$PYTHON" -m ruff format --check
  "$PYTHON" .ci/check_types.py
  "$VENV/bin/shellcheck" launch/cluster/*.sh
fi
