"""Audio views: the bytes of a recording and a ledger entry become a window of its waveform, or its log-mel.

libsndfile decodes, scipy resamples; both are imported inside functions. It draws nothing.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.targets.errors import SpecMismatch, UserError
from pipeline.targets.ragged import Array
from pipeline.targets.replay.base import Replay, Unrenderable, declared, encoded, field_of, integers
from pipeline.targets.spec import Input

Floats = npt.NDArray[np.float64]

FORMATS = frozenset({"WAV", "WAVEX", "RF64", "FLAC"})
"""What is decoded; libsndfile has decoders for many others that few have looked at."""

RATES = (1_000, 384_000)
"""Samples a second of a recording. A header may declare any; the resampling filter grows with it."""

CHANNELS = 64
"""Of a recording, at most."""

FLOOR = 1e-10
"""Power below which the logarithm does not go: -23 nats."""

STEPS = {"waveform": 1 << 15, "log_mel": 1 << 3}
"""Digests are of values in these parts of 1, of full scale or of a nat. What two builds of a filter or an FFT
disagree about, 1e-10 nats of a pure tone and 1e-14 of noise, is rounded away but for one view in a million or
fewer; any other recording, window, filter or formula is not."""


class AudioReplay(Replay):
    """Renders one input: "waveform" float32 [window], or "log_mel" float32 [mels, frames]."""

    def __init__(self, views: Mapping[str, Any]) -> None:
        """views: the store's description. Raises SpecMismatch where it is none of audio."""
        self.field, self.rate = declared(views, "field", str), declared(views, "rate", int)
        self.window = declared(views, "window", int)
        self.decoder = declared(views, "decoder", str)
        self.max_seconds = declared(views, "max_seconds", float, int)
        mel = declared(views, "log_mel", dict, type(None))
        try:
            self.mel = None if mel is None else LogMel(self.rate, **mel)
            shape = (self.window,) if self.mel is None else (self.mel.mels, self.mel.frames(self.window))
            self.name = "waveform" if self.mel is None else "log_mel"
            self.inputs = (Input(self.name, "<f4", shape),)
        except (TypeError, ValueError) as error:
            raise SpecMismatch(f"the store's views are no audio that this Decant renders: {error}") from error

    def decode(self, data: Mapping[str, Any]) -> Floats:
        """The recording's samples at `rate`, float64 [samples]; channels are averaged.

        The field holds the bytes of a wav or flac file.
        """
        content = encoded(field_of(data, self.field), "an audio file")
        # libsndfile takes what there is of a wav file that ends early; 0 and 2^32 - 1 are lengths not known.
        size = int.from_bytes(content[4:8], "little")
        if content[:4] == b"RIFF" and size != 2**32 - 1 and len(content) < size + 8:
            raise Unrenderable("undecodable", f"ends after {len(content)} of {size + 8} bytes")
        samples, rate = self._read(content)
        if not len(samples):
            raise Unrenderable("empty", "has no samples")
        if not np.isfinite(samples).all():
            raise Unrenderable("non_finite", "has an infinite or undefined sample")
        return resampled(samples.mean(axis=1), rate, self.rate)

    def _read(self, content: bytes) -> tuple[Floats, int]:
        soundfile = _soundfile()
        try:
            with soundfile.SoundFile(io.BytesIO(content)) as file:
                if file.format not in FORMATS:
                    raise Unrenderable("undecodable", f"is {file.format}, neither wav nor flac")
                if not RATES[0] <= file.samplerate <= RATES[1] or file.channels > CHANNELS:
                    raise Unrenderable(
                        "undecodable",
                        f"declares {file.channels} channels at {file.samplerate} Hz, beyond {CHANNELS} "
                        f"channels or {RATES[0]} to {RATES[1]} Hz",
                    )
                if file.frames > self.max_seconds * file.samplerate:
                    raise Unrenderable(
                        "too_large",
                        f"lasts {file.frames / file.samplerate:.0f} s, longer than max_seconds "
                        f"({self.max_seconds:g})",
                    )
                samples: Floats = file.read(dtype="float64", always_2d=True)
                if len(samples) < file.frames:
                    raise Unrenderable("undecodable", f"ends after {len(samples)} of {file.frames} samples")
                return samples, int(file.samplerate)
        except soundfile.LibsndfileError as error:
            raise Unrenderable("undecodable", f"is no wav or flac file: {error.error_string}") from error

    def render(self, entry: Mapping[str, Any], record: Floats, partner: Any = None) -> dict[str, Array]:
        """A window that reaches beyond the recording's end is filled with zeros."""
        (start,) = integers([entry.get("start")], 1, "start")
        (length,) = integers([entry.get("length")], 1, "length")
        if start < 0 or not 1 <= length <= self.window or start + length > len(record):
            raise Unrenderable("undecodable", f"has {len(record)} samples, no window of {length} at {start}")
        wave = np.zeros(self.window)
        wave[:length] = record[start : start + length]
        return {self.name: wave.astype("<f4") if self.mel is None else self.mel(wave)}

    def digest(self, rendered: Mapping[str, Array]) -> Array:
        """Of the values as int32 multiples of 1 / STEPS, rounded half to even: sums in floating point are not
        the same to the bit on every machine.
        """
        steps = np.rint(rendered[self.name].astype(np.float64) * STEPS[self.name])
        return super().digest({self.name: steps.clip(-(2**31), 2**31 - 1).astype("<i4")})


