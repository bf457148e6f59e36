"""What a node tells the page that queued it while it runs."""

from __future__ import annotations

from typing import Any

from comfy_execution.utils import get_executing_context
from server import PromptServer


def tell_page(event: str, node: str, **data: Any) -> None:
    """Sends {"node", "prompt_id", ...} as an event; where no page queued the run, there is nobody to tell.

    The run's id lets web/js/runs.js see whether its workflow is the one on the canvas.
    """
    page = PromptServer.instance.client_id
    if page is None:
        return
    run = get_executing_context()
    PromptServer.instance.send_sync(event, {"node": node, "prompt_id": run and run.prompt_id, **data}, page)
