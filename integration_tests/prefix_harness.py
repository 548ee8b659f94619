"""A conversation of short turns in the server's own scheduler, without a server.

    python prefix_harness.py FOLDER_OF_MENDS MODEL CHUNK mended|plain|cold FREEDOM

runs under the runtime's Python and prints a line of JSON for each turn: the tokens of its prompt,
the tokens that were found, the answer, and what an exact repeat of the prompt answers when the
conversation is over. FREEDOM is `free`, `constrained`, `thoughtful` or `shared`. A constrained turn
may use some tokens only, as with a schema or a budget for thoughts; its repeat may use them all. A
thoughtful answer begins with a thought that later prompts leave out. What is shared is the system
message: each turn is a conversation of its own.
"""

import json
import sys

TURNS, WORDS, FIRST = 8, 30, 560
ALLOWED = slice(1000, 1200)
_WORDS = "the city river house light sea road people train time".split()  # noqa: SIM905


def main() -> None:
    folder, model_folder, chunk, mode, freedom = sys.argv[1:]
    sys.path.insert(0, folder)
    from mlx_vlm import load
    from vllm_mlx import mllm_batch_generator
    from vllm_mlx.mllm_scheduler import MLLMScheduler, MLLMSchedulerConfig

    if mode == "mended":
        from mends import media_prompts, prefix_after_hit

        for mend in (*prefix_after_hit.MENDS, *media_prompts.MENDS):
            assert mend.apply(mllm_batch_generator) is None
    model, processor = load(model_folder)
    scheduler = MLLMScheduler(
        model,
        processor,
        MLLMSchedulerConfig(
            chunked_prefill_tokens=int(chunk),
            prefix_cache_memory_mb=500,
            enable_prefix_cache=mode != "cold",
        ),
    )
    system = f"<|im_start|>system\n{_text(FIRST, 0)}<|im_end|>\n<|im_start|>user\n"
    prompt = system if freedom == "shared" else "<|im_start|>user\n" + _text(FIRST, 0)
    prompts, turns = [], []
    for turn in range(TURNS):
        if freedom == "shared":
            prompt = system + _text(WORDS * (turn + 1), turn)
        prompt += "<|im_end|>\n<|im_start|>assistant\n"
        asked = prompt + ("<think>\n" if freedom == "thoughtful" else "")
        before = _found(scheduler)
        processors = [_constrain] if freedom == "constrained" else None
        tokens, answer = _ask(scheduler, asked, processors)
        prompts.append(asked)
        turns.append([tokens, _found(scheduler) - before, answer])
        prompt += f"{answer}<|im_end|>\n<|im_start|>user\n" + _text(WORDS, turn)
    for prompt, turn in zip(prompts, turns, strict=True):
        print(json.dumps([*turn, _ask(scheduler, prompt, None)[1]]), flush=True)


def _ask(scheduler, prompt: str, processors: "list | None") -> "tuple[int, str]":
    """Return the tokens of the prompt, and the answer."""
    scheduler.add_request(prompt, max_tokens=8, temperature=0.0, logits_processors=processors)
    answer, tokens = "", 0
    while scheduler.has_requests():
        for output in scheduler.step().outputs:
            answer += output.new_text or ""
            tokens = output.prompt_tokens
    return tokens, answer


def _constrain(_tokens, logits):
    import mlx.core as mx

    allowed = mx.full(logits.shape, -mx.inf)
    allowed[:, ALLOWED] = logits[:, ALLOWED]
    return allowed


def _text(words: int, first: int) -> str:
    return " ".join(_WORDS[(first + n) % len(_WORDS)] for n in range(words))


def _found(scheduler) -> int:
    """Return the tokens that were found so far; each look counts, and short prompts take two."""
    generator = scheduler.batch_generator
    cache = generator and generator.prefix_cache
    return cache.get_stats()["tokens_saved"] if cache else 0


if __name__ == "__main__":
    main()
