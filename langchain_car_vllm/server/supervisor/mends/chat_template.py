"""A chat template refuses requests, not more: it runs no code, and one that never ends is stopped.

Templates raise for roles in an order that their model was not trained on, for system messages in
the middle and more. The published server makes a causeless 500 of all that, and a template that
loops keeps everybody waiting forever, `/health` too. Some processors (mlx-vlm 0.6.12: Kimi-VL,
Phi-3-vision, Molmo, LocateAnything, ERNIE) render it with all of Python at hand.
"""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from .mend import find, mend

# A long conversation takes milliseconds; a machine under heavy load takes a hundred times that.
_SECONDS = float(os.environ.pop("CAR_VLLM_LAUNCH_TEMPLATE_SECONDS", "10"))
_STOPPED = 70
"""Exit code of a server that a template held up where it could not be interrupted."""


class EndlessTemplateError(Exception):
    """Raised in the thread that renders, by the watch below."""


def watched(seconds: float, render: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what a rendering returns, and interrupt it where it takes too long.

    The interruption comes once. One that is on its way as the rendering ends comes in the middle of
    the first end of the watch: the second one is never disturbed.

    Raises:
        EndlessTemplateError: It took too long.
    """
    watch = _RenderWatch(seconds)
    try:
        try:
            return render(*args, **kwargs)
        finally:
            watch.end()
    finally:
        watch.end()


class _RenderWatch:
    """Interrupts a rendering that takes too long, and ends the process if that does not help.

    Both wall and CPU time must have passed: a machine that slept or a suspended process is not a
    template that loops.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._thread = threading.get_ident()
        self._cpu = time.process_time()
        self._mutex = threading.Lock()
        self._ended = False
        self._interrupted = False
        self._timer = self._start_timer()

    def end(self) -> None:
        """Stop watching.

        An interruption that is on its way is not called back: the interpreter (CPython 3.11 and
        3.12) would look for it at every step from then on. It may come between the lock and the
        block (CPython 3.14), so that one call takes the lock and notes it.
        """
        taken: list[bool] = []
        try:
            taken.extend(map(self._mutex.acquire, (True,)))
            self._ended = True
        finally:
            if taken:
                self._mutex.release()
        self._timer.cancel()

    def _start_timer(self) -> threading.Timer:
        timer = threading.Timer(self._seconds, self._look)
        timer.daemon = True
        timer.start()
        return timer

    def _look(self) -> None:
        with self._mutex:
            if self._ended:
                return
            if time.process_time() - self._cpu < self._seconds / 2:
                self._timer = self._start_timer()
                return
            if self._interrupted:
                text = "RuntimeError: the chat template could not be interrupted"
                print(text, file=sys.stderr, flush=True)
                os._exit(_STOPPED)
            self._interrupted = True
            self._cpu = time.process_time()
            _interrupt(self._thread)
            self._timer = self._start_timer()


def _interrupt(thread: int) -> None:
    set_error = ctypes.pythonapi.PyThreadState_SetAsyncExc
    set_error(ctypes.c_ulong(thread), ctypes.py_object(EndlessTemplateError))


@mend("template-refusal", "transformers.utils.chat_template_utils", "transformers 5.23")
def _refuse_what_the_template_refuses(module: Any) -> None:
    """Answer 400 with the template's own sentence, and stop a template that never ends."""
    render = find(module, "render_jinja_template", "conversations", "chat_template")

    def rendered(*args: Any, **kwargs: Any) -> Any:
        return _refused_as_a_request(render, *args, **kwargs)

    module.render_jinja_template = rendered


@mend("template-sandbox", "jinja2", "jinja2 3.1.6, mlx-vlm 0.6.12", needed_for="chat templates")
def _confine_templates(module: Any) -> None:
    """Render in a sandbox whatever a processor renders by itself; transformers has its own."""
    find(module, "Environment")
    template = find(module, "Template", "source")
    sandbox: Any = import_module("jinja2.sandbox").ImmutableSandboxedEnvironment

    class Confined(template):  # type: ignore[misc, valid-type]
        def render(self, *args: Any, **kwargs: Any) -> str:
            return _refused_as_a_request(super().render, *args, **kwargs)  # type: ignore[no-any-return]

    class Sandbox(sandbox):  # type: ignore[misc]
        template_class = Confined

    Confined.environment_class = Sandbox
    module.Template, module.Environment = Confined, Sandbox


def _refused_as_a_request(render: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return watched(_SECONDS, render, *args, **kwargs)
    except EndlessTemplateError as error:
        reason = f"the chat template did not finish within {_SECONDS:g} s"
        raise refusal(reason, error) from error
    except Exception as error:
        raise refusal(f"the chat template refused the messages: {error}", error) from error


@mend("template-missing", "transformers.tokenization_utils_base", "transformers 5.23")
def _refuse_without_template(module: Any) -> None:
    """Answer 400 where the model has no chat template."""
    tokenizer = find(module, "PreTrainedTokenizerBase")
    look_up = find(tokenizer, "get_chat_template", "chat_template", "tools")

    def template(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return look_up(self, *args, **kwargs)
        except ValueError as error:
            # mlx-vlm looks for the words in brackets.
            reason = "the model has no chat template"
            if "chat_template is not set" in str(error):
                reason += " (tokenizer.chat_template is not set)"
            raise refusal(reason, error) from error

    tokenizer.get_chat_template = template


def refusal(reason: str, error: Exception) -> Exception:
    """Return a 400 that is also of the class that those who know the original error catch."""
    from fastapi import HTTPException
    from jinja2 import TemplateError

    if isinstance(error, HTTPException):
        return error
    kinds = [kind for kind in (TemplateError, TypeError, ValueError) if isinstance(error, kind)]
    name = "TemplateRefusedError"
    kind = type(name, (HTTPException, *kinds[:1]), {"__str__": lambda _: reason})
    return kind(status_code=400, detail=reason)  # type: ignore[no-any-return]


MENDS = (
    _confine_templates,
    _refuse_what_the_template_refuses,
    _refuse_without_template,
)
