"""Each request is sampled as it asks, whoever is answered beside it."""

import functools
import inspect
import math
from typing import Any

from .mend import find, mend

# Below it nothing but the likeliest token is ever drawn.
_COLDEST = 1e-6
_LEAST_SHARE = 1e-6
_WAYS = ("temperature", "top_p", "min_p", "top_k")
_BAD_REQUEST = 400
_AT_LEAST_ZERO = ("temperature", "top_p", "min_p", "repetition_penalty")
_AT_MOST_ONE = ("min_p",)
_CHECKED = (*_AT_LEAST_ZERO, "presence_penalty")


@mend("sampling", "mlx_lm.sample_utils", "mlx-lm 0.31.3")
def _sample_exactly(module: Any) -> None:
    """Sample in 32 bits, and leave alone what names more tokens than the model has.

    mlx-lm 0.31.3 and mlx-vlm 0.6.12 add up probabilities in the type of the weights. Sixteen bits
    lose so much of the sum that a small `top_p` leaves no token, and a small `temperature` none
    either: the answer is drawn from the whole vocabulary. A `top_k` beyond the vocabulary ends all
    answers under way, and a `logit_bias` beyond it, such as for tokens of another model, writes
    into foreign memory.
    """
    make_sampler = find(module, "make_sampler", "temp", "top_p", "top_k")
    make_processors = find(module, "make_logits_processors", "logit_bias")
    find(module, "apply_top_p")
    find(module, "apply_top_k")
    mx, most_likely, likeliest = module.mx, module.apply_top_p, module.apply_top_k

    @functools.wraps(make_sampler)
    def make_exact(temp: float = 0.0, *args: Any, **settings: Any) -> Any:
        sample = make_sampler(temp if temp > _COLDEST else 0.0, *args, **settings)
        return lambda logprobs: sample(logprobs.astype(mx.float32))

    def apply_top_p(logprobs: Any, top_p: float) -> Any:
        exact = logprobs.astype(mx.float32)
        exact = exact - mx.logsumexp(exact, axis=-1, keepdims=True)
        is_first = exact >= mx.max(exact, axis=-1, keepdims=True)
        return mx.where(is_first, exact, most_likely(exact, top_p))

    def apply_top_k(logprobs: Any, top_k: int) -> Any:
        return logprobs if top_k >= logprobs.shape[-1] else likeliest(logprobs, top_k)

    module.make_sampler, module.make_logits_processors = make_exact, _bounded(make_processors)
    module.apply_top_p, module.apply_top_k = apply_top_p, apply_top_k


def _bounded(make: Any) -> Any:
    """Return what makes logits processors, with a bias for none but tokens that there are."""

    @functools.wraps(make)
    def make_bounded(
        logit_bias: "dict[int, float] | None" = None, *args: Any, **settings: Any
    ) -> Any:
        others = make(None, *args, **settings)
        if not logit_bias:
            return others

        @functools.cache
        def within(size: int) -> Any:
            return make({token: bias for token, bias in logit_bias.items() if 0 <= token < size})

        def add_bias(tokens: Any, logits: Any) -> Any:
            for processor in within(logits.shape[-1]):
                logits = processor(tokens, logits)
            return logits

        return [add_bias, *others]

    return make_bounded


@mend("sampling-by-request", "vllm_mlx.scheduler", "vllm-mlx 0.6.0, mlx-lm 0.31.3")
def _sample_by_request(module: Any) -> None:
    """Give each request of the batched engine of text models a sampler of its own.

    vllm-mlx 0.6.0 samples a request that comes while others are answered as the first of them
    asked: a call with `temperature=0` beside a creative one is creative. And it forgets `top_k`
    and `presence_penalty`. A penalty looks at the last tokens of the prompt, of which it shows
    only those that were not found in its cache: the same question is answered otherwise then.
    """
    scheduler = find(module, "Scheduler")
    ensure = find(scheduler, "_ensure_batch_generator", "sampling_params")
    create = find(scheduler, "_create_batch_generator", "sampling_params")
    generator = find(module, "BatchGenerator")
    changed = "segments", "all_tokens", "samplers", "logits_processors"
    insert = find(generator, "insert_segments", *changed)
    find(module, "SamplingParams", *_WAYS, "presence_penalty")
    find(module, "make_sampler", "temp", *_WAYS[1:])
    find(module, "make_logits_processors", "presence_penalty")
    signature = inspect.signature(insert)

    def ensured(self: Any, sampling_params: Any) -> None:
        self._asked = sampling_params
        if self.batch_generator is None or not self.running:
            ensure(self, sampling_params)

    def created(self: Any, sampling_params: Any) -> Any:
        batches = create(self, sampling_params)
        batches._asking, batches._shared = self, (*_ways_of(sampling_params)[:-1], 0)
        return batches

    @functools.wraps(insert)
    def insert_as_asked(self: Any, *args: Any, **settings: Any) -> Any:
        given = signature.bind(self, *args, **settings).arguments
        if (asking := getattr(self, "_asking", None)) is not None:
            _sample_as_asked(module, asking._asked, self._shared, given)
            _show_what_was_found(asking, given)
        return insert(**given)

    scheduler._ensure_batch_generator = ensured
    scheduler._create_batch_generator = created
    generator.insert_segments = insert_as_asked


