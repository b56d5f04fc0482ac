"""How a configuration class of the student behaves: typed, frozen, unknown keys refused, keys documented.

The string under a field is its documentation; it appears in the JSON schema and in `decant config`. The
pipeline's own base (`pipeline.config`) is the same, behind a wall: the two sides share the contract alone.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of every configuration class of the student: typed, frozen, unknown keys refused."""

    # defer_build: a command pays for the validators of what it reads, not of all that there are.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, defer_build=True)
