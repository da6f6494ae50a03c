"""README.md and docs/: links, names of files, keys and flags, code, the page of keys, the site."""

import ast
import importlib
import itertools
import re
import runpy

import pytest
import yaml
from doc_pages import PAGES, ROOT, blocks, loaded, text_without_blocks

import xgen_jax
from xgen_jax.config.keys import names
from xgen_jax.config.runs import Run
from xgen_jax.curation.config import CurationConfig

LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]*)\)|(?:src|href)=\"(?!https?:)([^\"]+)\"")
README = ROOT / "README.md"
KEYS = {key for kind in Run.known.values() if kind.objective for key in names(kind)}
KEYS |= set(names(CurationConfig))
# What stands for any key, and what looks like one: a function of a module.
NO_KEYS = {"KEY", "motion.motion_scores"}
# Of VBench's own command, and of XLA.
OTHER_FLAGS = {"videos_path", "output_path", "dimension", "xla_gpu_force_conv_nhwc"}
ENDINGS = (".py", ".json", ".jsonl", ".csv", ".html", ".safetensors")
SUFFIXES = r"(?:md|py|sh|yaml|yml|json|jsonl|ipynb|toml|flags|npz)"
FILE = re.compile(
    rf"`((?:configs|launch|notebooks|docs|benchmarks|tests|xgen_jax|\.ci)/[\w./{{}},-]*?"
    rf"(?:\.{SUFFIXES})?)`"
)


def by_name(path):
    return str(path.relative_to(ROOT))


def anchors(page):
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    found = set()
    for title in re.findall(r"^#+ (.+)$", text_without_blocks(page), re.MULTILINE):
        slug = re.sub(r"[^\w\s-]", "", title.lower()).strip()
        found.add(re.sub(r"\s", "-", slug))
    return found


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_lead_somewhere(page):
    for link in filter(None, itertools.chain(*LINK.findall(page.read_text()))):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{by_name(page)} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{by_name(page)} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_files_that_a_page_names_exist(page):
    for name in FILE.findall(text_without_blocks(page)):
        first, *rest = re.split(r"\{(.*?)\}", name)
        for choice in rest[0].split(",") if rest else [""]:
            path = ROOT / (first + choice + "".join(rest[1:]))
            assert path.exists() or path.with_suffix(".py").exists(), f"{by_name(page)}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_keys_that_a_page_names_are_keys(page):
    text = page.read_text()
    found = set(re.findall(r"--config\.([a-zA-Z_][\w.]*\w)", text))
    groups = {key.partition(".")[0] for key in KEYS if "." in key}
    found |= {
        key
        for key in re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)(?:=[^`]*)?`", text)
        if key.partition(".")[0] in groups and not key.endswith(ENDINGS)
    }
    assert found - NO_KEYS <= KEYS


@pytest.fixture(scope="module")
def flags_of_commands():
    from absl import flags

    found = set()
    for path in (ROOT / "launch").glob("*.py"):
        if path.stem != "command":
            before = set(flags.FLAGS)
            with loaded(path.stem):
                found |= set(flags.FLAGS) - before
    return found


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_flags_that_a_page_names_are_flags(page, flags_of_commands):
    known = flags_of_commands | {"config", "help", "helpfull", "flagfile", *OTHER_FLAGS}
    scripts = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    scripts += "".join(path.read_text() for path in (ROOT / "launch").rglob("*.sh"))
    scripts += "".join(path.read_text() for path in (ROOT / ".ci").glob("*.py"))
    for code in re.findall(r"`([^`\n]+)`", text_without_blocks(page)):
        for flag in re.findall(r"(?<!\S)--(\w+)(?=[\s=`]|$)", code):
            own = {flag, flag.removeprefix("no")} & known  # --noflag is --flag=false
            assert own or f"--{flag}" in scripts, f"{by_name(page)}: --{flag}"


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_python_compiles_and_its_imports_resolve(page):
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                for name in node.names:
                    assert importlib.import_module(name.name), name.name
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for name in node.names:
                    inside = f"{node.module}.{name.name}"
                    assert hasattr(module, name.name) or importlib.import_module(inside), inside


def test_the_page_of_keys_is_up_to_date_and_has_every_key():
    made = runpy.run_path(str(ROOT / ".ci" / "config_page.py"), run_name="config_page")
    assert not made["missing"]()
    page = (ROOT / "docs" / "config.md").read_text()
    assert page == made["page"](), "run python .ci/config_page.py --update"
    leaves = {key for key in KEYS if not any(other.startswith(f"{key}.") for other in KEYS)}
    shown = set(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE))
    kinds = {key for key in leaves if key.endswith(".kind")}
    empty = {"captions"}  # a group that is listed by its kinds
    assert leaves - shown - kinds - empty == set()


def test_the_python_page_has_every_public_name():
    listed = re.findall(r"^::: xgen_jax\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(xgen_jax.__all__)


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose !ENV stands for an environment variable or a default."""


_Loader.add_constructor("!ENV", lambda loader, node: loader.construct_sequence(node)[-1])


def test_the_site_has_every_page_and_asks_the_network_for_nothing():
    site = yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)
    listed = [page for section in site["nav"] for each in section.values() for page in each]
    listed = sorted(path for page in listed for path in page.values())
    assert listed == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    assert site["theme"]["font"] is False and site["strict"] is True
    assert not any("://" in str(site.get(key)) for key in ("extra_css", "extra_javascript"))


def test_readme_is_short_and_leads_to_each_task():
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    linked = set(re.findall(r"\]\((docs/\w+\.md)\)", text))
    # Task: the page that README links, and what stands on it.
    tasks = {
        "train on your own videos": ("docs/own_videos.md", "--config=quickstart/vidvae:videos"),
        "curate": ("docs/curation.md", "launch/curate.py --videos"),
        "sample a video": ("docs/sampling.md", "launch/sample.py"),
        "a long video": ("docs/sampling.md", "--frames"),
        "image to video": ("docs/sampling.md", "--condition_image"),
        "compress with REGEN": ("docs/regen.md", "--config=quickstart/regen"),
        "an adapter": ("docs/lora.md", "--config=quickstart/vdit_lora"),
        "plan a run": ("docs/plans.md", "launch/plan.py"),
        "train on a pod": ("docs/pods.md", "launch/cluster/"),
        "resume after a fault": ("docs/resume.md", "--restore=latest_good"),
        "weights of others": ("docs/weights.md", "launch/convert.py"),
        "score a model": ("docs/evaluation.md", "launch/evaluate.py"),
        "FVD, VBench": ("docs/fvd_and_vbench.md", "vbench"),
        "the demo": ("docs/demo.md", "launch/demo.py"),
        "a tracker": ("docs/trackers.md", "loop.writers"),
        "extend": ("docs/extending.md", "TASKS["),
    }
    for task, (page, said) in tasks.items():
        assert page in linked, f"README does not lead to: {task}"
        assert said in (ROOT / page).read_text(), f"{page} does not say how to: {task}"


@pytest.mark.parametrize("name, most_kb", [("samples.gif", 600), ("page.png", 200)])
def test_pictures_of_readme_are_small(name, most_kb):
    assert f"docs/images/{name}" in README.read_text()
    assert 1 < (ROOT / "docs" / "images" / name).stat().st_size / 1000 <= most_kb
