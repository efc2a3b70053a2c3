"""A real Prometheus loads the rendered rules, scrapes the components' own pages, and has nothing to complain about.

The pages are those of exposed.py, with every counter growing, under the labels that the monitors give; figures of other
exporters are a few lines of the shape these have. What promtool cannot see shows here: joins that find two partners,
queries with a warning, recorded series that stay empty on a fleet in which everything happens.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from fakes.apiserver import free_ports, process, tail, tool
from rules.exposed import texts
from rules.rules import alerts, records, rules, write_rules

pytestmark = pytest.mark.helm
GROWING = re.compile(r"^(\S+?(?:_total|_bucket|_count|_sum)(?:\{.*\})?) (\S+)$", re.MULTILINE)
ENGINE = {"component": "engine", "namespace": "team-a", "fleet": "demo-tiny", "container": "engine"}
TARGETS: list[tuple[str, dict[str, str]]] = [
    *(
        ("router", {"component": "router", "namespace": "team-a", "release": "demo", "pod": f"demo-router-{number}"})
        for number in (0, 1)
    ),
    ("operator", {"component": "operator", "namespace": "system", "release": "llmfleet", "pod": "operator-0"}),
    ("autoscaler", {"component": "autoscaler", "namespace": "system", "release": "llmfleet", "pod": "autoscaler-0"}),
    ("engine", ENGINE | {"llmcluster": "demo-tiny-0", "role": "both", "pod": "demo-tiny-0-0"}),
    ("engine", ENGINE | {"llmcluster": "demo-tiny-p-0", "role": "prefill", "pod": "demo-tiny-p-0-0"}),
    ("engine", ENGINE | {"llmcluster": "demo-tiny-d-0", "role": "decode", "pod": "demo-tiny-d-0-0"}),
    ("dcgm", {"namespace": "gpu-operator", "pod": "dcgm-x7k2p", "container": "exporter"}),
    ("others", {"namespace": "monitoring", "pod": "others-0"}),
]
USED = 'Hostname="node-1",UUID="GPU-%d",gpu="%d",namespace="team-a",pod="demo-tiny-0-%d",container="engine"'
DCGM = "\n".join(
    f"{name}{{{USED % (number, number, number)}}} {value}"
    for number in (0, 1)
    for name, value in {
        "DCGM_FI_DEV_GPU_UTIL": 97,
        "DCGM_FI_DEV_GPU_TEMP": 60,
        "DCGM_FI_DEV_ROW_REMAP_FAILURE": 0,
        "DCGM_FI_DEV_XID_ERRORS": 0,
    }.items()
)
RANK = 'namespace="team-a",pod="demo-tiny-0-1",container="engine"'
OTHERS = f"""
kube_pod_container_status_restarts_total{{{RANK}}} 1
kube_pod_container_status_last_terminated_reason{{{RANK},reason="OOMKilled"}} 1
kube_secret_created{{namespace="team-a",secret="llm-keys"}} 1.7e9
redis_memory_used_bytes{{namespace="team-a"}} 1e6
redis_memory_max_bytes{{namespace="team-a"}} 1e8
certmanager_certificate_expiration_timestamp_seconds{{namespace="team-a",name="llm"}} 4e9
"""


class Pages:
    """Serves each page under its name; every counter is one higher at every look."""

    def __init__(self, pages: dict[str, str]) -> None:
        looks: Counter[str] = Counter()

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.split("/")[1]
                looks[self.path] += 1
                body = GROWING.sub(lambda found: f"{found[1]} {float(found[2]) + looks[self.path]}", pages[name])
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                with suppress(OSError):  # Prometheus waits a second, and a busy machine may need more
                    self.wfile.write(f"{body.strip()}\n".encode())

            def log_message(self, *_: object) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def configuration(address: str, rule_file: Path) -> dict[str, Any]:
    """One job for each target; exporters keep the labels of what they speak of, operators do not."""
    jobs = [
        {
            "job_name": f"{page}-{number}",
            "metrics_path": f"/{page}/{number}",
            "honor_labels": page in ("dcgm", "others"),
            "static_configs": [{"targets": [address], "labels": labels}],
        }
        for number, (page, labels) in enumerate(TARGETS)
    ]
    every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    return {"global": every, "rule_files": [str(rule_file)], "scrape_configs": jobs}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Prometheus that has evaluated every rule on figures of some seconds."""
    folder = tmp_path_factory.mktemp("prometheus")
    pages = Pages({**texts(folder), "dcgm": DCGM, "others": OTHERS})
    rule_file = write_rules(folder, {"rules": {"interval": "1s"}})
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration(pages.address, rule_file)))
    [port] = free_ports(1)
    words = [
        str(tool("prometheus")),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder}/data",
    ]
    log = folder / "prometheus.log"
    with process([*words, f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"], log):
        address = f"http://127.0.0.1:{port}"
        wait(lambda: settled(address), log)
        yield address
    pages.close()


def wait(condition: Any, log: Path, seconds: float = 300) -> None:
    """Until it holds; what Prometheus said if it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, tail(log)
        time.sleep(0.5)


def in_the_end(look: Callable[[], Any], wanted: Any, seconds: float = 120) -> Any:
    """What a look shows once it shows what is wanted: a scrape has a second, and a busy machine may miss one."""
    deadline = time.monotonic() + seconds
    while (shown := look()) != wanted and time.monotonic() < deadline:
        time.sleep(0.5)
    return shown


def settled(address: str) -> bool:
    """Every target was scraped a few times, and the last rule that needs others' records has had its turn."""
    try:
        counts = ask(address, "query", query='count_over_time(up{job!=""}[5m]) > 5')["data"]["result"]
        ratios = ask(address, "query", query="namespace_model:llmfleet_router_request_errors:ratio_rate3d")["data"]
    except requests.RequestException:
        return False
    return len(counts) == len(TARGETS) and bool(ratios["result"])


def ask(address: str, path: str, **arguments: str) -> dict[str, Any]:
    """One call of its API."""
    answer: dict[str, Any] = requests.get(f"{address}/api/v1/{path}", params=arguments, timeout=30).json()
    return answer


def test_every_target_is_scraped(prometheus: str) -> None:
    def errors() -> set[str]:
        return {one["lastError"] for one in ask(prometheus, "targets")["data"]["activeTargets"]}

    assert in_the_end(errors, {""}) == {""}


def test_every_rule_is_evaluated_without_an_error(prometheus: str) -> None:
    def evaluated() -> list[dict[str, Any]]:
        return [rule for group in ask(prometheus, "rules")["data"]["groups"] for rule in group["rules"]]

    def unwell() -> dict[str, Any]:
        return {rule["name"]: rule.get("lastError") for rule in evaluated() if rule["health"] != "ok"}

    assert len(evaluated()) == len(rules())
    assert in_the_end(unwell, {}) == {}


@pytest.mark.parametrize("name", sorted(records()))
def test_a_recording_rule_has_figures_on_a_fleet_in_which_everything_happens(name: str, prometheus: str) -> None:
    assert in_the_end(lambda: bool(ask(prometheus, "query", query=name)["data"]["result"]), True)


@pytest.mark.parametrize("name", sorted([*alerts(), *records()]))
def test_prometheus_has_no_remark_about_an_expression(name: str, prometheus: str) -> None:
    answer = ask(prometheus, "query", query={**alerts(), **records()}[name]["expr"])
    assert answer["status"] == "success"
    assert not answer.get("warnings", []) + answer.get("infos", [])


def test_prometheus_would_remark_on_the_rate_of_a_gauge(prometheus: str) -> None:
    query = "rate(llmfleet_queue_requests[1m])"
    assert in_the_end(lambda: bool(ask(prometheus, "query", query=query).get("infos")), True)
