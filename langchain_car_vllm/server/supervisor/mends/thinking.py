"""How many tokens a model may think."""

from typing import Any

from .mend import find, find_names, mend

_TAGS = ("<think>", "</think>")


@mend("thinking-budget", "vllm_mlx.constrained.thinking_processor", "vllm-mlx 0.6.0")
def _count_answers_alone(module: Any) -> None:
    """Count what is answered, and not what was asked.

    The engine of text models shows the prompt, too, or what it did not find of it in its cache:
    vllm-mlx 0.6.0 ends a thought as soon as both together are as long as it may be, and never ends
    one where the prompt shows the end of an earlier one. The engine of models that take media shows
    the answer alone, and begins with nothing.
    """
    processor = find(module, "ThinkingAwareLogitsProcessor", "thinking_token_budget")
    call = find(processor, "__call__", "tokens", "logits")

    def called(self: Any, tokens: Any, logits: Any) -> Any:
        if self.start is None:
            self.start = len(tokens)
        return call(self, tokens[self.start :], logits)

    # The class has slots, and none for another attribute.
    parts = {"start": None, "__call__": called}
    module.ThinkingAwareLogitsProcessor = type("AnswerBudget", (processor,), parts)


@mend("thinking-tags", "vllm_mlx.server", "vllm-mlx 0.6.0")
def _force_tags_that_are_tokens(module: Any) -> None:
    """Pass over a budget where no token `</think>` ends a thought, and nothing reads thoughts.

    vllm-mlx 0.6.0 writes the letters of that word into the answers of models that do not think, and
    then forbids any model without that token to begin a word with the first of them.
    """
    build = find(module, "_build_thinking_processor", "engine", "thinking_token_budget")
    find(module, "_get_engine_tokenizer", "engine")
    find_names(find(module, "_build_reasoning_parser"), "_reasoning_parser")

    def built(engine: Any, *args: Any, **settings: Any) -> Any:
        processor = build(engine, *args, **settings)
        if processor is None:
            return None
        encode = module._get_engine_tokenizer(engine).encode
        if any(len(encode(tag, add_special_tokens=False)) != 1 for tag in _TAGS):
            if module._reasoning_parser is None:
                return None
            processor._content_phase_mask_ids = ()
        return processor

    module._build_thinking_processor = built


MENDS = (
    _count_answers_alone,
    _force_tags_that_are_tokens,
)
