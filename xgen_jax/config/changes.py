"""What may change between two calls of a run: freely, when it is accepted, or never."""

from collections.abc import Mapping
from typing import Any

from xgen_jax.config.build import flat

# Keys that may change between two calls of the same run.
FREE_KEYS = {
    "loop.steps",
    "loop.checkpoint_every",
    "loop.keep_checkpoints",
    "loop.keep_every",
    "loop.keep_best",
    "loop.skip_non_finite",
    "loop.rollback_sigma",
    "loop.stall_timeout_s",
    "loop.log_every",
    "loop.evaluate_every",
    "loop.evaluate_batches",
    "loop.evaluate_prompts",
    "loop.profile_steps",
    "data.num_threads",
    "data.prefetch",
    "data.prefetch_gb",
    "data.source.data_dir",
    "data.source.memory_gb",
    "data.source.path",  # the source's fingerprint guards what is in it
    "text.path",  # the text encoder's fingerprint, likewise
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "mesh.sequence",
    "decode_steps",
    "sampler",
    "sample_steps",
    "sample_spacing",
    "guidance_scale",
    "guidance.channels",
    "guidance.interval",
    "guidance.zero_star",
    "guidance.zero_steps",
    "sample_fps",
}

# Keys of what the trained weights compute, or mean: a run cannot go on with others. All else may
# change where the arrays of its state keep their shapes (`training.fit.check_state`).
NETWORK_KEYS = (
    "objective",
    "network",
    "model",
    "lora",
    "text",
    "loss.process",
    "loss.prediction",
    "loss.windows",
    "loss.adversarial.discriminator",
)
# Keys in these groups that do not change the network: how it is computed, and lengths, which may
# show in shapes.
_NOT_NETWORK = {
    f"{group}.{key}"
    for group in ("model", "model.encoder", "text")
    for key in ("attention", "remat", "max_bytes", "length")
}


def changes_network(key: str) -> bool:
    """Return whether a run's key, with dots, belongs to what the trained weights compute."""
    if key in _NOT_NETWORK:
        return False
    return any(key == group or key.startswith(f"{group}.") for group in NETWORK_KEYS)


def changed_keys(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys other than the free ones whose values differ, alphabetically: (old, new) of each."""
    a, b = flat(old), flat(new)
    keys = sorted((a.keys() | b.keys()) - FREE_KEYS)
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}


def differing_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Keys other than the free ones whose values differ, as "key: old -> new"."""
    return change_rows(changed_keys(old, new))


def change_rows(changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """What `changed_keys` returned, as "key: old -> new"."""
    return [f"{key}: {old!r} -> {new!r}" for key, (old, new) in changed.items()]
