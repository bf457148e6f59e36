"""The joint sequence of text, references and image, and the stack of layers that works on it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import Modulation
from .precision import Attention, Precision
from .rope import Rotation, SampleLayout


@dataclass
class JointSequence:
    """What `refine` hands to the layers.

    hidden: [B, S, D], text + references + image, padded behind to the longest sample.
    rotation: cosines and sines [B or 1, S, head_dim / 2]. mask: bool [B, 1, 1, S], None where nothing is padded.
    temb: [B, T]. layouts: one per sample. stacked: whether the latents came as one tensor.
    """

    hidden: Tensor
    rotation: Rotation
    mask: Tensor | None
    temb: Tensor
    layouts: tuple[SampleLayout, ...]
    stacked: bool


class LayerStack:
    """The main layers bound to one joint sequence: everything a cache may do with them, for one evaluation."""

    def __init__(self, layers: nn.ModuleList, joint: JointSequence, precision: Precision):
        self.layers = layers
        self.joint = joint
        self.precision = precision
        self._modulations: dict[int, Modulation] = {}

    def __len__(self) -> int:
        return len(self.layers)

    def modulation(self, index: int) -> Modulation:
        if index not in self._modulations:
            self._modulations[index] = self.layers[index].modulation(self.joint.temb, self.precision)
        return self._modulations[index]

    def signal(self) -> Tensor:
        """The first layer's modulated input [B, S, D], by which caches judge how much changed; padding is zero."""
        return self.layers[0].modulated_input(self.joint.hidden, self.modulation(0), self.precision)

    def layer(
        self,
        index: int,
        hidden: Tensor,
        *,
        rotation: Rotation | None = None,
        attention: Attention | None = None,
    ) -> Tensor:
        """One layer's output. A cache that runs part of the tokens passes that part's rotation and an attention that
        supplies the other keys and values; None takes the joint sequence's own."""
        mask = self.joint.mask
        precision = self.precision if attention is None else self.precision.with_attention(attention)
        table = self.joint.rotation if rotation is None else rotation
        return self.layers[index](hidden, self.modulation(index), table, mask, precision)

    def run(self, hidden: Tensor | None = None, first: int = 0) -> Tensor:
        """The output of the layers from `first` to the last; hidden None starts from the joint sequence."""
        hidden = self.joint.hidden if hidden is None else hidden
        for index in range(first, len(self.layers)):
            hidden = self.layer(index, hidden)
        return hidden


def pad_samples(samples: Sequence[Tensor]) -> Tensor:
    """[n_i, D] each -> [B, max n, D], zeros behind; a view where there is one sample."""
    if len(samples) == 1:
        return samples[0].unsqueeze(0)
    return nn.utils.rnn.pad_sequence(list(samples), batch_first=True)


def padding_mask(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """Bool [B, 1, 1, longest], True = real token; None where all lengths are the same."""
    longest = max(lengths)
    if min(lengths) == longest:
        return None
    mask = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
    return mask[:, None, None, :].to(device)
