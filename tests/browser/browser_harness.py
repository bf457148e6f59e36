"""The real frontend in a real browser, driven through the page's own `app` object.

    canvas.load(workflow)                           # UI format; `canvas` is a fixture, see conftest.py
    assert canvas.prompt() == api_prompt            # what the page would send
    picture, = canvas.images(canvas.run())
    assert canvas.errors == []
"""
from __future__ import annotations

import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from PIL import Image
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Error, Page, Playwright, Route

from harness import PACK_NAME, Result, Server

OPEN_TIMEOUT = 300
RUN_TIMEOUT = 300
PATIENCE = 60_000
"""Milliseconds that a page may take to show what it is expected to."""
SCRIPTS = f"/extensions/{PACK_NAME}/js/"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class NoBrowser(Exception):
    """No browser could be started; the message says how to get one."""


def launch(playwright: Playwright) -> Browser:
    """Start the system's Chromium or Chrome, else the one that Playwright has downloaded."""
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    try:
        return playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
    except Error as failure:
        raise NoBrowser("no Chromium or Chrome could be started: install one (Debian: `apt install chromium`), or run "
                        f"`{sys.executable} -m playwright install chromium`. {str(failure).splitlines()[0]}") from None


class Canvas:
    """One page with the frontend loaded, in a fresh profile that reaches nothing but the server."""

    def __init__(self, browser: Browser, server: Server, vue: bool = False, locale: str = "en", query: str = "",
                 width: int = 1600, height: int = 1000):
        server.setting("Comfy.VueNodes.Enabled", vue)
        server.setting("Comfy.Locale", locale)
        server.setting("Comfy.TutorialCompleted", True)
        self.server = server
        self.console: list[str] = []
        self.context: BrowserContext = browser.new_context(viewport={"width": width, "height": height})
        self.context.set_default_timeout(OPEN_TIMEOUT * 1000)
        self.context.route("**/*", self._stay_inside)
        self.page: Page = self.context.new_page()
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.console.append(f"uncaught: {error.stack or error}"))
        self.page.goto(f"{server.url}/{query}")
        self.page.wait_for_function("window.app?.vueAppReady && window.app.graph && !document.querySelector('#splash-loader')")
        self.page.wait_for_timeout(1000)

    def close(self) -> None:
        self.context.close()

    def _stay_inside(self, route: Route) -> None:
        if route.request.url.startswith((self.server.url, "data:", "blob:")):
            route.continue_()
        else:
            route.abort()

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.console.append(f"{message.text} ({message.location.get('url', '')})")

    def reset(self) -> None:
        """An empty workflow, the view at its beginning, and an empty console, for the next test on the same page."""
        # Loading, unlike clearing, also leaves a subgraph that is open, and lets go of what Nodes 2.0 knew of the nodes.
        self.load({"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "groups": [], "config": {},
                   "extra": {"ds": {"scale": 1, "offset": [0, 0]}}, "version": 0.4})
        self.console.clear()

    @property
    def errors(self) -> list[str]:
        """Console errors and uncaught exceptions in which this pack is named or one of its scripts took part.

        Not counted, unless a script took part: addresses outside, which are blocked, and the frontend's look for a
        help page in the user's language before the general one.
        """
        return [line for line in self.console
                if SCRIPTS in line
                or PACK_NAME.lower() in line.lower() and "https://" not in line and not ("404" in line and "/docs/" in line)]

    def evaluate(self, script: str, argument=None):
        """Run JavaScript in the page, such as "app.graph.nodes.length", and return its value."""
        return self.page.evaluate(script, argument)

    def load(self, workflow: dict) -> None:
        """Open a UI-format workflow, as dropping its file on the page does."""
        self.evaluate("async (workflow) => { await app.loadGraphData(workflow) }", workflow)
        self.page.wait_for_timeout(500)

    def clear(self) -> None:
        self.evaluate("() => app.graph.clear()")

    def add_node(self, class_type: str, x: int = 200, y: int = 200) -> int:
        """Put a node on the canvas and return its id."""
        return self.evaluate(
            "([type, x, y]) => { const node = LiteGraph.createNode(type); node.pos = [x, y]; app.graph.add(node); return node.id }",
            [class_type, x, y])

    def missing_nodes(self) -> list[str]:
        """Types in the graph, its subgraphs included, that the server does not have."""
        return self.evaluate("""() => {
            const missing = new Set();
            const look = graph => graph.nodes.forEach(node => {
                if (node.subgraph) look(node.subgraph);
                else if (!(node.type in LiteGraph.registered_node_types)) missing.add(node.type);
            });
            look(app.rootGraph ?? app.graph);
            return [...missing];
        }""")

    def prompt(self) -> dict:
        """The API-format prompt that the page would send."""
        return self.evaluate("async () => (await app.graphToPrompt()).output")

    def workflow(self) -> dict:
        """The UI-format workflow that the page would save."""
        return self.evaluate("async () => (await app.graphToPrompt()).workflow")

    def run(self, timeout: float = RUN_TIMEOUT, check: bool = True) -> Result:
        """Press Run and wait for the end; an AssertionError unless it succeeds, when `check`."""
        kind, detail = self.evaluate("""async (timeout) => {
            const kinds = ['execution_success', 'execution_error', 'execution_interrupted'];
            const end = new Promise(resolve => {
                for (const kind of kinds) app.api.addEventListener(kind, event => resolve([kind, event.detail]), {once: true});
                setTimeout(() => resolve(['timeout', {}]), timeout * 1000);
            });
            const queued = await app.queuePrompt(0, 1);
            return queued === false ? ['refused', {}] : await end;
        }""", timeout)
        result = Result(detail.get("prompt_id", ""), kind.removeprefix("execution_"), error=detail.get("exception_message", ""))
        if result.prompt_id:
            result.ui = self.server.wait(result.prompt_id)["outputs"]
        if check:
            assert result.status == "success", f"{result.status}: {result.error}; console: {self.console[-5:]}"
        return result

    def images(self, result: Result, node: str | None = None) -> list[Image.Image]:
        return self.server.images(result, node)

    def help_text(self, class_type: str) -> str:
        """The text of the help panel of a node, opened through the node's info button.

        In Nodes 2.0 the frontend may show no nodes any more once the panel's node goes away, so do it on a page of its own.
        """
        self.clear()
        node = self.add_node(class_type)
        # The button is above the node, so the top of a tall one has to be in view.
        self.evaluate("""(id) => {
            const node = app.graph.getNodeById(id), view = app.canvas.ds;
            app.canvas.selectNode(node);
            app.canvas.centerOnNode(node);
            view.offset[1] = 250 / view.scale - node.pos[1];
            app.canvas.setDirty(true, true);
        }""", node)
        self.page.locator('[data-testid="info-button"]').first.click()
        panel = self.page.locator(".node-help-content").first
        panel.wait_for(timeout=PATIENCE)
        self.page.wait_for_timeout(500)
        return panel.inner_text()

    @contextmanager
    def no_pictures(self) -> Iterator[None]:
        """While in it, the page's requests for pictures fail."""
        self.page.route("**/view?**", lambda route: route.abort())
        try:
            yield
        finally:
            self.page.unroute("**/view?**")

    @contextmanager
    def disconnected(self, at: str = "", when: str = "() => true") -> Iterator[None]:
        """While in it, the page gets no messages from the server; at its end it is connected again.

        at, when: not at once, but from the next message of this kind on whose detail passes the test.
        """
        self.evaluate("""([at, when]) => {
            const api = app.api, make = api.createSocket;
            let held;
            const close = () => {
                api.removeEventListener(at, check);
                held = new Promise((hold) => {
                    api.createSocket = (again) => new Promise((made) => hold(() => {
                        delete api.createSocket;
                        made(make.call(api, again));
                    }));
                });
                window.disconnected = true;
                api.socket.close();
            };
            const check = (event) => { if (eval(when)(event.detail)) close(); };
            window.disconnected = false;
            window.connect = async () => {
                if (!window.disconnected) close();
                (await held)();
            };
            if (at) api.addEventListener(at, check);
            else close();
        }""", [at, when])
        try:
            yield
            self.page.wait_for_function("window.disconnected")
        finally:
            with self.connecting():
                self.evaluate("() => window.connect()")

    @contextmanager
    def loaded_anew(self) -> Iterator[None]:
        """While in it the page is left; at its end it is loaded anew, with the workflows that were open."""
        self.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
        self.page.wait_for_timeout(2000)  # the frontend keeps what it opens again a moment after a change
        self.page.goto("about:blank")
        yield
        self.page.goto(self.server.url)
        self.page.wait_for_function("""() => window.app?.vueAppReady && !document.querySelector('#splash-loader')
            && app.extensionManager?.workflow?.activeWorkflow && app.graph?.nodes.length""")
        self.page.wait_for_timeout(1000)

    @contextmanager
    def connecting(self) -> Iterator[None]:
        """Around what makes the page connect to the server again; waits at its end until it has."""
        self.evaluate("""() => {
            window.connected = false;
            app.api.addEventListener('reconnected', () => { window.connected = true }, {once: true});
        }""")
        yield
        self.page.wait_for_function("window.connected")

    def screenshot(self, path: str | os.PathLike, node: int | None = None) -> Path:
        """A picture of the page, or, given a node's id, of that part of the canvas."""
        clip = None
        if node is not None:
            left, top, right, bottom = self.evaluate("""(id) => {
                const node = app.graph.getNodeById(id), area = node.getBounding(), scale = app.canvas.ds.scale, offset = app.canvas.ds.offset;
                const box = app.canvas.canvas.getBoundingClientRect();
                const x = (area[0] + offset[0]) * scale + box.left, y = (area[1] + offset[1]) * scale + box.top;
                return [x - 8, y - 8, x + area[2] * scale + 8, y + area[3] * scale + 8];
            }""", node)
            clip = {"x": max(left, 0), "y": max(top, 0), "width": right - max(left, 0), "height": bottom - max(top, 0)}
        self.page.screenshot(path=str(path), clip=clip)
        return Path(path)
