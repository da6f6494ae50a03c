"""Which kernels an adapter changes, and by how much; see `models.lora`."""

import dataclasses
import math
import re

from xgen_jax.errors import UserError

# Attention and MLP of a transformer's blocks, stacked or not.
BLOCKS = (r"^vdit/.*attention\w*/(qkv|q|kv|proj)/kernel$", r"^vdit/.*mlp/fc[12]/kernel$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Kernels to adapt, and the rank and scale of their adapters.

    Attributes:
      rank: of the products, at most the smaller side of every kernel chosen. Queries, keys and
        values that lie in one kernel share it.
      alpha: the products are multiplied by alpha / rank.
      rules: patterns to search in kernels' paths ("vdit/params/blocks/block/mlp/fc1/kernel"). A
        kernel that any of them finds is adapted; each must find one. By default attention and MLP
        of all blocks.
    """

    rank: int = 16
    alpha: float = 16.0
    rules: tuple[str, ...] = BLOCKS

    def __post_init__(self):
        for name in ("rank", "alpha"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"lora.{name} must be above 0, not {getattr(self, name)}")
        if not self.rules:
            raise UserError(f"lora.rules is empty; attention and MLP of all blocks are {BLOCKS}")
        for rule in self.rules:
            try:
                re.compile(rule)
            except re.error as error:
                raise UserError(
                    f"lora.rules has {rule!r}, which is no regular expression ({error})"
                ) from error

    @property
    def scale(self) -> float:
        """Factor of A B."""
        return self.alpha / self.rank
