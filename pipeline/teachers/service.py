"""A JSON service over HTTP that is slow, busy or broken now and then: rates, retries, and what is given up.

It knows HTTP and nothing of what is asked. The key is read from the environment, sent in one header, and
taken out of every message.
"""

from __future__ import annotations

import email.utils
import os
import random
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipeline.targets.errors import UserError

if TYPE_CHECKING:
    import httpx2

BUSY = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
"""Answers after which the same question may be answered."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds before the second attempt; each later wait is twice as long, up to the longest, and half of it is
random, so that those who were refused together do not come back together."""

ENCODINGS = frozenset({"content-encoding", "content-length", "transfer-encoding"})
"""Headers that say how an answer travelled."""

PATIENCE = 300.0
"""Seconds that a service may ask to be left alone with Retry-After."""


class Unavailable(Exception):
    """No attempt was answered. It says nothing of the question."""


class Refused(Exception):
    """This question is not answered, or with what is no answer; another one may be."""


class Rate:
    """At most so much a second, a second's worth at once. Several threads may use it."""

    def __init__(self, per_second: float | None) -> None:
        """per_second: None for no limit."""
        self._per_second, self._lock, self._begin = per_second, threading.Lock(), time.monotonic()

    def take(self, amount: float) -> None:
        """Wait until so much more is allowed."""
        with self._lock:
            now = time.monotonic()
            begin = max(self._begin, now - 1.0)
            self._begin = begin + (amount / self._per_second if self._per_second else 0.0)
        time.sleep(max(begin - now, 0.0))

    def pause(self, seconds: float) -> None:
        """Allow nothing for so long."""
        with self._lock:
            self._begin = max(self._begin, time.monotonic() + seconds)


class Service:
    """A base URL to which JSON is posted. Several threads may use it."""

    def __init__(
        self,
        url: str,
        key_variable: str,
        *,
        connections: int,
        timeout_seconds: float,
        attempts: int,
        requests_per_second: float | None = None,
        tokens_per_second: float | None = None,
    ) -> None:
        """key_variable: of the environment; where it is unset, no key is sent. Raises UserError."""
        try:
            import httpx2
        except ImportError as error:
            raise UserError(
                'teachers of the kind endpoint need httpx2: pip install "decant-kd[endpoint]"'
            ) from error
        self._url, self._variable, self._attempts = url.rstrip("/"), key_variable, attempts
        self._key = os.environ.get(key_variable, "")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        # A redirect is not followed: the key would go along.
        self._client = httpx2.Client(headers=headers, timeout=timeout_seconds, limits=limits)
        self._requests, self._tokens = Rate(requests_per_second), Rate(tokens_per_second)

    def post(self, path: str, body: dict[str, Any], tokens: int, most_bytes: int) -> Any:
        """What the service answers, from JSON. tokens: what the question counts for the rate of tokens.

        Raises Unavailable when no attempt was answered, Refused when the service understands the question
        and does not answer it, or with more bytes than it may, UserError when it lets nobody in or is not
        there.
        """
        import httpx2

        problem = ""
        for attempt in range(self._attempts):
            self._requests.take(1)
            self._tokens.take(tokens)
            asked = 0.0
            try:
                response = self._post(path, body, most_bytes)
            except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
                raise UserError(f"teacher.url {self._url} cannot be used: {self._safe(error)}") from None
            except httpx2.TransportError as error:
                problem = f"{type(error).__name__} {self._safe(error)}".strip()
            else:
                if response.is_success:
                    try:
                        return response.json()
                    except ValueError as error:
                        problem = f"an answer that is no JSON ({self._safe(error)})"
                elif response.status_code in BUSY:
                    problem = f"status {response.status_code} {self._said(response)}".strip()
                    asked = retry_after(response.headers.get("Retry-After", ""))
                    if asked > PATIENCE:
                        raise Unavailable(f"{self._url} wants to be left alone for {asked:.0f} seconds")
                    self._requests.pause(asked)  # all requests, not this one alone
                else:
                    self._give_up(response)
            if attempt + 1 < self._attempts:
                time.sleep(asked + backoff(attempt))
        raise Unavailable(f"{self._url} did not answer in {self._attempts} attempts: {problem}")

    def _post(self, path: str, body: dict[str, Any], most_bytes: int) -> httpx2.Response:
        """The response, read. Raises Refused for one that is too long, which is left unread."""
        import httpx2

        with self._client.stream("POST", f"{self._url}{path}", json=body) as response:
            content = bytearray()
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > most_bytes:
                    raise Refused(f"an answer of more than {most_bytes:,} bytes")
        # Its content is decoded already.
        headers = [(name, value) for name, value in response.headers.items() if name.lower() not in ENCODINGS]
        return httpx2.Response(response.status_code, headers=headers, content=bytes(content))

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _give_up(self, response: httpx2.Response) -> None:
        status, said = response.status_code, self._said(response)
        if status in (401, 403):
            has = "was refused" if self._key else "is not set"
            raise UserError(
                f"{self._url} lets nobody in (status {status}): the key in {self._variable} {has}"
            )
        if status == 404 or response.is_redirect:
            raise UserError(
                f"{self._url} has no such service or model (status {status} {said}): correct teacher.url and "
                "teacher.model"
            )
        raise Refused(f"status {status} {said}".strip())

    def _said(self, response: httpx2.Response) -> str:
        """The service's own message, on one line of bounded length."""
        try:
            said = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = response.text
        return self._safe(said)

    def _safe(self, said: object) -> str:
        text = " ".join(str(said).split())
        return (text.replace(self._key, "***") if self._key else text)[:300]


def backoff(attempt: int) -> float:
    """Seconds to wait after an attempt, the first being 0."""
    longest = min(FIRST_WAIT * 2.0**attempt, LONGEST_WAIT)
    return longest / 2 + random.uniform(0, longest / 2)


def retry_after(value: str) -> float:
    """Seconds that a Retry-After header asks for, in either of its forms; 0 for what is neither."""
    if value.strip().isdecimal():
        return float(value)
    try:
        when: datetime = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max((when - datetime.now(UTC)).total_seconds(), 0.0)
