"""Arguments that belong to other providers' classes are answered with what they are here."""

import re
from typing import Any

import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from langchain_car_vllm import (
    ChatVllmMlx,
    VllmMlxEmbeddings,
    VllmMlxReranker,
)
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.wire.request.parameters import AT_CONSTRUCTION, IGNORED

MODEL = "vllm-mlx/qwen3.6-35b-a3b:4bit"
# The fields of ChatOllama in langchain-ollama 1.1, and what options of Ollama's own API are called.
OLLAMA = """
    reasoning validate_model_on_init mirostat mirostat_eta mirostat_tau num_ctx num_gpu num_thread
    num_predict repeat_last_n repeat_penalty temperature seed logprobs top_logprobs stop tfs_z top_k
    top_p format keep_alive base_url client_kwargs async_client_kwargs sync_client_kwargs
    options system template typical_p raw think
"""
# Of ChatLlamaCpp, ChatHuggingFace, VLLM and ChatMLX, and what people try.
OTHERS = """
    n_ctx n_gpu_layers n_threads n_batch max_model_len tensor_parallel_size gpu_memory_utilization
    dtype quantization download_dir trust_remote_code cache_dir hf_token token
    huggingfacehub_api_token repo_id model_path url server_url system_prompt max_tokens_to_sample
    max_concurrency device context_length lora_path budget_tokens proxies
"""

SET = sorted(AT_CONSTRUCTION)


def refused(cls: Any = ChatVllmMlx, **given: object) -> ConfigurationError:
    """Return the error of a constructor."""
    with pytest.raises(ConfigurationError) as caught:
        cls(model=MODEL, **given)
    return caught.value


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("num_predict", "max_tokens"),
        ("max_completion_tokens", "max_tokens"),
        ("num_ctx", "max_input_tokens"),
        ("repeat_penalty", "repetition_penalty"),
        ("format", "with_structured_output"),
        ("model_name", "model"),
        ("request_timeout", "timeout"),
        ("stop_sequences", "stop"),
        ("openai_api_base", "base_url"),
        ("top_kk", "top_k"),
        ("num_gpu", "leave it out"),
        ("use_responses_api", "leave it out"),
        ("client_kwargs", "default_headers"),
        ("system_prompt", "system message"),
        ("trust_remote_code", '["--trust-remote-code"]'),
        ("hf_token", "HF_TOKEN"),
        ("cache_dir", "HF_HUB_CACHE"),
        ("options", "by itself"),
        ("tiktoken_model_name", "custom_get_token_ids"),
        ("nonsense", "extra_body"),
    ],
)
def test_an_unknown_argument_is_refused_with_the_right_one(name, right):
    """A parameter of Ollama's or OpenAI's is answered with the name it has here."""
    error = refused(**{name: 1})
    assert f"`{name}`" in error.message
    assert right in (error.hint or "")


def of_openai(kind: type[BaseModel] = ChatOpenAI) -> set[str]:
    """Return the names that a constructor takes."""
    fields = kind.model_fields
    return {*fields, *(field.alias for field in fields.values() if field.alias)}


# Of HuggingFaceEmbeddings.
SENTENCES = "cache_folder encode_kwargs query_encode_kwargs multi_process show_progress model_name"


@pytest.mark.parametrize("name", sorted({*of_openai(OpenAIEmbeddings), *SENTENCES.split()}))
def test_arguments_of_other_embeddings_are_answered_too(name):
    """Who calls LM Studio sets a few of them."""
    if name in VllmMlxEmbeddings.model_fields:
        return
    hint = refused(VllmMlxEmbeddings, **{name: 1}).hint
    assert hint
    assert "did you mean" not in hint


@pytest.mark.parametrize("name", sorted({*of_openai(), *OLLAMA.split(), *OTHERS.split()}))
def test_no_argument_of_another_class_is_answered_with_a_guess(name):
    """A name that is like it, or `extra_body`, would lead who migrates to the next error."""
    if name in ChatVllmMlx.model_fields or name in IGNORED:
        return
    hint = refused(**{name: 1}).hint or ""
    assert "did you mean" not in hint
    assert "extra_body" not in hint


@pytest.mark.parametrize("cls", [ChatVllmMlx, VllmMlxEmbeddings, VllmMlxReranker])
@pytest.mark.parametrize("name", sorted({*of_openai(), *OLLAMA.split(), *OTHERS.split()}))
def test_a_hint_names_what_the_class_takes(cls, name):
    """An embedding model has no profile, no stop texts and no structured output."""
    if name in cls.model_fields or name in IGNORED:
        return
    given = re.match(r"use `(\w+)", refused(cls, **{name: 1}).hint or "")
    assert given is None or given[1] in cls.model_fields or hasattr(cls, given[1])


@pytest.mark.parametrize("name", ["headers", "format", "system", "options", "temp"])
def test_a_hint_of_a_call_names_what_a_call_takes(name):
    """What only a constructor takes would be the next error."""
    model = ChatVllmMlx(model=MODEL, base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ConfigurationError, match=name) as caught:
        model.invoke("hi", **{name: 1})
    named = re.findall(r"`(\w+)", caught.value.hint or "")
    assert not {"default_headers", "profile"} & set(named)


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("stop_sequences", "use `stop`"),
        ("openai_api_base", "use `base_url` when you create the model"),
        ("openai_api_key", "use `api_key` when you create the model"),
        ("lora", "use `adapter` when you create the model"),
        ("draft_model", "use `draft` when you create the model"),
        *(
            (name, "set it when you create the model, or with `model_copy(update=...)`")
            for name in SET
        ),
    ],
)
def test_a_hint_of_a_call_says_where_a_setting_belongs(name, right):
    """Whoever is told to leave it out loses what was meant."""
    model = ChatVllmMlx(model=MODEL, base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ConfigurationError, match=name) as caught:
        model.invoke("hi", **{name: "x"})
    assert caught.value.hint == right


def test_an_unknown_argument_of_a_call_is_refused_too():
    """`bind` cannot smuggle in what the constructor refuses; nothing is sent."""
    model = ChatVllmMlx(model=MODEL, base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ConfigurationError, match="num_predict") as caught:
        model.invoke("hi", num_predict=3)
    assert "max_tokens" in (caught.value.hint or "")


def test_stop_texts_are_no_parameter_among_others():
    """LangChain hands them on by themselves, and so does whoever sets them."""
    error = refused(model_kwargs={"stop": ["."]})
    assert error.hint == "pass it by itself: `stop=...`"
