"""What mlx-lm itself says of the tokens of a greedy answer; runs under the server's own Python.

python logprobs_harness.py MODEL QUESTION TOKENS
"""

import json
import sys

import mlx.core as mx
from mlx_lm import load


def main() -> None:
    """Print each token's text with its log probability and those of the three likeliest."""
    folder, question, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    model, tokenizer = load(folder)
    messages = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    found = []
    for _ in range(count):
        logits = model(mx.array([ids]))[0, -1].astype(mx.float32)
        values = mx.log(mx.softmax(logits)).tolist()
        best = sorted(range(len(values)), key=lambda token: -values[token])[:3]
        pairs = [[tokenizer.decode([token]), values[token]] for token in best]
        found.append(pairs)
        ids = [*ids, best[0]]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
