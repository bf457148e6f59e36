"""Fixtures for tests in the real frontend."""
from __future__ import annotations

import pytest

import browser_harness
import harness
from chat_nodes import add_chats
from needed import missing, need_comfyui
from reflection_nodes import add_board
from small_models import install_folder


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/browser" in item.path.as_posix():
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server on the CPU with this pack and the testing nodes loaded."""
    need_comfyui()
    with harness.Server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def browser():
    """The browser. Where there is none: a skip on a user's machine, a failure where CI=true."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        try:
            started = browser_harness.launch(playwright)
        except browser_harness.NoBrowser as absent:
            missing(str(absent))
        yield started
        started.close()


@pytest.fixture(scope="session")
def _canvases(browser, server):
    """Opening a page is the slow part, so each mode of the frontend is opened once."""
    opened: dict[bool, browser_harness.Canvas] = {}
    yield opened
    for canvas in opened.values():
        canvas.close()


@pytest.fixture(params=[False, True], ids=["classic", "nodes-2.0"])
def canvas(request, browser, server, _canvases):
    """An empty `browser_harness.Canvas`: the test runs once on the classic canvas and once in Nodes 2.0."""
    vue = request.param
    if vue not in _canvases:
        _canvases[vue] = browser_harness.Canvas(browser, server, vue=vue)
    _canvases[vue].reset()
    return _canvases[vue]


@pytest.fixture
def open_canvas(browser, server):
    """open_canvas(vue=False, locale="en", query="") -> another Canvas, in a fresh profile."""
    opened: list[browser_harness.Canvas] = []

    def open_one(**options) -> browser_harness.Canvas:
        opened.append(browser_harness.Canvas(browser, server, **options))
        return opened[-1]

    yield open_one
    for canvas in opened:
        canvas.close()


@pytest.fixture
def folder(server, golden):
    """A published folder with the model for tests, by its name on the server."""
    return install_folder(server.models, golden)


@pytest.fixture
def loop(folder, canvas):
    """A reflection loop on the canvas whose encoder says that the first picture is wrong and the second right."""
    return add_board(canvas, folder)


@pytest.fixture
def chats(folder, canvas):
    """chats(*written) -> chat nodes whose models write these texts."""
    made = []

    def make(*written):
        made.extend(added := add_chats(canvas, folder, *written))
        return added

    yield make
    for chat in made:
        chat.let_go()
