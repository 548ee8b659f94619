"""How to serve a model with an older `vllm-mlx`: what it lacks, as data.

Read from the wheels of vllm-mlx 0.3.0 to 0.6.0.
"""

from langchain_car_vllm.models.facts import ModelFacts
from langchain_car_vllm.support.version_numbers import Version, is_at_least

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


def facts_for_version(facts: ModelFacts, version: str | None) -> ModelFacts:
    """Return how a version can serve a model: without parsers and options that it does not have.

    Args:
        facts: How the model wants to be served.
        version: Of `vllm-mlx`; None where unknown, which is taken for a recent one.
    """
    if version is None:
        return facts
    return facts._replace(
        tool_call_parser=_available(facts.tool_call_parser, _TOOL_CALL_PARSERS, version),
        reasoning_parser=_available(facts.reasoning_parser, _REASONING_PARSERS, version),
        sampling={
            name: value
            for name, value in facts.sampling.items()
            if is_at_least(version, _SAMPLING.get(name, (0, 0, 0)))
        },
    )


def _available(
    parser: str | None, known: dict[str, tuple[Version, str | None]], version: str
) -> str | None:
    if parser is None or parser not in known:
        return parser
    since, instead = known[parser]
    return parser if is_at_least(version, since) else instead
