"""Stores to look into: rows of text by a teacher that knows nothing, some of them hostile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.distributions import distributions
from pipeline.targets import Head, Input, Quarantined, Ragged, Rows, Slice, Spec, Store, Unit
from pipeline.targets.codecs import Codec, Dense, Threshold
from pipeline.targets.codecs.base import offsets_of
from pipeline.targets.spec import Vocabulary

SIZE = 320

BIRDS = [
    ("ducks.txt", "The duck swims on the pond.\nThe duck dives (for weeds)."),
    ("geese.txt", "A goose walks on the grass; geese graze where the grass is short."),
    ("swans.txt", "Swans build large nests: größer, 🦢 at the edge of the water."),
]

HOSTILE = [
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "<!--<script>",
    "--></title></style><svg onload=window.hacked=1>",
    "$style ${data} &lt;b&gt; \\u003cscript\\u003e",
    '"}]}\n\u2028\u2029\u202e\x00\x1b[31m',
]
"""Texts that would do harm where they were taken for anything but text."""


def make_store(
    folder: Path,
    spec: Spec,
    rows: Rows,
    quarantined: Sequence[Quarantined] = (),
    planned: int = 1,
) -> Store:
    """A store of one committed unit, and so many planned ones."""
    store = Store.create(str(folder), spec)
    units = [Unit((Slice(f"file{i}", 0, 9, 9, "f"),), 9) for i in range(planned)]
    store.write_plan(units, {"kind": "text"}, after=0)
    with store.writer(units[0].id) as writer:
        writer.write(rows)
        for item in quarantined:
            writer.quarantine(item)
        writer.commit(
            records=len(rows) + len(quarantined),
            statistics={"logits.entropy": 2.5},
            histograms={"logits.entropy": [3, 0, 5, 1] + [0] * 36},
            started=1.7e9,
            forward_seconds=0.5,
            device="cpu",
        )
    return store


def text_store(
    folder: Path,
    tokenizer: Any,
    texts: Sequence[tuple[str, str]],
    codec: Codec | None = None,
    teacher: dict[str, Any] | None = None,
    others: tuple[Head, ...] = (Head("topic", 2, "single", Dense()),),
    **kept: Any,
) -> Store:
    """Rows of (key, text) of a teacher that knows nothing. codec: of its next tokens; others: more heads."""
    spec = Spec(
        inputs=(Input("tokens", "<u2", (None,)),),
        heads=(Head("logits", SIZE, "next_token", codec or Threshold(threshold=0.05)), *others),
        teacher={"kind": "fake", "fingerprint": "t", **(teacher or {})},
        views={"kind": "windows", "fingerprint": "v"},
        vocabulary=Vocabulary(tokenizer.get_vocab_size(), SIZE, "0" * 64),
    )
    ids = [tokenizer.encode(text).ids for _, text in texts]
    lengths = np.array([len(row) for row in ids])
    rng = np.random.default_rng(0)
    heads = {}
    for head in spec.heads:
        count = len(texts) if head.positions == "single" else int((lengths - 1).sum())
        logits = rng.normal(0, 3, (count, head.size)).astype(np.float32)
        heads[head.name] = head.codec.encode(logits, rng.random((count, head.codec.draws)))
    rows = Rows(
        spec=spec,
        keys=[key for key, _ in texts],
        row=np.arange(len(texts)),
        view=np.zeros(len(texts), dtype=np.int32),
        views=np.ones(len(texts), dtype=np.int32),
        targets=(lengths - 1).astype(np.int32),
        inputs={"tokens": Ragged(np.concatenate(ids).astype("<u2"), offsets_of(lengths))},
        heads=heads,
    )
    return make_store(folder, spec, rows, **kept)


def decoded_row(store: Store, at: int, head: str) -> Any:
    """What the store holds of one row's head."""
    (commit,) = store.commits()
    (rows,) = store.read(commit)
    row = rows.take(np.array([at]))
    return distributions(row.decode(head), 0, int(row.counts(store.spec.head(head))[0]))
