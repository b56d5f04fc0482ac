"""Who is told that a labelling run has ended, and what: a webhook, a command, or both.

It knows no labelling. A notification that fails is a warning: the run is what it was.
"""

from __future__ import annotations

import base64
import json
import platform
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, PositiveFloat, field_validator

from pipeline.config import Config


class NotifyConfig(Config):
    """Who is told when `decant label` ends, however it ends."""

    webhook: str | None = None
    """An http(s) URL that gets a POST with a small JSON. Whoever knows it may use it: it is never shown."""

    command: list[str] | None = Field(default=None, min_length=1)
    """A command and its arguments; it gets the same JSON on standard input."""

    timeout_seconds: PositiveFloat = 10.0
    """How long each may take."""

    @field_validator("webhook")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            raise ValueError("should be an http:// or https:// URL")
        return url


Status = Literal["complete", "stopped", "failed", "aborted"]


@dataclass
class Ending:
    """How a run ended. Counts are of the whole store, but `labelled`: units of this run.

    "stopped": by a signal, its units in flight finished; "aborted": by a second one.
    """

    store: str
    status: Status = "failed"
    error: str | None = None
    seconds: float = 0.0
    planned: int = 0
    committed: int = 0
    labelled: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    """records, targets, shard_bytes, quarantined, failures; empty if the run did not come to its end."""

    def to_json(self) -> dict[str, Any]:
        """As it is sent."""
        return {**asdict(self), "seconds": round(self.seconds, 3), "host": platform.node()}


def notify(config: NotifyConfig, ending: Ending) -> Iterator[str]:
    """Tell all that are configured. What went wrong, as sentences; none holds the webhook's path or user."""
    body = json.dumps(ending.to_json(), ensure_ascii=False).encode()
    if config.webhook is not None and (problem := _post(config.webhook, body, config.timeout_seconds)):
        parts = urlsplit(config.webhook)
        yield f"notify.webhook: {parts.scheme}://{parts.hostname} was not told: {problem}"
    if config.command is not None and (problem := _run(config.command, body, config.timeout_seconds)):
        yield f"notify.command: {config.command[0]} was not told: {problem}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without its body: it is a failure that is said."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _post(url: str, body: bytes, timeout: float) -> str | None:
    headers = {"Content-Type": "application/json", "User-Agent": "decant"}
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if at:
        headers["Authorization"] = f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
    request = urllib.request.Request(parts._replace(netloc=host).geturl(), body, headers, method="POST")
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout):
            return None
    except urllib.error.HTTPError as error:
        return f"it answered {error.code}"
    except (OSError, ValueError) as error:
        # Of a ValueError or an HTTP protocol error the text may hold the URL.
        reason = getattr(error, "reason", error)
        return str(reason) if isinstance(reason, OSError) else type(error).__name__


def _run(command: list[str], body: bytes, timeout: float) -> str | None:
    try:
        done = subprocess.run(command, input=body, timeout=timeout, check=False, stdout=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"it took longer than {timeout:g} s"
    except OSError as error:
        return error.strerror or type(error).__name__
    return f"it left with code {done.returncode}" if done.returncode else None
