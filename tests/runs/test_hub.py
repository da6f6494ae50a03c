"""Models on the hub, against a stand-in of it on localhost; no other test may use a network."""

import pathlib
import socket

import huggingface_hub.constants
import numpy as np
import pytest
import tiny_t5
from hub_server import TOKEN, serving

import xgen_jax
from xgen_jax.commands.convert import ConvertRequest, convert
from xgen_jax.commands.train import train
from xgen_jax.errors import UserError
from xgen_jax.runs import hub as hub_module
from xgen_jax.runs.folder import RunFolder
from xgen_jax.runs.hub import Address, local_folder, parse
from xgen_jax.runs.load import load_embedder
from xgen_jax.runs.text_encoders import load_captions
from xgen_jax.testing import VIDVAE, tiny_run, write_regen_run
from xgen_jax.weights.safetensors import write_safetensors

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens" / "stdit2.npz"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty hub, and an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        hub_module._download.cache_clear()
        yield server
    hub_module._download.cache_clear()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of an embedder."""
    return write_regen_run(tmp_path_factory.mktemp("runs") / "regen")


@pytest.fixture(scope="module")
def exported(run):
    """The same, exported."""
    out = run.parent / "exported"
    xgen_jax.convert(kind="export", source=str(run), out=str(out))
    return out


def again():
    """Forget what this process has downloaded, as another one."""
    hub_module._download.cache_clear()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://me/shapes", Address("me/shapes", None, "")),
        ("hf://me/shapes@v1.0/", Address("me/shapes", "v1.0", "")),
        ("hf://m-e/shapes_2/a/b.c", Address("m-e/shapes_2", None, "a/b.c")),
        ("hf://me/shapes@abc/a", Address("me/shapes", "abc", "a")),
    ],
)
def test_addresses(text, address):
    assert parse(text) == address


@pytest.mark.parametrize("text", ["hf://me", "hf://", "hf://me/a/../b", "hf:///me/a", "hf://me/a@"])
def test_other_forms_are_refused(text):
    with pytest.raises(UserError, match=r"no address of a model: give hf://OWNER/NAME"):
        local_folder(text)


def test_a_model_is_loaded_by_its_address(hub, exported, run, capsys):
    sha = hub.add_folder("me/shapes", exported)
    hub.commits["me/shapes"][0][1]["pytorch_model.bin"] = b"a pickle"
    embedder, params = load_embedder("hf://me/shapes")
    wanted, wanted_params = load_embedder(run)
    assert embedder.fingerprint(params) == wanted.fingerprint(wanted_params)
    assert "hf://me/shapes: in " in capsys.readouterr().err
    # The same one of several files, and nothing is fetched twice.
    fetched = [path for method, path in hub.asked if method == "GET" and "/resolve/" in path]
    assert len(fetched) == len(set(fetched)) == 5 and not any("bin" in path for path in fetched)
    again()
    hub.asked.clear()
    assert RunFolder(f"hf://me/shapes@{sha}").config() == RunFolder("hf://me/shapes").config()
    assert not [path for _, path in hub.asked if "/resolve/" in path]
    assert "REGEN" in repr(xgen_jax.load("hf://me/shapes"))
    # A folder in a repository.
    hub.commit("me/all", {f"small/{p.name}": p.read_bytes() for p in exported.iterdir()})
    assert RunFolder("hf://me/all/small").config() == RunFolder("hf://me/shapes").config()
    with pytest.raises(UserError, match="me/all has no folder 'large' with a model"):
        RunFolder("hf://me/all/large")


def test_nothing_is_written_to_an_address(hub, exported, tmp_path):
    hub.add_folder("me/shapes", exported)
    with pytest.raises(UserError, match=r"--workdir=hf://me/shapes is written to"):
        train(tiny_run(VIDVAE), "hf://me/shapes")
    with pytest.raises(UserError, match=r"--out=hf://me/other is written to"):
        ConvertRequest(kind="export", source=str(exported), out="hf://me/other")
    with pytest.raises(UserError, match="holds an exported model, which is not trained further"):
        train(tiny_run(VIDVAE), exported)
    assert not hub.asked


def test_what_is_not_there_is_one_sentence(hub, exported):
    hub.add_folder("me/shapes", exported)
    hub.add_folder("me/gated", exported)
    hub.gated.add("me/gated")
    for address, message in (
        ("hf://me/shaeps", f"{hub.url} has no model me/shaeps, or it is private: check the name"),
        ("hf://me/shapes@v9", "me/shapes has no revision 'v9'"),
        ("hf://me/gated", "is gated: accept its terms at"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            local_folder(address)
        assert "\n" not in str(refused.value)


def test_a_private_model_needs_a_token(hub, exported, monkeypatch):
    hub.add_folder("me/secret", exported)
    hub.private.add("me/secret")
    with pytest.raises(UserError, match="it is private: .* `hf auth login`, or set HF_TOKEN"):
        local_folder("hf://me/secret")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (local_folder("hf://me/secret") / "config.json").is_file()


def test_without_a_network_what_is_here_is_used(hub, exported, monkeypatch):
    hub.add_folder("me/shapes", exported)
    there = local_folder("hf://me/shapes")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    again()
    assert local_folder("hf://me/shapes") == there
    with pytest.raises(UserError, match=r"not on this machine, and http://127.0.0.1:9 cannot be"):
        local_folder("hf://me/other")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    again()
    assert local_folder("hf://me/shapes") == there
    with pytest.raises(UserError, match="not on this machine, and HF_HUB_OFFLINE is set"):
        local_folder("hf://me/other")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        hub_module.upload(exported, "hf://me/new")


def test_a_download_that_was_cut_off_is_not_used_and_goes_on(hub, exported, monkeypatch):
    hub.add_folder("me/shapes", exported)
    size = (exported / "model.safetensors").stat().st_size
    # Asked again at once, it goes on by itself; so each attempt is cut.
    monkeypatch.setattr(hub, "cut", AlwaysCut({"model.safetensors": size // 2}))
    with pytest.raises(UserError, match=f"{hub.url} cannot be used now"):
        load_embedder("hf://me/shapes")
    url = hub.url
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="its download was cut off, .* it is not used"):
        load_embedder("hf://me/shapes")
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr(hub, "cut", {})
    embedder, params = load_embedder("hf://me/shapes")
    wanted, wanted_params = load_embedder(exported)
    assert embedder.fingerprint(params) == wanted.fingerprint(wanted_params)


class AlwaysCut(dict):
    """Cuts a file each time it is asked for."""

    def pop(self, key, default=None):
        return self.get(key, default)


@pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")  # in the library
def test_an_exported_folder_is_uploaded_and_loads_from_there(hub, run, tmp_path, monkeypatch):
    flags = {"kind": "export", "source": str(run), "out": str(tmp_path / "out")}
    request = ConvertRequest(**flags, push="hf://me/shapes", private=True)
    with pytest.raises(UserError, match=r"nobody is logged in: .*out is whole: the same command"):
        convert(request)
    assert "me/shapes" not in hub.commits
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    url = convert(request)["url"]
    sha, files = hub.commits["me/shapes"][-1]
    assert url == f"{hub.url}/me/shapes/commit/{sha}" and hub.private == {"me/shapes"}
    there = {
        str(path.relative_to(tmp_path / "out")): path.read_bytes()
        for path in pathlib.Path(tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert files == there and len(hub.large) == 1  # the weights, as a large file
    # The same again uploads nothing new.
    assert convert(request)["url"] == url
    embedder, params = load_embedder("hf://me/shapes")
    wanted, wanted_params = load_embedder(run)
    assert embedder.fingerprint(params) == wanted.fingerprint(wanted_params)


@pytest.mark.parametrize("address", ["me/shapes", "hf://me/shapes/folder", "hf://shapes"])
def test_an_address_to_upload_to_is_checked_first(address, exported, tmp_path):
    with pytest.raises(UserError, match="hf://OWNER/NAME"):
        ConvertRequest(kind="export", source=str(exported), out=str(tmp_path / "out"), push=address)


def test_without_the_package_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    again()
    with pytest.raises(UserError, match=r'pip install "xgen_jax\[hub\]"'):
        local_folder("hf://me/shapes")


def test_no_network_is_touched_unless_an_address_is_given(exported, monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was made")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_embedder(exported)
    xgen_jax.convert(kind="export", source=str(exported), out=str(tmp_path / "again"))
    with pytest.raises(UserError, match="there is no folder"):
        RunFolder("me/shapes").config()  # without hf:// it is a path
    again()
    with pytest.raises((AssertionError, UserError), match="a socket was made"):
        local_folder("hf://me/shapes")


def test_a_text_encoder_is_taken_by_its_address(hub, tmp_path):
    hub.add_folder("me/t5", tiny_t5.write(tmp_path / "t5"))
    captions = ["a red circle moving left"]
    there, here = load_captions("hf://me/t5", length=8), load_captions(tmp_path / "t5", length=8)
    assert there.fingerprint == here.fingerprint
    there.check(captions)


def test_foreign_weights_are_converted_from_their_address(hub, run, tmp_path):
    with pytest.raises(UserError, match="has no model me/vae"):
        xgen_jax.convert(kind="sd-vae", source="hf://me/vae", out=str(tmp_path / "vae"))
    with np.load(GOLDEN) as file:
        tensors = {
            name.removeprefix("params/"): file[name]
            for name in file.files
            if name.startswith("params/")
        }
    write_safetensors(tmp_path / "stdit2" / "model.safetensors", tensors)
    hub.add_folder("me/stdit2", tmp_path / "stdit2")
    flags = {"kind": "stdit2", "source": "hf://me/stdit2"}
    xgen_jax.convert(**flags, out=str(tmp_path / "out"))
    assert RunFolder(tmp_path / "out").config().source == "hf://me/stdit2"
