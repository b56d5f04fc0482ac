"""Recordings become waveforms and spectrograms: as their definitions say, bounded, or refused in words."""

from __future__ import annotations

import io
import tarfile
import wave
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.targets.errors import SpecMismatch
from pipeline.targets.replay import Unrenderable, ledger
from pipeline.targets.replay.audio import AudioReplay, LogMel, resampled
from tests.real_data import real_data

VIEWS: dict[str, Any] = {
    "kind": "audio",
    "field": "bytes",
    "rate": 8000,
    "window": 4000,
    "max_seconds": 10.0,
    "log_mel": None,
    "decoder": "libsndfile",
}

Floats = npt.NDArray[np.float64]


def replay(**changes: Any) -> AudioReplay:
    return AudioReplay({**VIEWS, **changes})


def decoded(content: object, **changes: Any) -> Floats:
    return replay(**changes).decode({"bytes": content})


def refused(content: object, **changes: Any) -> Unrenderable:
    with pytest.raises(Unrenderable) as caught:
        decoded(content, **changes)
    return caught.value


def tone(hertz: float, rate: int, seconds: float = 1.0) -> Floats:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def encoded(samples: npt.NDArray[Any], rate: int = 8000, form: str = "WAV", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


def test_a_wav_file_gives_the_samples_that_the_standard_library_reads() -> None:
    content = encoded(tone(440, 8000))
    with wave.open(io.BytesIO(content)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    np.testing.assert_array_equal(decoded(content), samples / 32768)


@pytest.mark.parametrize(("subtype", "dtype"), [("PCM_16", "<i2"), ("PCM_24", "<i4")])
def test_flac_and_wav_of_the_same_samples_are_the_same(subtype: str, dtype: str) -> None:
    samples = np.rint(tone(440, 8000) * np.iinfo(dtype).max).astype(dtype)
    wav, flac = encoded(samples, subtype=subtype), encoded(samples, form="FLAC", subtype=subtype)
    np.testing.assert_array_equal(decoded(wav), decoded(flac))


def test_channels_are_averaged() -> None:
    both = np.stack([tone(440, 8000), -tone(440, 8000) / 2], axis=1)
    content = encoded(both, subtype="DOUBLE")
    np.testing.assert_allclose(decoded(content), both.mean(1), atol=1e-15)


@pytest.mark.parametrize("rate", [11025, 16000, 44100, 4000])
def test_a_resampled_tone_is_the_tone_at_the_other_rate(rate: int) -> None:
    ours = resampled(tone(700, rate), rate, 8000)
    assert len(ours) == 8000
    middle = slice(200, -200)  # the filter sees silence beyond the ends
    assert np.abs(ours - tone(700, 8000))[middle].max() < 2e-3


def test_what_the_other_rate_cannot_hold_is_filtered_out() -> None:
    assert np.abs(resampled(tone(6000, 16000), 16000, 8000))[200:-200].max() < 2e-3


def dense_log_mel(
    samples: Floats, rate: int, fft: int, hop: int, mels: int, low: float, high: float
) -> Floats:
    """The definition, by torch.stft and a loop over the filters."""
    spectrum = torch.stft(
        torch.from_numpy(samples),
        fft,
        hop,
        window=torch.hann_window(fft, dtype=torch.float64),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    power = (spectrum.abs() ** 2).numpy()

    def to_mel(hertz: float) -> float:
        return float(2595 * np.log10(1 + hertz / 700))

    edges = 700 * (10 ** (np.linspace(to_mel(low), to_mel(high), mels + 2) / 2595) - 1)
    out = np.zeros((mels, power.shape[1]))
    for band in range(mels):
        for k in range(fft // 2 + 1):
            f = k * rate / fft
            if edges[band] < f < edges[band + 1]:
                out[band] += power[k] * (f - edges[band]) / (edges[band + 1] - edges[band])
            elif edges[band + 1] <= f < edges[band + 2]:
                out[band] += power[k] * (edges[band + 2] - f) / (edges[band + 2] - edges[band + 1])
    return np.log(np.maximum(out, 1e-10))


@pytest.mark.parametrize(
    ("fft", "hop", "mels", "low", "high"), [(400, 160, 40, 0.0, 4000.0), (256, 100, 23, 50.0, 3500.0)]
)
def test_the_spectrogram_is_what_its_formula_says(
    fft: int, hop: int, mels: int, low: float, high: float
) -> None:
    rng = np.random.default_rng(0)
    samples = tone(440, 8000, 0.5) + 0.1 * rng.normal(size=4000)
    ours = LogMel(8000, fft, hop, mels, low, high)(samples)
    expected = dense_log_mel(samples, 8000, fft, hop, mels, low, high)
    assert ours.shape == expected.shape == (mels, 1 + 4000 // hop)
    assert ours.dtype == np.dtype("<f4")
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)
    # Another FFT and another order of sums: the digest does not see them, but a hundredth of a nat.
    mel = {"fft": fft, "hop": hop, "mels": mels, "low": low, "high": high}
    digest = replay(log_mel=mel).digest
    again = digest({"log_mel": expected.astype("<f4")})
    np.testing.assert_array_equal(digest({"log_mel": ours}), again)
    assert digest({"log_mel": ours + np.float32(0.01)}).tobytes() != again.tobytes()


def test_silence_lies_on_the_floor() -> None:
    values = LogMel(8000, 400, 160, 40, 0.0, None)(np.zeros(4000))
    np.testing.assert_allclose(values, np.log(1e-10), rtol=1e-6)


def test_a_window_is_cut_out_and_filled_up_with_zeros() -> None:
    samples = np.arange(6000) / 32768
    record = decoded(encoded(samples, subtype="DOUBLE"))
    out = replay().render({"start": 5000, "length": 1000}, record)["waveform"]
    np.testing.assert_array_equal(out[:1000], samples[5000:].astype(np.float32))
    np.testing.assert_array_equal(out[1000:], np.zeros(3000))


def test_the_digest_of_a_waveform_is_of_its_sixteen_bits() -> None:
    samples = tone(440, 8000, 0.5).astype("<f4")
    digest = replay().digest
    last_bit = np.nextafter(samples, np.float32(1))
    np.testing.assert_array_equal(digest({"waveform": samples}), digest({"waveform": last_bit}))
    steps = np.rint(samples.astype(np.float64) * 32768).astype("<i4")
    np.testing.assert_array_equal(digest({"waveform": samples}), ledger.digest({"waveform": steps}))
    other = samples.copy()
    other[77] += 1 / 32768
    assert digest({"waveform": other}).tobytes() != digest({"waveform": samples}).tobytes()
    assert digest({"waveform": np.full(4000, 1e30, "<f4")}).shape == (8,)


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"start": 0},
        {"start": -1, "length": 10},
        {"start": 0, "length": 0},
        {"start": 0, "length": 4001},
        {"start": 5999, "length": 2},
        {"start": 0.5, "length": 10},
        {"start": 1 << 60, "length": 1},
    ],
)
def test_an_entry_that_cannot_be_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(Unrenderable, match=r"start|length|no window"):
        replay().render(entry, np.zeros(6000))


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
def test_truncated_files_are_refused(form: str) -> None:
    content = encoded(tone(440, 8000), form=form)
    for size in (0, 3, 30, len(content) // 2, len(content) - 2):
        assert refused(content[:size]).code == "undecodable"


def test_a_file_in_an_array_may_be_followed_by_zeros() -> None:
    content = encoded(tone(440, 8000))
    padded = np.frombuffer(content + bytes(100), dtype=np.uint8)
    np.testing.assert_array_equal(decoded(padded), decoded(content))


def with_header(content: bytes, at: int, value: int) -> bytes:
    return content[:at] + value.to_bytes(4, "little") + content[at + 4 :]


def test_a_header_cannot_make_the_filter_grow_without_bound() -> None:
    content = with_header(encoded(tone(440, 8000)), 24, 2**31 - 1)  # samples a second
    assert "2147483647 Hz, beyond 64 channels or 1000 to 384000 Hz" in refused(content).reason


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (encoded(np.zeros(0)), "empty", "has no samples"),
        (encoded(np.zeros(80_001)), "too_large", "lasts 10 s, longer than max_seconds (10)"),
        (encoded(np.full(9, np.nan), subtype="FLOAT"), "non_finite", "has an infinite or undefined sample"),
        (encoded(tone(440, 8000), form="AIFF"), "undecodable", "is AIFF, neither wav nor flac"),
        (b"nothing of the kind", "undecodable", "is no wav or flac file"),
        (7, "undecodable", "has int where the bytes of an audio file should be"),
    ],
)
def test_what_is_no_recording_is_refused(content: object, code: str, said: str) -> None:
    found = refused(content)
    assert found.code == code
    assert said in found.reason