def _sample_as_asked(
    module: Any, asked: Any, shared: "tuple[Any, ...]", given: "dict[str, Any]"
) -> None:
    """Add to the arguments of an insertion what the request asks for and the batch does not do.

    Args:
        module: Makes samplers and logits processors.
        asked: How the request is to be sampled.
        shared: How the batch samples.
        given: The arguments, which are changed.
    """
    count, ways = len(given["segments"]), _ways_of(asked)
    if ways != shared:
        temperature, top_p, min_p, top_k = ways
        sampler = module.make_sampler(temp=temperature, top_p=top_p, min_p=min_p, top_k=top_k)
        given["samplers"] = [sampler] * count
    if asked.presence_penalty:
        made = module.make_logits_processors(presence_penalty=asked.presence_penalty)
        rows = given.get("logits_processors") or [[]] * count
        given["logits_processors"] = [[*made, *row] for row in rows]


def _show_what_was_found(scheduler: Any, given: "dict[str, Any]") -> None:
    """Add to the arguments of an insertion the tokens of the prompt that are not to be read.

    Nothing but logits processors looks at them.
    """
    is_shown = given.get("all_tokens") or not any(given.get("logits_processors") or ())
    if is_shown or len(given["segments"]) != 1:
        return
    rest = [token for part in given["segments"][0] for token in part]
    requests = (r for r in scheduler.requests.values() if r.sampling_params is scheduler._asked)
    for prompt in (list(request.prompt_token_ids) for request in requests):
        found = len(prompt) - len(rest)
        if found > 0 and prompt[found:] == rest:
            given["all_tokens"] = [prompt[:found]]


def _ways_of(asked: Any) -> "tuple[Any, ...]":
    return tuple(getattr(asked, name) for name in _WAYS)


@mend("sampling-refusal", "vllm_mlx.server", "vllm-mlx 0.6.0")
def _refuse(module: Any) -> None:
    """Answer 400 to what nothing can be sampled with, before it reaches the answers of others.

    vllm-mlx 0.6.0 looks at no range: what is out of it fails while it generates, and all that is
    under way with it. A `top_p` of 0 is the likeliest token, as elsewhere, not all of them.
    """
    http_exception = find(module, "HTTPException", "status_code", "detail")
    found = {name: find(module, f"_resolve_{name}", "request_value") for name in _CHECKED}
    coerce = find(module, "_coerce_logit_bias", "logit_bias")

    def checked(name: str, resolve: Any) -> Any:
        @functools.wraps(resolve)
        def resolved(request_value: Any) -> Any:
            value = resolve(request_value)
            if value is None:
                return None
            if problem := _find_problem(name, value):
                raise http_exception(
                    status_code=_BAD_REQUEST, detail=f"{name} must be {problem}, not {value}"
                )
            return max(value, _LEAST_SHARE) if name == "top_p" else value

        return resolved

    def coerced(logit_bias: Any) -> Any:
        bias = coerce(logit_bias)
        if not all(value < math.inf for value in bias.values()):
            raise http_exception(
                status_code=_BAD_REQUEST, detail="logit_bias must hold numbers below infinity"
            )
        return bias

    for name, resolve in found.items():
        setattr(module, f"_resolve_{name}", checked(name, resolve))
    module._coerce_logit_bias = coerced


def _find_problem(name: str, value: float) -> str:
    if not math.isfinite(value):
        return "a finite number"
    if name in _AT_LEAST_ZERO and value < 0:
        return "0 or more"
    return "at most 1" if name in _AT_MOST_ONE and value > 1 else ""


MENDS = (
    _sample_exactly,
    _sample_exactly._replace(
        name="sampling-media", module="mlx_vlm.sample_utils", tested="mlx-vlm 0.6.12"
    ),
    _sample_by_request,
    _refuse,
)
