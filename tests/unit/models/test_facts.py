import json

import pytest

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.models import family_facts, model_profile, parse_model_id, read_model_facts
from langchain_car_vllm.models.catalog import catalog
from langchain_car_vllm.models.kv_cache import KvCache

QWEN3 = "{% if tools %}<tool_call>{% endif %}{% if enable_thinking is false %}<think>{% endif %}"
QWEN3_INSTRUCT = "{% if tools %}<tool_call>{% endif %}<|im_start|>assistant\n"
QWEN36 = "{% if tools %}<tool_call>{% endif %}{% if preserve_thinking %}{% endif %}<think>\n"
PLAIN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture
def write_model(tmp_path):
    def write(config=None, template=None, generation=None, name="model"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config or {}))
        if template is not None:
            (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        return folder

    return write


@pytest.mark.parametrize(
    ("name", "family", "tool_call", "reasoning"),
    [
        ("mlx-community/Qwen3.6-35B-A3B-4bit", "qwen3.5", "qwen", "qwen3"),
        ("mlx-community/Qwen3.5-9B-4bit", "qwen3.5", "qwen", "qwen3"),
        ("qwen3.8-27b:4bit", "qwen3.5", "qwen", "qwen3"),
        ("mlx-community/Qwen3-0.6B-8bit", "qwen3", "qwen", "qwen3"),
        ("mlx-community/Qwen3-30B-A3B-4bit", "qwen3", "qwen", "qwen3"),
        ("mlx-community/Qwen3-4B-Instruct-2507-4bit", "qwen3-instruct", "qwen", None),
        ("mlx-community/Qwen3-4B-Thinking-2507-4bit", "qwen3-thinking", "qwen", "qwen3"),
        ("mlx-community/Qwen3-Coder-30B-A3B-Instruct-4bit", "qwen3-coder", "qwen", None),
        ("mlx-community/Qwen3-VL-4B-Instruct-3bit", "qwen3-vl", "qwen", None),
        ("mlx-community/Qwen3-VL-8B-Thinking-4bit", "qwen3-vl-thinking", "qwen", "qwen3"),
        ("mlx-community/Qwen2.5-Coder-1.5B-Instruct", "qwen2.5", "qwen", None),
        ("google/gemma-4-E2B-it", "gemma-4", "gemma4", "gemma4"),
        ("mlx-community/gemma-3-4b-it-4bit", "gemma-3", None, None),
        ("mlx-community/Llama-3.2-1B-Instruct-4bit", "llama-3", "llama", None),
        ("mlx-community/gpt-oss-20b-MXFP4-Q4", "gpt-oss", "gpt-oss", "gpt_oss"),
        ("mlx-community/Devstral-Small-2507-4bit", "mistral", "mistral", None),
        ("mlx-community/Magistral-Small-2509-4bit", "mistral-thinking", "mistral", "mistral"),
        (
            "mlx-community/DeepSeek-R1-Distill-Qwen-7B-4bit",
            "deepseek-r1",
            "deepseek",
            "deepseek_r1",
        ),
        ("mlx-community/DeepSeek-V3-4bit", "deepseek-v3", "deepseek", None),
        ("mlx-community/DeepSeek-V4-4bit", "deepseek-v4", "deepseek_v4", "deepseek_v4"),
        ("mlx-community/GLM-4.7-Flash-4bit", "glm", "glm47", "glm4"),
        ("mlx-community/Kimi-K2-Instruct-4bit", "kimi-k2", "kimi", None),
        ("mlx-community/granite-4.0-tiny-preview-4bit", "granite-4", "hermes", None),
        ("mlx-community/granite-3.3-8b-instruct-4bit", "granite-3", "granite", None),
        ("mlx-community/NVIDIA-Nemotron-3-Nano-30B-A3B-MLX-6Bit", "nemotron-3", "nemotron", "glm4"),
        ("mlx-community/MiniMax-M2-4bit", "minimax-m2", "minimax", "glm4"),
        ("mlx-community/Step-3.5-Flash-4bit", "step-3.5", "step3p5", "step3p5"),
        ("mlx-community/Hermes-4-14B-4bit", "hermes", "hermes", None),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", None, None, None),
    ],
)
def test_the_name_tells_the_family(write_model, name, family, tool_call, reasoning):
    """A model without a chat template is served by what its name tells."""
    assert family_facts(name).name == family
    facts = read_model_facts(write_model(), name)
    assert (facts.family, facts.tool_call_parser, facts.reasoning_parser) == (
        family,
        tool_call,
        reasoning,
    )


def test_every_catalog_entry_has_a_family():
    """No catalog id is a model of an unknown family."""
    assert all(family_facts(entry.name).name for entry in catalog().entries)
    assert all(family_facts(entry.repository).name for entry in catalog().entries)


def test_the_model_type_tells_where_the_name_does_not(write_model):
    """A renamed directory is recognised by its `model_type`."""
    facts = read_model_facts(write_model({"model_type": "qwen3"}, QWEN3), "/models/mine")
    assert (facts.family, facts.tool_call_parser, facts.reasoning_parser) == (
        "qwen3",
        "qwen",
        "qwen3",
    )


@pytest.mark.parametrize(
    ("name", "template", "tool_call", "reasoning"),
    [
        ("org/Qwen3-4B", QWEN3, "qwen", "qwen3"),
        ("org/Qwen3-4B", QWEN3_INSTRUCT, "qwen", None),
        ("org/Qwen3-4B", PLAIN, None, None),
        ("org/Qwen3.6-35B-A3B", QWEN36, "qwen", "qwen3"),
        ("org/DeepSeek-R1-Distill-Qwen-7B", PLAIN, None, "deepseek_r1"),
        ("org/unheard-of", PLAIN, None, None),
        ("org/unheard-of", "{{ tools }}<tool_call>", "hermes", None),
        ("org/unheard-of", "{{ tools }}<|python_tag|>", "llama", None),
        ("org/unheard-of", "{{ tools }}[TOOL_CALLS]", "mistral", None),
        ("org/unheard-of", "{{ tools }}something new", None, None),
        ("org/unheard-of", QWEN3, "hermes", "glm4"),
        ("org/unheard-of", "<think> is stripped " + "x" * 300, None, "glm4"),
        ("org/Qwen3-VL-4B", "<think> is stripped " + "x" * 300, None, None),
        ("org/Mistral-Small-3.2", "{{ tools }}[TOOL_CALLS]name[ARGS]", "mistral", None),
        ("org/Mistral-7B-v0.3", "{{ tools }}[TOOL_CALLS] [", "auto", None),
        ("org/Mistral-Small-4", "{{ tools }}[TOOL_CALLS][ARGS][THINK]", "mistral", "mistral"),
        ("org/DeepSeek-V3-0324", "{{ tools }}```json", "deepseek", None),
        ("org/DeepSeek-V3.1", "{{ tools }}<|tool_sep|>", None, None),
        ("org/Nemotron-3-Nano-30B", "{{ tools }}<think>", "nemotron", "glm4"),
        ("org/Nemotron-3-Nano-30B", "{{ tools }}", "nemotron", None),
    ],
)
def test_the_template_has_the_last_word(write_model, name, template, tool_call, reasoning):
    """No parser is set for calls or thoughts that the chat template cannot bring about."""
    facts = read_model_facts(write_model({}, template), name)
    assert (facts.tool_call_parser, facts.reasoning_parser) == (tool_call, reasoning)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"text_config": {"layer_types": ["linear_attention", "full_attention"]}}, True),
        ({"text_config": {"linear_num_value_heads": 32}}, True),
        ({"text_config": {"layer_types": ["sliding_attention", "full_attention"]}}, False),
        ({}, False),
    ],
)
def test_linear_attention_is_read_from_the_config(write_model, config, expected):
    """Such layers are told by their kind, or by sizes that only they have."""
    assert read_model_facts(write_model(config, QWEN3), "org/x").linear_attention is expected


