"""What tests of settings share: how a setting is refused, wherever it is set."""

import pickle
from typing import Any

import pytest

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import CarVllmError, ConfigurationError
from langchain_car_vllm.settings import ServerFields

MODEL = "vllm-mlx/qwen3.6-35b-a3b:4bit"


def refused(match: str, **fields: Any) -> CarVllmError:
    """Return the error of settings, the same wherever they are set."""
    with pytest.raises(ConfigurationError, match=match) as caught:
        ChatVllmMlx(**{"model": MODEL, **fields})
    with pytest.raises(ConfigurationError) as of_copy:
        ChatVllmMlx(model=MODEL).model_copy(update=fields)
    assert str(of_copy.value) == str(caught.value)
    if len(fields) == 1:
        assert str(assigned_wrongly(ChatVllmMlx(model=MODEL), *fields.items())) == str(caught.value)
    return caught.value


def assigned_wrongly(model: ServerFields, field: tuple[str, Any]) -> CarVllmError:
    """Return the error of an assignment, which leaves all as it was."""
    before = pickle.dumps(model)
    with pytest.raises(ConfigurationError) as caught:
        setattr(model, *field)
    assert pickle.dumps(model) == before
    return caught.value
