"""How the tests ask, and a model that prefers some labels."""

import math

from fakes.reply import Reply


def choosing(body) -> Reply:
    """Give the first place twice what the others get, and `billing` six times as much."""
    text = asked(body)
    keys = text.rpartition("Answer with one of ")[2].partition(" and ")[0].split(", ")
    lines = [line for line in text.splitlines() if line.partition(":")[0] in keys]
    weights = [
        (2 if place == 0 else 1) * (6 if "billing" in line else 1)
        for place, line in enumerate(lines)
    ]
    likely = {
        f" {key}": math.log(0.9 * weight / sum(weights))
        for key, weight in zip(keys, weights, strict=True)
    }
    return Reply(text=" " + keys[0], likely=likely, usage=(30, 1))


def asked(body) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


TEAM = {"billing": "Payments and invoices.", "billing disputes": None, "other": {"a": 1}}


def ask(decide, state, **questions):
    return decide.invoke({"state": state, "questions": questions})
