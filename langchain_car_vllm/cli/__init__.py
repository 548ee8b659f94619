"""`car-vllm`: see and end what runs. The only place that prints."""
