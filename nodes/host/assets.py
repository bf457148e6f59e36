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
    another way, such as a space or a Chinese letter. And the help panel asks for pages under a shorter name, see
    `help_name`. Other names need nothing, and nothing is done.
    """
    if urllib.parse.quote(name) != name:
        _serve(f"/extensions/{_segment(name)}/{{file:.*}}", PACK / "web")
        _serve(f"/workflow_templates/{_segment(name)}/{{file:.*}}", PACK / "workflows")
    asked = help_name(name)
    if asked and asked != name:
        # Another pack may have that name: only what is ours is taken.
        _serve(f"/extensions/{_segment(asked)}/docs/{{file:(?:images/)?OmniGen2.*}}", PACK / "web" / "docs")


def help_name(name: str) -> str:
    """The name under which the help panel asks for the pages of a pack in the folder `name`.

    The frontend reads it from the nodes' module, `custom_nodes.<folder>`, as what stands between two dots, up to an `@`
    that would begin a version. Where nothing is left, it asks for nothing.
    """
    return name.partition(".")[0].partition("@")[0]


def _segment(name: str) -> str:
    """A folder's name as a part of a route. Written out where it can be: aiohttp looks first where more is written out."""
    return name if urllib.parse.quote(name) == name else f"{{pack:{re.escape(name)}}}"


def _serve(route: str, folder: Path) -> None:
    folder = folder.resolve()

    async def send(request: web.Request) -> web.StreamResponse:
        file = (folder / request.match_info["file"]).resolve()
        if not (file.is_relative_to(folder) and file.is_file()):
            raise web.HTTPNotFound
        return web.FileResponse(file)

    PromptServer.instance.routes.get(route)(send)
