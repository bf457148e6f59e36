"""Notes that a node shows on itself after a run: what it changed, cut or expects to disappoint."""

from __future__ import annotations

from typing import Any, Iterable

from comfy_api.latest import io

# The key under which web/js/notes.js finds the notes in a node's output.
NOTES = "omnigen2_notes"


def output_with_notes(*values: Any, notes: Iterable[str] = (), **ui: Any) -> io.NodeOutput:
    """A node's outputs with the notes of this run and what else it reports to the canvas.

    An empty list of notes is sent too, so that old ones disappear.
    """
    return io.NodeOutput(*values, ui={NOTES: list(dict.fromkeys(notes)), **ui})
