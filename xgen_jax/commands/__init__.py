"""What each command does, importable."""
