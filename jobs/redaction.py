"""What may never be shown of a job: the credentials in it, in its environment, and in any URL.

It knows where credentials stand, and takes them out of texts that leave the process: logs, notifications.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from jobs.problems import SECRET, is_secret

SHORTEST = 6
"""Characters of a value that is taken out wherever it stands; shorter ones would hit innocent words."""

_USER = re.compile(r"://[^/@\s]*@")
_QUERY = re.compile(r"(://[^\s?#\"']*\?)[^\s\"'<>]+")


class Redaction:
    """Puts *** in the place of every credential that it knows of, and of what URLs hold beside their path."""

    def __init__(self, job: BaseModel) -> None:
        """job: whose options and webhook are credentials, as are telling names of the environment."""
        known = {value for path, value in _leaves(job.model_dump(mode="json"), ()) if is_secret(path)}
        known |= {value for name, value in os.environ.items() if SECRET.search(name)}
        self._known = sorted((text for text in known if len(text) >= SHORTEST), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text without them."""
        for secret in self._known:
            text = text.replace(secret, "***")
        return _QUERY.sub(r"\1***", _USER.sub("://***@", text))


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, path)
    elif isinstance(value, str):
        yield path, value
