"""What binds a planned file to the settings that say what its records are: a mark behind its fingerprint.

A mark is a hash of the settings and of the root that the file's keys are relative to; a plan keeps neither.
It knows URLs and fingerprints, lists nothing and reads nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from pipeline.corpus.listing import absolute, fixed

MARK = "~"  # between a file's fingerprint and its mark
MARKED = re.compile(rf"{MARK}[0-9a-f]{{16}}")
BOUND = re.compile(rf"({MARKED.pattern})?(@[a-z0-9_-]+)?$")


class Marks:
    """The marks that a source gives and knows.

    settings: those that say what a record is, as JSON; root: the one that is stated, if one is; urls: the
    source's. Without a stated root a file may have been planned with any folder above it or above one of the
    URLs, which is how a corpus that has grown finds the root again that its first files have.
    """

    def __init__(self, settings: Mapping[str, Any], root: str | None, urls: Sequence[str]) -> None:
        self._settings = settings
        self._stated = None if root is None else absolute(root)
        self._urls = [fixed(absolute(url))[0] for url in urls]
        self._roots: dict[str, str] = {}
        self._tried: set[str] = set()

    def of(self, root: str) -> str:
        """The mark of files whose keys are relative to the root."""
        text = json.dumps({**self._settings, "root": root}, sort_keys=True)
        mark = MARK + hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self._roots[mark] = root
        return mark

    def root(self, url: str, fingerprint: str) -> str | None:
        """What the keys of a planned file are relative to; None if its mark is none of this source's."""
        mark = fingerprint[len(unmarked(fingerprint)) :]
        if mark not in self._roots and MARKED.fullmatch(mark):
            for folder in self._possible(url):
                if folder not in self._tried:
                    self._tried.add(folder)
                    if self.of(folder) == mark:
                        break
        return self._roots.get(mark)

    def named(self, root: str) -> bool:
        """Whether the URLs alone, or what is stated, lead to the root."""
        return root == self._stated or any(root in above(url) for url in self._urls)

    def _possible(self, url: str) -> Iterator[str]:
        if self._stated is not None:
            yield self._stated
            return
        yield from above(url.rpartition("/")[0])
        for other in self._urls:
            yield from above(other)


def above(url: str) -> Iterator[str]:
    """An absolute URL and all folders above it, the nearest first."""
    parts = url.split("/")
    for count in range(len(parts), 0, -1):
        yield "/".join(parts[:count])


def shared(folders: Sequence[str]) -> str:
    """The folder that all of these are, or lie below."""
    parts = zip(*(folder.split("/") for folder in folders), strict=False)
    return "/".join(column[0] for column in takewhile(lambda c: len(set(c)) == 1, parts))


def below(root: str, url: str) -> str:
    """A URL relative to a root, or whole where it is not below that; the last name of the root itself."""
    if url == root:
        return url.rpartition("/")[2]
    return url[len(root) + 1 :] if url.startswith(f"{root}/") else url


def unmarked(fingerprint: str) -> str:
    """A planned fingerprint without its mark and the name of its source in a mix."""
    return BOUND.sub("", fingerprint)
