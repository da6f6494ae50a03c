#!/usr/bin/env bash
# Runs the tests, from nothing: makes .venv (or $VENV), installs what is missing, calls pytest. Arguments go to pytest.
#
#     bash launch/test.sh                 everything but the slow tests
#     bash launch/test.sh -m slow         the slow ones
#     bash launch/test.sh tests/nn -x     any pytest arguments
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment test
cd "$REPOSITORY"
say "Running the tests ..."
# pytest takes the last -m, so the arguments can replace this one.
exec "$PYTHON" -m pytest -m "not slow" "$@"
