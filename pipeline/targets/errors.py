"""What can go wrong, as one tree: a sentence for a person, and an exit code for a script.

A message names the culprit (file, record, key) and the cure. Exit code 2 is a user's mistake that
running again will not cure, 1 a failure; the command line prints the sentence and leaves with the code.
"""

from __future__ import annotations


class DecantError(Exception):
    """Anything Decant refuses or fails at. The message is one sentence for a person."""

    exit_code = 1


class UserError(DecantError):
    """A mistake in the configuration, the command or the input that only a person can mend."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration that cannot be honoured: unknown key, wrong type, impossible combination."""


class CorpusMissing(UserError):
    """The configured corpus matches no file."""


class CorpusChanged(DecantError):
    """A planned corpus file vanished or is no longer the file that was planned."""


class CorpusUnreadable(DecantError):
    """A corpus file that is broken as a whole, so that its records cannot even be told apart."""


class SpecMismatch(UserError):
    """A store, shard or job declares something else than what it is used with."""


class StorageError(DecantError):
    """The store's storage refused or failed: full, read-only, unreachable, no honest put-if-absent."""


class PlannedMeanwhile(StorageError):
    """Another process has added to the plan since it was read: cut what is left anew."""


class CorruptShard(DecantError):
    """A shard whose bytes are not those that were committed, or that does not decode."""


class TooManyQuarantined(DecantError):
    """More records failed than the job allows."""


class TeacherError(DecantError):
    """The teacher could not be loaded, or failed outside of any single record."""


class LabellingFailed(DecantError):
    """Units remain that no attempt could label."""
