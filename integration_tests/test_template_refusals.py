"""What a chat template refuses: a 400 with its own sentence, and a server that answers on."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from raw_client import RawClient

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.wire.errors import InvalidRequestError

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


RULES = {
    "system first": (
        (
            "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
            "{{ raise_exception('System message must be at the beginning.') }}{% endif %}"
            "{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        ),
        [
            {"role": "user", "content": "Hi."},
            {"role": "assistant", "content": "Hello."},
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "And?"},
        ],
        "System message must be at the beginning.",
    ),
    "user needed": (
        (
            "{% if not messages | selectattr('role', 'eq', 'user') | list %}"
            "{{ raise_exception('No user query found in messages.') }}{% endif %}"
            "{% for m in messages %}{{ m.content }}{% endfor %}"
        ),
        [{"role": "system", "content": "Be brief."}],
        "No user query found in messages.",
    ),
    "alternation": (
        (
            "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
            "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
            "{{ m.content }}{% endfor %}"
        ),
        [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Hi."}],
        "Conversation roles must alternate user/assistant",
    ),
    "undefined": (
        "{% for m in messages %}{{ m.nothing.at.all }}{% endfor %}",
        [{"role": "user", "content": "Hi."}],
        "has no attribute",
    ),
    "addition": (
        "{% for m in messages %}{{ m.content + 1 }}{% endfor %}",
        [{"role": "user", "content": "Hi."}],
        "can only concatenate str",
    ),
    "syntax": ("{% for m in", [{"role": "user", "content": "Hi."}], "the chat template refused"),
    "none": (None, [{"role": "user", "content": "Hi."}], "the model has no chat template"),
    "loop": (
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
            "{% endfor %}{% endfor %}{% endfor %}"
        ),
        [{"role": "user", "content": "Hi."}],
        "did not finish within 2 s",
    ),
}


# What these refuse is sent once more, in an order that they take.
ORDERED = ("system first", "user needed", "alternation")


def with_template(source: str, folder: Path, template: str | None) -> str:
    """Return a model with the weights of another and its own chat template."""
    folder.mkdir()
    for path in Path(source).iterdir():
        if path.name == "tokenizer_config.json":
            config = json.loads(path.read_text())
            config.pop("chat_template", None)
            if template is not None:
                config["chat_template"] = template
            (folder / path.name).write_text(json.dumps(config))
        elif path.suffix == ".jinja":
            continue
        else:
            (folder / path.name).symlink_to(path)
    return str(folder)


@pytest.fixture(params=["batched", "simple"])
def templated(
    request: pytest.FixtureRequest,
    chat: Callable[..., ChatVllmMlx],
    smollm2: str,
    tmp_path: Path,
    fast_cpu: dict[str, str],
) -> Iterator[Callable[[str | None], ChatVllmMlx]]:
    """Return a factory of a model with a chat template of its own, on each engine."""
    made = []

    def make(template: str | None) -> ChatVllmMlx:
        llm = chat(
            model=with_template(smollm2, tmp_path / "model", template),
            engine=request.param,
            server_env={**fast_cpu, "CAR_VLLM_LAUNCH_TEMPLATE_SECONDS": "2"},
        )
        made.append(llm)
        llm.warm_up()
        return llm

    yield make
    for llm in made:
        llm.unload(force=True)


@pytest.mark.parametrize(
    "rule", [pytest.param(r, marks=pytest.mark.full if n else ()) for n, r in enumerate(RULES)]
)
def test_the_template_says_why(templated: Callable[[str | None], ChatVllmMlx], rule: str):
    """What a chat template refuses is a 400 with its own sentence, and the server answers on."""
    template, messages, sentence = RULES[rule]
    llm = templated(template)
    client = RawClient(llm)
    for stream in (False, True):
        reply = client.chat(messages, stream=stream)
        assert reply.status == 400
        assert sentence in reply.detail
    assert client.get("/health")["status"] == "healthy"
    turns = [(message["role"], message["content"]) for message in messages]
    if rule in ORDERED:
        answer = llm.invoke(turns)
        assert answer.usage_metadata
        assert answer.response_metadata["finish_reason"] in ("stop", "length")
        return
    with pytest.raises(InvalidRequestError) as caught:
        llm.invoke(turns)
    assert sentence in str(caught.value)
    assert not caught.value.is_retryable
