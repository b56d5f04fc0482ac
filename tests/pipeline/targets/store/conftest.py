"""An empty store in every container, on a disk and on a real S3 server."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.targets import Store
from pipeline.targets.containers import CONTAINERS
from tests.pipeline.targets.store.places import Place


@pytest.fixture(params=CONTAINERS)
def container(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(place: Place, kit: Any) -> Store:
    return Store.create(place[0], kit.text_spec(), place[1])
