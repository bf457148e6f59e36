"""A checkout with the authors' module layout and the calls of theirs that the bench makes, around our own transformer."""

from pathlib import Path

ROPE = '''
class OmniGen2RotaryPosEmbed:
    @staticmethod
    def get_freqs_cis(axes_dim, axes_lens, theta):
        return [("table", dim, length, theta) for dim, length in zip(axes_dim, axes_lens, strict=True)]
'''

TRANSFORMER = '''
import torch
from torch import nn

from omnigen2_core.transformer import OmniGen2Config, OmniGen2Transformer


class OmniGen2Transformer2DModel(nn.Module):
    """Its arguments are theirs, by name; the weights' names are the published ones."""

    def __init__(
        self, patch_size=2, in_channels=16, out_channels=None, hidden_size=2304, num_layers=26, num_refiner_layers=2,
        num_attention_heads=24, num_kv_heads=8, multiple_of=256, ffn_dim_multiplier=None, norm_eps=1e-5,
        axes_dim_rope=(32, 32, 32), axes_lens=(300, 512, 512), text_feat_dim=1024, timestep_scale=1.0,
    ):
        given = {name: value for name, value in locals().items() if name not in ("self", "axes_lens", "__class__")}
        super().__init__()
        assert len(axes_lens) == len(axes_dim_rope)
        own = OmniGen2Transformer(OmniGen2Config(**given), device="meta")
        for name, module in own.named_children():
            self.add_module(name, module)
        for name, parameter in own.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self.__dict__["own"] = own

    def forward(
        self, hidden_states, timestep, text_hidden_states, freqs_cis, text_attention_mask,
        ref_image_hidden_states=None, attention_kwargs=None, return_dict=True,
    ):
        assert return_dict is False and [table[0] for table in freqs_cis] == ["table"] * 3
        own = self.__dict__["own"]
        for name, parameter in self.named_parameters(recurse=False):
            setattr(own, name, parameter)
        return own(hidden_states, timestep, text_hidden_states, text_attention_mask, ref_image_hidden_states)
'''


def write_checkout(folder: Path) -> Path:
    """The files, below `folder`, which it returns."""
    package = folder / "omnigen2" / "models" / "transformers"
    package.mkdir(parents=True)
    for parent in (package, package.parent, package.parent.parent):
        (parent / "__init__.py").touch()
    (package / "rope.py").write_text(ROPE, encoding="utf-8")
    (package / "transformer_omnigen2.py").write_text(TRANSFORMER, encoding="utf-8")
    return folder