class LogMel:
    """A log-mel spectrogram: ln max(M · |STFT|², 1e-10), in nats.

    Frames of `fft` samples, `hop` apart, under a periodic Hann window, the first centred on the first sample
    and the signal mirrored at its ends (without its end samples); M are triangles between mels + 2 points
    equally spaced from `low` to `high` Hz on the scale m = 2595 log10(1 + f / 700) (O'Shaughnessy 1987; HTK),
    of height 1. These are the defaults of torchaudio.transforms.MelSpectrogram and librosa's with htk=True
    and norm=None. Computed in double.
    """

    def __init__(self, rate: int, fft: int, hop: int, mels: int, low: float, high: float | None) -> None:
        """Raises ValueError for numbers that make no spectrogram."""
        high = rate / 2 if high is None else high
        if fft < 2 or hop < 1 or mels < 1 or not 0 <= low < high <= rate / 2:
            raise ValueError(
                f"no spectrogram at {rate} Hz has fft {fft}, hop {hop}, {mels} mels, {low:g} to {high:g} Hz"
            )
        self.fft, self.hop, self.mels = fft, hop, mels
        self.filters = triangles(rate, fft, mels, low, high)
        self._taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft) / fft)

    def frames(self, samples: int) -> int:
        """Of a window. Raises ValueError for one that is too short to be mirrored."""
        if samples <= self.fft // 2:
            raise ValueError(f"a window of {samples} samples is too short for an fft of {self.fft}")
        return 1 + samples // self.hop

    def __call__(self, wave: Floats) -> Array:
        """float32 [mels, frames] of float64 [samples]."""
        mirrored = np.pad(wave, self.fft // 2, mode="reflect")
        cut = np.lib.stride_tricks.sliding_window_view(mirrored, self.fft)[:: self.hop]
        spectrum = np.fft.rfft(cut[: self.frames(len(wave))] * self._taper, axis=1)
        power = spectrum.real**2 + spectrum.imag**2
        return np.log(np.maximum(self.filters @ power.T, FLOOR)).astype("<f4")


def triangles(rate: int, fft: int, mels: int, low: float, high: float) -> Floats:
    """The filter bank M, float64 [mels, fft // 2 + 1]. See `LogMel`."""
    first, last = (2595 * math.log10(1 + edge / 700) for edge in (low, high))
    points = 700 * (10 ** (np.linspace(first, last, mels + 2) / 2595) - 1)
    bins = np.arange(fft // 2 + 1) * (rate / fft)
    rising = (bins - points[:-2, None]) / (points[1:-1, None] - points[:-2, None])
    falling = (points[2:, None] - bins) / (points[2:, None] - points[1:-1, None])
    bank: Floats = np.maximum(0, np.minimum(rising, falling))
    return bank


def resampled(samples: Floats, rate: int, wanted: int) -> Floats:
    """By scipy.signal.resample_poly: a zero-phase FIR filter, a sinc under a Kaiser window of β = 5."""
    if rate == wanted:
        return samples
    try:
        from scipy.signal import resample_poly
    except ImportError as error:
        raise UserError("resampling needs scipy: pip install 'decant-kd[audio]'") from error
    common = math.gcd(rate, wanted)
    out: Floats = resample_poly(samples, wanted // common, rate // common, window=("kaiser", 5.0))
    return out


def _soundfile() -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise UserError("audio needs soundfile: pip install 'decant-kd[audio]'") from error
    return soundfile


def decoders() -> str:
    """The libraries whose release decides about a sample, and which release this is."""
    soundfile = _soundfile()
    try:
        from scipy import __version__ as scipy
    except ImportError as error:
        raise UserError("resampling needs scipy: pip install 'decant-kd[audio]'") from error
    return f"libsndfile {soundfile.__libsndfile_version__}, scipy {scipy}, numpy {np.__version__}"
