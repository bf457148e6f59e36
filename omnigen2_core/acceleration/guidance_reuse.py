"""Guidance-branch caching: how the other branches differ from the prompt's own is kept for several evaluations.

The CFG cache of FasterCache (arXiv 2410.19355), without its weighting by frequency, for any number of branches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .protocol import Ask, Predictions


@dataclass
class GuidanceReuse:
    """The differences of one run.

    every: one evaluation in so many asks for a branch itself; 1 is every one.
    """

    every: int
    _ages: dict[str, int] = field(default_factory=dict, repr=False)
    _differences: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def predict(self, branches: Sequence[str], ask: Ask) -> Predictions:
        main, *others = branches
        self._ages = {branch: self._ages.get(branch, self.every) + 1 for branch in others}
        due = [branch for branch in others if self._ages[branch] >= self.every]
        found = dict(ask((main, *due)))
        for branch in others:
            if branch in due:
                self._ages[branch] = 0
                self._differences[branch] = found[branch] - found[main]
            else:
                found[branch] = found[main] + self._differences[branch]
        return found
