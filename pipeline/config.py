"""How a configuration class behaves here: typed, frozen, unknown keys refused, every key documented.

The string under a field is its documentation; it appears in the JSON schema and in `decant config`.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of every configuration class of the pipeline."""

    # defer_build: a command pays for the validators of what it reads, not of all that there are.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, defer_build=True)
