"""What LangChain is told of a model, also before anything of it is on this machine."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from langchain_car_vllm.endpoint import Serving
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


class Profile(dict[str, Any]):
    """A model's profile: what is known of it, and over that what a user chose.

    Args:
        known: What is known.
        chosen: What the user chose, also where it is the same.

    Attributes:
        known: What is known; it may be known better later.
    """

    def __init__(self, known: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
        super().__init__({**known, **chosen})
        self.known = known
        self._keys = frozenset(chosen)

    def __or__(self, chosen: Mapping[str, Any]) -> "Profile":  # type: ignore[override]
        return Profile(self.known, {**self.chosen, **chosen})

    @property
    def chosen(self) -> dict[str, Any]:
        """What the user chose, here too."""
        return {k: v for k, v in self.items() if k in self._keys or self.known.get(k, self) != v}


def chosen_of(profile: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a user chose of a profile: all, where nothing says what was known."""
    return profile.chosen if isinstance(profile, Profile) else dict(profile or {})


def served_profile(model: ModelId, serving: Serving) -> Mapping[str, Any]:
    """Return the profile of a model that is served; the same object while nothing changes."""
    parser = serving.parsers.reasoning if serving.parsers else None
    window, most = serving.context_window, serving.max_input_tokens
    return _served_profile(model, parser, bool(serving.multimodal), window, most)


@lru_cache(maxsize=64)
def _served_profile(
    model: ModelId,
    reasoning_parser: str | None,
    multimodal: bool,  # noqa: FBT001
    context_window: int | None,
    max_input_tokens: int | None,
) -> Mapping[str, Any]:
    facts = ModelFacts(None, reasoning_parser, multimodal, context_window)
    return model_profile(model, max_input_tokens, facts=facts)


def model_profile(
    model: ModelId,
    max_input_tokens: int | None = None,
    *,
    facts: ModelFacts | None = None,
    read_files: bool = True,
) -> dict[str, Any]:
    """Return a model's profile in LangChain's terms, without any network.

    The model's own files decide where a complete copy is on this machine, else the catalog, else
    the family. Keys are those of `langchain_core.language_models.ModelProfile`; what nobody knows
    is absent.

    Args:
        model: What is to be served.
        max_input_tokens: What fits where it will be served; by default what the model was made for.
        facts: What its files say, where somebody has read them.
        read_files: Whether to look for a copy, which blocks.
    """
    media = _media(model)
    if facts is None and read_files:
        facts = _local_facts(model)
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
