"""LangChain makes our models by name, and a LangChain that changed is told of, not broken."""

from collections.abc import Iterator

import pytest
from langchain.chat_models import base as chat_models
from langchain.chat_models import init_chat_model
from langchain.embeddings import base as embeddings
from langchain.embeddings import init_embeddings

from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings, register
from langchain_car_vllm.errors import ConfigurationError, UnknownModelError

TABLES = (chat_models, embeddings)


@pytest.fixture(autouse=True)
def _tables_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone afterwards, also from LangChain's memory of it."""
    memories = (chat_models._get_chat_model_creator, embeddings._get_embeddings_class_creator)
    for module in TABLES:
        monkeypatch.setattr(module, "_BUILTIN_PROVIDERS", dict(module._BUILTIN_PROVIDERS))
    for memory in memories:
        memory.cache_clear()
    yield
    for memory in memories:
        memory.cache_clear()


@pytest.mark.parametrize(
    "model",
    ["mlx-community/Qwen3-4B-4bit", "vllm-mlx/qwen3.6-35b-a3b:4bit", "vllm-mlx/gemma-4-e4b-it"],
)
def test_every_model_id_has_a_name(model: str):
    """Ids with a colon too; settings go along."""
    register()
    register()
    llm = init_chat_model(f"vllm_mlx:{model}", temperature=0)
    assert isinstance(llm, ChatVllmMlx)
    assert (llm.model, llm.temperature) == (model, 0)
    assert isinstance(init_chat_model(model, model_provider="vllm_mlx"), ChatVllmMlx)
    vectors = init_embeddings(f"vllm_mlx:{model}")
    assert isinstance(vectors, VllmMlxEmbeddings)
    assert vectors.model == model


def test_a_directory_has_a_name(tmp_path):
    """A path is an id like any other."""
    (tmp_path / "config.json").write_text("{}")
    register()
    assert init_chat_model(f"vllm_mlx:{tmp_path}").model == str(tmp_path)


def test_a_misspelt_name_gets_our_error():
    """The nearest ids reach the user through LangChain."""
    register()
    with pytest.raises(UnknownModelError, match="did you mean"):
        init_chat_model("vllm_mlx:vllm-mlx/gemma-4-e4b-itt")


def test_what_takes_names_takes_ours():
    """An agent and a model whose name is configurable are made of a string."""
    from langchain.agents import create_agent
    from langchain.agents.middleware import ModelFallbackMiddleware

    register()
    name = "vllm_mlx:mlx-community/Qwen3-4B-4bit"
    assert create_agent(name, tools=[], middleware=[ModelFallbackMiddleware(name)])
    flexible = init_chat_model(configurable_fields=("model", "model_provider"))
    assert flexible.with_config(configurable={"model": name})._get_ls_params()["ls_provider"] == (
        "vllm_mlx"
    )


@pytest.mark.parametrize(
    "table",
    [
        None,
        [],
        {},
        {"openai": "langchain_openai"},
        {"openai": ("langchain_openai", "ChatOpenAI")},
        {"openai": ("langchain_openai", "ChatOpenAI", lambda **_: None, 1)},
        {"openai": ("langchain_openai", "ChatOpenAI", lambda *_, **__: object())},
    ],
)
@pytest.mark.parametrize("module", TABLES)
def test_another_form_is_told_and_left_alone(module, table, monkeypatch: pytest.MonkeyPatch):
    """Where LangChain keeps its providers otherwise, nothing is written and the way out is told."""
    monkeypatch.setattr(module, "_BUILTIN_PROVIDERS", table)
    before = repr(table)
    with pytest.raises(ConfigurationError, match="registers its providers in a way") as caught:
        register()
    assert "construct" in str(caught.value.hint)
    assert repr(table) == before


def test_a_missing_table_is_told(monkeypatch: pytest.MonkeyPatch):
    """So is a LangChain without such a table."""
    monkeypatch.delattr(chat_models, "_BUILTIN_PROVIDERS")
    with pytest.raises(ConfigurationError, match="registers its providers"):
        register()
