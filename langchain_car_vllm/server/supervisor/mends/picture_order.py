"""What is kept of several pictures is found again for these pictures in this order alone."""

import hashlib
from typing import Any

from .mend import find, mend

_DIGITS = 16


@mend("pictures-in-order", "vllm_mlx.vision_embedding_cache", "vllm-mlx 0.6.0")
def _tell_orders_apart(module: Any) -> None:
    """Have the key of several pictures tell their order, which the server sorts out of it.

    A question about two pictures, asked again with the two exchanged, is otherwise answered as if
    they had not been. Requests of this package number the pictures in their text; those of other
    programs do not.
    """
    hash_of = find(module, "compute_image_hash", "image_path")
    hash_of_all = find(module, "compute_images_hash", "images")

    def in_order(images: "list[str]") -> str:
        if not images:
            return str(hash_of_all(images))
        hashes = "_".join(hash_of(image) for image in images)
        return hashlib.sha256(hashes.encode()).hexdigest()[:_DIGITS]

    module.compute_images_hash = in_order


_PURPOSE = "answer about several pictures in the order in which they were given"
MENDS = (
    _tell_orders_apart,
    _tell_orders_apart._replace(
        name="pictures-in-order-simple", module="vllm_mlx.mllm_cache", tested="vllm-mlx 0.6.0"
    ),
)
