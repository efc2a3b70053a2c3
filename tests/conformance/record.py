"""Write what real vLLM answers: `python -m conformance.record` from the folder `tests` (starts vLLM on CPU).

In: cases.py and a real engine. Out: recorded/answers.json and recorded/metrics.json, the expectation that
both engines are held to, and recorded/routes.json, what the router has to keep from its clients.
"""

import json
import sys
import tempfile
from pathlib import Path

from conformance.cases import CASES
from conformance.client import exchange
from conformance.engine import REAL, launch, patience
from conformance.shapes import answer_shape, metric_shape
from sim.engine import Process

DEVELOPMENT = {"VLLM_SERVER_DEV_MODE": "1"}
RECORDED = Path(__file__).resolve().parent / "recorded"


def routes(engine: Process) -> list[tuple[str, str]]:
    """List methods and paths that an engine itself says it serves."""
    paths = engine.get("/openapi.json").json()["paths"]
    return sorted((method.upper(), path) for path, methods in paths.items() for method in methods)


def main() -> None:
    """Record everything once."""
    with tempfile.TemporaryDirectory() as folder, launch(REAL, Path(folder)) as engine:
        engine.until_up(patience(REAL))
        metrics = metric_shape(engine.get("/metrics").body.decode())
        answers = {case.name: answer_shape(exchange(engine.port, case)) for case in CASES}
    with tempfile.TemporaryDirectory() as folder, launch(REAL, Path(folder), env=DEVELOPMENT) as engine:
        served = routes(engine.until_up(patience(REAL)))
    for name, value in (("answers", answers), ("metrics", metrics), ("routes", served)):
        (RECORDED / f"{name}.json").write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    print(f"recorded {len(answers)} answers and {len(metrics)} metric families", file=sys.stderr)


if __name__ == "__main__":
    main()
