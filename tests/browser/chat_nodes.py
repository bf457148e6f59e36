"""OmniGen2 Chat nodes on a canvas, with models that write what a test tells them to."""

from __future__ import annotations

import json
import uuid

from browser_harness import PATIENCE
from playwright.sync_api import expect

DRAW = "<|img|>"
EMPTY = "Write a message below. Your conversation appears here."

MAKE = """([folder, written]) => {
    const add = (type, x, y) => {
        const node = LiteGraph.createNode(type);
        node.pos = [x, y];
        app.graph.add(node);
        return node;
    };
    const set = (node, values) => Object.entries(values).forEach(([name, value]) => node.widgets.find(w => w.name === name).value = value);
    const loader = add('OmniGen2LoadFolder', 50, 100);
    set(loader, {folder, dtype: 'fp32'});
    return written.map((text, i) => {
        const writer = add('TestWrites', 50, 350 + 200 * i), chat = add('OmniGen2Chat', 400 + 480 * i, 80);
        set(writer, {text});
        set(chat, {steps: 1, width: 64, height: 48, control_after_generate: 'fixed'});
        loader.connect(0, chat, 0);
        loader.connect(1, writer, 0);
        writer.connect(0, chat, 1);
        loader.connect(2, chat, 2);
        return [chat.id, writer.id];
    });
}"""
SET = "([id, name, value]) => { app.graph.getNodeById(id).widgets.find(w => w.name === name).value = value }"
GET = "([id, name]) => app.graph.getNodeById(id).widgets.find(w => w.name === name).value"
FOLLOW = """() => {
    window.chatEnd = window.chatRun = null;
    app.api.addEventListener('execution_start', ({detail}) => { window.chatRun = detail.prompt_id }, {once: true});
    for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(kind, () => { window.chatEnd ??= kind }, {once: true});
}"""
LINK = """([id, text]) => {
    const said = LiteGraph.createNode('PrimitiveString'), chat = app.graph.getNodeById(id);
    app.graph.add(said);
    said.widgets.find(w => w.name === 'value').value = text;
    said.connect(0, chat, chat.findInputSlot('message'));
}"""
SHOWS = """([id, text]) => {
    const { element } = app.graph.getNodeById(id).widgets.find(w => w.name === 'history');
    return element.textContent.includes(text);
}"""
ADDED = """(id) => {
    const [log, field] = ['history', 'message'].map(name => app.graph.getNodeById(id).widgets.find(w => w.name === name));
    return !log.element.querySelector('[aria-busy]') && (window.chatEnd !== 'execution_success' || field.value === '');
}"""


