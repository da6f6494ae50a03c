"""What a frozen network is, in sixteen hex digits: latents and embeddings on disk are worth nothing
without it.

A fingerprint is computed from what was loaded and never kept beside it, so that a network trained
anew in the same folder is another one.
"""

import dataclasses
import hashlib
import json
from typing import Any

import jax
import numpy as np

from xgen_jax.typing import Params

EXECUTION = ("attention", "remat", "scan_layers")  # how a network is computed, not what it is


def fingerprint(config: Any, params: Params) -> str:
    """The first 16 hex digits of a SHA-256 over the configuration and every parameter: path, dtype,
    shape and bytes.

    Args:
      config: a dataclass that JSON can hold. Fields that stand at their default are left out, so
        that a field added later does not make another network of it, and so are `EXECUTION` fields;
        those of dataclasses in it as well.
      params: a tree of arrays; 1 GB takes about a second.
    """
    digest = hashlib.sha256(json.dumps(_told(config), sort_keys=True).encode())
    leaves = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for path, leaf in sorted(leaves.items()):
        array = np.ascontiguousarray(leaf)
        digest.update(json.dumps([path, str(array.dtype), array.shape]).encode())
        digest.update(array.view(np.uint8).data if array.ndim else array.tobytes())
    return digest.hexdigest()[:16]


def _told(value: Any) -> Any:
    """Of a dataclass the fields that say which network it is, any other value as it is."""
    if not dataclasses.is_dataclass(value):
        return value
    fields = [field for field in dataclasses.fields(value) if field.name not in EXECUTION]
    told = ((field, _told(getattr(value, field.name))) for field in fields)
    return {field.name: each for field, each in told if each != _told(field.default)}
