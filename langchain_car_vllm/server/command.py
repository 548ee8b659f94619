"""From what is known of a model to the server's command line. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from langchain_car_vllm.endpoint import Parsers, Serving
from langchain_car_vllm.models.facts import ModelFacts
from langchain_car_vllm.models.families import UNSTREAMED_PARSERS, family_facts, turn_order_of
from langchain_car_vllm.models.speculation import MTP
from langchain_car_vllm.server.engine import choose_engine
from langchain_car_vllm.server.memory import Memory, memory_for
from langchain_car_vllm.server.spec import ServerSpec, argument_value
from langchain_car_vllm.server.wiring import wired_bytes
from langchain_car_vllm.support.version_numbers import is_at_least

# The first version that can be told to refuse a text that is too long.
_OVERFLOW_POLICY = (0, 5, 0)
_SERVER_TIMEOUT = 86_400
"""Seconds. The server's own limit counts queueing, so the client's is the one that holds."""
# Tokens of a multimodal prompt that are read in one go. Where the mend `prefix-after-hit` steps
# aside, a prompt is stored only where more than that are new, and only caches that can be rewound
# are stored at the end: linear attention never can, sliding windows until they are full.
_CHUNK, _LINEAR_CHUNK = 512, 256
_PARTS = "--chunked-prefill-tokens"
_LEAST_SHARE = 0.01


class Launch(NamedTuple):
    """What is known of the model once it lies on the disk.

    Attributes:
        model: What `vllm-mlx serve` is given.
        offline: Whether the Hub need not be asked.
        serving: What its clients are told.
        sampling: The model's own sampling defaults, by the server's flag names.
        preserve_thinking: Whether the chat template can keep earlier thoughts in the prompt.
        linear_attention: Whether the prompt cache can only hold whole states.
        memory: What is set aside while others leave so much.
        granted: What is set aside as it starts.
        is_wired: Whether its weights are wired, so that it answers one request at a time.
    """

    model: str
    offline: bool
    serving: Serving
    sampling: Mapping[str, float] = {}
    preserve_thinking: bool = False
    linear_attention: bool = False
    memory: Memory = Memory(0)
    granted: Memory = Memory(0)
    is_wired: bool = False


def launch_for(
    spec: ServerSpec,
    facts: ModelFacts,
    model: str,
    *,
    offline: bool,
    budget_bytes: int,
    version: str | None = None,
    mlx_vlm: str | None = None,
    python: str | None = None,
    wiring: str = "auto",
    working_set: int | None = None,
) -> Launch:
    """Return how a chat model is served.

    Args:
        spec: What the user wants.
        facts: What is known of the model.
        model: What `vllm-mlx serve` is given.
        offline: Whether the Hub need not be asked.
        budget_bytes: Memory that all models together may take.
        version: Of the `vllm-mlx` that is launched, None where unknown.
        mlx_vlm: The version of mlx-vlm in its install, None where unknown.
        python: The install's Python.
        wiring: See `wiring_mode`.
        working_set: Bytes that Metal recommends, None where there is none.

    Raises:
        ServerStartError: The user wants an engine that this install would answer wrongly with.
    """
    engine, note = choose_engine(spec, multimodal=facts.multimodal, mlx_vlm=mlx_vlm, python=python)
    serving = serving_for(spec, facts, engine=engine, version=version)
    is_wired = bool(wired_bytes(facts.weights_bytes, wiring, working_set))
    memory = memory_for(
        facts.weights_bytes,
        facts.kv,
        facts.context_window,
        batched=engine == "batched",
        chunked=engine == "batched" and bool(serving.multimodal),
        budget=budget_bytes,
        server_args=spec.server_args,
        # Drafts that are refused while others are answered change tokens (vllm-mlx 0.6.0).
        alone=is_wired or spec.draft is not None,
    )
    return Launch(
        model,
        offline=offline,
        serving=serving_within(replace(serving, engine_note=note), memory),
        sampling=facts.sampling,
        preserve_thinking=facts.preserve_thinking,
        linear_attention=facts.linear_attention,
        memory=memory,
        granted=memory,
        is_wired=is_wired,
    )


def started_with(launch: Launch, granted: Memory) -> Launch:
    """Return a launch that begins with what could be set aside: what clients are told follows.

    Args:
        launch: As planned.
        granted: As much as was planned, or less.
    """
    memory = launch.memory.running_with(granted)
    serving = serving_within(launch.serving, granted)
    return launch._replace(memory=memory, granted=granted, serving=serving)


def serving_within(serving: Serving, memory: Memory) -> Serving:
    """Return what clients are told of a server that has so much memory set aside."""
    return replace(
        serving,
        max_input_tokens=memory.context,
        kv_room_tokens=memory.room,
        max_sequences=memory.sequences,
    )


def serving_for(
    spec: ServerSpec, facts: ModelFacts, *, engine: str, version: str | None
) -> Serving:
    """Return what clients are told of a server; what the user's own arguments name wins."""
    tool_call = argument_value(spec.server_args, "--tool-call-parser") or facts.tool_call_parser
    reasoning = argument_value(spec.server_args, "--reasoning-parser") or facts.reasoning_parser
    multimodal = facts.multimodal or "--mllm" in spec.server_args
    return Serving(
        version=version,
        engine=engine,
        parsers=Parsers(tool_call, reasoning),
        streams_tool_calls=tool_call not in UNSTREAMED_PARSERS,
        multimodal=multimodal,
        media=(family_facts(spec.served_name).media or None) if multimodal else (),
        context_window=facts.context_window,
        turn_order=turn_order_of(facts.family),
    )


