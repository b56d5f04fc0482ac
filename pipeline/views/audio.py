"""Audio views: windows of a recording, as its waveform or a log-mel spectrogram.

It knows where windows lie. How one becomes numbers is `targets.replay`'s, because students render by it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from pipeline.config import Config
from pipeline.corpus.base import Record
from pipeline.targets.errors import ConfigError, SpecMismatch
from pipeline.targets.replay import Unrenderable, ledger
from pipeline.targets.replay.audio import AudioReplay, decoders
from pipeline.views.base import Rejected, Renderer, View, Views
from pipeline.views.recorded import fingerprint, recorded


class LogMel(Config):
    """A log-mel spectrogram; `targets.replay.audio.LogMel` has the formula."""

    fft: int = Field(default=400, ge=2, le=65536)
    """Samples of a frame."""

    hop: PositiveInt = 160
    """Samples from one frame to the next."""

    mels: PositiveInt = Field(default=80, le=1024)
    """Bands."""

    low: NonNegativeFloat = 0.0
    """Lower end of the lowest band, in Hz."""

    high: PositiveFloat | None = None
    """Upper end of the highest band, in Hz; by default half the rate."""


class Audio(Views):
    """Windows of fixed length of a recording. Each is a view; the last is filled up with zeros."""

    kind: Literal["audio"] = "audio"
    """Windows of recordings."""

    field: str = "audio"
    """The field of a record that holds a wav or flac file. Channels are averaged."""

    rate: int = Field(default=16_000, ge=1_000, le=384_000)
    """Samples a second of the views; recordings of another rate are resampled (scipy's resample_poly)."""

    window: PositiveInt
    """Samples of a view."""

    hop: PositiveInt | None = None
    """Samples from the start of one view to that of the next; by default `window`, without overlap."""

    min_length: PositiveInt = 1
    """A last window with fewer samples of the recording is dropped, unless it is the first too."""

    log_mel: LogMel | None = None
    """If given, views are log-mel spectrograms, the input "log_mel" float32 [mels, frames]; else the
    waveform, the input "waveform" float32 [window]."""

    max_seconds: PositiveFloat = 600.0
    """Longer recordings are quarantined; one is held in memory as a whole, 8 bytes a sample."""

    def load(self) -> AudioRenderer:
        """Raises UserError where soundfile or scipy is not installed, ConfigError for a log_mel that the
        window or the rate does not allow.
        """
        return AudioRenderer(self)


class AudioRenderer(Renderer):
    """A loaded Audio."""

    vocabulary = None

    def __init__(self, config: Audio) -> None:
        self.config = config
        described: dict[str, Any] = {**config.model_dump(mode="json"), "decoder": decoders()}
        self.description = {**described, "fingerprint": fingerprint(described)}
        try:
            self._replay = AudioReplay(self.description)
        except SpecMismatch as error:
            raise ConfigError(f"views.log_mel: {error.__cause__}") from error
        self.inputs, self.recorded = self._replay.inputs, ledger.RECORDED

    def render(self, record: Record, earlier: Sequence[Record] = ()) -> list[View]:
        try:
            wave = self._replay.decode(record.data)
        except Unrenderable as error:
            raise Rejected(error.code, f"{record.key} {error.reason}") from error
        views = []
        for start, length in self._windows(len(wave)):
            entry = {"start": start, "length": length}
            rendered = self._replay.render(entry, wave)
            views.append(View({**rendered, **recorded(entry, self._replay.digest(rendered))}, 1))
        return views

    def _windows(self, samples: int) -> list[tuple[int, int]]:
        """Start and length of each."""
        window, hop = self.config.window, self.config.hop or self.config.window
        # Window k is needed if a sample lies beyond window k - 1.
        count = 1 + max(0, -(-(samples - window) // hop))
        windows = [(k * hop, min(window, samples - k * hop)) for k in range(count)]
        return [windows[0], *(w for w in windows[1:] if w[1] >= self.config.min_length)]
