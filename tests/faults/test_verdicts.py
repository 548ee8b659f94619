"""Construction, the plan and a real supervisor give one verdict on memory and disk."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.hub import FakeHub, running_hub, write_model
from fakes.published_configs import CONFIGS
from fakes.weights import write_sparse_weights
from faults.support import FAST, Fake, ask

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import CarVllmError, ModelDownloadError
from langchain_car_vllm.server import ServerSpec, directory_of, lease, stop_server
from langchain_car_vllm.server.plan import asked_plan, plan_for

REPOSITORY = "org/model"


def verdicts(spec: ServerSpec) -> list[tuple[str, str] | None]:
    """Return what each who is asked says of a model: the error's class and text, None for yes."""

    def construct() -> None:
        ChatVllmMlx(model=spec.source, validate_model_on_init=True)

    def start() -> None:
        with lease(spec, policy=FAST) as held:
            assert ask(held.endpoint)
        stop_server(directory_of(spec), policy=FAST)

    found: list[tuple[str, str] | None] = []
    for question in (construct, lambda: asked_plan(spec).check(), start):
        try:
            question()
        except CarVllmError as error:
            found.append((type(error).__name__, error.message))
        else:
            found.append(None)
    return found


@pytest.mark.parametrize("config", ["Qwen3-8B", "gemma-4-E2B"])
@pytest.mark.parametrize("weights", [10**9, 17 * 10**9])
def test_a_supervisor_agrees_to_the_megabyte(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, config: str, weights: int
):
    """The least budget that the plan takes is enough for all, and a megabyte less for none."""
    (fake.model / "config.json").write_text(json.dumps(CONFIGS[config]))
    write_sparse_weights(fake.model / "model.safetensors", weights)
    spec = fake.spec()
    too_little, enough = weights // 1_000_000, 10 * weights // 1_000_000
    while enough - too_little > 1:
        megabytes = (too_little + enough) // 2
        monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", str(megabytes / 1e3))
        if plan_for(spec).fits_memory:
            enough = megabytes
        else:
            too_little = megabytes
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", str(too_little / 1e3))
    refusals = verdicts(spec)
    assert [refusal and refusal[0] for refusal in refusals] == ["InsufficientMemoryError"] * 3
    assert len(set(refusals)) == 1
    assert fake.starts() == []
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", str(enough / 1e3))
    assert verdicts(spec) == [None] * 3


@pytest.fixture
def hub(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, socket_enabled: None
) -> Iterator[FakeHub]:
    """A hub that has the model, and a binary that is not a Python script and downloads it."""
    real = fake.binary.rename(fake.binary.with_name("real"))
    fake.binary.write_text(f'#!/bin/sh\nexec "{real}" "$@"\n')
    fake.binary.chmod(0o755)
    fake.switch(download_from=str(fake.model))
    with running_hub() as listing:
        monkeypatch.setenv("HF_ENDPOINT", listing.endpoint)
        listing.repositories[REPOSITORY] = write_model(tmp_path / "origin", weights=1000)
        yield listing


@pytest.mark.parametrize(
    ("listed", "gigabytes", "verdict"),
    [
        (0, "64", None),
        (4 * 10**9, "1.0", "InsufficientMemoryError"),
        (10**15, "64", "InsufficientMemoryError"),
        (10**15, "10000000", "ModelDownloadError"),
    ],
)
def test_a_supervisor_agrees_before_the_download(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, listed: int, gigabytes: str, verdict: str | None
):
    """What the Hub lists is too much for the disk or for memory, and all say so alike."""
    hub.wrong_size = listed
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", gigabytes)
    found = verdicts(ServerSpec(REPOSITORY, REPOSITORY))
    assert [entry and entry[0] for entry in found] == [verdict] * 3
    assert len({entry and entry[1].split(":")[0] for entry in found}) == 1


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ({"repositories": {}}, "no such repository"),
        ({"gated": True}, "gated repository"),
        ({"revisions": {}}, "no revision `main`"),
        ({"token": "mine"}, "refuses it: Invalid credentials"),
    ],
)
def test_a_model_that_the_hub_does_not_give_is_refused_before_an_install(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, faults: dict[str, object], said: str
):
    """Nobody waits for an install and a download to hear of a misspelt name, or an old token."""
    monkeypatch.setenv("HF_TOKEN", "expired")
    for name, value in faults.items():
        setattr(hub, name, value)
    spec = ServerSpec(REPOSITORY, REPOSITORY)
    with pytest.raises(ModelDownloadError, match=said) as caught, lease(spec, policy=FAST):
        pass
    assert caught.value.message.startswith(f"`{REPOSITORY}` cannot be downloaded")
    assert not (directory_of(spec).path / "download.log").exists()


def test_a_repository_without_a_model_is_refused_before_an_install(hub: FakeHub):
    """Its files tell: what it brings is of another form."""
    weights = hub.repositories[REPOSITORY] / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    spec = ServerSpec(REPOSITORY, REPOSITORY)
    with pytest.raises(ModelDownloadError, match="PyTorch") as caught, lease(spec, policy=FAST):
        pass
    assert "MLX conversion" in (caught.value.hint or "")
    assert not (directory_of(spec).path / "download.log").exists()


@pytest.mark.parametrize("status", [404, 429, 503])
def test_a_mirror_that_lists_nothing_may_have_the_model(hub: FakeHub, status: int):
    """Only the Hub's own words are certain; else the download is tried."""
    hub.failing_with = status
    with lease(ServerSpec(REPOSITORY, REPOSITORY), policy=FAST) as held:
        assert held.endpoint