def serve_arguments(
    spec: ServerSpec, launch: Launch, port: int, working_set: int | None = None
) -> list[str]:
    """Return the arguments of `vllm-mlx`, without the key."""
    arguments = ["serve", launch.model, "--host", "127.0.0.1", "--port", str(port)]
    arguments += ["--served-model-name", spec.served_name, "--timeout", str(_SERVER_TIMEOUT)]
    if spec.kind == "reranker":
        arguments += ["--lazy-load-model", "--rerank-model", launch.model]
    elif spec.kind == "embeddings":
        arguments += ["--lazy-load-model", "--embedding-model", launch.model]
        if launch.serving.version is None or is_at_least(launch.serving.version, _OVERFLOW_POLICY):
            arguments += ["--embedding-overflow-policy", "error"]
    else:
        if launch.serving.engine == "batched":
            arguments += _batching_arguments(launch, working_set)
        arguments += [*_draft_arguments(launch.serving.draft), *_model_arguments(launch)]
    return [*arguments, *spec.server_args]


def _batching_arguments(launch: Launch, working_set: int | None) -> list[str]:
    arguments, memory = ["--continuous-batching"], launch.memory
    if memory.cache_mb:
        arguments += ["--cache-memory-mb", str(memory.cache_mb)]
    if working_set and memory.room is not None:
        # The server clears its caches once it has so much in use.
        share = min(max(memory.needed / working_set, _LEAST_SHARE), 1.0)
        arguments += ["--gpu-memory-utilization", f"{share:.3f}"]
    if sequences := memory.sequences:
        arguments += ["--max-num-seqs", str(sequences), "--completion-batch-size", str(sequences)]
    if launch.serving.multimodal:
        chunk = _LINEAR_CHUNK if launch.linear_attention else _CHUNK
        arguments += [_PARTS, str(chunk)]
    return arguments


def is_read_in_parts(spec: ServerSpec, launch: Launch) -> bool:
    """Return whether a multimodal server reads long prompts in parts; the user's number wins."""
    if launch.serving.engine != "batched" or not launch.serving.multimodal:
        return False
    given = argument_value(spec.server_args, _PARTS)
    return given is None or (given.isdecimal() and int(given) > 0)


def _draft_arguments(draft: str | None) -> list[str]:
    """Return what has tokens drafted; every draft is verified, so that no token changes."""
    if draft is None:
        return []
    if draft == MTP:
        return ["--enable-mtp"]
    model = ["--mllm-draft-model", draft, "--mllm-draft-kind", "mtp", "--default-mllm-draft"]
    return ["--mllm", *model]


def _model_arguments(launch: Launch) -> list[str]:
    """Return what the model's own files ask for; the server reads none of it by itself."""
    arguments = []
    parsers = launch.serving.parsers or Parsers()
    if parsers.tool_call:
        arguments += ["--enable-auto-tool-choice", "--tool-call-parser", parsers.tool_call]
    if parsers.reasoning:
        arguments += ["--reasoning-parser", parsers.reasoning]
    if launch.preserve_thinking:
        # Without it agents lose arguments, and no prefix of a prompt is ever found again.
        arguments += ["--default-chat-template-kwargs", '{"preserve_thinking": true}']
    for name, value in launch.sampling.items():
        arguments += [f"--default-{name.replace('_', '-')}", f"{value:g}"]
    return arguments
