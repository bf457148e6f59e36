"""The joint sequence of text, references and image, and the stack of layers that works on it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .layers import Modulation
from .precision import Precision
from .rope import Rotation, SampleLayout

if TYPE_CHECKING:
    from .acceleration.protocol import ContextMethod


@dataclass
class JointSequence:
    """What `refine` hands to the layers.

    hidden: [B, S, D], text + references + image, padded behind to the longest sample; the image alone where
    text and references are not computed.
    rotation: cosines and sines [B or 1, S, head_dim / 2] of these tokens. mask: bool [B, 1, 1, keys], the tokens that
    they see, None where nothing is padded.
    temb: [B, T]. layouts: one per sample. stacked: whether the latents came as one tensor.
    has_context: whether text and references are in `hidden`.
    modulations: those of the layers that have been asked for, by index; branches of one time have them in common.
    """

    hidden: Tensor
    rotation: Rotation
    mask: Tensor | None
    temb: Tensor
    layouts: tuple[SampleLayout, ...]
    stacked: bool
    has_context: bool = True
    modulations: dict[int, Modulation] = field(default_factory=dict, repr=False)

    @property
    def image_rows(self) -> slice | None:
        """Where the image's tokens lie; None where that differs between samples."""
        spans = set(self._image_spans())
        if len(spans) > 1:
            return None
        start, count = spans.pop()
        return slice(start, start + count)

    def _image_spans(self) -> list[tuple[int, int]]:
        return [(layout.image_start if self.has_context else 0, layout.image_tokens) for layout in self.layouts]

    def image(self, hidden: Tensor) -> Tensor:
        """The image's tokens [B, n, D] among tokens that lie as in `hidden`; zeros behind where images differ in size."""
        rows = self.image_rows
        if rows is not None:
            return hidden[:, rows]
        spans = self._image_spans()
        return pad_samples([row[start : start + count] for row, (start, count) in zip(hidden, spans, strict=True)])


class LayerStack:
    """The main layers bound to one joint sequence: everything a cache may do with them, for one evaluation.

    context: supplies the keys and values of tokens that are not in the joint sequence. ran: how many layers have run.
    """

    def __init__(
        self, layers: nn.ModuleList, joint: JointSequence, precision: Precision, context: "ContextMethod | None" = None
    ):
        self.layers = layers
        self.joint = joint
        self.precision = precision
        self.context = context
        self.ran = 0
        self._first: Tensor | None = None

    def __len__(self) -> int:
        return len(self.layers)

    def modulation(self, index: int) -> Modulation:
        known = self.joint.modulations
        if index not in known:
            known[index] = self.layers[index].modulation(self.joint.temb, self.precision)
        return known[index]

    def signal(self) -> Tensor:
        """The first layer's modulated input, by which caches judge how much changed; padding is zero.

        [B, S, D] of all tokens, or [B, n, D] of the image's where the others are not computed each time.
        """
        hidden = self.joint.hidden if self.context is None else self.joint.image(self.joint.hidden)
        # Caches keep it for longer than until the next layer.
        return self.layers[0].modulated_input(hidden, self.modulation(0), self.precision).clone()

    def layer(self, index: int, hidden: Tensor, rows: slice | None = None) -> Tensor:
        """One layer's output [B, S, D], or that of some rows only."""
        joint, keys_values = self.joint, None
        if self.context is not None:
            keys_values = partial(self.context.keys_values, index, joint)
        self.ran += 1
        return self.layers[index](
            hidden, self.modulation(index), joint.rotation, joint.mask, self.precision, keys_values, rows
        )

    def first(self) -> Tensor:
        """The first layer's output [B, S, D], which `run` then begins with."""
        if self._first is None:
            self._first = self.layer(0, self.joint.hidden)
        return self._first

    def run(self) -> Tensor:
        """The image's tokens [B, n, D] after all layers. Of the last layer nobody reads the other tokens."""
        hidden = self.joint.hidden if self._first is None else self._first
        rows, last = self.joint.image_rows, len(self.layers) - 1
        for index in range(0 if self._first is None else 1, len(self.layers)):
            if index == last and rows is not None and self.joint.has_context:
                return self.layer(index, hidden, rows)
            hidden = self.layer(index, hidden)
        return self.joint.image(hidden)


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
