"""What the views that can be replayed share: what the store keeps of each, and the name of a description."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pipeline.targets.ragged import Array
from pipeline.targets.replay import ledger


def recorded(entry: Mapping[str, Any], digest: Array) -> dict[str, Array]:
    """A view's ledger entry, and the digest of what was rendered by it."""
    return {ledger.LEDGER.name: ledger.write(entry), ledger.DIGEST.name: digest}


def fingerprint(described: Mapping[str, Any]) -> str:
    """SHA-256 of a description, in hexadecimal."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
