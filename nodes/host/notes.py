"""Notes that a node shows on itself after a run: what it changed, cut or expects to disappoint."""

from __future__ import annotations

from typing import Any, Iterable

from comfy_api.latest import io

# The key under which web/js/notes.js finds the notes in a node's output.
NOTES = "omnigen2_notes"


def output_with_notes(*values: Any, notes: Iterable[str] = ()) -> io.NodeOutput:
    """A node's outputs with the notes of this run. An empty list is sent too, so that old notes disappear."""
    return io.NodeOutput(*values, ui={NOTES: list(dict.fromkeys(notes))})
