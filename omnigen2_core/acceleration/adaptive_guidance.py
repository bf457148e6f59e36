"""Adaptive guidance (Castillo et al., arXiv 2312.12487): a branch that agrees with the prompt's own is asked no more.

There the measure is the cosine between the two predictions of the noise, and from a value on there is one branch.
Here it is one minus the cosine between velocities, for each of the other branches by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn.functional import cosine_similarity

from .protocol import Ask, Predictions


@dataclass
class AdaptiveGuidance:
    """The state of one run.

    disagreement: below this value of one minus the cosine a branch agrees; 0 is never.

    Once every sample of the batch has agreed, the prompt's own prediction takes the branch's place for the rest of
    the run.
    """

    disagreement: float
    _agreed: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _left_out: set[str] = field(default_factory=set, repr=False)

    def predict(self, branches: Sequence[str], ask: Ask) -> Predictions:
        main, *others = branches
        found = dict(ask((main, *(branch for branch in others if branch not in self._left_out))))
        for branch in others:
            if branch in self._left_out:
                found[branch] = found[main]
                continue
            agrees = disagreement(found[main], found[branch]) < self.disagreement
            self._agreed[branch] = self._agreed.get(branch, False) | agrees
            if self._agreed[branch].all():
                self._left_out.add(branch)
        return found


def disagreement(a: Tensor, b: Tensor) -> Tensor:
    """One minus the cosine of each sample's predictions [B, C, H, W]: [B]."""
    return 1.0 - cosine_similarity(a.flatten(1).float(), b.flatten(1).float(), dim=1).clamp_max(1.0)
