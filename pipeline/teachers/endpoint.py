"""A language model that is served elsewhere, behind an OpenAI-compatible API, as a teacher.

It knows one question: a view's token ids as the prompt of /completions with `prompt_logprobs`, which vLLM
answers with the likeliest classes of every next token. The legacy `echo` with `logprobs` names classes by
their text, which two of them may share, and is not asked. How HTTP fails, `service` knows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from pipeline.targets.errors import TeacherError, UserError
from pipeline.teachers.base import Batch, Output, TeacherConfig
from pipeline.teachers.inputs import tokens_of
from pipeline.teachers.likeliest import Likeliest
from pipeline.teachers.service import Refused, Service, Unavailable

EXCESS = 0.05
"""By how much an answer's probabilities may add up to more than one: served models compute in 16 bits."""

CLAMPED = -9999.0
"""What vLLM sends for a log-probability of -inf, which JSON has not."""

MOST_BYTES = 1000
"""Of an answer for each class of each position, ten times what is usual, beside a million for all else."""

PROBE = (0, 1)
"""Tokens of the question that tells whether the service works at all."""

REMEMBERED = 1000
"""Views that were refused, at most, whose refusal is kept."""


class Endpoint(TeacherConfig):
    """A causal language model behind an API that answers `prompt_logprobs`, as vLLM's does.

    Head: "logits", of which only the `top` likeliest classes are told: codecs topk and topp, with betas
    [1.0]. The tail's mass is one less their sum. Input: "tokens", of the model's own tokenizer.
    """

    kind: Literal["endpoint"] = "endpoint"
    """A served language model."""

    url: str
    """The API, for example http://host:8000/v1. Where it is, is no part of the store's spec."""

    model: str
    """The name under which the service has the model."""

    size: PositiveInt
    """Classes of the model's logits: `vocab_size` in its config.json."""

    revision: str = ""
    """Whatever tells weights apart that were served under one name: the weights themselves cannot be seen."""

    top: PositiveInt = 20
    """Classes that are asked for of each token. vLLM's limit is its --max-logprobs, by default 20."""

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """What the served model computes in, which says how much an audit may find its answers to differ."""

    key_variable: str = Field(default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds the key. Where it is not set, none is sent."""

    concurrency: PositiveInt = 16
    """Requests in flight. A batch is answered whole before the next is asked: let `batching.budget` hold
    several times so many views."""

    requests_per_second: PositiveFloat | None = None
    """Most requests a second, of each replica; unlimited by default."""

    tokens_per_second: PositiveFloat | None = None
    """Most tokens a second, of each replica; unlimited by default."""

    timeout_seconds: PositiveFloat = 120.0
    """How long one answer may take."""

    attempts: PositiveInt = 8
    """Attempts at one request, with growing waits between them, at least as long as Retry-After says."""

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("is no http:// or https:// URL")
        if parts.username is not None or parts.password is not None or parts.query:
            raise ValueError("holds credentials or a query: put the key into the environment (key_variable)")
        return url

    def load(self) -> EndpointTeacher:
        return EndpointTeacher(self)


class EndpointTeacher:
    """A service that was seen to work."""

    def __init__(self, config: Endpoint) -> None:
        self.config = config
        self.told = min(config.top, config.size)
        self.outputs = {"logits": Output(config.size, "next_token", likeliest=self.told)}
        identity = json.dumps([config.model, config.revision, config.size])
        self.description: dict[str, Any] = {
            "kind": config.kind,
            "model": config.model,
            "revision": config.revision,
            "dtype": config.dtype,
            "top": self.told,
            "tail": "from_sum",
            "fingerprint": hashlib.sha256(identity.encode()).hexdigest(),
        }
        self._service = Service(
            config.url,
            config.key_variable,
            connections=config.concurrency,
            timeout_seconds=config.timeout_seconds,
            attempts=config.attempts,
            requests_per_second=config.requests_per_second,
            tokens_per_second=config.tokens_per_second,
        )
        self._threads = ThreadPoolExecutor(config.concurrency, thread_name_prefix="decant-endpoint")
        self._refused: dict[bytes, str] = {}
        try:
            self._ask(np.array(PROBE) % config.size)
        except Unavailable as error:
            raise TeacherError(f"the teacher cannot be reached: {error}") from error
        except Refused as error:
            raise UserError(
                f"{config.url} does not answer prompt_logprobs of {self.told} for {config.model} ({error}): "
                "serve it with vLLM, its --max-logprobs at least teacher.top"
            ) from error

    def __call__(self, batch: Batch) -> Mapping[str, Likeliest]:
        """The likeliest classes of every next token, each view asked by itself.

        Raises Refused for a view that the service does not answer, TeacherError when it does not answer any
        more.
        """
        tokens, lengths = tokens_of(batch), batch.lengths.tolist()
        asked = [
            self._threads.submit(self._view, view[:length])
            for view, length in zip(tokens, lengths, strict=True)
        ]
        shape = (*tokens.shape, self.told)
        ids, log_probs = np.zeros(shape, dtype=np.int64), np.full(shape, np.nan)
        own = np.full(tokens.shape, np.nan)
        try:
            for i, (future, length) in enumerate(zip(asked, lengths, strict=True)):
                places = slice(0, length - 1)
                ids[i, places], log_probs[i, places], own[i, places] = future.result()
        finally:
            for future in asked:
                future.cancel()
        return {"logits": Likeliest(ids, log_probs, own, self.config.size)}

    def _view(self, tokens: npt.NDArray[Any]) -> Told:
        """A view's answer. What was refused is not asked again while its batch is taken apart."""
        name = tokens.tobytes()
        if name in self._refused:
            raise Refused(self._refused[name])
        try:
            try:
                return self._ask(tokens)
            except Malformed:  # perhaps by one of several servers: once more
                return self._ask(tokens)
        except Refused as error:
            refusal = str(error)
        except Unavailable as error:
            # Is it the service, or does this view bring it down?
            try:
                self._ask(np.array(PROBE) % self.config.size)
            except (Unavailable, Refused):
                raise TeacherError(f"the teacher does not answer any more: {error}") from error
            refusal = str(error)
        if len(self._refused) >= REMEMBERED:
            self._refused.clear()
        self._refused[name] = refusal
        raise Refused(refusal)

    def _ask(self, tokens: npt.NDArray[Any]) -> Told:
        prompt = tokens.tolist()
        body = {
            "model": self.config.model,
            "prompt": prompt,
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": self.told,
        }
        most = MOST_BYTES * len(prompt) * (self.told + 1) + MOST_BYTES**2
        answer = self._service.post("/completions", body, len(prompt), most)
        return told(answer, prompt, self.told, self.config.size)


class Malformed(Refused):
    """An answer that says nothing of the question."""


Told = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Of a view of L tokens: ids and log-probabilities [L - 1, k], likeliest first, and those of its own tokens
[L - 1]."""


def told(answer: Any, prompt: list[int], k: int, size: int) -> Told:
    """What an answer of /completions says of the tokens of its prompt but the first.

    For each, `prompt_logprobs` has the k likeliest classes, by id, and the token itself if it is not among
    them. A number that is NaN stays one. Raises Malformed for what is no such answer.
    """
    try:
        (choice,) = answer["choices"]
        entries = choice["prompt_logprobs"]
        if len(entries) != len(prompt):
            raise ValueError(f"it is of {len(entries)} tokens, and {len(prompt)} were asked")
        ids = np.zeros((len(prompt) - 1, k), dtype=np.int64)
        log_probs = np.zeros(ids.shape)
        own = np.zeros(len(ids))
        for i, (token, entry) in enumerate(zip(prompt[1:], entries[1:], strict=True)):
            found = {int(name): _number(value["logprob"]) for name, value in entry.items()}
            if token not in found:
                raise ValueError(f"it says nothing of token {token} at position {i + 1}")
            if len(found) < k or min(found) < 0 or max(found) >= size:
                raise ValueError(f"at position {i + 1} it has not {k} classes of {size}")
            own[i] = found[token]
            ranked = sorted(found.items(), key=_likeliest_first)[:k]
            ids[i], log_probs[i] = zip(*ranked, strict=True)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__} {error}" if isinstance(error, KeyError | TypeError) else str(error)
        raise Malformed(f"the answer is no list of prompt_logprobs: {reason}"[:300]) from error
    with np.errstate(over="ignore"):
        total = np.exp(log_probs).sum(axis=1)
    if (total > 1 + EXCESS).any():
        at = int(np.flatnonzero(total > 1 + EXCESS)[0])
        raise Malformed(f"the probabilities of position {at + 1} sum to {total[at]:.4g}, more than one")
    return ids, log_probs, own


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no log-probability")
    return -math.inf if value <= CLAMPED else float(value)


def _likeliest_first(entry: tuple[int, float]) -> tuple[float, int]:
    """What is NaN comes first, so that it is not overlooked."""
    return (-math.inf if math.isnan(entry[1]) else -entry[1], entry[0])
