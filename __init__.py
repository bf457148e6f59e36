"""OmniGen2 for ComfyUI: the file that ComfyUI imports.

Nothing of the host is imported here, so that test collection and packaging tools can import it too.
"""

WEB_DIRECTORY = "./web"
MINIMUM_COMFYUI = (0, 30, 0)

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint():
    """Give the host this pack's extension; ComfyUI calls this once at start-up.

    Raises:
        RuntimeError: the host is too old. ComfyUI logs the message as one line and goes on without the pack.
    """
    import comfyui_version

    found = comfyui_version.__version__
    if _numbers(found) < MINIMUM_COMFYUI:
        needed = ".".join(map(str, MINIMUM_COMFYUI))
        raise RuntimeError(f"OmniGen2 needs ComfyUI {needed} or newer, and this is {found}: update ComfyUI.")

    from .nodes import OmniGen2Extension

    return OmniGen2Extension()


def _numbers(version: str) -> tuple[int, ...]:
    """'0.30.0' or '0.31.0rc1' as numbers that compare; what is not a number counts as 0."""
    parts = version.split(".")[:3]
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)
