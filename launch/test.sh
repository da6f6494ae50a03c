#!/usr/bin/env bash
# Run the tests. Makes .venv (or $VENV), installs what is missing, and calls pytest.
# Arguments go to pytest.
#
#     bash launch/test.sh                 everything but the slow tests
#     bash launch/test.sh -m slow         the slow ones
#     bash launch/test.sh tests/nn -x     any pytest arguments; -n 0 for one process
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment test
cd "$REPOSITORY"
say "Running the tests ..."
# pytest takes the last value of an option, so the arguments can replace these. A test compiles on
# one core, so a few processes share the files; more would need more memory than laptops have.
exec "$PYTHON" -m pytest -m "not slow" -n auto --maxprocesses=4 --dist=loadfile "$@"
