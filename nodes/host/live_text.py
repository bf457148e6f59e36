"""Text that appears on a node while a model writes it."""

from __future__ import annotations

import re
import time

import comfy.model_management
import comfy.utils

from .page import tell_page

WRITING = "omnigen2.text"
"""The event of web/js/written_text.js."""
SHOWN = "omnigen2_text"
"""The key of a node's output under which web/js/written_text.js finds what to show where the result was kept."""
INTERVAL = 0.1
"""Seconds between two looks at the text. A model may write more tokens in a second than a browser draws."""
MOST_SHOWN = 20_000
"""Characters that a node shows of several answers, which may be those to hundreds of questions. A single one is shown whole."""


class LiveText:
    """What a node shows while answers are written on it, and the place where that can be cancelled. Made for one run.

    `on_text` and `on_step` are what `ask` and the like take as callbacks.
    """

    def __init__(self, node: str, answers: int, max_new_tokens: int, batch: int = 1):
        """node: the node's id. batch: how many of the `answers` are written at once."""
        self.node = node
        self.batch = batch
        self.answers = [""] * answers
        self.max_new_tokens = max_new_tokens
        self.progress = comfy.utils.ProgressBar(-(-answers // batch) * max_new_tokens)
        self.batches = 0
        self.step = 0
        self.shown = ""
        self.shown_at = 0.0

    def begin(self) -> None:
        """Take from the node what an earlier run wrote there."""
        self.send("")

    def on_text(self, row: int, piece: str) -> None:
        """An answer has gained `piece`."""
        self.answers[row] += piece

    def on_step(self, step: int) -> None:
        """Every answer of a batch has gained a token. Raises ComfyUI's exception when the run was cancelled."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if step <= self.step:
            self.batches += 1
        self.step = step
        self.progress.update_absolute(self.batches * self.max_new_tokens + step)
        if time.monotonic() - self.shown_at >= INTERVAL:
            first = self.batches * self.batch
            self.show(self._joined(first, first + self.batch))

    def finish(self, *answers: str) -> dict[str, list[str]]:
        """Show the answers as they are in the end, which may be tidied up; returns the same for the node's output."""
        self.answers = list(answers)
        self.progress.update_absolute(self.progress.total)
        self.show(self._joined())
        return {SHOWN: [as_characters(self._joined())]}

    def show(self, text: str) -> None:
        """Put `text` on the node, if it is another than is there."""
        self.shown_at = time.monotonic()
        if text != self.shown:
            self.shown = text
            self.send(text)

    def send(self, text: str) -> None:
        """Tell the page. ComfyUI's own progress in words would reach every page where none queued the run, and names no run."""
        tell_page(WRITING, self.node, text=as_characters(text))

    def _joined(self, first: int = 0, end: int | None = None) -> str:
        """The answers from index `first` to before `end`, under their numbers where there are several."""
        if len(self.answers) == 1:
            return self.answers[0]
        some = enumerate(self.answers[first:end], first + 1)
        text = "\n\n".join(f"{number}: {answer}" for number, answer in some if answer)
        return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def as_characters(text: str) -> str:
    """`text` so that the frontend shows its very characters.

    The canvas reads progress text as HTML and Nodes 2.0 reads it as Markdown, in which a model's words could become
    links, pictures from elsewhere, or vanish. Character references mean the same in both and are never markup.
    """
    plain = re.sub(r"[!-+\--/:-@\[-`{-~]", lambda mark: f"&#{ord(mark[0])};", text)
    plain = re.sub(r"^[ \t]+", lambda indent: "&#160;" * len(indent[0]), plain, flags=re.MULTILINE)
    return plain.replace("\n", "  \n")
