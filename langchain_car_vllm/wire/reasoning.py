"""What the model thinks: asked for, received, shown and sent back.

The server sends it as `reasoning_content`, apart from the answer, and takes it back in the history.
LangChain keeps it in `additional_kwargs["reasoning_content"]`; `content_blocks` shows it as a
`reasoning` block through the translator that importing this module registers.
"""

from collections.abc import Mapping
from typing import Any, Literal

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.block_translators import register_translator

PROVIDER = "vllm_mlx"
REASONING = "reasoning_content"

# Blocks of thoughts, and where LangChain, Anthropic, Mistral, OpenAI and Bedrock have the text.
_THOUGHTS = {
    "reasoning": ("reasoning", "content", "summary"),
    "thinking": ("thinking",),
    REASONING: (REASONING,),
}
# Parsers of thoughts that stand in other marks than `<think>` and `</think>`.
_OTHER_MARKS = ("gemma4", "gpt_oss", "harmony", "mistral")
Reasoning = bool | Literal["low", "medium", "high"] | None


def reasoning_parameters(reasoning: Reasoning, budget: int | None) -> dict[str, Any]:
    """Return the request fields for a wish about thinking.

    `enable_thinking` goes both to the top level, which the server's budget logic reads, and into
    `chat_template_kwargs`, which every engine renders.

    Args:
        reasoning: Whether, or how hard, to think; None leaves it to the model.
        budget: Most tokens to think, None for no limit.
    """
    fields: dict[str, Any] = {}
    if isinstance(reasoning, str):
        fields["reasoning_effort"] = reasoning
    elif reasoning is not None:
        fields["enable_thinking"] = reasoning
        fields["chat_template_kwargs"] = {"enable_thinking": reasoning}
    if budget is not None and reasoning is not False:
        fields["thinking_token_budget"] = budget
    return fields


def takes_budget(parser: str | None) -> bool:
    """Tell whether the server can end a thought by itself, by the parser that reads thoughts.

    Args:
        parser: Its name, None where the model does not think.
    """
    return parser is not None and parser not in _OTHER_MARKS


def without_thinking(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a body for a constrained answer, before which the server lets no model think.

    It must be said all the same: the server's own switch does not reach its reasoning parser, which
    then takes the beginning of a streamed JSON for reasoning (vllm-mlx 0.6.0).
    """
    left = {k: v for k, v in body.items() if k not in ("thinking_token_budget", "reasoning_effort")}
    template = {**(body.get("chat_template_kwargs") or {}), "enable_thinking": False}
    return {**left, "enable_thinking": False, "chat_template_kwargs": template}


def reasoning_of(message: AIMessage) -> str | None:
    """Return what the model thought before it wrote `message`, None where it did not say."""
    kept = message.additional_kwargs.get(REASONING)
    if isinstance(kept, str) and kept:
        return kept
    if isinstance(message.content, str):
        return None
    blocks = (b for b in message.content if isinstance(b, dict))
    return "".join(_thought(block) for block in blocks) or None


def is_thought(block: Mapping[str, Any]) -> bool:
    """Whether a block of an answer holds what the model thought, or a seal in its place."""
    return str(block.get("type")) in _THOUGHTS


def _thought(block: dict[str, Any]) -> str:
    said = (block.get(key) for key in _THOUGHTS.get(str(block.get("type")), ()))
    return next((text for part in said if (text := _text_of(part))), "")


def _text_of(part: Any) -> str:
    """Return the text of what stands in a block of a thought, which may be blocks in turn."""
    if isinstance(part, list):
        return "".join(map(_text_of, part))
    if isinstance(part, dict):
        return _text_of(part.get("text"))
    return part if isinstance(part, str) else ""


def _blocks(message: AIMessage) -> list[Any]:
    if not isinstance(message.content, str):
        raise NotImplementedError  # already blocks: LangChain's own parser takes them
    blocks: list[Any] = []
    if thought := message.additional_kwargs.get(REASONING):
        blocks.append({"type": "reasoning", "reasoning": thought})
    if message.content:
        blocks.append({"type": "text", "text": message.content})
    return blocks


def _message_blocks(message: AIMessage) -> list[Any]:
    blocks = _blocks(message)
    blocks.extend(
        {"type": "tool_call", "name": call["name"], "args": call["args"], "id": call.get("id")}
        for call in message.tool_calls
    )
    blocks.extend(dict(call) for call in message.invalid_tool_calls)
    return blocks


def _chunk_blocks(chunk: AIMessageChunk) -> list[Any]:
    # LangChain numbers blocks without an index 0, 1, ...: a tool call's own index 0 would then
    # be merged into the reasoning block, and the call be lost.
    blocks = _blocks(chunk)
    for block in blocks:
        block["index"] = "lc_rs_0" if block["type"] == "reasoning" else "lc_txt_0"
    if chunk.chunk_position == "last":
        return [*blocks, *_message_blocks(chunk)[len(blocks) :]]
    for call in chunk.tool_call_chunks:
        blocks.append(
            {
                "type": "tool_call_chunk",
                "id": call.get("id"),
                "name": call.get("name"),
                "args": call.get("args"),
                "index": f"lc_tc_{call.get('index') or 0}",
            }
        )
    return blocks


register_translator(PROVIDER, _message_blocks, _chunk_blocks)
