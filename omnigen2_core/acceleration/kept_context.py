"""Reference-stream caching: the keys and values of text and references are kept for several evaluations, which then
compute the image's tokens only.

After the conditional feature reuse of OminiControl2 (arXiv 2503.08280), whose model was trained with references that
see neither the image nor the time, so that computing them once is enough. In OmniGen2 every token sees every other
and the time, what is kept grows old, and so it is refreshed every few evaluations.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..joint import JointSequence
from ..rope import SampleLayout


@dataclass
class KeptContext:
    """The keys and values of one branch.

    refresh: one evaluation in so many computes text and references too; 1 is every one.

    A batch of images of several sizes is computed whole each time.
    """

    refresh: int
    _age: int = field(default=0, repr=False)
    _layouts: tuple[SampleLayout, ...] = field(default=(), repr=False)
    _kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def holds(self, layouts: tuple[SampleLayout, ...]) -> bool:
        self._age += 1
        return layouts == self._layouts and self._age < self.refresh

    def keys_values(self, layer: int, joint: JointSequence, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if not joint.has_context:
            kept_keys, kept_values = self._kept[layer]
            return torch.cat((kept_keys, keys), dim=2), torch.cat((kept_values, values), dim=2)
        if joint.layouts != self._layouts:
            self._layouts = ()
        # Beyond a sample's own context lie tokens of its image; the joint sequence's mask hides them.
        longest = max(layout.image_start for layout in joint.layouts)
        self._kept[layer] = keys[:, :, :longest].contiguous(), values[:, :, :longest].contiguous()
        return keys, values

    def complete(self, joint: JointSequence) -> None:
        if len({layout.image for layout in joint.layouts}) == 1:
            self._age, self._layouts = 0, joint.layouts
