"""What each proxy is configured with, as text. Pure: ports and folders in, file contents out.

Every peer gets what its own documentation says for streaming: one thread or worker where that can be chosen, no access
log, kept connections on both sides, least-loaded balancing, no buffering of answers, no time limit a long answer could
meet.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

BODY_BYTES = 64 << 20


def nginx(port: int, engines: Sequence[int], folder: str) -> str:
    servers = " ".join(f"server 127.0.0.1:{engine};" for engine in engines)
    temporary = " ".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
daemon off; worker_processes 1; worker_rlimit_nofile 65536; error_log stderr error; pid {folder}/nginx.pid;
events {{ worker_connections 32768; }}
http {{
  access_log off; {temporary} client_body_buffer_size 1m; client_max_body_size 64m; keepalive_requests 1000000;
  upstream engines {{ least_conn; {servers} keepalive 512; keepalive_requests 1000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_read_timeout 600s;
    }} }}
}}
"""


def haproxy(port: int, engines: Sequence[int]) -> str:
    """`http-no-delay`: without it chunked answers are held back by more than 100 ms."""
    servers = "\n".join(f"  server e{engine} 127.0.0.1:{engine}" for engine in engines)
    return f"""
global
  nbthread 1
  maxconn 9500
defaults
  mode http
  timeout connect 2s
  timeout client 600s
  timeout server 600s
  option http-keep-alive
  option http-no-delay
  http-reuse always
frontend clients
  bind 127.0.0.1:{port} backlog 4096
  default_backend engines
backend engines
  balance leastconn
{servers}
"""


def _typed(name: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/envoy.extensions.filters.{name}", **fields}


def envoy(port: int, admin_port: int, engines: Sequence[int]) -> str:
    unbounded = {f"max_{what}": 1_000_000 for what in ("connections", "pending_requests", "requests", "retries")}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "engines", "timeout": "0s"}}
    manager = _typed(
        "network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="clients",
        codec_type="HTTP1",
        generate_request_id=False,
        stream_idle_timeout="0s",
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        http_filters=[{"name": "envoy.filters.http.router", "typed_config": _typed("http.router.v3.Router")}],
    )
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    cluster = {
        "name": "engines",
        "type": "STATIC",
        "lb_policy": "LEAST_REQUEST",
        "connect_timeout": "2s",
        "circuit_breakers": {"thresholds": [unbounded]},
        "load_assignment": {
            "cluster_name": "engines",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(engine)}} for engine in engines]}],
        },
    }
    listener = {
        "name": "clients",
        "per_connection_buffer_limit_bytes": BODY_BYTES,
        "address": _address(port),
        "filter_chains": [{"filters": filters}],
    }
    resources = {"listeners": [listener], "clusters": [cluster]}
    return json.dumps({"admin": {"address": _address(admin_port)}, "static_resources": resources})


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def litellm(engines: Sequence[int]) -> str:
    models = [
        {
            "model_name": "m",
            "litellm_params": {"model": "openai/m", "api_base": f"http://127.0.0.1:{engine}/v1", "api_key": "none"},
        }
        for engine in engines
    ]
    settings = {
        "model_list": models,
        "router_settings": {"routing_strategy": "least-busy", "num_retries": 0},
        "litellm_settings": {"telemetry": False, "set_verbose": False},
        "general_settings": {},
    }
    return json.dumps(settings)  # YAML is a superset of JSON
