"""Runs on disk: folders, checkpoints, and the networks loaded from them."""
