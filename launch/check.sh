#!/usr/bin/env bash
# Check the source without running it: lint, format, types, scripts for clusters, and build the
# documentation, in which a warning is an error. Makes .venv (or $VENV), and installs what is missing.
#
#     bash launch/check.sh            report
#     bash launch/check.sh --fix      apply the fixes of ruff; lower the counts of type errors; write
#                                     docs/config.md
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment dev
cd "$REPOSITORY"
if [[ "${1:-}" == --fix ]]; then
  "$PYTHON" -m ruff check --fix
  "$PYTHON" -m ruff format
  "$PYTHON" .ci/check_types.py --update
  "$PYTHON" .ci/config_page.py --update
else
  "$PYTHON" -m ruff check
  "$PYTHON" -m ruff format --check
  "$PYTHON" .ci/check_types.py
  "$PYTHON" .ci/config_page.py
  "$VENV/bin/shellcheck" launch/cluster/*.sh
  site="$(mktemp -d)"
  trap 'rm -rf "$site"' EXIT
  NO_MKDOCS_2_WARNING=1 "$VENV/bin/mkdocs" build --quiet --strict --site-dir="$site"
fi
