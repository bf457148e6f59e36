"""OmniGen2 Compile: has the transformer's layers compiled by PyTorch."""

from __future__ import annotations

from comfy_api.latest import io

from ..omnigen2_core.compiled import CompiledParts, require_compiler
from ..omnigen2_core.errors import CheckpointError
from .host.compiling import COMPILED_KEY, refuse_torch_compile
from .host.guider import is_native, require_omnigen2


class OmniGen2Compile(io.ComfyNode):
    """Has PyTorch compile what lies between a MODEL's attentions."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="OmniGen2Compile",
            display_name="OmniGen2 Compile",
            category="OmniGen2/sampling",
            description="The same picture sooner: PyTorch compiles the model's layers once, for every size, prompt and "
            "number of steps.",
            search_aliases=["torch.compile", "inductor", "triton", "speed", "faster"],
            inputs=[io.Model.Input("model", tooltip="An OmniGen2 MODEL of this pack's loaders.")],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The MODEL whose layers are compiled in its first run; the input stays as it was.",
                )
            ],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        require_omnigen2(model)
        if is_native(model):
            raise CheckpointError(
                "The connected MODEL comes from ComfyUI's own loader, whose transformer is not made to be compiled in "
                "parts; load it with OmniGen2 Load Diffusion Model, or use TorchCompileModel."
            )
        refuse_torch_compile(model.model_options)
        require_compiler(model.load_device)
        # Weights that ComfyUI pages in as each layer computes lie nowhere that a graph could read them.
        model = model.clone(disable_dynamic=True)
        model.model_options["transformer_options"][COMPILED_KEY] = CompiledParts()
        return io.NodeOutput(model)
