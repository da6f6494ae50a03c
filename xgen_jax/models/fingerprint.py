"""The identity of a frozen network in sixteen hex digits.

Latents and embeddings on disk are of use only with the network that made them. A fingerprint is
computed from what was loaded and never stored with it, so that a network trained again in the same
folder is another one.
"""

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np

from xgen_jax.typing import Params

EXECUTION = ("attention", "remat", "scan_layers")  # how a network is computed, not what it is
# Fields that were renamed, new -> old. They are hashed under their old names for ever:
# latents and adapters on disk know a network by its fingerprint.
OLD_FIELDS = {"opensora_compat": "released", "micro_cond": "clip_conditions"}


def fingerprint(config: Any, params: Params) -> str:
    """Return the first 16 hex digits of a SHA-256 over a configuration and every parameter.

    Args:
      config: a dataclass that JSON can hold. Left out, also in dataclasses within it, are
        `EXECUTION` fields, and fields at their default: a field added later does not change the
        fingerprints of older networks.
      params: a tree of arrays, of which path, dtype, shape and bytes count; 1 GB takes about a
        second.
    """
    import jax  # here, for the names above are wanted where jax is not loaded

    digest = hashlib.sha256(json.dumps(_identity(config), sort_keys=True).encode())
    leaves = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for path, leaf in sorted(leaves.items()):
        array = np.ascontiguousarray(leaf)
        digest.update(json.dumps([path, str(array.dtype), array.shape]).encode())
        digest.update(array.view(np.uint8).data if array.ndim else array.tobytes())
    return digest.hexdigest()[:16]


def _identity(value: Any) -> Any:
    """Return a dataclass's fields that say which network it is, any other value as it is."""
    if not dataclasses.is_dataclass(value):
        return value
    identity = {}
    for field in dataclasses.fields(value):
        held = _identity(getattr(value, field.name))
        if field.name in EXECUTION or held == _identity(field.default):
            continue
        identity[OLD_FIELDS.get(field.name, field.name)] = held
    return identity
