"""A server that would pass over its adapter never answers."""

import json
import sys
from pathlib import Path

import pytest
from faults.support import FAST, Fake
from unit.models.test_adapter import CONFIG, LAYER, lora, write_tensors

from langchain_car_vllm.errors import ModelDownloadError, ServerStartError
from langchain_car_vllm.models.adapter import find_adapter
from langchain_car_vllm.runtime.console_scripts import console_script
from langchain_car_vllm.server import directory_of, lease


def test_an_install_that_loads_no_adapter_is_a_typed_error(fake: Fake):
    """The fake is a version whose loading the launcher does not know."""
    write_tensors(fake.model / "model.safetensors", {f"{LAYER.format(0)}.weight": [6, 8]})
    adapter = fake.root / "tuned"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps(CONFIG))
    write_tensors(adapter / "adapters.safetensors", lora(0))
    spec = fake.spec(adapter=str(adapter))
    with (
        pytest.raises(ServerStartError, match="runs without its adapter"),
        lease(spec, policy=FAST),
    ):
        pass


def test_an_adapter_that_may_not_be_fetched_is_a_typed_error(fake: Fake):
    """Before the server is spawned."""
    spec = fake.spec(adapter="me/tuned", auto_pull=False)
    with pytest.raises(ModelDownloadError, match="me/tuned") as refused, lease(spec, policy=FAST):
        pass
    assert "folder of an adapter" in (refused.value.hint or "")
    assert fake.starts() == []


def test_an_adapter_is_fetched_by_a_python_alone(fake: Fake):
    """A binary of another kind has no Hub client that could be used."""
    real = fake.binary.rename(fake.binary.with_name("real"))
    fake.binary.write_text(f'#!/bin/sh\nexec "{real}" "$@"\n')
    fake.binary.chmod(0o755)
    with (
        pytest.raises(ModelDownloadError, match="is not a Python script") as refused,
        lease(fake.spec(adapter="me/tuned"), policy=FAST),
    ):
        pass
    assert "folder" in (refused.value.hint or "")


HUB = """
import pathlib
def snapshot_download(name, allow_patterns):
    assert "adapters.safetensors" in allow_patterns
    if name != "me/tuned":
        raise RuntimeError("404 Client Error. Repository Not Found for url: .../me/missing")
    cache = pathlib.Path.home() / ".cache" / "huggingface" / "hub" / "models--me--tuned"
    folder = cache / "snapshots" / "c0ffee"
    folder.mkdir(parents=True, exist_ok=True)
    (cache / "refs").mkdir(exist_ok=True)
    (cache / "refs" / "main").write_text("c0ffee")
    for file in pathlib.Path({adapter!r}).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
"""


def give_environment(fake: Fake) -> Path:
    """Give the fake installation a Python of its own, and return where its packages are."""
    python, real = fake.binary.with_name("python"), Path(sys.executable).resolve()
    python.symlink_to(real)
    environment = fake.binary.parents[1]
    (environment / "pyvenv.cfg").write_text(f"home = {real.parent}\n")
    script = fake.binary.read_text().split("\n", 1)[1]
    fake.binary.write_text(console_script(python, script))
    return next((environment / "lib").glob("python*/site-packages"))


@pytest.fixture(params=["env", "my env"])
def moved(request: pytest.FixtureRequest, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A fake installation whose path may hold a space."""
    (fake.root / "env").rename(fake.root / request.param)
    fake.binary = fake.root / request.param / "bin" / "vllm-mlx"
    monkeypatch.setenv("CAR_VLLM_MLX_BIN", str(fake.binary))
    return fake


@pytest.mark.parametrize(
    ("source", "error", "reason"),
    [
        ("me/tuned", ServerStartError, "runs without its adapter"),
        (
            "me/missing",
            ModelDownloadError,
            "the adapter .* downloaded: the Hub has",
        ),
    ],
)
def test_an_adapter_of_the_hub_is_fetched(moved: Fake, source: str, error: type, reason: str):
    """By the runtime's own client; what it says where it cannot reaches the user."""
    write_tensors(moved.model / "model.safetensors", {f"{LAYER.format(0)}.weight": [6, 8]})
    adapter = moved.root / "tuned"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps(CONFIG))
    write_tensors(adapter / "adapters.safetensors", lora(0))
    site = give_environment(moved)
    (site / "huggingface_hub.py").write_text(HUB.replace("{adapter!r}", repr(str(adapter))))
    spec = moved.spec(adapter=source)
    if source == "me/tuned":  # a download that was killed has left one file of the two
        left = Path.home() / ".cache/huggingface/hub/models--me--tuned"
        (left / "snapshots" / "c0ffee").mkdir(parents=True)
        (left / "snapshots" / "c0ffee" / "adapters.safetensors").write_bytes(b"")
        (left / "refs").mkdir()
        (left / "refs" / "main").write_text("c0ffee")
    with pytest.raises(error, match=reason), lease(spec, policy=FAST):
        pass
    assert (find_adapter(source) is not None) is (source == "me/tuned")


def test_an_adapter_that_is_none_is_found_before_the_model_is_fetched(fake: Fake):
    """It is small, and the model may take hours."""
    spec = fake.spec(source="org/model", served_name="org/model", adapter="me/tuned")
    with pytest.raises(ModelDownloadError, match="adapter"), lease(spec, policy=FAST):
        pass
    folder = directory_of(spec).path
    assert (folder / "adapter.log").exists()
    assert not (folder / "download.log").exists()
