"""Make golden stores of this release's format version: `python tests/golden/make.py CODEC…`, by default all.

They are what a released format looks like, for ever: the tests read them and never make them. Run this once
for a new format version, a new codec or a new container; it refuses to touch a golden store that is there.
Version 1 had one container, its stores lie in v1/<codec>; later ones lie in v<version>/<container>/<codec>.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.targets import Head, Input, Quarantined, Ragged, Rows, Slice, Spec, Store, Unit, Vocabulary
from pipeline.targets.codecs import Codec, Dense, Embedding, Sampled, Threshold, TopK, TopP
from pipeline.targets.codecs.base import offsets_of, uniforms
from pipeline.targets.codecs.codebooks import train
from pipeline.targets.containers import CONTAINERS
from pipeline.targets.spec import FORMAT_VERSION, Container

SIZE = 9
CODECS = {
    "dense": Dense("float32"),
    "topk": TopK(k=3, betas=(0.5, 1.0)),
    "topp": TopP(p=0.8, k=4, betas=(0.5, 1.0), slopes=True),
    "threshold": Threshold(0.1),
    "sampled": Sampled(5),
    "embedding": Embedding("int8"),
    "codebooks": train(np.random.default_rng(0).normal(size=(300, SIZE)), 3, iterations=2),
}


def contents(store: Store) -> dict[str, Any]:
    """All that a reader gets from a store, as JSON; arrays with their exact bits."""
    commits = list(store.commits())
    return {
        "spec_fingerprint": store.spec.fingerprint,
        "planned": [unit.id for unit in store.planned()],
        "pending": [unit.id for unit in store.pending()],
        "commits": [json.loads(commit.to_json()) for commit in commits],
        "rows": [_plain(rows) for commit in commits for rows in store.read(commit)],
        "quarantined": [[vars(item) for item in store.quarantined(commit)] for commit in commits],
    }


def _plain(rows: Rows) -> dict[str, Any]:
    inputs = {name: _exact(a) if isinstance(a, np.ndarray) else _fields(a) for name, a in rows.inputs.items()}
    decoded = {head.name: _fields(rows.decode(head.name)) for head in rows.spec.heads}
    numbers = {name: getattr(rows, name).tolist() for name in ("row", "view", "views", "targets")}
    return {"keys": list(rows.keys), **numbers, "inputs": inputs, "decoded": decoded}


def _fields(value: object) -> dict[str, Any]:
    return {
        name: _exact(field)
        if isinstance(field, np.ndarray)
        else list(field)
        if isinstance(field, tuple)
        else field
        for name, field in vars(value).items()
        if field is not None  # what a later release may store, and the golden store's did not
    }


def _exact(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"dtype": array.dtype.str, "shape": list(array.shape), "hex": array.tobytes().hex()}


def _spec(codec: Codec, container: Container) -> Spec:
    return Spec(
        inputs=(Input("tokens", "<u2", (None,)), Input("image", "|u1", (2, 2))),
        heads=(Head("logits", SIZE, "next_token", codec), Head("label", SIZE, "single", codec)),
        teacher={"kind": "golden", "fingerprint": "0"},
        views={"kind": "golden", "fingerprint": "ü"},
        seed=7,
        container=container,
        vocabulary=Vocabulary(SIZE - 1, SIZE, "0"),
    )


def _rows(spec: Spec, seed: int) -> Rows:
    """Two records with two views each; the last row has one token, and so no next token."""
    rng = np.random.default_rng(seed)
    lengths = np.array([4, 3, 2, 1])
    tokens = rng.integers(0, SIZE - 1, lengths.sum()).astype("<u2")
    keys, views, heads = ["a/ä.txt", "a/ä.txt", "b.txt", "b.txt"], [0, 1, 0, 1], {}
    for head in spec.heads:
        counts = lengths - 1 if head.positions == "next_token" else np.ones(4, int)
        logits = 3 * rng.normal(size=(counts.sum(), SIZE)).astype(np.float32)
        draws = [
            uniforms(spec.seed, head.name, key, view, count, head.codec.draws)
            for key, view, count in zip(keys, views, counts.tolist(), strict=True)
        ]
        heads[head.name] = head.codec.encode(logits, np.concatenate(draws))
    return Rows(
        spec=spec,
        keys=keys,
        row=np.array([0, 0, 1, 1]),
        view=np.array(views, np.int32),
        views=np.full(4, 2, np.int32),
        targets=(lengths - 1).astype(np.int32),
        inputs={
            "tokens": Ragged(tokens, offsets_of(lengths)),
            "image": rng.integers(0, 256, (4, 2, 2)).astype(np.uint8),
        },
        heads=heads,
    )


def make(folder: Path, codec: Codec, container: Container) -> None:
    """A store with one unit in the manifest, one in a commit record, one not labelled."""
    spec = _spec(codec, container)
    store = Store.create(str(folder / "store"), spec)
    units = [Unit((Slice("/corpus/ä.txt", i, i + 1, 99, "1700000000"),), 1) for i in range(3)]
    store.write_plan(units, {"kind": "golden"}, store.generation())
    for number, unit in enumerate(units[:2]):
        with store.writer(unit.id) as writer:
            writer.write(_rows(spec, number))
            writer.quarantine(Quarantined("c.txt", 2, None, "empty", "the record is empty"))
            writer.commit(
                records=3,
                statistics={"logits.entries": 2.5},
                histograms={"logits.entropy": [1, 2] + [0] * 38},
                started=1.7e9,
                forward_seconds=0.5,
                device="cpu",
            )
        if number == 0:
            store.compact()
    (folder / "expected.json").write_text(json.dumps(contents(store), indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    chosen = sys.argv[1:] or list(CODECS)
    if unknown := set(chosen) - set(CODECS):
        sys.exit(f"no codec {', '.join(sorted(unknown))}, there are {', '.join(CODECS)}")
    root = Path(__file__).parent / f"v{FORMAT_VERSION}"
    for container in CONTAINERS:
        for name in chosen:
            folder = root / container / name
            if folder.exists():
                sys.exit(f"{folder} is there already: golden stores are never made again")
            folder.mkdir(parents=True)
            make(folder, CODECS[name], container)


if __name__ == "__main__":
    main()