def test_preserve_thinking_is_read_from_the_template(write_model):
    """Only templates that name `preserve_thinking` are sent it."""
    assert read_model_facts(write_model({}, QWEN36), "org/x").preserve_thinking
    assert not read_model_facts(write_model({}, QWEN3), "org/x").preserve_thinking


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.jinja", QWEN36),
        ("chat_template.json", json.dumps({"chat_template": QWEN36})),
        ("tokenizer_config.json", json.dumps({"chat_template": QWEN36})),
        (
            "tokenizer_config.json",
            json.dumps(
                {
                    "chat_template": [
                        {"name": "default", "template": PLAIN},
                        {"name": "tool_use", "template": QWEN36},
                    ]
                }
            ),
        ),
    ],
)
def test_the_template_is_found_wherever_it_is_kept(write_model, file, content):
    """A chat template counts in all the places that tokenizers keep it."""
    folder = write_model({"model_type": "qwen3_5"})
    (folder / file).write_text(content)
    assert read_model_facts(folder, "org/x").preserve_thinking


@pytest.mark.parametrize(
    ("config", "multimodal"),
    [
        ({"model_type": "llama"}, False),
        ({"vision_config": {}}, True),
        ({"image_token_id": 5}, True),
        ({"audio_config": {}}, True),
        ({"architectures": ["Qwen3VLForConditionalGeneration"]}, True),
        ({"architectures": ["Gemma4ForConditionalGeneration"]}, True),
        ({"architectures": ["Qwen3ForCausalLM"]}, False),
        ({"architectures": [None, 5]}, False),
        ({"architectures": "LlavaForCausalLM"}, False),
    ],
)
def test_multimodal_is_decided_as_the_server_does(write_model, config, multimodal):
    """The route is the one that the server itself takes for this `config.json`."""
    assert read_model_facts(write_model(config), "org/x").multimodal is multimodal


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"max_position_embeddings": 8192}, 8192),
        ({"text_config": {"max_position_embeddings": 262144}}, 262144),
        ({}, None),
        ({"max_position_embeddings": "many"}, None),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, 131_072),
        ({"model_type": "gemma3_text", "max_position_embeddings": 32_768}, 32_768),
    ],
)
def test_the_context_window_is_read(write_model, config, window):
    """The context window comes from `config.json`, nested or not."""
    assert read_model_facts(write_model(config), "org/x").context_window == window


