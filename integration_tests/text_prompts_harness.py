"""Growing conversations in the server's own scheduler of text models, without a server.

    python text_prompts_harness.py FOLDER_OF_MENDS MODEL mended|plain

runs under the runtime's Python. Three conversations are held alone and without a cache. Then each
turn of all three is asked at once, with a cache; at last each prompt is asked again, and with
another end. The template opens a thought, which the next prompt leaves out. Other conversations
begin with one system message then. And short prompts come while a long one is read. At last a
thought may have some tokens, in a conversation that shows another, new and once it was kept; and a
prompt that was kept is answered with a penalty.

It prints a line of JSON: for each turn the tokens of the messages and the tokens that were found;
the tokens of the system message, and those that each other conversation found; how many answers
differ in company, when repeated, with another end, after a shared message, beside a long prompt,
and with a penalty; how many of the short ones had ended when the answer to the long one began; and
how many tokens the thoughts had.
"""

import json
import sys

TURNS, CONVERSATIONS = 4, 3
STEP, SHORT_STEP = 2048, 256
"""Tokens that are read at a time; fewer where a prompt is read beside others."""
BUDGET, OPENING, END = 4, 776, 777
"""Of a thought, and tokens that stand for its marks."""
LIKING = {"repetition_penalty": 0.3}
"""A penalty that has what was said in the prompt be said again."""
BEGIN, THOUGHT = "<|im_start|>assistant\n", "<think>\n"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
_WORDS = "the city river house light sea road people train time".split()  # noqa: SIM905


class Asking:
    """A scheduler that is asked by lists of tokens.

    Args:
        module: The server's own.
        model: What answers.
        tokenizer: Of the model.
        keeps: Whether prompts are kept.
        step: Tokens that are read at a time.

    Attributes:
        before: The prompts whose answers had ended when that to the first one began.
    """

    def __init__(self, module, model, tokenizer, *, keeps: bool, step: int = STEP) -> None:
        settings = module.SchedulerConfig(
            cache_memory_mb=500, enable_prefix_cache=keeps, prefill_step_size=step
        )
        self._scheduler = module.Scheduler(model, tokenizer, settings)
        self._number = 0

    def ask(self, *prompts: "list[int]", **ways) -> "list[list[int]]":
        """Return the answers to prompts that come at once, sampled in some ways."""
        from vllm_mlx.request import Request, SamplingParams

        answers, ended, self.before = {}, 0, None
        for prompt in prompts:
            self._number += 1
            answers[str(self._number)] = []
            greedy = SamplingParams(max_tokens=8, temperature=0.0, **ways)
            request = Request(str(self._number), prompt=prompt, sampling_params=greedy)
            self._scheduler.add_request(request)
        while self._scheduler.has_requests():
            for output in self._scheduler.step().outputs:
                answers[output.request_id] += output.new_token_ids or []
                ended += output.finished
            if self.before is None and next(iter(answers.values())):
                self.before = ended
        return list(answers.values())

    def found(self) -> int:
        """Return the tokens that were found so far."""
        return self._scheduler.memory_aware_cache.get_stats()["tokens_saved"]


def main() -> None:
    folder, model_folder, mode = sys.argv[1:]
    sys.path.insert(0, folder)
    if mode == "mended":
        from mends import catalogue, importing

        sys.meta_path.insert(0, importing.MendFinder(catalogue.MENDS, None))
    from mlx_lm import load
    from vllm_mlx import scheduler

    model, tokenizer = load(model_folder, tokenizer_config={"chat_template": TEMPLATE})

    def tokens(text: str) -> "list[int]":
        return list(tokenizer.encode(text))

    alone = Asking(scheduler, model, tokenizer, keeps=False)
    together = Asking(scheduler, model, tokenizer, keeps=True)
    talks = [tokens(_said(200 + 40 * number, number)) for number in range(CONVERSATIONS)]
    asked, answered, turns, in_company = [], [], [], 0
    for turn in range(TURNS):
        prompts = [talk + tokens(BEGIN + THOUGHT) for talk in talks]
        answers = [alone.ask(prompt)[0] for prompt in prompts]
        before = together.found()
        in_company += _differing(together.ask(*prompts), answers)
        turns.append([sum(map(len, talks)), together.found() - before])
        asked += prompts
        answered += answers
        talks = [
            talk + tokens(BEGIN) + answer + tokens("<|im_end|>\n" + _said(10 + 5 * number, turn))
            for number, (talk, answer) in enumerate(zip(talks, answers, strict=True))
        ]
    again = [together.ask(prompt)[0] for prompt in asked]
    ends = [prompt + tokens("Something else.") for prompt in asked]
    otherwise = [together.ask(prompt)[0] for prompt in ends]
    system = tokens(f"<|im_start|>system\n{_text(300, 0)}<|im_end|>")
    others = [
        system + tokens("\n" + _said(10, number) + BEGIN + THOUGHT)
        for number in range(CONVERSATIONS)
    ]
    shared, said = [len(system)], []
    for prompt in others:
        before = together.found()
        said += together.ask(prompt)
        shared.append(together.found() - before)
    slow = Asking(scheduler, model, tokenizer, keeps=False, step=SHORT_STEP)
    reading = Asking(scheduler, model, tokenizer, keeps=True, step=SHORT_STEP)
    short = [tokens(_said(8 * number, number) + BEGIN) for number in range(1, CONVERSATIONS + 1)]
    beside = [tokens(_said(20 * SHORT_STEP, 1) + BEGIN), *short, others[1]]
    reading.ask(others[0])
    answers, ended = reading.ask(*beside), reading.before
    found = {
        "penalty": _differing(together.ask(asked[0], **LIKING), alone.ask(asked[0], **LIKING)),
        "thoughts": [_tokens_of_thought(together, asked[-1]) for _ in range(2)],
        "beside": _differing(answers, [slow.ask(prompt)[0] for prompt in beside]),
        "ended": [ended, len(beside) - 1],
        "turns": turns,
        "shared": shared,
        "others": _differing(said, [alone.ask(prompt)[0] for prompt in others]),
        "company": in_company,
        "repeated": _differing(again, answered),
        "other end": _differing(otherwise, [alone.ask(prompt)[0] for prompt in ends]),
    }
    print(json.dumps(found))


def _tokens_of_thought(asking: Asking, prompt: "list[int]") -> "int | None":
    """Return after how many tokens a thought is ended, None where it is not."""
    from vllm_mlx.constrained import ThinkingAwareLogitsProcessor

    budget = ThinkingAwareLogitsProcessor([OPENING], [END], BUDGET, prompt_has_think_tag=True)
    [answer] = asking.ask([END, *prompt], logits_processors=[budget])
    return answer.index(END) if END in answer else None


def _said(words: int, first: int) -> str:
    return f"<|im_start|>user\n{_text(words, first)}<|im_end|>\n"


def _text(words: int, first: int) -> str:
    return " ".join(_WORDS[(first + n) % len(_WORDS)] for n in range(words))


def _differing(these, those) -> int:
    return sum(this != that for this, that in zip(these, those, strict=True))


if __name__ == "__main__":
    main()
