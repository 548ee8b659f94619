"""What LangChain is told of a model before anything of it is on this machine."""

from pathlib import Path
from typing import Any

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.models.facts import ModelFacts, read_model_facts
from langchain_car_vllm.models.families import family_facts
from langchain_car_vllm.models.ids import ModelId
from langchain_car_vllm.models.snapshot import find_snapshot

_CATALOG_MEDIA = {
    "vision": "image",
    "video_understanding": "video",
    "audio_understanding": "audio",
}


def model_profile(
    model: ModelId, max_input_tokens: int | None = None, *, read_files: bool = True
) -> dict[str, Any]:
    """Return a model's profile in LangChain's terms, without any network.

    The model's own files decide where a complete copy is on this machine, else the catalog, else
    the family. Keys are those of `langchain_core.language_models.ModelProfile`; what nobody knows
    is absent.

    Args:
        model: What is to be served.
        max_input_tokens: What fits where it will be served; by default what the model was made for.
        read_files: Whether to look for a copy, which blocks.
    """
    media = _media(model)
    facts = _local_facts(model) if read_files else None
    family = family_facts(model.name)
    thinks = family.thinks
    window = model.context_window
    if facts is not None:
        thinks = facts.reasoning_parser is not None
        window = facts.context_window or window
        media = media if facts.multimodal else frozenset()
        if facts.multimodal and not media:
            media = frozenset({"image"})
    profile: dict[str, Any] = {
        "name": model.name,
        "open_weights": True,
        "text_inputs": True,
        "text_outputs": True,
        "image_inputs": "image" in media,
        "image_url_inputs": "image" in media,
        "audio_inputs": "audio" in media,
        "video_inputs": "video" in media,
        "pdf_inputs": False,
        "image_tool_message": "image" in media,
        "pdf_tool_message": False,
        "image_outputs": False,
        "audio_outputs": False,
        "video_outputs": False,
        "reasoning_output": thinks,
        "tool_calling": True,
        "tool_choice": True,
        "tool_call_streaming": family.streams_tool_calls,
        "structured_output": True,
        "attachment": bool(media),
        "temperature": True,
        # Where the chat template refuses one, it goes out as a user's message.
        "mid_conversation_system_messages": family.turn_order is None,
        "mid_conversation_tools": False,
    }
    if family.effort_default is not None:
        profile["reasoning_effort_levels"] = ["low", "medium", "high"]
        profile["reasoning_effort_default"] = family.effort_default
    limits = [limit for limit in (window, max_input_tokens) if limit is not None]
    if limits:
        profile["max_input_tokens"] = min(limits)
        profile["max_output_tokens"] = min(limits)  # prompt and answer share it
    return profile


def _media(model: ModelId) -> frozenset[str]:
    stated = {_CATALOG_MEDIA[word] for word in model.capabilities if word in _CATALOG_MEDIA}
    return frozenset(stated or family_facts(model.name).media)


def _local_facts(model: ModelId) -> ModelFacts | None:
    try:
        directory: Path | None = find_snapshot(model.source)
        return read_model_facts(directory, model.name) if directory is not None else None
    except ConfigurationError:
        return None
