"""The suites of `launch/evaluate.py`, a module each."""
