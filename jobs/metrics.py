"""A run as Prometheus metrics, served by the driver: what the live view shows, for machines.

It knows the engine's events and the names under which they are counted, which `names` lists. Counters are
of this run, gauges of the store.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.targets.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.engine.base import Event

UNIT_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600)
"""Upper bounds of the histogram of seconds a unit."""


class Metrics:
    """The metrics of one run, in a registry of their own.

    planned: units of the store's plan; committed: those that were done before this run.
    """

    def __init__(self, planned: int, committed: int) -> None:
        """Raises ConfigError when prometheus_client is not installed."""
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
        except ImportError as error:
            raise ConfigError(
                "--metrics-port needs the package prometheus-client: pip install 'decant-kd[metrics]'"
            ) from error
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Any:
            return Counter(f"decant_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Any:
            return Gauge(f"decant_{name}", text, labels, registry=registry)

        self._planned = gauge("units_planned", "Units of the store's plan")
        self._done = gauge("units_committed", "Units of the store that are committed")
        self._replicas = gauge(
            "replicas", "Replicas that hold a model, and those that wait for room", "state"
        )
        self._last = gauge(
            "last_commit_timestamp_seconds", "When the latest unit was committed, unix seconds"
        )
        self._units = counter("units_total", "Units committed by this run")
        self._records = counter("records_total", "Records read from the corpus, labelled or quarantined")
        self._targets = counter("targets_total", "Targets written (tokens of text)")
        self._bytes = counter("shard_bytes_total", "Bytes of the shards written")
        self._forward = counter("forward_seconds_total", "Seconds that teachers computed, of all replicas")
        self._quarantined = counter("quarantined_total", "Records without a target", "kind")
        self._failures = counter("unit_failures_total", "Attempts at a unit that failed", "given_up")
        self._lost = counter("replicas_lost_total", "Replicas that died or were replaced")
        self._seconds = Histogram(
            "decant_unit_seconds",
            "Seconds from handing out a unit to its commit",
            buckets=UNIT_SECONDS,
            registry=registry,
        )
        ProcessCollector(registry=registry)
        self._planned.set(planned)
        self._done.set(committed)
        self._running: set[int] = set()
        self._pending: set[int] = set()
        for kind in ("failure", "empty"):
            self._quarantined.labels(kind)
        for given_up in ("false", "true"):
            self._failures.labels(given_up)
        self._show_replicas()

    def on(self, event: Event) -> None:
        """Takes one event of the engine."""
        from pipeline.engine import base

        match event:
            case base.ReplicaPending(replica=replica):
                self._pending.add(replica)
            case base.Started(replica=replica):
                self._pending.discard(replica)
                self._running.add(replica)
            case base.ReplicaLost(replica=replica):
                self._pending.discard(replica)
                self._running.discard(replica)
                self._lost.inc()
            case base.Failed(given_up=given_up):
                self._failures.labels(str(given_up).lower()).inc()
            case base.Committed(commit=commit, seconds=seconds):
                self._done.inc()
                self._units.inc()
                self._records.inc(commit.records)
                self._targets.inc(commit.targets or commit.rows)
                self._bytes.inc(commit.shard_bytes)
                self._forward.inc(commit.forward_seconds)
                self._quarantined.labels("failure").inc(commit.failures)
                self._quarantined.labels("empty").inc(commit.quarantined - commit.failures)
                self._seconds.observe(seconds)
                self._last.set(commit.finished)
        self._show_replicas()

    def _show_replicas(self) -> None:
        self._replicas.labels("running").set(len(self._running))
        self._replicas.labels("pending").set(len(self._pending))

    def names(self) -> set[str]:
        """Of all series that are served."""
        return {sample.name for family in self.registry.collect() for sample in family.samples}

    @contextmanager
    def served(self, port: int, address: str) -> Iterator[str]:
        """While entered, GET /metrics answers; its URL. port: 0 takes a free one. Raises ConfigError."""
        from prometheus_client import start_http_server

        try:
            server, thread = start_http_server(port, address, self.registry)
        except OSError as error:
            raise ConfigError(
                f"--metrics-port: {address}:{port} cannot be listened on ({error.strerror or error}): give "
                "another port or address"
            ) from error
        try:
            yield f"http://{address}:{server.server_port}/metrics"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
