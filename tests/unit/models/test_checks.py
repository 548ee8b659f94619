import json

import pytest
from fakes.hub import running_hub, write_model

from langchain_car_vllm.errors import (
    ConfigurationError,
    InsufficientMemoryError,
    ModelDownloadError,
    UnknownModelError,
    UnservableModelError,
)
from langchain_car_vllm.models import parse_model_id
from langchain_car_vllm.models.checks import check_model
from langchain_car_vllm.models.hub import ask_hub

REPOSITORY = "mlx-community/Qwen3-4B-4bit"
MODEL = parse_model_id(REPOSITORY)
WEIGHTS = 256_000


@pytest.fixture
def hub(tmp_path, monkeypatch, socket_enabled):
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.repositories[REPOSITORY] = write_model(tmp_path / "origin", weights=WEIGHTS)
        yield hub


def test_a_model_that_can_be_had_passes(hub, home):
    """A repository that may be read and fits is no error, and nothing is fetched."""
    check_model(MODEL, budget_bytes=WEIGHTS)
    check_model(MODEL, "main")
    assert hub.bytes_sent == 0
    assert not (home / ".cache").exists()


def test_the_hub_lists_files_with_sizes(hub):
    """The sizes that disk and memory are checked with are the Hub's."""
    sizes = {file.name: file.size for file in ask_hub(REPOSITORY)}
    assert sizes["model.safetensors"] == WEIGHTS


def test_the_token_is_sent(hub, home, monkeypatch):
    """`HF_TOKEN`, or the file that the Hub's own client leaves, opens a private repository."""
    hub.token = "secret"
    with pytest.raises(ModelDownloadError, match="no such repository"):
        check_model(MODEL)
    monkeypatch.setenv("HF_TOKEN", "secret")
    check_model(MODEL)
    monkeypatch.delenv("HF_TOKEN")
    (home / ".cache" / "huggingface").mkdir(parents=True)
    (home / ".cache" / "huggingface" / "token").write_text("secret\n")
    check_model(MODEL)


def test_the_token_goes_along_to_the_same_host(hub, monkeypatch):
    """The Hub answers a file from another path of its own, which wants the token too."""
    hub.token, hub.redirecting = "secret", True
    monkeypatch.setenv("HF_TOKEN", "secret")
    check_model(MODEL)
    assert [request for request in hub.requests if "resolve-cache" in request[1]]


def test_a_token_that_is_none_is_told(hub, monkeypatch):
    """An expired token is no missing repository."""
    hub.token = "secret"
    monkeypatch.setenv("HF_TOKEN", "expired")
    with pytest.raises(ModelDownloadError, match="refuses it: Invalid credentials") as caught:
        check_model(MODEL)
    assert "HF_TOKEN" in caught.value.hint


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_repository_without_a_model_is_told(hub, missing):
    """One in another format exists, and is of no use."""
    (hub.repositories[REPOSITORY] / missing).unlink()
    with pytest.raises(ModelDownloadError, match="holds no model"):
        check_model(MODEL)


@pytest.mark.parametrize("page", ["<html>log in</html>", ["log in"], {"siblings": [1]}])
def test_somebody_who_answers_for_the_hub(hub, page):
    """The page of a café's network is no listing."""
    hub.portal = page
    with pytest.raises(ModelDownloadError, match="is not the Hub") as caught:
        check_model(MODEL)
    assert "log in" in caught.value.hint


FAULTS = {
    "gated": ({"gated": True}, "gated repository and no HF_TOKEN"),
    "gated-to-strangers": ({"gated": True, "token": "x"}, "gated repository and no HF_TOKEN"),
    "gone": ({"repositories": {}}, "no such repository"),
    "down": ({"failing_with": 503}, "out of order"),
    "refused": ({"failing_with": 403}, "the Hub refuses it"),
    "large": ({"wrong_size": 10**15}, "needs 1000000000 MB more"),
}


@pytest.mark.parametrize(("faults", "said"), FAULTS.values(), ids=FAULTS)
def test_what_stands_in_the_way_is_told(hub, faults, said):
    """Each obstacle is told before anything is fetched, with its cure."""
    for name, value in faults.items():
        setattr(hub, name, value)
    with pytest.raises(ModelDownloadError, match=said) as caught:
        check_model(MODEL)
    assert caught.value.hint
    assert hub.bytes_sent == 0


def test_an_unknown_revision_is_told(hub):
    """A revision that does not exist is named."""
    with pytest.raises(ModelDownloadError, match="no revision `v9`"):
        check_model(MODEL, "v9")


def test_no_network(monkeypatch, socket_enabled):
    """A Hub that cannot be reached is called that."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelDownloadError, match="cannot be reached"):
        check_model(MODEL)


def test_a_strange_endpoint(monkeypatch):
    """An endpoint without scheme is an error that says what to write."""
    monkeypatch.setenv("HF_ENDPOINT", "hub.example.com")
    with pytest.raises(ConfigurationError, match="HF_ENDPOINT"):
        check_model(MODEL)


@pytest.mark.parametrize("written", [None, "no certificate"])
def test_certificates_that_cannot_be_read(tmp_path, monkeypatch, written):
    """`SSL_CERT_FILE` must lead to certificates."""
    file = tmp_path / "certificates.pem"
    if written:
        file.write_text(written)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with pytest.raises(ConfigurationError, match="SSL_CERT_FILE"):
        check_model(MODEL)


def test_a_download_that_is_not_wanted(monkeypatch):
    """Without a copy here, `auto_pull=False` and `HF_HUB_OFFLINE` refuse without asking the Hub."""
    with pytest.raises(ModelDownloadError, match="auto_pull=False"):
        check_model(MODEL, auto_pull=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelDownloadError, match="HF_HUB_OFFLINE"):
        check_model(MODEL)


def test_a_model_that_can_never_fit(hub):
    """Weights beyond the memory budget are refused with the numbers."""
    with pytest.raises(InsufficientMemoryError, match=r"take 0\.0 GB") as caught:
        check_model(MODEL, budget_bytes=WEIGHTS - 1)
    assert "smaller" in caught.value.hint


def test_a_local_model_is_looked_at(tmp_path):
    """A directory is checked without any network."""
    folder = write_model(tmp_path / "model", weights=WEIGHTS)
    model = parse_model_id(str(folder))
    check_model(model, budget_bytes=WEIGHTS)
    with pytest.raises(InsufficientMemoryError):
        check_model(model, budget_bytes=1)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnservableModelError, match="no safetensors weights"):
        check_model(model)
    (folder / "config.json").unlink()
    with pytest.raises(UnknownModelError, match=r"no `config\.json`"):
        check_model(model)


def test_a_copy_on_this_machine_needs_no_hub(home):
    """What LM Studio has downloaded is checked where it is."""
    folder = home / ".lmstudio" / "models" / REPOSITORY
    write_model(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    check_model(MODEL, auto_pull=False)
