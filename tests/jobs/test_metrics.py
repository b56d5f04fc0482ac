"""What Prometheus scrapes of a running job is what the store says; the dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.request
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest

from jobs.metrics import Metrics
from jobs.totals import Totals
from pipeline.targets.errors import ConfigError
from pipeline.targets.store import Store
from tests.jobs.test_progress import EVENTS

pytest.importorskip("prometheus_client")
Decant = Callable[..., Any]


def scraped(url: str) -> dict[str, float]:
    """The samples of a real scrape, by name and labels, read by Prometheus' own parser."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.slow
def test_a_running_job_is_scraped(small_job: Any) -> None:
    for number in range(6):
        (small_job.folder / "corpus" / f"{number:02}.txt").write_text("The owl flies at night. " * 16)
    small_job.settings["teacher"]["seconds_per_view"] = 0.05
    small_job.settings["label"] = {"replicas": {"units_in_flight": 1}}
    with small_job.logging("--metrics-port", "0") as (process, log):
        url = next(line["url"] for line in log if line["event"] == "metrics")
        assert url.startswith("http://127.0.0.1:")
        for _ in range(4):
            assert next(line for line in log if line["event"] == "unit_committed")
        found = scraped(url)
        rest = list(log)
        assert process.wait(60) == 0
    assert rest[-1]["status"] == "complete"
    assert found["decant_units_planned"] == 9
    assert 4 <= found["decant_units_total"] == found["decant_units_committed"] <= 9
    assert found["decant_unit_seconds_count"] == found["decant_units_total"]
    assert found["decant_replicas state=running"] == 1
    assert found["process_resident_memory_bytes"] > 1e7
    totals = Totals.of(Store.open(str(small_job.store)).commits())
    assert 0 < found["decant_targets_total"] <= totals.targets
    assert abs(found["decant_last_commit_timestamp_seconds"] - time.time()) < 600


def test_events_are_counted_under_standard_names() -> None:
    metrics = Metrics(planned=10, committed=3)
    for event in EVENTS:
        metrics.on(event)
    with metrics.served(0, "127.0.0.1") as url:
        found = scraped(url)
    assert found["decant_units_committed"] == 5
    assert found["decant_units_total"] == 2
    assert found["decant_records_total"] == 20
    assert found["decant_targets_total"] == 800
    assert found["decant_shard_bytes_total"] == 4000
    assert found["decant_quarantined_total kind=failure"] == 4
    assert found["decant_quarantined_total kind=empty"] == 2
    assert found["decant_unit_failures_total given_up=false"] == 1
    assert found["decant_unit_failures_total given_up=true"] == 0
    assert found["decant_replicas state=running"] == found["decant_replicas state=pending"] == 1
    assert found["decant_replicas_lost_total"] == 1


def test_a_port_that_is_taken_is_a_users_mistake() -> None:
    with Metrics(1, 0).served(0, "127.0.0.1") as url:
        port = int(url.split(":")[2].split("/")[0])
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} cannot be listened on"):
            Metrics(1, 0).served(port, "127.0.0.1").__enter__()


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"decant-kd\[metrics\]"):
        Metrics(1, 0)


def test_the_dashboard_asks_only_for_metrics_that_there_are() -> None:
    dashboard = json.loads(files("jobs").joinpath("cluster", "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(queries) >= 10
    asked = {name for query in queries for name in re.findall(r"\b(?:decant|process)_\w+", query)}
    metrics = Metrics(1, 0)
    for event in EVENTS:
        metrics.on(event)
    assert asked <= metrics.names()
    assert {
        name for name in metrics.names() if name.startswith("decant_") and "_created" not in name
    } - asked <= {
        "decant_unit_seconds_count",
        "decant_unit_seconds_sum",
    }
    # Every panel has a place of its own, and draws from the data source that the person picks.
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in dashboard["panels"])
