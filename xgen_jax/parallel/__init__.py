"""Meshes, and the table from parameter paths to shardings."""
