"""Model families as data: what a name, a `model_type` and a chat template tell.

The server detects neither parser by itself (vllm-mlx 0.6.0), and a wrong one is worse than none: a
reasoning parser on a model that does not think can swallow a streamed answer. So a family gives its
parsers, and the model's own chat template has the last word where `template_decides`.

To add a family, add a row to `FAMILIES`, the more specific one first, and a sample of its output to
the family tests, which drive the server's real parsers with it.
"""

import re
from typing import Literal, NamedTuple

from langchain_car_vllm.endpoint import Serving


class Family(NamedTuple):
    """What is known of a family.

    Attributes:
        name: What it is called here, None for a model of no known family.
        pattern: Matches the last part of a model's name in lower case.
        model_types: Values of `model_type` in `config.json`, for a name that says nothing.
        tool_call_parser: Value for `--tool-call-parser`.
        reasoning_parser: Value for `--reasoning-parser`.
        thinks: Whether it thinks, judged by name.
        template_decides: Whether the chat template overrules `thinks`.
        needed_mark: What a chat template holds where the family's usual format is meant.
        otherwise: The tool call parser for templates without that mark.
        media: What it takes beside text, of `image`, `audio` and `video`.
        turn_order: What its chat template refuses else: `user-first` for a later system message
            and a conversation without a user's, `alternating` for two turns of one side as well.
        effort_default: How hard it thinks unless told, for one whose chat template takes an effort.
    """

    name: str | None
    pattern: str = r"(?!)"
    model_types: tuple[str, ...] = ()
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    thinks: bool = False
    template_decides: bool = False
    media: tuple[str, ...] = ()
    needed_mark: str = ""
    otherwise: str | None = None
    turn_order: Literal["user-first", "alternating"] | None = None
    effort_default: str | None = None

    @property
    def streams_tool_calls(self) -> bool:
        """False where the server's parser loses tool calls in a stream."""
        return self.tool_call_parser not in UNSTREAMED_PARSERS


# `glm4` reads thoughts in `<think>` whether the template opens them or the model does, and takes an
# answer without any for an answer; `qwen3` takes such an answer for a thought while streaming.
UNKNOWN = Family(name=None, reasoning_parser="glm4", template_decides=True)

