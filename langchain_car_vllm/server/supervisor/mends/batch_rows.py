"""What belongs to one request of a batch stays with that request."""

from typing import Any

from .mend import find, mend


@mend("batch-processors", "mlx_lm.generate", "mlx-lm 0.31.3")
def _keep_processors_in_line(module: Any) -> None:
    """Have every row of a batch keep its own logits processors and sampler, or none of either.

    mlx-lm 0.31.3 keeps those of requests that have left a batch without any, so a constrained
    request that follows an unconstrained one runs without its grammar and somebody else's answer
    gets it; and it puts None for those who have no processors among others, which stops the engine
    for good.
    """
    batches = [find(module, name) for name in ("PromptProcessingBatch", "GenerationBatch")]
    for batch in batches:
        find(batch, "__init__", "uids", "logits_processors", "samplers")
        find(batch, "filter")
        find(batch, "extend")
    for batch in batches:
        _wrap(batch, "filter")
        _wrap(batch, "extend")


def _wrap(batch: Any, name: str) -> None:
    original = getattr(batch, name)

    def wrapped(self: Any, other: Any) -> None:
        _line_up(self)
        if hasattr(other, "logits_processors"):
            _line_up(other)
        original(self, other)
        _line_up(self)

    setattr(batch, name, wrapped)


def _line_up(batch: Any) -> None:
    processors = [row or [] for row in batch.logits_processors]
    batch.logits_processors = processors if any(processors) else [[] for _ in batch.uids]
    batch.samplers = batch.samplers if any(batch.samplers) else [None] * len(batch.uids)


@mend("chunked-prefill-context", "vllm_mlx.mllm_batch_generator", "vllm-mlx 0.6.0")
def _complete_contexts(module: Any) -> None:
    """Hand the logits processors a context that ends with the token that the step reads.

    While a prompt is read in pieces, vllm-mlx 0.6.0 hands over each request's own list of answered
    tokens, to which that token is added only after the step. A grammar then asks for its first
    token twice and fails, which ends every answer under way, and penalties miss a token.
    """
    generator = find(module, "MLLMBatchGenerator")
    find(module, "install_chunked_prefill_mllm", "batch_gen")
    step = find(
        generator,
        "_step",
        "input_tokens",
        "cache",
        "logits_processors",
        "output_tokens",
        "samplers",
    )

    def patched(
        self: Any,
        input_tokens: Any,
        cache: Any,
        logits_processors: Any = None,
        output_tokens: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if output_tokens and self.active_batch is not None:
            own = {id(request.output_tokens) for request in self.active_batch.requests}
            if any(id(row) in own for row in output_tokens):
                latest = input_tokens.reshape(-1).tolist()
                output_tokens = [
                    [*row, token] if id(row) in own else row
                    for row, token in zip(output_tokens, latest)  # noqa: B905 - Python 3.10
                ]
        return step(self, input_tokens, cache, logits_processors, output_tokens, *args, **kwargs)

    generator._step = patched


MENDS = (
    _keep_processors_in_line,
    _complete_contexts,
)
