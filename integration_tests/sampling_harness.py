"""How the server's own scheduler of text models samples, without a server.

    python sampling_harness.py FOLDER_OF_MENDS MODEL mended|plain

runs under the runtime's Python, with weights in 16 bits, as models are published. Prints a line of
JSON: the likeliest answer; the same asked beside an answer at a high temperature; asked with the
least `top_p`, with `top_k=1`, and with a `presence_penalty`. With the mends also one with a bias
for tokens that the model has not, and one with a `top_k` of more than it has.
"""

import importlib
import json
import sys

PROMPT, TOKENS = "The capital of France is", 12
GREEDY = {"temperature": 0.0}
HOT = {"temperature": 1.8, "top_p": 1.0}


class Asking:
    """A model in 16 bits, asked one thing in many ways.

    Args:
        folder: The model's.
    """

    def __init__(self, folder: str) -> None:
        import mlx.core as mx
        from mlx_lm import load

        self._model, self._tokenizer = load(folder)
        self._model.set_dtype(mx.bfloat16)

    def ask(self, *asked: dict) -> str:
        """Return the last of some answers, each of which begins after the one before."""
        from vllm_mlx import scheduler as module
        from vllm_mlx.request import Request, SamplingParams

        settings = module.SchedulerConfig(enable_prefix_cache=False)
        scheduler = module.Scheduler(self._model, self._tokenizer, settings)
        prompt, answers = self._tokenizer.encode(PROMPT), {}
        for number, ways in enumerate(asked):
            params = SamplingParams(max_tokens=TOKENS if number else 3 * TOKENS, **ways)
            scheduler.add_request(Request(str(number), prompt=prompt, sampling_params=params))
            answers[str(number)] = []
            for _ in range(3):
                _step(scheduler, answers)
        while scheduler.has_requests():
            _step(scheduler, answers)
        return self._tokenizer.decode(answers[str(len(asked) - 1)][:TOKENS])


def main() -> None:
    folder, model, mode = sys.argv[1:]
    sys.path.insert(0, folder)
    if mode == "mended":
        mends = importlib.import_module("mends.catalogue").MENDS
        finder = importlib.import_module("mends.importing").MendFinder(mends, None)
        sys.meta_path.insert(0, finder)
    ask = Asking(model).ask
    found = {
        "likeliest": ask(GREEDY),
        "in company": ask(HOT, GREEDY),
        "top_p": ask({"temperature": 1.0, "top_p": 1e-4}),
        "top_k": ask({**HOT, "top_k": 1}),
        "penalty": ask({**GREEDY, "presence_penalty": 5.0}),
    }
    if mode == "mended":
        from mlx_lm.sample_utils import make_logits_processors

        bias = make_logits_processors({99_999_999: 1.0, -5: 50.0, 10**30: 1.0})
        found["bias"] = ask({**GREEDY, "logits_processors": bias})
        found["wide"] = ask({"temperature": 1e-9, "top_k": 10**7})
    print(json.dumps(found))


def _step(scheduler, answers: "dict[str, list[int]]") -> None:
    for output in scheduler.step().outputs:
        answers[output.request_id] += output.new_token_ids or []


if __name__ == "__main__":
    main()