FAMILIES = (
    Family(
        "gpt-oss",
        r"gpt[-_]?oss",
        ("gpt_oss",),
        tool_call_parser="gpt-oss",
        reasoning_parser="gpt_oss",
        thinks=True,
        effort_default="medium",
    ),
    Family(
        "deepseek-v4",
        r"deepseek[-_]?v4",
        ("deepseek_v4",),
        tool_call_parser="deepseek_v4",
        reasoning_parser="deepseek_v4",
        thinks=True,
    ),
    Family(
        "deepseek-r1",
        r"deepseek[-_]?r1",
        tool_call_parser="deepseek",
        reasoning_parser="deepseek_r1",
        thinks=True,
        needed_mark="```json",
    ),
    Family(
        "deepseek-v3",
        r"deepseek",
        ("deepseek_v3", "deepseek_v32"),
        tool_call_parser="deepseek",
        reasoning_parser="deepseek_r1",
        template_decides=True,
        # V3.1 and later write calls that the parser does not know.
        needed_mark="```json",
    ),
    Family("qwen3-coder", r"qwen-?3-?coder", tool_call_parser="qwen"),
    Family(
        "qwen3-vl-thinking",
        r"qwen-?3-?vl.*thinking",
        tool_call_parser="qwen",
        reasoning_parser="qwen3",
        thinks=True,
        media=("image", "video"),
    ),
    Family(
        "qwen3-vl",
        r"qwen-?3-?vl",
        ("qwen3_vl", "qwen3_vl_moe"),
        tool_call_parser="qwen",
        reasoning_parser="qwen3",
        template_decides=True,
        media=("image", "video"),
    ),
    Family(
        "qwen3.5",
        r"qwen-?3[._][5-9]",
        ("qwen3_5", "qwen3_5_moe"),
        tool_call_parser="qwen",
        reasoning_parser="qwen3",
        thinks=True,
        template_decides=True,
        media=("image", "video"),
        turn_order="user-first",
    ),
    Family("qwen3-instruct", r"qwen-?3.*instruct", tool_call_parser="qwen"),
    Family(
        "qwen3-thinking",
        r"qwen-?3.*thinking|qwq",
        tool_call_parser="qwen",
        reasoning_parser="qwen3",
        thinks=True,
    ),
    Family(
        "qwen3",
        r"qwen-?3",
        ("qwen3", "qwen3_moe", "qwen3_next"),
        tool_call_parser="qwen",
        reasoning_parser="qwen3",
        thinks=True,
        template_decides=True,
    ),
    Family(
        "qwen2.5-vl",
        r"qwen-?2(\.5)?-?vl",
        ("qwen2_vl", "qwen2_5_vl"),
        tool_call_parser="qwen",
        media=("image", "video"),
    ),
    Family("qwen2.5", r"qwen-?(1|2)", ("qwen2", "qwen2_moe"), tool_call_parser="qwen"),
    Family(
        "gemma-4",
        r"gemma-?4.*(e2b|e4b|12b)",
        tool_call_parser="gemma4",
        reasoning_parser="gemma4",
        thinks=True,
        media=("image", "audio", "video"),
    ),
    Family(
        "gemma-4",
        r"gemma-?4",
        ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"),
        tool_call_parser="gemma4",
        reasoning_parser="gemma4",
        thinks=True,
        media=("image", "video"),
    ),
    Family(
        "gemma-3",
        r"gemma-?3",
        ("gemma3", "gemma3n"),
        media=("image",),
        turn_order="alternating",
    ),
    Family(
        "hermes",
        r"hermes",
        tool_call_parser="hermes",
        reasoning_parser="glm4",
        template_decides=True,
    ),
    Family("llama-4", r"llama-?4", ("llama4",), tool_call_parser="llama", media=("image",)),
    Family("llama-3", r"llama-?3(?!.*(nemotron|vision))", tool_call_parser="llama"),
    Family(
        "mistral-thinking",
        r"magistral|mi[ns]i?stral.*reasoning",
        tool_call_parser="mistral",
        reasoning_parser="mistral",
        thinks=True,
        turn_order="alternating",
    ),
    Family(
        "mistral",
        r"mistral|devstral|ministral|mixtral|codestral",
        ("mistral", "mistral3", "ministral3", "mixtral"),
        tool_call_parser="mistral",
        reasoning_parser="mistral",
        template_decides=True,
        # The older format is an array, which `mistral` garbles in a stream.
        needed_mark="[ARGS]",
        otherwise="auto",
        turn_order="alternating",
    ),
    Family(
        "glm",
        r"glm-?[45]",
        ("glm4_moe", "glm4_moe_lite", "glm_moe_dsa"),
        tool_call_parser="glm47",
        reasoning_parser="glm4",
        thinks=True,
        template_decides=True,
    ),
    Family(
        "kimi-k2",
        r"kimi-?k2",
        ("kimi_k2",),
        tool_call_parser="kimi",
        reasoning_parser="glm4",
        template_decides=True,
    ),
    Family("granite-4", r"granite-?4", ("granitemoehybrid",), tool_call_parser="hermes"),
    Family(
        "granite-3",
        r"granite",
        ("granite", "granitemoe"),
        tool_call_parser="granite",
    ),
    Family(
        "nemotron-3",
        r"nemotron-?3|nemotron.*nano.*30b",
        ("nemotron_h",),
        tool_call_parser="nemotron",
        reasoning_parser="glm4",
        thinks=True,
        template_decides=True,
    ),
    Family(
        "minimax-m2",
        r"minimax-?m2",
        ("minimax_m2",),
        tool_call_parser="minimax",
        reasoning_parser="glm4",
        thinks=True,
        template_decides=True,
    ),
    Family(
        "step-3.5",
        r"step-?3[.p]?[57]",
        ("step3p5",),
        tool_call_parser="step3p5",
        reasoning_parser="step3p5",
        thinks=True,
    ),
    Family("xlam", r"xlam", tool_call_parser="xlam"),
    Family("functionary", r"functionary", tool_call_parser="functionary"),
)

