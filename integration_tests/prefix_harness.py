"""A conversation of short turns in the server's own scheduler, without a server.

    python prefix_harness.py FOLDER_OF_MENDS MODEL CHUNK mended|plain|cold FREEDOM

runs under the runtime's Python and prints a line of JSON for each turn: the tokens of its prompt,
the tokens that were found, the answer, and what an exact repeat of the prompt answers when the
conversation is over. FREEDOM is `free`, `constrained`, `thoughtful`, `shared` or `pictured`. A
constrained turn may use some tokens only, as with a schema or a budget for thoughts; its repeat may
use them all. A thoughtful answer begins with a thought that later prompts leave out. What is shared
is the system message: each turn is a conversation of its own. A pictured conversation shows a
picture in its first turn and another one later; two more lines ask its last prompt, but with
another first picture, and the one that showed the second, but with another one. Words may be
joined, as in `pictured-thoughtful`.
"""

import base64
import io
import json
import sys

TURNS, WORDS, FIRST = 8, 30, 560
SECOND_PICTURE = 4
ALLOWED = slice(1000, 1200)
_WORDS = "the city river house light sea road people train time".split()  # noqa: SIM905


def main() -> None:
    folder, model, chunk, mode, freedom = sys.argv[1:]
    sys.path.insert(0, folder)
    if mode == "mended":
        _mend()
    scheduler = _scheduler_of(model, int(chunk), enable_prefix_cache=mode != "cold")
    asked, turns = _converse(scheduler, freedom)
    for (prompt, pictures), turn in zip(asked, turns, strict=True):
        print(json.dumps([*turn, _ask(scheduler, prompt, None, pictures)[1]]), flush=True)
    if "pictured" in freedom:
        first, second = asked[-1][1]
        others = [(asked[-1][0], [_picture(TURNS), second])]
        others += [(asked[SECOND_PICTURE][0], [first, _picture(TURNS)])]
        for prompt, pictures in others:
            before = _found(scheduler)
            tokens, answer = _ask(scheduler, prompt, None, pictures)
            print(json.dumps([tokens, _found(scheduler) - before, answer, answer]), flush=True)


def _mend() -> None:
    from mends import media_prompts, picture_prompts, prefix_after_hit
    from vllm_mlx import mllm_batch_generator

    for part in (prefix_after_hit, media_prompts, picture_prompts):
        for mend in part.MENDS:
            assert mend.apply(mllm_batch_generator) is None


def _scheduler_of(folder: str, chunk: int, *, enable_prefix_cache: bool):
    from mlx_vlm import load
    from vllm_mlx.mllm_scheduler import MLLMScheduler, MLLMSchedulerConfig

    config = MLLMSchedulerConfig(
        chunked_prefill_tokens=chunk,
        prefix_cache_memory_mb=500,
        enable_prefix_cache=enable_prefix_cache,
    )
    return MLLMScheduler(*load(folder), config)


def _converse(scheduler, freedom: str) -> "tuple[list, list]":
    """Return what was asked, with its pictures, and the tokens, those found, and the answers."""
    system = f"<|im_start|>system\n{_text(FIRST, 0)}<|im_end|>\n<|im_start|>user\n"
    prompt = system if "shared" in freedom else "<|im_start|>user\n" + _text(FIRST, 0)
    processors = [_constrain] if "constrained" in freedom else None
    asked, turns, pictures = [], [], []
    for turn in range(TURNS):
        if "shared" in freedom:
            prompt = system + _text(WORDS * (turn + 1), turn)
        if "pictured" in freedom and turn in (0, SECOND_PICTURE):
            prompt += _place_of_picture(scheduler) + _text(WORDS, turn)
            pictures = [*pictures, _picture(turn)]
        prompt += "<|im_end|>\n<|im_start|>assistant\n"
        asked.append((prompt + ("<think>\n" if "thoughtful" in freedom else ""), pictures))
        before = _found(scheduler)
        tokens, answer = _ask(scheduler, asked[-1][0], processors, pictures)
        turns.append([tokens, _found(scheduler) - before, answer])
        prompt += f"{answer}<|im_end|>\n<|im_start|>user\n" + _text(WORDS, turn)
    return asked, turns


def _place_of_picture(scheduler) -> str:
    is_bare = scheduler.model.config.model_type == "gemma4"
    return "<|image_pad|>" if is_bare else "<|vision_start|><|image_pad|><|vision_end|>"


def _ask(scheduler, prompt: str, processors: "list | None", pictures=()) -> "tuple[int, str]":
    """Return the tokens of the prompt, and the answer."""
    given = {"images": list(pictures)} if pictures else {}
    scheduler.add_request(
        prompt, max_tokens=8, temperature=0.0, logits_processors=processors, **given
    )
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


def _picture(shade: int) -> str:
    """Return the address of a picture that is another one for each number."""
    from PIL import Image

    picture = Image.new("RGB", (64, 64), (60 * shade % 256, 20 + 50 * shade % 200, 200))
    picture.paste((250, 10 * shade, 0), (0, 0, 32, 16 + shade))
    data = io.BytesIO()
    picture.save(data, "png")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _text(words: int, first: int) -> str:
    return " ".join(_WORDS[(first + n) % len(_WORDS)] for n in range(words))


def _found(scheduler) -> int:
    """Return the tokens that were found so far; each look counts, and short prompts take two."""
    generator = scheduler.batch_generator
    cache = generator and generator.prefix_cache
    return cache.get_stats()["tokens_saved"] if cache else 0


if __name__ == "__main__":
    main()
