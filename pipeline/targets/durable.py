"""Local files and folders that outlast a loss of power: what is to be synced, and in which order.

It knows POSIX and nothing of stores.
"""

from __future__ import annotations

import os
from typing import BinaryIO


def synced(file: BinaryIO) -> None:
    """What was written is on the disk, though perhaps not yet found under a name."""
    file.flush()
    os.fsync(file.fileno())


def sync(path: str | os.PathLike[str]) -> None:
    """The names in a folder, or what a file holds, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: str) -> None:
    """Make a folder and its parents, each durable in its own parent."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_folder(parent)
    try:
        os.mkdir(path)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
        return
    sync(parent)
