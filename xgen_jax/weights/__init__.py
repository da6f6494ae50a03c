"""Checkpoints of other projects, read into our parameters: safetensors only, every tensor accounted
for."""
