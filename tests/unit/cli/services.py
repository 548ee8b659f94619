"""A service whose words want quoting, whoever keeps it."""

from pathlib import Path

from langchain_car_vllm.cli.service import Service

SERVICE = Service(
    ["/opt/py thon/bin/python", "-c", 'print("100%")', "org/model", "$HOME"],
    {"CAR_HOME": "/srv/car home/$x%"},
    Path("/srv/100%.log"),
)
