"""A reference becomes a model folder or a sentence that helps; a local server plays the Hub."""

import http.server
import threading

import pytest
from huggingface_hub import constants

from slimtune.errors import InputError, ResourceError
from slimtune.models import folders, hub


@pytest.fixture
def hub_answers(monkeypatch, tmp_path):
    """A function that starts a Hub which answers every request with one status and error code."""
    servers = []
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def start(status, code):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_model_folder_is_itself(tmp_path):
    for name, text in (("config.json", "{}"), ("model.safetensors", "")):
        (tmp_path / name).write_text(text)
    assert folders.local_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", True),
        ("models/pruned", False),
        ("./owner/name", False),
        ("/owner/name", False),
        ("owner/name/more", False),
    ],
)
def test_a_name_means_the_hub_only_where_it_cannot_mean_a_folder(
    tmp_path, monkeypatch, reference, expected
):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    assert folders.is_hub_id(reference) == expected


def test_missing_unfinished_and_gguf_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="no such model folder"):
        folders.local_folder(tmp_path / "model")
    (tmp_path / "model.partial").mkdir()
    with pytest.raises(InputError, match="not finished"):
        folders.local_folder(tmp_path / "model")
    (tmp_path / "model.gguf").write_text("")
    with pytest.raises(InputError, match="GGUF"):
        folders.local_folder(tmp_path / "model.gguf")


def test_a_folder_without_config_is_not_a_model(tmp_path):
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(InputError, match=r"config\.json"):
        folders.local_folder(tmp_path)


def test_a_gated_model_says_where_to_accept_and_how_to_log_in(hub_answers):
    hub_answers(403, "GatedRepo")
    with pytest.raises(InputError, match="hf auth login") as error:
        folders.local_folder("owner/gated")
    assert "owner/gated" in error.value.cure


def test_an_unknown_model_is_an_input_error(hub_answers):
    hub_answers(404, "RepoNotFound")
    with pytest.raises(InputError, match="neither a folder here nor"):
        folders.local_folder("owner/unknown")


def test_a_hub_out_of_reach_is_a_resource_error_with_a_way_around(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ResourceError, match="HF_ENDPOINT") as error:
        folders.local_folder("owner/far")
    assert error.value.why == "no connection: the address does not answer from here"
    asked = "modelscope download --model owner/far --local_dir models/far"
    assert asked in error.value.cure
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ResourceError, match="HF_HUB_OFFLINE is set"):
        folders.local_folder("owner/far")


def test_a_hub_that_is_busy_tells_its_status(hub_answers):
    hub_answers(418, "Other")
    with pytest.raises(ResourceError, match="it answered with HTTP status 418"):
        folders.local_folder("owner/far")


def test_a_full_disk_is_no_missing_connection(monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "snapshot_download", full)
    with pytest.raises(OSError, match="No space left"):
        folders.local_folder("owner/far")
