"""What other providers' classes call their arguments, and what is said instead here."""

from collections.abc import Collection

# Names of the settings of this package, and what else they are called.
_CALLED = {
    "model": "model_name model_id model_path repo_id",
    "max_tokens": (
        "num_predict n_predict max_completion_tokens max_new_tokens max_output_tokens "
        "max_tokens_to_sample"
    ),
    "temperature": "temp",
    "repetition_penalty": "repeat_penalty repeat_last_n",
    "stop": "stop_sequences",
    "timeout": "request_timeout default_request_timeout stream_chunk_timeout",
    "reasoning": "think thinking",
    "thinking_budget": "budget_tokens max_thinking_tokens",
    "base_url": "openai_api_base api_base endpoint host port url server_url api_url",
    "api_key": "openai_api_key",
    "keep_alive": "idle_timeout",
    "validate_model_on_init": "validate_model",
    "draft": "draft_model speculative_model",
    "adapter": "adapter_path lora lora_path",
    "default_headers": "headers",
    "extra_headers": "headers",
    "custom_get_token_ids": "tiktoken_model_name",
    "batch_size": "chunk_size",
    "on_progress": "show_progress show_progress_bar",
}
# What a chat model is told in another way.
_OF_CHAT = {
    "use `with_structured_output(...)` or `response_format`": "format json_schema",
    'use `reasoning="low"`, `"medium"` or `"high"`': "reasoning_effort",
    "use `bind_tools(...)`": "functions",
    "use `bind_tools(..., tool_choice=...)`": "function_call",
    'use a system message: `[("system", ...), ("user", ...)]`': "system system_prompt",
    'use `profile={"max_input_tokens": ...}`; the context window itself is the model\'s': (
        "num_ctx n_ctx context_window context_length max_model_len"
    ),
    "pass each entry by itself, as in `temperature=0`": "options pipeline_kwargs",
    "leave it out: usage is always reported, unless a call has `bind(stream_usage=False)`": (
        "stream_usage"
    ),
    "leave it out: the model's own chat template is used": "template chat_template raw",
    'pass it to `batch`: `config={"max_concurrency": ...}`': "max_concurrency",
}
_OF_ALL = {
    "set HF_TOKEN in the environment": "hf_token token huggingfacehub_api_token",
    "set HF_HUB_CACHE in the environment": "cache_dir cache_folder download_dir",
    'use `server_args=["--trust-remote-code"]`, for code that you trust': "trust_remote_code",
    "leave it out: a server on this machine has none": "organization openai_organization",
    "leave it out: the standard proxy variables are used": "openai_proxy proxy proxies",
    "leave it out: the whole model runs on the GPU": (
        "num_gpu n_gpu_layers device device_map tensor_parallel_size"
    ),
    "leave it out: the server decides": "num_thread n_threads n_batch",
    "set CAR_VLLM_MLX_MEMORY_GB in the environment": "gpu_memory_utilization",
    "leave it out: the model's name says it, like the `4bit` in `mlx-community/Qwen3-4B-4bit`": (
        "dtype quantization"
    ),
    "leave it out: the context window is the model's": "num_ctx n_ctx max_model_len",
    "leave it out: the server has the chat completions API": (
        "use_responses_api context_management include prompt_cache_options truncation "
        "use_previous_response_id"
    ),
    "leave it out: the server knows no such parameter": "typical_p disabled_params",
    "leave it out: a refused request is not repeated here": (
        "max_retries retry_min_seconds retry_max_seconds"
    ),
    "leave it out: texts go out as they are, and one that is too long is an error": (
        "allowed_special disallowed_special check_embedding_ctx_length embedding_ctx_length "
        "skip_empty tiktoken_enabled tiktoken_model_name"
    ),
    "leave it out: vectors have the length that the model gives them": "dimensions",
    "leave it out: nothing is computed in this program": (
        "model_kwargs encode_kwargs query_encode_kwargs multi_process"
    ),
    "leave it out: a server on this machine has one": (
        "deployment api_version openai_api_type openai_api_version"
    ),
    "leave it out: this package makes its own connections; see `default_headers` and `timeout`": (
        "client async_client root_client root_async_client client_kwargs async_client_kwargs "
        "sync_client_kwargs http_client http_async_client http_socket_options default_query "
        "include_response_headers"
    ),
}


def hint_for(name: str, known: Collection[str]) -> str | None:
    """Return what to do about an argument of another class, None where it is of none.

    Args:
        name: The argument.
        known: What is taken in its place: a setting that is not among it is not named.
    """
    name = name.lower()
    for setting, others in _CALLED.items():
        if setting in known and name in others.split():
            return f"use `{setting}`"
    for table in (_OF_CHAT, _OF_ALL) if "max_tokens" in known else (_OF_ALL,):
        for hint, names in table.items():
            if name in names.split():
                return hint
    return None
