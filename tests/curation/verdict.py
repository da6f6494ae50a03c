"""What the rules of `curation.selection` say of clips whose scores a test has measured."""

import numpy as np

from xgen_jax.curation.config import CurationConfig
from xgen_jax.curation.selection import THRESHOLDS, decide


def dropped(scores, reason, **stages):
    """Return which clips are dropped for a reason, bool (N,).

    Args:
      scores: by name, (N,) or one number; what is not there was not measured.
      reason: see `curation.selection.REASONS`.
      stages: configurations by name, such as text=TextConfig().
    """
    given = {name: np.atleast_1d(values) for name, values in scores.items()}
    count = len(next(iter(given.values())))
    table = {rule.score: np.full(count, np.nan) for rule in THRESHOLDS} | given
    table |= {"clip_id": np.arange(count).astype(str), "duplicate_of": [""] * count}
    decided = decide(table, CurationConfig(**stages))
    return np.array([reason in decided.reasons(clip) for clip in range(count)], bool)