def test_sampling_defaults_are_the_models_own(write_model):
    """`generation_config.json` gives the defaults; nonsense in it is left out."""
    generation = {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 7,
        "repetition_penalty": True,
        "presence_penalty": "high",
        "do_sample": True,
    }
    facts = read_model_facts(write_model({}, None, generation), "org/x")
    assert facts.sampling == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}


@pytest.mark.parametrize("top_k", [20.5, 1_000_000, -1, float("nan"), True, "20"])
def test_only_whole_numbers_are_a_top_k(write_model, top_k):
    """The server's option takes nothing else, and would not start with it."""
    assert read_model_facts(write_model({}, None, {"top_k": top_k}), "org/x").sampling == {}


def test_weights_and_cache_are_measured(write_model):
    """The sizes that a memory budget needs come from the files and from `config.json`."""
    folder = write_model(
        {
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "hidden_size": 576,
        }
    )
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    facts = read_model_facts(folder, "org/x")
    assert facts.weights_bytes == 1000
    assert facts.kv == KvCache(2 * 30 * 3 * 64 * 2)


def test_linear_layers_take_no_cache(write_model):
    """Only layers of full attention grow with the context."""
    text = {
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    }
    facts = read_model_facts(write_model({"text_config": text}), "org/x")
    assert facts.kv is not None
    assert facts.kv.per_token == 2 * 1 * 2 * 128 * 2


@pytest.mark.parametrize(
    ("name", "streams"),
    [("org/gpt-oss-20b", False), ("org/Qwen3-4B", True), ("org/Kimi-K2", False), ("org/x", True)],
)
def test_families_that_lose_streamed_calls_are_known(name, streams):
    """Tool calls are not streamed where the server's parser would lose them."""
    assert family_facts(name).streams_tool_calls is streams


def test_a_directory_without_config_is_refused(tmp_path):
    """Facts of a directory that holds no model are an error that says what to do."""
    with pytest.raises(ConfigurationError, match="no readable") as caught:
        read_model_facts(tmp_path, "org/x")
    assert caught.value.hint


def test_the_profile_of_a_catalog_model():
    """Before anything is downloaded the catalog tells the profile."""
    profile = model_profile(parse_model_id("vllm-mlx/gemma-4-12b-it"))
    assert profile["max_input_tokens"] == 131072
    assert profile["image_inputs"]
    assert profile["audio_inputs"]
    assert profile["video_inputs"]
    assert profile["reasoning_output"]
    assert profile["tool_calling"]
    assert profile["structured_output"]


def test_the_profile_of_an_unknown_model_is_plain():
    """Nothing is promised of a model that nobody knows."""
    profile = model_profile(parse_model_id("org/unheard-of"))
    assert "max_input_tokens" not in profile
    assert not profile["image_inputs"]
    assert not profile["reasoning_output"]


def test_the_profile_prefers_the_models_own_files(write_model):
    """A local model's profile is read from its files."""
    folder = write_model({"max_position_embeddings": 4096}, QWEN36, name="mine")
    profile = model_profile(parse_model_id(str(folder)))
    assert profile["max_input_tokens"] == 4096
    assert profile["reasoning_output"]
    assert not profile["image_inputs"]


def test_the_profile_has_langchains_keys():
    """Every key of a profile is one that LangChain knows."""
    from langchain_core.language_models import ModelProfile

    profile = model_profile(parse_model_id("vllm-mlx/qwen3.6-35b-a3b:4bit"))
    assert set(profile) <= set(ModelProfile.__annotations__)
