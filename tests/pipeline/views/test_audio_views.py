"""Audio views: windows that cover a recording, in the ledger, and the same when replayed."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus import Record
from pipeline.targets.errors import ConfigError
from pipeline.targets.replay import ledger
from pipeline.targets.replay.audio import AudioReplay
from pipeline.views import Audio, Rejected
from pipeline.views.audio import AudioRenderer


def recording(samples: int, rate: int = 8000) -> Record:
    file = io.BytesIO()
    values = np.random.default_rng(samples).normal(0, 0.1, samples)
    soundfile.write(file, values, rate, format="WAV")
    return Record("a.wav", 0, {"audio": file.getvalue()})


def renderer(**changes: Any) -> AudioRenderer:
    return Audio.model_validate({"rate": 8000, "window": 800, **changes}).load()


def windows(samples: int, **changes: Any) -> list[tuple[int, int]]:
    entries = [ledger.read(v.inputs["ledger"]) for v in renderer(**changes).render(recording(samples))]
    return [(entry["start"], entry["length"]) for entry in entries]


@given(st.integers(1, 5000), st.integers(1, 1000))
def test_windows_cover_a_recording(samples: int, hop: int) -> None:
    found = renderer(hop=hop)._windows(samples)
    heard = np.zeros(samples, dtype=bool)
    for number, (start, length) in enumerate(found):
        assert start == number * hop
        assert 1 <= length <= 800
        heard[start : start + length] = True
    assert heard.all() or hop > 800


def test_the_last_window_is_short_or_left_out() -> None:
    assert windows(2000) == [(0, 800), (800, 800), (1600, 400)]
    assert windows(2000, min_length=401) == [(0, 800), (800, 800)]
    assert windows(2000, hop=400) == [(0, 800), (400, 800), (800, 800), (1200, 800)]
    assert windows(300, min_length=401) == [(0, 300)]
    assert windows(800) == [(0, 800)]


def test_windows_count_the_samples_of_the_wanted_rate() -> None:
    assert windows(2000, rate=16_000) == [(0, 800), (800, 800), (1600, 800), (2400, 800), (3200, 800)]


@pytest.mark.parametrize("log_mel", [None, {"fft": 256, "hop": 80, "mels": 20}])
def test_a_replayed_view_is_the_view_to_the_bit(log_mel: dict[str, int] | None) -> None:
    loaded, record = renderer(log_mel=log_mel, rate=11_025), recording(3000)
    replay = AudioReplay(loaded.description)
    (declared,) = loaded.inputs
    assert declared.name == ("log_mel" if log_mel else "waveform")
    views = loaded.render(record)
    assert len(views) == 6
    for view in views:
        again = replay.render(ledger.read(view.inputs["ledger"]), replay.decode(record.data))
        assert again[declared.name].shape == declared.shape
        np.testing.assert_array_equal(again[declared.name], view.inputs[declared.name])
        np.testing.assert_array_equal(replay.digest(again), view.inputs["digest"])


def test_a_broken_file_is_rejected_by_its_key() -> None:
    with pytest.raises(Rejected, match=r"^a\.wav is no wav or flac file"):
        renderer().render(Record("a.wav", 0, {"audio": b"none"}))
    with pytest.raises(Rejected, match=r"^a\.wav has no samples") as caught:
        renderer().render(recording(0))
    assert caught.value.code == "empty"


def test_a_spectrogram_that_cannot_be_is_refused_as_a_setting() -> None:
    with pytest.raises(ConfigError, match=r"views\.log_mel: a window of 800 samples is too short"):
        renderer(log_mel={"fft": 2048})
    with pytest.raises(ConfigError, match=r"views\.log_mel: no spectrogram at 8000 Hz"):
        renderer(log_mel={"high": 5000.0})
