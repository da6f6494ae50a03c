"""Whole networks and their presets."""
