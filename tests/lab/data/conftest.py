"""What the tests of the data share: no network, and the folder with the real files."""

import pooch
import pytest


@pytest.fixture
def no_network(monkeypatch):
    """Fail like a machine without a network, and list what was asked for."""
    asked = []

    def retrieve(url, **_):
        asked.append(url)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    return asked
