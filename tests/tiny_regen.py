"""The smallest REGEN, with random parameters, as an embedder and as the folder of a run."""

import dataclasses
import pathlib

import jax
import numpy as np

from xgen_jax.config.runs import run_config
from xgen_jax.diffusion.flow import RectifiedFlow
from xgen_jax.models.embedder import REGENEmbedder
from xgen_jax.models.regen import REGEN, abstract_variables
from xgen_jax.models.regen_config import REGENConfig
from xgen_jax.models.vidvae_config import VidVAEConfig
from xgen_jax.runs.folder import LATENT_STATISTICS, RunFolder

# Chunks of five frames, 4x4 pixels a cell.
TINY = REGENConfig(
    encoder=VidVAEConfig(
        channels=(8, 8),
        space_reduction=(False, False),
        time_reduction=(True, False),
        latent_channels=4,
        blocks=1,
        stem=(2, 4, 4),
        mid_attention=False,
        kernels=((1, 3, 3), (3, 1, 1)),
        norm="rms",
    ),
    width=16,
    depth=2,
    heads=2,
    siren_hidden=8,
    siren_depth=2,
    siren_features=6,
    remat="none",
)
STATISTICS = {"mean": [-0.1, 0.0, 0.1, 0.2], "std": [0.5, 1.0, 1.5, 2.0]}


def random_params(config=TINY, seed=0):
    """Make all parameters random: some of an untrained network are zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: 0.3 * rng.standard_normal(leaf.shape).astype(leaf.dtype),
        abstract_variables(config),
    )


def tiny_embedder(config=TINY, **changes):
    """(embedder, parameters with statistics that are not trivial)."""
    settings = {"windows": "shifted"} | changes
    embedder = REGENEmbedder(
        model=REGEN(config), process=RectifiedFlow(prediction="x0"), **settings
    )
    return embedder, embedder.bundle(random_params(config), *map(np.array, STATISTICS.values()))


def write_run(path, seed=0, config=TINY, statistics=True) -> pathlib.Path:
    """Write the folder of a finished run with random parameters."""
    folder = RunFolder(path)
    folder.create_or_resume(
        run_config(
            {
                "objective": "regen",
                "model": dataclasses.asdict(config),
                "loss": {"windows": "shifted"},
                "data": {
                    "source": {"kind": "synthetic"},
                    "buckets": [{"frames": 10, "height": 16, "width": 16, "batch_size": 2}],
                },
                "optimizer": {"learning_rate": 1e-3},
                "loop": {"steps": 1, "compute_dtype": "float32"},
            }
        )
    )
    checkpoints = folder.checkpoints()
    checkpoints.save(1, {"ema": {"regen": random_params(config, seed)}}, {"fingerprints": {}})
    checkpoints.wait()
    if statistics:
        folder.write_json(LATENT_STATISTICS, STATISTICS)
    return folder.path