@given(st.sampled_from(["WAV", "FLAC"]), st.data())
def test_a_spoiled_file_is_a_recording_or_refused_and_nothing_else(form: str, data: st.DataObject) -> None:
    content = bytearray(encoded(tone(440, 8000, 0.05), form=form))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(Unrenderable):
        assert decoded(bytes(content)).ndim == 1


@pytest.mark.parametrize(
    "change",
    [
        {"window": "4000"},
        {"log_mel": {"fft": 400}},
        {"log_mel": {"fft": 400, "hop": 160, "mels": 40, "low": 0.0, "high": 9000.0}},
        {"window": 100, "log_mel": {"fft": 400, "hop": 160, "mels": 40, "low": 0.0, "high": None}},
    ],
)
def test_views_that_it_does_not_know_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SpecMismatch, match="views"):
        replay(**change)


@pytest.fixture(scope="module")
def spoken() -> dict[str, bytes]:
    """Twenty recordings of the Free Spoken Digit Dataset, by name."""
    found: dict[str, bytes] = {}
    with tarfile.open(real_data("fsdd/fsdd.tar.xz")) as tar:
        for member in tar:
            if member.name.endswith(".wav") and (file := tar.extractfile(member)) is not None:
                found[member.name] = file.read()
            if len(found) == 20:
                break
    return found


def test_real_recordings_are_read_and_rendered_twice_alike(spoken: dict[str, bytes]) -> None:
    mel = {"fft": 512, "hop": 160, "mels": 40, "low": 0.0, "high": None}
    views = replay(rate=16_000, window=16_000, log_mel=mel)
    for name, content in spoken.items():
        with wave.open(io.BytesIO(content)) as file:
            rate, frames = file.getframerate(), file.getnframes()
        record = views.decode({"bytes": content})
        assert len(record) == 2 * frames, name  # of 8 kHz
        assert rate == 8000
        entry = {"start": 0, "length": min(len(record), 16_000)}
        (first, second) = (views.render(entry, record)["log_mel"] for _ in range(2))
        assert first.shape == (40, 101)
        np.testing.assert_array_equal(first, second)
        assert np.isfinite(first).all()
        # Speech was recorded up to 4 kHz: above, there is what the filter leaves.
        assert first[:25].mean() > first[35:].mean() + 3, name
