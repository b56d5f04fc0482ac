"""Where the targets are, how they are read, and whose token ids they are in."""

from __future__ import annotations

from typing import Any

from pydantic import Field, NonNegativeInt, PositiveFloat

from student.config.base import Config


class StoreLocation(Config):
    """A store to learn from."""

    url: str
    """The store: a directory or any fsspec URL."""

    options: dict[str, Any] = Field(default={})
    """fsspec options of the URL, for example {endpoint_url: …}. Credentials belong in the environment."""


class ReadingConfig(Config):
    """How a store is read, beyond which rows come when."""

    cache: str | None = None
    """A local directory for decoded shards, which ranks, later epochs and other runs on this machine share.
    null keeps none: right for a local store that is read once."""

    cache_gigabytes: PositiveFloat = 100.0
    """What the directory holds at most; what was used longest ago goes first. 1 is 10^9 bytes."""

    bucket_rows: NonNegativeInt = 0
    """Rows that are sorted by length together, so that a batch's are about equally long; 0 sorts none. At
    least `batch_rows`."""


class VocabularyConfig(Config):
    """The student's tokenizer. One with other ids than the store's learns from it through an id map."""

    tokenizer: str
    """The directory with the student's tokenizer.json."""

    store_tokenizer: str | None = None
    """The one that the store was labelled with. Where it is not the student's, each of its tokens must be one
    of the student's too, and both must cut the store's text alike. Without it, the two must be the same."""
