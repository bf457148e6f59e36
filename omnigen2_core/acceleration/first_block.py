"""First-block caching: skip the other layers while what the first one adds has changed little since they last ran.

From ParaAttention (github.com/chengzeyi/ParaAttention, "First Block Cache"), which made TeaCache's idea (arXiv
2411.19108) independent of constants that are fitted to a model.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..joint import LayerStack
from ..rope import SampleLayout
from .protocol import Evaluation


@dataclass
class FirstBlockCache:
    """The cache of one branch.

    threshold: relative change of what the first layer adds to the image's tokens, from which on all layers run.

    The last step always runs all. In a batch the layers run as soon as one sample needs them.
    """

    threshold: float
    _layouts: tuple[SampleLayout, ...] = field(default=(), repr=False)
    _added: Tensor | None = field(default=None, repr=False)
    _rest: Tensor | None = field(default=None, repr=False)

    def run_layers(self, stack: LayerStack, evaluation: Evaluation) -> Tensor:
        joint = stack.joint
        after = joint.image(stack.first())
        added = after - joint.image(joint.hidden)
        if joint.layouts == self._layouts and not evaluation.last and self._change(added) < self.threshold:
            return after + self._rest
        out = stack.run()
        self._layouts, self._added, self._rest = joint.layouts, added, out - after
        return out

    def _change(self, added: Tensor) -> float:
        """The largest relative change of a sample since the layers last ran."""
        difference, size = (x.abs().mean((1, 2), dtype=torch.float32) for x in (added - self._added, self._added))
        return (difference / size).max().item()
