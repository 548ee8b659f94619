"""A ready server's days: until nobody uses it, its memory is needed, or it dies."""

import dataclasses
import time
from typing import NoReturn

from langchain_car_vllm.errors import ServerCrashedError
from langchain_car_vllm.server.backoff import recent_crashes
from langchain_car_vllm.server.child import Child
from langchain_car_vllm.server.clients import ClientRecords
from langchain_car_vllm.server.context import Context, Ending
from langchain_car_vllm.server.diagnosis import diagnose
from langchain_car_vllm.server.idle import idle_deadline
from langchain_car_vllm.server.locks import release, try_exclusive


def serve(context: Context, child: Child, clients: ClientRecords) -> NoReturn:
    """Watch over a ready server.

    The lease is tried only when the deadline has come, and a use that was recorded in the meantime
    wins over the lock. Whoever ends the life for idleness keeps the lease until it is over.

    Raises:
        Ending: It was idle, or its memory is needed and nobody is served.
        ServerCrashedError: It died.
    """
    policy, inbox = context.policy, context.inbox
    floor = time.monotonic()
    was_used = was_busy = False
    while True:
        now = time.monotonic()
        if (code := child.exit_code()) is not None:
            _report_crash(context, child, code, was_used=was_used)
        child.trim_log(policy.log_limit)
        if clients.poll(now):
            was_used, was_busy = True, False
        deadline = idle_deadline(clients.uses, floor, context.spec.keep_alive)
        if inbox.eviction_requested:
            inbox.eviction_requested = False
            if try_exclusive(context.lease):
                raise Ending("evicted")
        elif now >= deadline:
            if not try_exclusive(context.lease):
                was_busy = True
            elif was_busy or clients.poll(time.monotonic()):
                # A release nobody recorded: a client died in the middle of a request.
                floor, was_busy = now if was_busy else floor, False
                release(context.lease)
                continue
            else:
                raise Ending("idle")
        context.pause(min(policy.idle_tick, max(deadline - now, policy.start_tick)))


def _report_crash(context: Context, child: Child, code: int, *, was_used: bool) -> NoReturn:
    now = time.monotonic()
    was_stable = was_used and now - (context.state.ready_at or now) > context.policy.stable_after
    before = () if was_stable else recent_crashes(context.state.crashes, now, context.policy)
    context.state = dataclasses.replace(context.state, crashes=(*before, now))
    diagnosis = diagnose(code, child.log)
    error = ServerCrashedError(
        f"the server of `{context.spec.name}` died: {diagnosis.sentence}",
        hint=diagnosis.hint,
        exit_code=code,
        log_tail=diagnosis.tail,
        log_path=child.log,
        ending=diagnosis.sentence,
    )
    error.is_retryable = not (diagnosis.out_of_memory or diagnosis.unsupported)
    raise error
