"""Models that only read are refused where text is to be written, and are models all the same."""

import pytest
from fakes.published_configs import CONFIGS, CROSS_ENCODER

from langchain_car_vllm.errors import UnservableModelError
from langchain_car_vllm.models.text_writer import check_writes_text
from langchain_car_vllm.server import ServerSpec
from langchain_car_vllm.server.plan import plan_for

READERS = {
    "encoder": {"architectures": ["BertModel"], "model_type": "bert"},
    "encoder of multiple languages": {
        "architectures": ["XLMRobertaModel"],
        "model_type": "xlm-roberta",
    },
    "encoder that does not say its kind": {"model_type": "modernbert"},
    "encoder that guesses words": {"architectures": ["MPNetForMaskedLM"], "model_type": "mpnet"},
    "cross-encoder": CROSS_ENCODER,
    "classifier": {"architectures": ["Qwen3ForSequenceClassification"], "model_type": "qwen3"},
    "embedder": {"architectures": ["MistralModel"], "model_type": "mistral"},
}
WRITERS = {
    "usual": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
    "with a classifier too": {
        "architectures": ["LlamaForSequenceClassification", "LlamaForCausalLM"],
        "model_type": "llama",
    },
    "silent": {"model_type": "llama"},
    "oddly named": {"architectures": ["InternVLChatModel"], "model_type": "internvl_chat"},
    "nonsense": {"architectures": [7, {}], "model_type": ["bert"]},
    "of its own": {"architectures": ["BertModel"], "model_type": "bert", "model_file": "own.py"},
}


@pytest.mark.parametrize("name", READERS)
def test_a_model_that_only_reads_is_refused_for_chat_alone(whole_model, name):
    """Before anything is installed or fetched; the server fails late, or answers nonsense."""
    directory = whole_model(config__json=READERS[name])
    with pytest.raises(UnservableModelError, match="does not write text") as caught:
        plan_for(ServerSpec(str(directory), "org/reader"))
    assert "VllmMlxEmbeddings" in (caught.value.hint or "")
    plan_for(ServerSpec(str(directory), "org/reader", kind="embeddings"))


@pytest.mark.parametrize("config", [*WRITERS.values(), *CONFIGS.values()])
def test_whatever_may_write_is_not_refused(config):
    """A name that is not known says nothing."""
    check_writes_text(config, "org/writer")
