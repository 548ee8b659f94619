"""The page that `doctor --selftest --model` ends with."""

from unit.cli.conftest import Cli

from langchain_car_vllm.cli.model_selftest import report_lines


def test_the_page_tells_no_path(home):
    """Versions, machine and rows are on it; a path in an error is not."""
    rows = [
        ("simple rates", "ok", "prefill 900 tokens/s, decode 13.0 tokens/s"),
        ("simple stop", "failed", f"`{home}/.car/run/x` cannot be read, see {home}/log"),
        ("disk", "ok", ""),
    ]
    page = "\n".join(report_lines(rows))
    assert "langchain-car-vllm" in page
    assert "memory" in page
    assert "ok       simple rates: prefill 900 tokens/s, decode 13.0 tokens/s\n" in page
    assert "failed   simple stop: `<path>` cannot be read, see <path>\n" in page
    assert "ok       disk\n" in page
    assert str(home) not in page


def test_the_model_belongs_to_the_selftest(cli: Cli):
    """`--model` alone is wrong usage."""
    done = cli("doctor", "--model")
    assert done.returncode == 2
    assert "it belongs to --selftest" in done.stderr
