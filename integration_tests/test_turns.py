"""Conversations that a chat template refuses are answered, by the real server on both engines."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from langchain_car_vllm import ChatVllmMlx

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

USER_FIRST = (
    "{% if not messages | selectattr('role', 'eq', 'user') | list %}"
    "{{ raise_exception('No user query found in messages.') }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
ALTERNATING = (
    "{% set turns = messages[1:] if messages[0].role == 'system' else messages %}"
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
RULES = {"qwen3.6-rules": USER_FIRST, "mistral-rules": ALTERNATING}
S, U, A = SystemMessage("Be brief."), HumanMessage("Say hello."), AIMessage("Hello.")
CONVERSATIONS: dict[str, list[BaseMessage]] = {
    "system later": [U, A, S, U],
    "system at the end": [S, U, A, S],
    "system alone": [S],
    "answer first": [A, U],
    "system and answer": [S, A, U],
}


def with_template(source: str, folder: Path, template: str) -> str:
    """Return a model with the weights of another and a chat template of its own."""
    folder.mkdir()
    for path in Path(source).iterdir():
        if path.name == "tokenizer_config.json":
            config = json.loads(path.read_text(encoding="utf-8"))
            (folder / path.name).write_text(json.dumps({**config, "chat_template": template}))
        elif path.suffix != ".jinja":
            (folder / path.name).symlink_to(path)
    return str(folder)


@pytest.mark.parametrize("engine", ["batched", "simple"])
@pytest.mark.parametrize("rules", RULES)
def test_what_a_template_refuses_is_answered(
    chat: Callable[..., ChatVllmMlx],
    smollm2: str,
    tmp_path: Path,
    engine: str,
    rules: str,
):
    """A later system message, none of the user's, an answer at the beginning."""
    model = with_template(smollm2, tmp_path / rules, RULES[rules])
    llm = chat(model=model, engine=engine, max_tokens=4)
    for conversation in CONVERSATIONS.values():
        assert llm.invoke(conversation).usage_metadata
        assert list(llm.stream(conversation))
    llm.unload(force=True)
