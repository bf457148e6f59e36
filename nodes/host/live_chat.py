"""A turn of a chat as it comes, for the conversation that a node shows."""

from __future__ import annotations

from .live_text import LiveText
from .page import tell_page

EVENT = "omnigen2.chat"
"""The event that web/js/chat.js listens to: {"node", "prompt_id", "message", "text", "drawing"}, plain text."""


class LiveChat(LiveText):
    """What the page learns of a turn while it is made, and the place where that can be cancelled. Made for one run."""

    def __init__(self, node: str, message: str, max_new_tokens: int):
        super().__init__(node, 1, max_new_tokens)
        self.message = message
        self.send("")

    def drawing(self) -> None:
        """The model has begun to draw."""
        self.send(self.shown, drawing=True)

    def send(self, text: str, drawing: bool = False) -> None:
        """Tell the page that queued the run."""
        tell_page(EVENT, self.node, message=self.message, text=text, drawing=drawing)
