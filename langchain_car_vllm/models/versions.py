"""What older versions of `vllm-mlx` lack, as data, and how to serve a model without it.

Read from the wheels of vllm-mlx 0.3.0 to 0.6.0.
"""

from dataclasses import replace

from langchain_car_vllm.models.facts import ModelFacts
from langchain_car_vllm.runtime.locate import is_at_least

Version = tuple[int, int, int]

RECOMMENDED: Version = (0, 6, 0)

# The first version with a parser, and what older ones have in its place.
_TOOL_CALL_PARSERS: dict[str, tuple[Version, str | None]] = {
    "deepseek_v4": ((0, 5, 0), None),
    "step3p5": ((0, 5, 0), "qwen"),
}
_REASONING_PARSERS: dict[str, tuple[Version, str | None]] = {
    "deepseek_v4": ((0, 5, 0), "deepseek_r1"),
    "mistral": ((0, 4, 0), None),
    "step3p5": ((0, 5, 0), "qwen3"),
}
_SAMPLING: dict[str, Version] = {
    "top_k": (0, 4, 0),
    "min_p": (0, 4, 0),
    "presence_penalty": (0, 4, 0),
    "repetition_penalty": (0, 4, 0),
}
_LACKS = (
    ((0, 4, 0), "requests cannot queue: a second one at a time is refused"),
    ((0, 5, 0), "structured output may be invalid"),
    ((0, 5, 0), "generation may fail with `There is no Stream(gpu)`"),
    ((0, 6, 0), "an engine failure looks like an empty answer"),
    ((0, 6, 0), "streamed arguments of tool calls may lose their types"),
)


def facts_for_version(facts: ModelFacts, version: str | None) -> ModelFacts:
    """Return how a version can serve a model: without parsers and options that it does not have.

    Args:
        facts: How the model wants to be served.
        version: Of `vllm-mlx`; None where unknown, which is taken for a recent one.
    """
    if version is None:
        return facts
    return replace(
        facts,
        tool_call_parser=_available(facts.tool_call_parser, _TOOL_CALL_PARSERS, version),
        reasoning_parser=_available(facts.reasoning_parser, _REASONING_PARSERS, version),
        sampling={
            name: value
            for name, value in facts.sampling.items()
            if is_at_least(version, _SAMPLING.get(name, (0, 0, 0)))
        },
    )


def version_warning(version: str | None) -> str | None:
    """Return one sentence about what a version lacks, None where it lacks nothing.

    Args:
        version: Of `vllm-mlx`, None where unknown.
    """
    if version is None or is_at_least(version, RECOMMENDED):
        return None
    lacking = "; ".join(lack for since, lack in _LACKS if not is_at_least(version, since))
    return (
        f"vllm-mlx {version} is older than {'.'.join(map(str, RECOMMENDED))}: {lacking}. "
        "Run `car-vllm install --upgrade`."
    )


def _available(
    parser: str | None, known: dict[str, tuple[Version, str | None]], version: str
) -> str | None:
    if parser is None or parser not in known:
        return parser
    since, instead = known[parser]
    return parser if is_at_least(version, since) else instead
