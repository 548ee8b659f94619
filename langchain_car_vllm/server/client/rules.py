"""What a server can take at a time, by what is known of it."""

from langchain_car_vllm.endpoint import Serving
from langchain_car_vllm.environment import CAR_VLLM_MLX_ADMISSION, CAR_VLLM_MLX_MAX_QUEUE
from langchain_car_vllm.server.tickets import Rules


def rules_of(endpoint: Serving) -> Rules:
    """Return what a server can take, as far as this package has to look after it.

    A batched multimodal server answers wrongly where a short prompt arrives while another one is
    read (vllm-mlx 0.6.0). The memory is looked after unless `CAR_VLLM_MLX_ADMISSION` is off. Where
    the queue has an end, so that others are refused, the one of the simple engine is kept here.
    """
    batched = endpoint.engine == "batched"
    serial = batched and bool(endpoint.multimodal)
    if endpoint.engine == "simple" and CAR_VLLM_MLX_MAX_QUEUE.read():
        return Rules(sequences=1)  # its own queue has no end
    if not CAR_VLLM_MLX_ADMISSION.read():
        return Rules(serial)
    return Rules(
        serial,
        endpoint.kv_room_tokens if batched else None,
        endpoint.max_sequences if batched else None,
    )
