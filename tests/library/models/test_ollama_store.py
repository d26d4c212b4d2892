"""Ollama's store: names as Ollama reads them, and a store that somebody may have tampered with."""

import hashlib
import json
from pathlib import Path

import pytest

from slimtune.errors import InputError, SettingsError
from slimtune.models.ollama_store import blob_of, ollama_address, plain_name, require_name

WEIGHTS = "application/vnd.ollama.image.model"


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    return tmp_path / "store"


def put(store: Path, place: str, *layers: dict, content: bytes = b"GGUF") -> Path:
    """A model as `ollama pull` leaves it; its blob."""
    digest = hashlib.sha256(content).hexdigest()
    blob = store / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    manifest = store / "manifests" / place
    manifest.parent.mkdir(parents=True, exist_ok=True)
    weights = {"mediaType": WEIGHTS, "digest": f"sha256:{digest}", "size": len(content)}
    system = {"mediaType": "application/vnd.ollama.image.system", "digest": "sha256:0", "size": 1}
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [*layers, weights, system]}))
    return blob


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("llama3.2", "registry.ollama.ai/library/llama3.2/latest"),
        ("llama3.2:1b", "registry.ollama.ai/library/llama3.2/1b"),
        ("me/tuned", "registry.ollama.ai/me/tuned/latest"),
        ("hf.co/me/tuned:Q4_K_M", "hf.co/me/tuned/Q4_K_M"),
    ],
)
def test_a_name_leads_to_its_weights(store, name, place):
    blob = put(store, place)
    put(store, "registry.ollama.ai/library/other/latest", content=b"GGUF other")
    assert blob_of(f"ollama:{name}") == blob


def test_a_missing_model_names_those_that_are_there(store):
    put(store, "registry.ollama.ai/library/qwen3/0.6b")
    put(store, "registry.ollama.ai/me/tuned/latest")
    with pytest.raises(InputError) as error:
        blob_of("ollama:qwen3")
    assert "me/tuned:latest, qwen3:0.6b" in error.value.why
    assert "ollama pull qwen3" in error.value.cure


@pytest.mark.parametrize(
    "name", ["", "../x", "a/../b", "a:b:c", "/etc/passwd", "a/b/c/d", "a:../x"]
)
def test_names_that_lead_elsewhere_are_refused(store, name):
    with pytest.raises(SettingsError):
        blob_of(f"ollama:{name}")


def test_an_adapter_on_top_is_refused(store):
    adapter = {"mediaType": "application/vnd.ollama.image.adapter", "digest": "sha256:1"}
    put(store, "registry.ollama.ai/me/tuned/latest", adapter)
    with pytest.raises(InputError, match="adapter on top"):
        blob_of("ollama:me/tuned")


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[]",
        '{"layers": 3}',
        '{"layers": [1]}',
        json.dumps({"layers": [{"mediaType": WEIGHTS, "digest": "sha256:../../../etc/passwd"}]}),
        json.dumps({"layers": [{"mediaType": WEIGHTS, "digest": "sha256:" + "0" * 64}]}),
    ],
)
def test_a_damaged_manifest_is_refused_and_leads_nowhere(store, content):
    put(store, "registry.ollama.ai/library/m/latest")
    (store / "manifests/registry.ollama.ai/library/m/latest").write_text(content)
    with pytest.raises(InputError):
        blob_of("ollama:m")


def test_without_the_variable_it_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    blob = put(tmp_path / ".ollama/models", "registry.ollama.ai/library/m/latest")
    assert blob_of("ollama:m") == blob


def test_a_name_for_folders_is_plain():
    assert plain_name("ollama:hf.co/me/tuned:Q4") == "hf.co-me-tuned-Q4"


@pytest.mark.parametrize(
    "name",
    ["tiny", "Tiny_2.5-x", "_x", "me/tiny", "me/tiny:v1.2", "box:5000/me/tiny:q4", "a" * 80],
)
def test_a_name_that_ollama_takes(name):
    require_name(name)


@pytest.mark.parametrize(
    ("name", "usable"),
    [
        ("客服模型", "my-model"),
        ("tiny-客服", "tiny"),
        ("mé/tiny", "m/tiny"),
        ("-tiny", "tiny"),
        ("me/tiny:-v1", "me/tiny:v1"),
        ("m.e/tiny", "my-model"),  # no dots in USER
        ("a" * 81, "a" * 80),
        ("a:b:c", "my-model"),
        ("a/b/c/d", "my-model"),
        ("tiny\n", "tiny"),
    ],
)
def test_a_name_that_ollama_refuses_is_told_with_one_that_it_takes(name, usable):
    with pytest.raises(SettingsError, match="no name that Ollama takes") as error:
        require_name(name)
    assert error.value.cure == f"--model-name {usable}"
    require_name(usable)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        (":8000", "http://127.0.0.1:8000"),
        ("box:8000", "http://box:8000"),
        ("https://box", "https://box:443"),
        ("http://box", "http://box:80"),
        ("https://box:8000/", "https://box:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("box:port", "http://box:11434"),
        ("box:99999", "http://box:11434"),
        ("[::1", "http://127.0.0.1:11434"),
        ('"box"', "http://box:11434"),
    ],
)
def test_where_ollama_listens(host, address, monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", host)
    assert ollama_address() == address
