"""The bound of an answer in another program's request, under the name that the server reads."""

import json

from langchain_car_vllm.support.json_objects import read_json_object

_SAID, _READ = "max_completion_tokens", "max_tokens"
# What the server allows, and gives where nothing is said: a larger bound would be refused.
_MOST = 32_768


def may_need_bound(body: bytes) -> bool:
    """Tell, without reading all of it, whether a request may have a bound of the other name."""
    return b'"max_completion_tokens"' in body


def with_bound(body: bytes) -> bytes:
    """Return a chat request with its bound under the server's name, too; all else stays."""
    asked = read_json_object(body)
    bound = asked.get(_SAID) if asked and asked.get(_READ) is None else None
    if bound is None or (isinstance(bound, int | float) and bound >= _MOST):
        return body
    return b"%b, %b: %b}" % (body.rstrip()[:-1], *(json.dumps(x).encode() for x in (_READ, bound)))
