"""The pack's ComfyUI nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .acceleration import OmniGen2Accelerate
from .chat import OmniGen2Chat
from .compile import OmniGen2Compile
from .encode import OmniGen2Encode
from .host.assets import PACK, serve_under_odd_name
from .host.replacements import register_replacements
from .loaders import OmniGen2LoadDiffusionModel, OmniGen2LoadEncoder, OmniGen2LoadFolder, OmniGen2LoadVAE
from .lora import OmniGen2LoadLoRA
from .reflection import OmniGen2BestOfN, OmniGen2ReflectionLoop
from .sampling import OmniGen2Guider, OmniGen2Sample, OmniGen2Sigmas
from .understanding import OmniGen2Ask, OmniGen2EnhancePrompt

NODES: list[type[io.ComfyNode]] = [
    OmniGen2LoadFolder,
    OmniGen2LoadDiffusionModel,
    OmniGen2LoadEncoder,
    OmniGen2LoadVAE,
    OmniGen2LoadLoRA,
    OmniGen2Encode,
    OmniGen2Sample,
    OmniGen2Guider,
    OmniGen2Sigmas,
    OmniGen2Accelerate,
    OmniGen2Compile,
    OmniGen2Ask,
    OmniGen2EnhancePrompt,
    OmniGen2Chat,
    OmniGen2ReflectionLoop,
    OmniGen2BestOfN,
]


class OmniGen2Extension(ComfyExtension):
    """What ComfyUI asks for the list of nodes."""

    async def on_load(self) -> None:
        await register_replacements()
        serve_under_odd_name(PACK.name)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)
