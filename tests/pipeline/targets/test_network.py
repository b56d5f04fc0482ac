"""Between client and store things go wrong; what passes is ridden out, and what does not is one sentence."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from pipeline.targets import Storage, Store
from pipeline.targets.errors import StorageError
from tests.s3.proxy import EXPIRED, INTERNAL_ERROR, SLOW_DOWN, Fault, Network, Proxy, first

Faulty = tuple[Proxy, tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]

PASSING = [
    pytest.param(SLOW_DOWN, 3, id="a burst of SlowDown"),
    pytest.param(INTERNAL_ERROR, 3, id="a burst of 500"),
    pytest.param(Network.RESET_UPLOAD, 2, id="reset while it is sent"),
    pytest.param(Network.RESET_DOWNLOAD, 2, id="reset while it is answered"),
    pytest.param(Network.LOST_ANSWER, 1, id="lost answer"),
    pytest.param(Network.SILENCE, 1, id="timeout", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("fault", "times"), PASSING)
def test_a_passing_fault_loses_and_doubles_nothing(
    faulty: Faulty, kit: Any, fault: Fault, times: int
) -> None:
    proxy, through, direct = faulty
    store = Store.create(through[0], kit.text_spec(), through[1])
    store.write_plan(kit.make_units(1), {"kind": "text"}, 0)
    (unit,) = store.planned()
    for concerned in (
        lambda request: request.puts("shards"),
        lambda request: request.puts("commits"),
        lambda request: request.gets("commits"),
        lambda request: request.is_list,
    ):
        proxy.rule = first(times, fault, concerned)
        commit = kit.label(store, unit.id)
        proxy.rule = lambda request: None
    assert proxy.met
    seen = Store.open(*direct)
    assert list(seen.commits()) == [commit]
    assert seen.verify().problems == ()


def test_a_commit_whose_answer_was_lost_is_recognised_as_our_own(faulty: Faulty, kit: Any) -> None:
    proxy, through, _ = faulty
    store = Store.create(through[0], kit.text_spec(), through[1])
    proxy.rule = first(1, Network.LOST_ANSWER, lambda request: request.puts("commits"))
    with store.writer("ab" * 16) as writer:
        writer.write(kit.make_rows(store.spec))
        facts = {"statistics": {}, "histograms": {}, "started": 0.0, "forward_seconds": 0.0}
        commit = writer.commit(records=12, device="mine", **facts)
    assert len(proxy.met) == 1
    assert commit.device == "mine"
    assert store.gc(0.0) == [], "the only shard is the one that counts"


def test_plans_and_manifests_whose_answers_were_lost_are_there_once(faulty: Faulty, kit: Any) -> None:
    proxy, through, _ = faulty
    store = Store.create(through[0], kit.text_spec(), through[1])
    proxy.rule = first(1, Network.LOST_ANSWER, lambda request: request.puts("plan"))
    with pytest.raises(StorageError, match="plan again"):
        store.write_plan(kit.make_units(2), {"kind": "text"}, 0)
    assert store.write_plan(kit.make_units(2), {"kind": "text"}, store.generation()) == 0
    for unit in store.planned():
        kit.label(store, unit.id)
    proxy.rule = first(1, Network.LOST_ANSWER, lambda request: request.puts("manifest"))
    assert store.compact() == 2
    assert [entry.name for entry in store.storage.list("manifest/")] == ["manifest/00000001.parquet"]
    assert list(store.storage.list("commits/")) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "method"),
    [
        (SLOW_DOWN, "PUT"),
        (Network.RESET_UPLOAD, "PUT"),
        (Network.LOST_ANSWER, "PUT"),
        (Network.LOST_ANSWER, "POST"),
    ],
)
def test_an_upload_in_parts_survives_what_passes(faulty: Faulty, fault: Fault, method: str) -> None:
    proxy, through, direct = faulty
    storage = Storage(*through)
    proxy.rule = first(1, fault, lambda request: request.method == method and "uploadId" in request.path)
    data = bytes(range(256)) * 2**17
    with storage.upload("shards/x") as file:
        for start in range(0, len(data), 2**20):
            file.write(data[start : start + 2**20])
    assert len(proxy.met) == 1
    assert Storage(*direct).read("shards/x") == data


def test_an_upload_in_parts_that_is_abandoned_or_fails_leaves_nothing(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.targets.storage.PART_BYTES", 5 * 2**20)
    proxy, through, direct = faulty
    storage = Storage(through[0], {**through[1], "config_kwargs": {"retries": {"total_max_attempts": 1}}})
    part = b"x" * 6 * 2**20

    def upload(fail: bool) -> None:
        with storage.upload("shards/x") as file:
            file.write(part)
            if fail:
                raise KeyError("no affair of the storage")
            proxy.rule = lambda request: INTERNAL_ERROR if request.method == "POST" else None

    with pytest.raises(KeyError):
        upload(fail=True)
    with pytest.raises(StorageError):
        upload(fail=False)
    gc.collect()
    proxy.rule = lambda request: None
    plain = Storage(*direct)
    bucket, key, _ = plain._fs.split_path(plain._path(""))
    assert list(plain.list("shards/")) == []
    uploads = plain._fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key)
    assert not uploads.get("Uploads")


def test_stale_listings_cost_work_and_no_data(faulty: Faulty, kit: Any) -> None:
    proxy, through, direct = faulty
    fresh = Store.create(direct[0], kit.text_spec(), direct[1])
    fresh.write_plan(kit.make_units(3), {"kind": "text"}, 0)
    units = [unit.id for unit in fresh.planned()]
    behind = Store.open(*through)
    assert behind.committed() == set()  # this answer is the one that it will get again
    assert behind.gc(0.0) == []
    for unit in units:
        kit.label(fresh, unit)
    before = list(fresh.commits())
    proxy.rule = lambda request: Network.STALE if request.is_list else None
    assert behind.committed() == set()
    assert kit.label(behind, units[0]) in before
    fresh.compact()
    kit.label(Store.open(*through), units[1])  # its record is one too many, and does not count
    # Nothing in what it lists says that these shards are of the store.
    lagging = Store.open(*through)
    lost = set(lagging.gc(0.0))
    assert not lost & {commit.shard for commit in fresh.commits()}
    proxy.rule = lambda request: None
    assert fresh.verify().problems == ()
    assert {commit.unit: commit.attempt for commit in fresh.commits()} == {c.unit: c.attempt for c in before}


def test_credentials_that_expired_are_one_sentence(faulty: Faulty) -> None:
    proxy, through, _ = faulty
    storage = Storage(*through)
    storage.put_if_absent("a", b"1")
    proxy.rule = lambda request: EXPIRED
    for action in (
        lambda: storage.put_if_absent("b", b""),
        lambda: storage.read("a"),
        lambda: list(storage.list("commits/")),
    ):
        with pytest.raises(StorageError, match="the credentials have expired: renew them"):
            action()


def test_a_manifest_that_cannot_be_reached_is_not_called_broken(faulty: Faulty, kit: Any) -> None:
    proxy, through, _ = faulty
    store = Store.create(through[0], kit.text_spec(), through[1])
    kit.label(store, "ab" * 16)
    store.compact()
    other = Store.open(*through)
    proxy.rule = lambda request: EXPIRED if request.gets("manifest") else None
    with pytest.raises(StorageError, match="cannot be read: the credentials"):
        list(other.commits())


def test_credentials_that_renew_themselves_are_renewed(
    faulty: Faulty, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (url, options), (_, direct) = faulty
    # As instance roles, web identities and SSO do, with a program in the role of the service.
    program = tmp_path / "credentials.sh"
    program.write_text(
        "#!/bin/sh\n"
        f"echo x >> {tmp_path}/calls\n"
        "soon=$(date -u -d '+5 seconds' +%Y-%m-%dT%H:%M:%SZ)\n"
        f'echo \'{{"Version": 1, "AccessKeyId": "{direct["key"]}", "SecretAccessKey": "{direct["secret"]}", '
        '"SessionToken": null, "Expiration": "\'$soon\'"}\'\n'
    )
    program.chmod(0o700)
    config = tmp_path / "config"
    config.write_text(f"[profile renewing]\ncredential_process = {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "renewing")
    without = {key: value for key, value in options.items() if key not in ("key", "secret")}
    storage = Storage(url, without)
    for number in range(3):
        assert storage.put_if_absent(f"a{number}", b"1")
    assert len((tmp_path / "calls").read_text().split()) >= 3, "asked anew before each of them expires"