# Their repositories carry code for other programs in `auto_map`. The server has its own: a model in
# mlx-lm 0.31.3 and a tokenizer in transformers 5.
_OWN_CODE = frozenset(
    {
        *("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa"),
        *("minimax", "minimax_m2", "nemotron", "nemotron_h", "nemotron-nas", "phi3", "phimoe"),
        *("granitemoehybrid", "exaone", "exaone4", "internlm3", "olmo2", "bailing_moe", "ernie4_5"),
        *("step3p5", "afmoe", "dots1", "seed_oss", "hunyuan_v1_dense", "mimo", "mimo_v2_flash"),
    }
)

# For models of no known family: what a chat template writes around a call tells its format.
TEMPLATE_FORMATS = (
    ("<|tool_call>call:", "gemma4"),
    ("\uff5cDSML\uff5c", "deepseek_v4"),
    ("<\uff5ctool\u2581calls\u2581begin\uff5c>", "deepseek"),
    ("<|tool_calls_section_begin|>", "kimi"),
    ("<minimax:tool_call>", "minimax"),
    ("<|channel|>", "gpt-oss"),
    ("<arg_key>", "glm47"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|python_tag|>", "llama"),
    ("<tool_call>", "hermes"),
)

# The server's parsers for these formats find nothing while streaming; with the other names that the
# server has for them, which a user may write.
UNSTREAMED_PARSERS = frozenset(
    {
        *("deepseek", "deepseek_v3", "deepseek_r1"),
        *("gpt-oss", "harmony"),
        *("granite", "granite3"),
        *("kimi", "kimi_k2", "moonshot"),
        "xlam",
    }
)


def family_facts(name: str) -> Family:
    """Return what a model's name alone tells; `UNKNOWN` where it tells nothing.

    Args:
        name: A catalog name, a Hub repository or a path; the last part counts.
    """
    short = name.rstrip("/").rsplit("/", 1)[-1].lower()
    return next((family for family in FAMILIES if re.search(family.pattern, short)), UNKNOWN)


def serving_of_name(name: str) -> Serving:
    """Return what clients can know of a model that somebody else serves, by its name."""
    family = family_facts(name)
    return Serving(
        streams_tool_calls=family.streams_tool_calls,
        media=family.media or None,
        turn_order=family.turn_order,
    )


def turn_order_of(family: str | None) -> str | None:
    """Return the turn order that the chat templates of a family want, by its name."""
    return next((row.turn_order for row in FAMILIES if row.name == family), None)


def family_of_type(model_type: str) -> Family:
    """Return the family of a `model_type` from `config.json`, else `UNKNOWN`."""
    return next((family for family in FAMILIES if model_type in family.model_types), UNKNOWN)


def own_code_types() -> list[str]:
    """Return each `model_type` that the server implements although repositories carry code too."""
    return sorted(_OWN_CODE)


def has_own_code(model_type: object) -> bool:
    """Return whether the server implements a `model_type` whose repositories carry code too."""
    return isinstance(model_type, str) and model_type in _OWN_CODE


def template_tool_format(template: str) -> str | None:
    """Return the tool call parser that a chat template points to, None where it takes no tools."""
    if "tools" not in template:
        return None
    return next((parser for mark, parser in TEMPLATE_FORMATS if mark in template), None)


def template_thinks(template: str, parser: str | None) -> bool:
    """Return whether a reasoning parser is right for the models of a chat template.

    A template names the switch (`enable_thinking`), or opens the thought at its very end; `<think>`
    elsewhere may only strip old thoughts from the history. That is enough for a parser that does no
    harm where nothing is thought.
    """
    if parser == "glm4":
        return "think>" in template
    return "enable_thinking" in template or "<think>" in template[-300:] or "[THINK]" in template