class Chat:
    """One chat node on a canvas and what a user does with it. `node` is its id, `writer` that of what writes for it."""

    def __init__(self, canvas, node: int, writer: int | None = None):
        self.canvas, self.node, self.writer = canvas, node, writer
        self.gate = None

    def part(self, selector: str):
        """An element of this node's own, wherever the canvas has put it."""
        self.canvas.evaluate(
            """(id) => {
                for (const marked of document.querySelectorAll(`[data-test-chat="${id}"]`)) delete marked.dataset.testChat;
                const chat = app.graph.getNodeById(id).widgets.filter(w => ['history', 'message'].includes(w.name));
                for (const widget of chat) widget.element.dataset.testChat = id;
            }""",
            self.node,
        )
        # Nodes 2.0 puts them on the page some time after the node is made.
        self.canvas.page.wait_for_function(
            "(id) => document.querySelectorAll(`[data-test-chat=\"${id}\"]`).length === 2", arg=self.node
        )
        return self.canvas.page.locator(f'[data-test-chat="{self.node}"]').locator(selector)

    @property
    def log(self):
        return self.part('[role="log"]')

    @property
    def field(self):
        return self.part("textarea")

    @property
    def status(self):
        return self.part('[role="status"]')

    @property
    def pictures(self):
        return self.log.get_by_role("img")

    def sees(self, *pictures: int) -> None:
        """Wait until there are pictures of these widths, and no others."""
        expect(self.pictures).to_have_count(len(pictures), timeout=PATIENCE)
        for index, width in enumerate(pictures):
            expect(self.pictures.nth(index)).to_have_js_property("naturalWidth", width, timeout=PATIENCE)

    def get(self, name: str):
        return self.canvas.evaluate(GET, [self.node, name])

    def set(self, name: str, value) -> None:
        self.canvas.evaluate(SET, [self.node, name, value])

    def link(self, message: str) -> None:
        """Have another node give the message."""
        self.canvas.evaluate(LINK, [self.node, message])
        assert isinstance(self.canvas.prompt()[str(self.node)]["inputs"]["message"], list)

    def shows(self, text: str) -> None:
        """Wait until this is somewhere in the conversation or below it."""
        self.canvas.page.wait_for_function(SHOWS, arg=[self.node, text], timeout=PATIENCE)

    def writes(self, text: str, held: bool = False) -> None:
        """What the node is answered from now on; `held`: not to its end before `let_go`."""
        self.canvas.evaluate(SET, [self.writer, "text", text])
        self.let_go()
        self.gate = self.canvas.server.folder / f"let_go_{uuid.uuid4().hex}" if held else None
        self.canvas.evaluate(SET, [self.writer, "until", str(self.gate or "")])
        # The page is told of text now and then; a held one takes long enough for it to be told of more than the first token.
        self.canvas.evaluate(SET, [self.writer, "seconds", 0.02 if held else 0.0])

    def let_go(self) -> None:
        if self.gate:
            self.gate.touch()

    def send(self, message: str) -> str:
        """Type a message and press Enter; how the run ended."""
        self.begin(message)
        return self.end()

    def follow(self) -> None:
        """Take note of the run that begins next."""
        self.canvas.evaluate(FOLLOW)

    def begin(self, message: str) -> None:
        self.follow()
        self.field.fill(message)
        self.field.press("Enter")

    def begin_held(self, message: str, written: str = "a fox in the snow ") -> None:
        """Send a message, and wait until its answer is being written, which it is until `let_go`."""
        self.writes(written, held=True)
        self.begin(message)
        expect(self.status).to_have_text("Writing …", timeout=PATIENCE)

    def end(self) -> str:
        """How the run ended, once what came of it is shown."""
        ended = self.canvas.page.wait_for_function("window.chatEnd").json_value()
        self.is_answered()
        return ended

    def is_answered(self) -> None:
        """Wait until what came of the run is shown."""
        self.canvas.page.wait_for_function(ADDED, arg=self.node)

    @property
    def run(self) -> str:
        """The id of the run that was begun last."""
        return self.canvas.page.wait_for_function("window.chatRun").json_value()

    @property
    def turns(self) -> list[tuple[str, str]]:
        """Speaker and text of what is shown."""
        return [tuple((box.inner_text() + "\n").split("\n", 1)) for box in self.log.locator("> div").all()]

    @property
    def texts(self) -> list[str]:
        return [text.strip("\n") for _, text in self.turns]

    @property
    def saved(self) -> list[tuple[str, str, int]]:
        """Role, text and number of pictures of every turn in the node's value."""
        value = self.get("history")
        turns = json.loads(value)["turns"] if value else []
        return [(turn["role"], turn["text"], len(turn["images"])) for turn in turns]


def add_chats(canvas, folder: str, *written: str) -> list[Chat]:
    """Chat nodes whose models write these texts."""
    return [Chat(canvas, *ids) for ids in canvas.evaluate(MAKE, [folder, written])]


def undo(canvas, way: str = "undo") -> None:
    canvas.evaluate(f"async () => await app.extensionManager.workflow.activeWorkflow.changeTracker.{way}()")
    canvas.page.wait_for_timeout(500)
