"""The pack's scripts, help pages and templates, where the folder's name keeps ComfyUI from serving them."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path

from aiohttp import web

from server import PromptServer

PACK = Path(__file__).absolute().parents[2]
"""This pack's folder under the name by which ComfyUI knows it, which a link may have changed."""


def serve_under_odd_name(name: str) -> None:
    """Serve `web/` and `workflows/` where the frontend looks for them if the folder is called `name`.

    ComfyUI's own routes for them are not found by aiohttp where the name holds anything that an address writes in
    another way, such as a space or a Chinese letter. Other names need nothing, and nothing is done.
    """
    if urllib.parse.quote(name) == name:
        return
    _serve(f"/extensions/{{pack:{re.escape(name)}}}/{{file:.*}}", PACK / "web")
    _serve(f"/workflow_templates/{{pack:{re.escape(name)}}}/{{file:.*}}", PACK / "workflows")


def _serve(route: str, folder: Path) -> None:
    folder = folder.resolve()

    async def send(request: web.Request) -> web.StreamResponse:
        file = (folder / request.match_info["file"]).resolve()
        if not (file.is_relative_to(folder) and file.is_file()):
            raise web.HTTPNotFound
        return web.FileResponse(file)

    PromptServer.instance.routes.get(route)(send)
