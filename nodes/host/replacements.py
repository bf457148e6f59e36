"""What ComfyUI offers in the place of nodes that two archived OmniGen2 packs left behind in workflows.

Only their loaders have one node here that does the same. Their samplers take prompts, pictures and sizes in one
node, which are OmniGen2 Encode, OmniGen2 Sampler and VAE Decode here, so they have no entry; the README has the tables.
"""

from __future__ import annotations

from comfy_api.latest import ComfyAPI, io

_REPLACEMENTS = (
    # Yuan-ManX/ComfyUI-OmniGen2. Its solver is a setting of the sampler here; offloading is ComfyUI's own affair.
    io.NodeReplace(
        new_node_id="OmniGen2LoadFolder",
        old_node_id="LoadOmniGen2Model",
        old_widget_ids=["model_path", "dtype", "scheduler", "offload_type"],
        input_mapping=[{"new_id": "folder", "old_id": "model_path"}, {"new_id": "dtype", "old_id": "dtype"}],
        output_mapping=[{"new_idx": 0, "old_idx": 0}],
    ),
    # neverbiasu/ComfyUI-OmniGen2.
    io.NodeReplace(
        new_node_id="OmniGen2LoadFolder",
        old_node_id="OmniGen2ModelLoader",
        old_widget_ids=["repo_id", "dtype", "enable_sequential_cpu_offload", "enable_model_cpu_offload", "enable_group_offload"],
        input_mapping=[{"new_id": "folder", "old_id": "repo_id"}, {"new_id": "dtype", "old_id": "dtype"}],
        output_mapping=[{"new_idx": 0, "old_idx": 0}],
    ),
)


async def register_replacements() -> None:
    """Tell ComfyUI which of our nodes stand for nodes of the archived packs; called once, at start-up."""
    api = ComfyAPI()
    for replacement in _REPLACEMENTS:
        await api.node_replacement.register(replacement)
