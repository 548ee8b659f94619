"""How many tokens a model may think."""

from typing import Any

from .mend import find, mend


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


MENDS = (_count_answers_alone,)
