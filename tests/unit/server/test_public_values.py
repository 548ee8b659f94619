"""What a program gets of servers, and says of them, is a value as Python's dataclasses are."""

import dataclasses
import json

from langchain_car_vllm.endpoint import Parsers
from langchain_car_vllm.server import Endpoint, ServerSpec


def test_a_server_is_described_by_names_alone():
    """No order of fields is promised, nothing else is equal to it, and none of it is unpacked."""
    spec = ServerSpec("org/model", "model", server_env=(("A_TOKEN", "s3cret"),))
    kept = dataclasses.replace(spec, keep_alive=0.0)
    assert (kept.keep_alive, kept.served_name) == (0.0, "model")
    assert spec != tuple(dataclasses.asdict(spec).values())
    assert not isinstance(spec, tuple)
    assert "s3cret" not in repr(spec)
    assert ServerSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_an_endpoint_is_written_down_with_its_parsers_by_name():
    """A list would say which is which to nobody."""
    endpoint = Endpoint("http://127.0.0.1:9/v1", None, "m", parsers=Parsers("hermes", "qwen3"))
    told = json.loads(json.dumps(dataclasses.asdict(endpoint)))
    assert told["parsers"] == {"tool_call": "hermes", "reasoning": "qwen3"}
