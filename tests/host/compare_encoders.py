"""Core's OmniGen2 encoder, shrunk to the width of a small file, beside ours; prints a row a prompt as JSON.

python launcher.py compare_encoders.py PACK COMFYUI ENCODER.safetensors
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

PACK, COMFYUI, ENCODER = sys.argv[1:]
PROMPTS = [
    "A dog running in the park",
    "",
    "把背景换成教室。",
    "a (red:1.4) cube, (shiny), [blue] and {green} \\(not weighted\\)",
    "((deformed)), blurry, (extra_limb)",
    "emoji 🦊 <|im_end|> in the text",
]


def load_pack(name: str):
    """The pack as ComfyUI loads it: a package whose name is not its folder's."""
    spec = importlib.util.spec_from_file_location(name, Path(PACK) / "__init__.py", submodule_search_locations=[PACK])
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


def core_clip(weights: dict, config: dict):
    import comfy.sd
    from comfy.text_encoders import llama, omnigen2

    llama.Qwen25_3BConfig.head_dim = config["hidden_size"] // config["num_attention_heads"]
    sizes = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    target = SimpleNamespace(params={}, clip=omnigen2.te(), tokenizer=omnigen2.Omnigen2Tokenizer)
    options = {"qwen25_3b_model_config": {name: config[name] for name in sizes}}
    return comfy.sd.CLIP(target, state_dict=[weights], model_options=options)


def main() -> None:
    sys.path.insert(0, COMFYUI)
    sys.argv[:] = ["compare_encoders.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import nodes as core_nodes
    import torch

    load_pack("omnigen2_pack")
    from omnigen2_pack.nodes.host.clip import load_clip
    from omnigen2_pack.nodes.host.parts import part_of_file
    from omnigen2_pack.omnigen2_core.checkpoints import FileKind

    part = part_of_file(ENCODER, FileKind.ENCODER)
    theirs, ours = core_clip(part.weights(), part.config), load_clip(part)
    rows = []
    with torch.inference_mode():
        for prompt in PROMPTS:
            [[a, a_more]] = core_nodes.CLIPTextEncode().encode(theirs, prompt)[0]
            [[b, b_more]] = core_nodes.CLIPTextEncode().encode(ours, prompt)[0]
            rows.append(
                {
                    "prompt": prompt,
                    "same_tokens": theirs.tokenize(prompt) == ours.tokenize(prompt),
                    "error": float((a - b).abs().max()) if a.shape == b.shape else float("inf"),
                    "length": a.shape[1],
                    "mask": list(b_more["attention_mask"].shape),
                    "same_keys": a_more.keys() == b_more.keys(),
                }
            )
    print(json.dumps(rows))


main()
