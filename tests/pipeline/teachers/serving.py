"""A real HTTP server in this process that serves a causal language model as vLLM does, or fails on demand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

KEY = "sk-a-key-nobody-may-see"


class Served:
    """A model behind /v1/completions.

    faults: what the next requests get instead of an answer, one each: "500", "429 <seconds>", "reset",
    "no json", "short", "endless". poison: a token that brings every request down that has it; nan_on: one
    whose answer has a NaN. down: whether every request fails. requests: (when, headers, body) of each; most:
    requests in flight at once, at most.
    """

    def __init__(self, model: Any, most_logprobs: int = 20) -> None:
        self.model, self.most_logprobs = model, most_logprobs
        self.faults: list[str] = []
        self.poison: int | None = None
        self.nan_on: int | None = None
        self.down = False
        self.requests: list[tuple[float, dict[str, str], dict[str, Any]]] = []
        self.flying = self.most = 0
        self.lock = threading.Lock()
        self.url = ""

    def answer(self, prompt: list[int], k: int) -> list[dict[str, Any] | None]:
        """prompt_logprobs: of each token but the first the k likeliest classes, and the token itself."""
        with torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([prompt])).logits[0]
        log_p = torch.log_softmax(logits.float(), dim=-1)
        out: list[dict[str, Any] | None] = [None]
        for row, token in zip(log_p[:-1], prompt[1:], strict=True):
            order = row.argsort(descending=True, stable=True).tolist()
            shown = order[:k] if token in order[:k] else [token, *order[:k]]
            out.append(
                {
                    str(i): {
                        "logprob": max(float(row[i]), -9999.0),
                        "rank": order.index(i) + 1,
                        "decoded_token": f"w{i}",
                    }
                    for i in shown
                }
            )
        return out


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Served

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        served = self.served
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with served.lock:
            served.requests.append((time.monotonic(), dict(self.headers), body))
            served.flying += 1
            served.most = max(served.most, served.flying)
            fault = served.faults.pop(0) if served.faults else ""
        try:
            self.respond(body, fault)
        finally:
            with served.lock:
                served.flying -= 1

    def respond(self, body: dict[str, Any], fault: str) -> None:
        served, prompt, k = self.served, body["prompt"], body["prompt_logprobs"]
        if served.down or served.poison in prompt or fault == "500":
            return self.send(500, {"error": {"message": "EngineCore encountered an issue"}})
        if fault.startswith("429"):
            return self.send(429, {"error": {"message": "slow down"}}, {"Retry-After": fault.split()[1]})
        if fault == "reset":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return None
        if fault == "endless":
            return self.send(200, b" " * 3_000_000)
        if fault == "no json":
            return self.send(200, b"<html>502 Bad Gateway</html>")
        authorization = self.headers.get("Authorization", "")
        if self.path != "/v1/completions" or body["model"] != "tiny":
            return self.send(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        if authorization != f"Bearer {KEY}":
            return self.send(401, {"error": {"message": f"Incorrect API key provided: {authorization}"}})
        if k > served.most_logprobs:
            said = (
                f"Requested prompt logprobs of {k}, which is greater than max allowed: {served.most_logprobs}"
            )
            return self.send(400, {"error": {"message": said, "type": "BadRequestError", "code": 400}})
        entries = served.answer(prompt, k)
        if fault == "short":
            entries.pop()
        if served.nan_on in prompt:
            entry = entries[1]
            assert entry is not None
            next(iter(entry.values()))["logprob"] = float("nan")
        choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}
        answer = {
            "id": "cmpl-1",
            "object": "text_completion",
            "model": body["model"],
            "choices": [choice | {"prompt_logprobs": entries}],
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": 1},
        }
        return self.send(200, answer)

    def send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serve(served: Served) -> Iterator[Served]:
    """The server, on loopback, while the block runs."""
    handler = type("ServedHandler", (Handler,), {"served": served})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
