"""Fixtures for tests against a real server.

`server` is one server for the whole session: leave it as you found it. A test that needs other
options, kills the server or fills its folders asks for `start_server`.
"""
from __future__ import annotations

import pytest

import harness
from needed import need_comfyui


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/host" in item.path.as_posix():
            item.add_marker(pytest.mark.host)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server on the CPU with this pack and the testing nodes loaded."""
    need_comfyui()
    with harness.Server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def start_server(tmp_path):
    """start_server(*flags, **options) -> a new `harness.Server`, stopped after the test."""
    need_comfyui()
    started: list[harness.Server] = []

    def start(*flags: str, **options) -> harness.Server:
        new = harness.Server(tmp_path / f"server{len(started)}", *flags, **options)
        started.append(new)
        new.start()
        return new

    yield start
    for running in started:
        running.stop()


@pytest.fixture
def graph() -> harness.Graph:
    return harness.Graph()
