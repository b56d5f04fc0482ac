"""What arrives when a run ends; that a failure to tell is no failure of the run; that no secret is shown."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from jobs.config import Job, load_job, shown
from jobs.notify import Ending, NotifyConfig, notify
from jobs.redaction import Redaction
from pipeline.targets.errors import ConfigError

Decant = Callable[..., Any]
SECRET = "s3cr3t-path-of-the-hook"


@dataclass
class Hook:
    """A web server that keeps what it was told. status: what it answers."""

    url: str = ""
    status: int = 204
    told: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Content-Type"] == "application/json"
            made.told.append(json.loads(body))
            made.authorizations.append(self.headers["Authorization"])
            self.send_response(made.status)
            if made.status == 302:
                self.send_header("Location", made.url)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}/services/{SECRET}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_webhook_is_told_of_completion_and_of_failure(small_job: Any, decant: Decant, hook: Hook) -> None:
    small_job.settings["notify"] = {"webhook": hook.url}
    result = decant(small_job.folder, "label", str(small_job.file))
    assert result.exit_code == 0, result.output
    (told,) = hook.told
    assert (told["status"], told["error"]) == ("complete", None)
    assert (told["planned"], told["committed"], told["labelled"]) == (3, 3, 3)
    assert told["store"] == str(small_job.store)
    assert told["counts"]["records"] == 3
    assert told["counts"]["targets"] > 100
    assert told["seconds"] > 0

    small_job.settings["store"]["url"] = "another"
    small_job.settings["teacher"]["nan_on"] = 32  # a token that every text has
    small_job.settings["label"] = {"max_quarantined": 0}
    failed = decant(small_job.folder, "label", str(small_job.file))
    assert failed.exit_code == 1, failed.output
    told = hook.told[1]
    assert told["status"] == "failed"
    assert told["error"] in failed.stderr.replace("decant: ", "")
    assert SECRET not in failed.output + result.output


def test_a_command_gets_the_same_on_its_input(small_job: Any, decant: Decant) -> None:
    copy = "import shutil, sys; shutil.copyfileobj(sys.stdin, open('told.json', 'w'))"
    small_job.settings["notify"] = {"command": [sys.executable, "-c", copy]}
    assert decant(small_job.folder, "label", str(small_job.file)).exit_code == 0
    assert json.loads((small_job.folder / "told.json").read_text())["status"] == "complete"


@pytest.mark.parametrize(
    ("status", "said"), [(500, "it answered 500"), (302, "it answered 302"), (0, "Connection refused")]
)
def test_a_notification_that_fails_is_a_warning(
    small_job: Any, decant: Decant, hook: Hook, status: int, said: str
) -> None:
    hook.status = status
    url = hook.url if status else f"http://user:{SECRET}@127.0.0.1:1/{SECRET}"
    small_job.settings["notify"] = {"webhook": url, "command": ["false"]}
    result = decant(small_job.folder, "label", str(small_job.file))
    assert result.exit_code == 0
    assert f"http://127.0.0.1 was not told: {'[Errno 111] ' * (not status)}{said}" in result.stderr
    assert "notify.command: false was not told: it left with code 1" in result.stderr
    assert SECRET not in result.output


def test_a_user_in_the_url_is_sent_as_a_header(hook: Hook) -> None:
    url = hook.url.replace("://", "://user:p%40ss@")
    assert list(notify(NotifyConfig(webhook=url), Ending("store"))) == []
    assert list(notify(NotifyConfig(webhook=hook.url), Ending("store"))) == []
    assert hook.authorizations == ["Basic dXNlcjpwQHNz", None]


def test_what_cannot_be_run_or_takes_too_long_is_named() -> None:
    slow = NotifyConfig(command=["sleep", "30"], timeout_seconds=0.2)
    assert list(notify(slow, Ending("store"))) == [
        "notify.command: sleep was not told: it took longer than 0.2 s"
    ]
    missing = NotifyConfig(command=["no-such-program"])
    assert list(notify(missing, Ending("store"))) == [
        "notify.command: no-such-program was not told: No such file or directory"
    ]


def test_a_webhook_is_a_credential(small_job: Any, decant: Decant) -> None:
    small_job.settings["notify"] = {"webhook": f"https://hooks.example/{SECRET}"}
    job = load_job(small_job.file)
    assert "webhook: '***'" in shown(job)
    assert Redaction(job)(f"posting to https://hooks.example/{SECRET}") == "posting to ***"
    with pytest.raises(ConfigError) as refused:
        load_job(small_job.file, [f"notify.webhook=ftp://hooks.example/{SECRET}"])
    assert "notify.webhook: should be an http:// or https:// URL" in str(refused.value)
    assert SECRET not in str(refused.value)
    assert not hasattr(job.labelling(), "notify")  # it is sent to no replica


def test_what_to_run_again_is_said_without_the_credentials_that_were_given() -> None:
    from jobs.commands.label import _again

    given = [f"notify.webhook=https://hooks.example/{SECRET}", "store.options.secret=abc", "label.attempts=5"]
    assert _again(Path("job.yaml"), given) == (
        "decant label job.yaml notify.webhook=*** store.options.secret=*** label.attempts=5"
    )


def test_redaction_knows_options_environment_and_urls(
    small_job: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SOME_API_TOKEN", "environment-token-value")
    small_job.settings["store"]["options"] = {"key": "options-key", "client": {"secret": "nested-secret"}}
    job: Job = load_job(small_job.file)
    text = "options-key nested-secret environment-token-value http://me:pw@host/p https://h/p?sig=abc#f plain"
    assert Redaction(job)(text) == "*** *** *** http://***@host/p https://h/p?*** plain"
