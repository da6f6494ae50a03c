"""Reconstruction metrics, the caption verifier, the report page."""
