"""The format: docs/format.md is true and sufficient, and stores of released versions stay readable."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.targets import DenseTargets, Ragged, SparseTargets, Store, TopKTargets
from pipeline.targets.codecs import CODECS, Codebooks, Dense, Embedding, Sampled, Threshold, TopK, TopP
from pipeline.targets.containers import CONTAINERS

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests/golden"


def documented_reader() -> str:
    """The Python block of docs/format.md."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/format.md").read_text(), re.DOTALL)
    return str(block)


def test_the_documented_reader_is_short_and_needs_only_numpy_and_pyarrow(tmp_path: Path, kit: Any) -> None:
    code = documented_reader()
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) < 80
    store = Store.create(str(tmp_path / "store"), kit.text_spec())
    kit.label(store, "ab" * 16)
    check = (
        "\nimport sys\nmain(sys.argv[1])\nassert not [m for m in sys.modules if m.startswith('pipeline')]\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code + check, store.url],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 12


@pytest.mark.parametrize(
    "codec", [Dense(), Dense("float32"), TopK(k=4, betas=(0.5, 1.0)), Threshold(0.1), Threshold(0.002)]
)
def test_the_documented_reader_reads_what_the_store_reads(tmp_path: Path, kit: Any, codec: Any) -> None:
    store = Store.create(str(tmp_path / "store"), kit.text_spec(codec))
    for number in range(3):
        kit.label(store, f"{number:032x}", [kit.make_rows(store.spec, 9, views=2, seed=number)])
        if number == 1:
            store.compact()
    scope: dict[str, Any] = {}
    exec(documented_reader(), scope)
    found = list(scope["rows"](tmp_path / "store"))
    expected = [
        rows.take(np.array([row]))
        for commit in store.commits()
        for rows in store.read(commit)
        for row in range(len(rows))
    ]
    assert len(found) == len(expected) == 54
    for (key, view, inputs, heads), row in zip(found, expected, strict=True):
        assert (key, view) == (row.keys[0], row.view[0])
        tokens = row.inputs["tokens"]
        assert isinstance(tokens, Ragged)
        np.testing.assert_array_equal(inputs["tokens"], tokens[0])
        for name, theirs in heads.items():
            ours = row.decode(name)
            if isinstance(ours, DenseTargets):
                np.testing.assert_array_equal(theirs, ours.logits)
            elif isinstance(ours, TopKTargets):
                for a, b in zip(theirs, (ours.ids, ours.log_probs, ours.tail_log_mass), strict=True):
                    np.testing.assert_array_equal(a, b)
            else:
                np.testing.assert_allclose(theirs, scattered(ours), atol=1e-6)


def test_the_documented_ways_to_read_tar_and_zarr_without_decant_work(
    tmp_path: Path, kit: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```py\n(.*?)```", (ROOT / "docs/format.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for container, block in zip(("webdataset", "zarr"), blocks, strict=True):
        pytest.importorskip(container)
        store = Store.create(container, kit.text_spec(container=container))
        commit = kit.label(store, "ab" * 16)
        extension = CONTAINERS[container].extension
        Path(f"shard.{extension}").write_bytes(store.storage.read(commit.shard))
        exec(block, {})
        (rows,) = store.read(commit)
        said = capsys.readouterr().out
        if container == "webdataset":
            assert f"{rows.keys[7]} ({rows.inputs['tokens'].lengths[7]},)" in said.splitlines()
        else:
            assert said.strip() == f"{store.spec.fingerprint} {rows.inputs['tokens'][7]}"


def scattered(targets: SparseTargets) -> Any:
    """The estimate as [N, V]."""
    p = np.zeros((len(targets.offsets) - 1, targets.size))
    np.add.at(p, (np.repeat(np.arange(len(p)), np.diff(targets.offsets)), targets.ids), targets.weights)
    return p


def test_every_codec_and_its_fields_are_in_the_documentation() -> None:
    text = (ROOT / "docs/format.md").read_text()
    assert all(f"### `{kind}`" in text for kind in CODECS)
    words = base64.b64encode(bytes(2 * 256 * 10)).decode()
    sloped = [codec(betas=(0.5, 1.0), slopes=True) for codec in (TopK, TopP)]
    for codec in (Dense("int8"), *sloped, Sampled(), Embedding("int8"), Codebooks(10, 5, words)):
        for field in codec.layout(10):
            assert f"| `{field.name}`" in text


def test_the_documented_fingerprints_and_ids_are_the_stores(tmp_path: Path, kit: Any) -> None:
    store = Store.create(str(tmp_path / "store"), kit.text_spec(teacher={"kind": "ü", "fingerprint": "x"}))
    spec = json.loads((tmp_path / "store/spec.json").read_text())
    text = json.dumps(spec, sort_keys=True, ensure_ascii=False)
    assert hashlib.blake2b(text.encode(), digest_size=16).hexdigest() == store.spec.fingerprint
    assert store.spec.schema().metadata[b"decant.spec"].decode() == text
    (unit,) = kit.make_units(1)
    slices = [[s.url, s.start, s.stop, s.size, s.fingerprint] for s in unit.slices]
    text = json.dumps(slices, ensure_ascii=True, separators=(",", ":"))
    assert hashlib.blake2b(text.encode(), digest_size=16).hexdigest() == unit.id


def test_every_file_of_a_store_is_in_the_documentation(tmp_path: Path, kit: Any) -> None:
    store = Store.create(str(tmp_path / "store"), kit.text_spec())
    store.write_plan(kit.make_units(2), {"kind": "text"}, store.generation())
    kit.label(store, kit.make_units(1)[0].id)
    store.compact()
    commit = kit.label(store, kit.make_units(2)[1].id)
    text = (ROOT / "docs/format.md").read_text()
    documented = {name.split("/")[0] for name in re.findall(r"^\| `([a-z./<]+)", text, re.MULTILINE)}
    assert {entry.name.split("/")[0] for entry in store.storage.list("")} <= documented
    for key in json.loads(commit.to_json()):
        assert f"`{key}`" in text
    for key in json.loads(store.spec.to_json()):
        assert f"`{key}`" in text
    for head in (Dense(), TopK(), Threshold()):
        for column in head.columns(10):
            assert f"`{column.name}`" in text


GOLDEN_STORES = sorted(path.parent for path in GOLDEN.glob("v*/**/expected.json"))


def golden_name(path: Path) -> str:
    return path.relative_to(GOLDEN).as_posix()


def test_there_is_a_golden_store_of_every_codec_and_container() -> None:
    wanted = {"v1/dense", "v1/threshold", "v1/topk"}
    wanted |= {f"v2/{container}/{codec}" for container in CONTAINERS for codec in CODECS}
    assert wanted <= {golden_name(path) for path in GOLDEN_STORES}


def contents() -> Callable[[Store], dict[str, Any]]:
    """From tests/golden/make.py: how expected.json was written."""
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[[Store], dict[str, Any]] = module.contents
    return function


@pytest.mark.parametrize("golden", GOLDEN_STORES, ids=golden_name)
def test_a_golden_store_decodes_to_the_same_bits_as_ever(golden: Path) -> None:
    expected = json.loads((golden / "expected.json").read_text())
    store = Store.open(str(golden / "store"))
    assert contents()(store) == expected
    assert not store.verify().problems
