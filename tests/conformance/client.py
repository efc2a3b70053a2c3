"""Send one case as bytes and take the answer as bytes, so that framing and header order can be compared."""

import json
import socket

from conformance.cases import Case


def exchange(port: int, case: Case, seconds: float = 120) -> bytes:
    """Send a request that closes its connection, and read to the end."""
    headers = [("Host", "x"), *case.headers, ("Connection", "close")]
    body = b""
    if case.body is not None:
        body = case.body if isinstance(case.body, bytes) else json.dumps(case.body).encode()
        named = {name.lower() for name, _ in case.headers}
        headers += [] if "content-type" in named else [("Content-Type", "application/json")]
        headers.append(("Content-Length", str(len(body))))
    head = f"{case.method} {case.path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers) + "\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as link:
        link.sendall(head.encode() + body)
        answer = b""
        while part := link.recv(65536):
            answer += part
    return answer
