"""A server that would pass over its adapter never answers."""

import json

import pytest
from faults.support import FAST, Fake
from unit.models.test_adapter import CONFIG, LAYER, lora, write_tensors

from langchain_car_vllm.errors import ModelDownloadError, ServerStartError
from langchain_car_vllm.server import lease


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
    with pytest.raises(ModelDownloadError, match="me/tuned"), lease(spec, policy=FAST):
        pass
    assert fake.starts() == []
