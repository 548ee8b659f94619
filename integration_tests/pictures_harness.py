"""Pictures that come while others are answered, in the server's own scheduler, without a server.

    python pictures_harness.py FOLDER_OF_MENDS MODEL mended|plain

runs under the runtime's Python. Texts and pictures are asked at some steps of a long answer, and
each of them by itself. At last a client goes away, and nobody else is there.

It prints a line of JSON: how many requests had ended when the long answer did; how many answers
differ from those to a lone request; and whether what was read for the last client is still held.
"""

import json
import sys

from prefix_harness import _picture, _place_of_picture, _scheduler_of, _text

CHUNK, LONG = 64, 40
ENDING = "<|im_end|>\n<|im_start|>assistant\n"


class Asking:
    """A scheduler that is asked as the server's loop does it.

    Args:
        folder: The model's.
        keeps: Whether prompts are kept.
    """

    def __init__(self, folder: str, *, keeps: bool) -> None:
        self.scheduler = _scheduler_of(folder, CHUNK, enable_prefix_cache=keeps)
        self.answers: dict[str, list[int]] = {}
        self.ended: list[str] = []

    def ask(self, words: int, pictures: "list[int]", tokens: int) -> str:
        """Ask something about pictures; return the request's name."""
        place = _place_of_picture(self.scheduler) * len(pictures)
        given = {"images": [_picture(shade) for shade in pictures]} if pictures else {}
        prompt = f"<|im_start|>user\n{place}{_text(words, words)}{ENDING}"
        name = self.scheduler.add_request(prompt, max_tokens=tokens, temperature=0.0, **given)
        self.answers[name] = []
        return name

    def step(self) -> None:
        """Take a step, before which texts are made tokens of."""
        generator = self.scheduler.batch_generator
        for request in generator.unprocessed_requests if generator else ():
            if request.input_ids is None and not request.images:
                generator._preprocess_request(request)
        for output in self.scheduler.step().outputs:
            self.answers[output.request_id] += output.new_token_ids or []
            if output.finished:
                self.ended.append(output.request_id)


ARRIVALS = {
    0: (9, [], LONG),
    4: (1, [1], 5),
    6: (5, [], 5),
    7: (60, [2, 3], 5),
    9: (200, [], 5),
    11: (2, [1], 3),
    12: (30, [4], 5),
}
"""By step: words, pictures and tokens of a request."""


def main() -> None:
    folder, model, mode = sys.argv[1:]
    if mode == "mended":
        sys.path.insert(0, folder)
        from mends import catalogue, importing

        sys.meta_path.insert(0, importing.MendFinder(catalogue.MENDS, None))
    company, alone = Asking(model, keeps=True), Asking(model, keeps=False)
    names, step = [], 0
    while step in ARRIVALS or company.scheduler.has_requests():
        if step in ARRIVALS:
            names.append(company.ask(*ARRIVALS[step]))
        company.step()
        step += 1
    lone = []
    for asked in ARRIVALS.values():
        lone.append(alone.ask(*asked))
        while alone.scheduler.has_requests():
            alone.step()
    pairs = zip(names, lone, strict=True)
    left = alone.ask(9, [], LONG)
    for _ in range(CHUNK // 8):
        alone.step()
    assert alone.answers[left]
    alone.scheduler.abort_request(left)
    while alone.scheduler.has_requests():
        alone.step()
    found = {
        "before": company.ended.index(names[0]),
        "differ": sum(company.answers[one] != alone.answers[other] for one, other in pairs),
        "held": alone.scheduler.batch_generator.active_batch is not None,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
