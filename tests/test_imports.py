"""Dependencies point downward only: levels of the package's modules, lowest first."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LEVELS = {
    "errors": 0,
    "typing": 0,
    "files": 0,
    "environment": 0,
    "signals": 0,
    "nn": 1,
    "diffusion": 1,
    "parallel": 1,
    "data": 1,
    "models": 2,
    "config": 2.5,  # plain dataclasses, those of the models among them
    "weights": 3,
    "curation": 3.5,  # never training or inference, which read what it wrote
    "runs": 4,
    # Siblings: neither imports the other.
    "training": 5,
    "inference": 5,
    "evaluation": 6,
    "configs": 6,  # only where configs/ lies; the config files themselves are above all others
    "commands": 7,
    "testing": 8,
    "__main__": 8,
    "": 8,  # xgen_jax/__init__.py, the public names
}
FORBIDDEN = {
    "data": {
        "jax",
        "flax",
        "optax",
        "orbax",
    },  # the loader's threads must never start a JAX backend
    "diffusion": {"flax", "optax", "orbax", "grain"},
    "nn": {"optax", "orbax", "grain"},
    "models": {"optax", "orbax", "grain"},
    "weights": {"optax", "orbax", "grain"},
    "inference": {"ml_collections"},
}
EVERYWHERE_FORBIDDEN = {"tensorflow", "ml_collections"}
ONLY_IN = {
    "orbax": {"runs/stored.py"},
    "av": {
        "curation/encode.py",
        "data/color.py",
        "data/deinterlace.py",
        "data/images.py",
        "data/video.py",
        "data/video_file.py",
        "data/video_writer.py",
    },
    "PIL": {"data/images.py", "models/clip.py"},
    "tensorflow_datasets": {"data/sources/tfds.py"},
    "array_record": {"data/array_records.py"},
    "msgpack": {"data/latent_shards.py", "data/shard_layout.py"},
    "safetensors": {"weights/safetensors.py", "weights/torch_file.py"},
    "torch": {"weights/torch_file.py"},  # runs in a process of its own
    "pdqhash": {"curation/duplicates.py"},
    "huggingface_hub": {"runs/hub.py"},
    "trackio": {"training/metric_writers/trackio.py"},
    "wandb": {"training/metric_writers/wandb.py"},
    "sentencepiece": {"models/t5_tokenizer.py"},
    "rapidocr": {"curation/text.py"},
    "shapely": {"curation/text.py"},
}


def modules(path):
    """Names imported anywhere in a file, as dotted strings."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_of(parts):
    return parts[0].removesuffix(".py") if parts and parts[0] != "__init__.py" else ""


FILES = sorted((ROOT / "xgen_jax").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downward(path):
    relative = path.relative_to(ROOT / "xgen_jax")
    here = package_of(relative.parts)
    assert here in LEVELS, f"{here} is not a package of the layout"
    for name in modules(path):
        top = name.split(".")[0]
        assert top not in EVERYWHERE_FORBIDDEN, f"{name}"
        assert top not in FORBIDDEN.get(here, set()), f"{here} may not import {name}"
        assert str(relative) in ONLY_IN.get(top, {str(relative)}), (
            f"{top} belongs to {ONLY_IN[top]}"
        )
        assert top not in {"launch", "configs", "tests"}, f"{name} is above the package"
        if top == "xgen_jax" and name.count("."):
            there = name.split(".")[1]
            if there in LEVELS:
                # Within level 0 only the errors may be used by all.
                below = LEVELS[there] < LEVELS[here] or there in (here, "errors")
                assert below, (
                    f"{here} (level {LEVELS[here]}) may not import {name} (level {LEVELS[there]})"
                )


def test_no_file_named_utils():
    assert not [p for p in FILES if "util" in p.name]


def test_no_files_import_each_other_in_a_circle():
    """Imports inside functions and under TYPE_CHECKING count as well."""
    names = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in FILES
    }
    graph = {name: set(modules(path)) & names.keys() - {name} for name, path in names.items()}

    def reached(start):
        seen, todo = set(), list(graph[start])
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += graph[name]
        return seen

    assert [name for name in graph if name in reached(name)] == []


def test_only_what_configurations_need_imports_for_types_alone():
    """Configurations are read without jax; siblings must not hide an import in this way."""
    found = {
        str(path.relative_to(ROOT / "xgen_jax"))
        for path in FILES
        if "TYPE_CHECKING" in path.read_text()
    }
    assert found == {"config/losses.py", "config/runs.py", "parallel/mesh.py", "typing.py"}


def test_reading_a_configuration_does_not_load_jax():
    script = (
        "import sys, xgen_jax.commands.config_file as file\n"
        "for name in ('quickstart/vdit', 'quickstart/regen', 'finetune/vidvae'):\n"
        "    file._values(name)\n"
        "print([name for name in ('jax', 'flax', 'av', 'grain') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr
