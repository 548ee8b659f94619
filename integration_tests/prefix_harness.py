"""A conversation of short turns in the server's own scheduler, without a server.

    python prefix_harness.py FOLDER_OF_MENDS MODEL CHUNK mended|plain|cold

runs under the runtime's Python and prints a line of JSON for each turn: the tokens of its prompt,
the tokens that were found, and the answer.
"""

import json
import sys

TURNS, WORDS, FIRST = 8, 30, 560
_WORDS = "the city river house light sea road people train time".split()  # noqa: SIM905


def main() -> None:
    folder, model_folder, chunk, mode = sys.argv[1:]
    sys.path.insert(0, folder)
    from mlx_vlm import load
    from vllm_mlx import mllm_batch_generator
    from vllm_mlx.mllm_scheduler import MLLMScheduler, MLLMSchedulerConfig

    if mode == "mended":
        from mends import prefix_after_hit

        prefix_after_hit._keep_prompts_after_hits(mllm_batch_generator)
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
    prompt = "<|im_start|>user\n" + _text(FIRST, 0)
    for turn in range(TURNS):
        prompt += "<|im_end|>\n<|im_start|>assistant\n"
        before = _found(scheduler)
        scheduler.add_request(prompt, max_tokens=8, temperature=0.0)
        answer, tokens = "", 0
        while scheduler.has_requests():
            for output in scheduler.step().outputs:
                answer += output.new_text or ""
                tokens = output.prompt_tokens
        print(json.dumps([tokens, _found(scheduler) - before, answer]), flush=True)
        prompt += f"{answer}<|im_end|>\n<|im_start|>user\n" + _text(WORDS, turn)


def _text(words: int, first: int) -> str:
    return " ".join(_WORDS[(first + n) % len(_WORDS)] for n in range(words))


def _found(scheduler) -> int:
    """Return the tokens that were found so far; each look counts, and short prompts take two."""
    generator = scheduler.batch_generator
    cache = generator and generator.prefix_cache
    return cache.get_stats()["tokens_saved"] if cache else 0


if __name__ == "__main__":
    main()
