"""Steps of our transformer as actions that can be timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from typing import Protocol

import torch
from torch import Tensor

from ..acceleration.protocol import Run
from ..checkpoints import load_weights
from ..precision import Attention, precision_for
from ..rope import batch_rotation, parts
from ..transformer import OmniGen2Config, OmniGen2Transformer
from .cases import TEXT, Case
from .inputs import Inputs
from .work import Step

Action = Callable[[], Tensor]


class Steps(Protocol):
    """A transformer with one layer of each kind."""

    def make(self, case: Case, step: Step) -> Action:
        """Does the step on the case's inputs and gives its output."""


def one_of_each(config: OmniGen2Config) -> OmniGen2Config:
    """The same transformer with one layer of each kind."""
    return replace(config, num_layers=1, num_refiner_layers=1)


def branch_of(case: Case, step: Step) -> str:
    """The branch whose joint sequence has the step's keys."""
    return next(branch for branch in case.branches if case.layout(branch).length == step.keys)


class OurSteps:
    """Our transformer's steps.

    config: of the whole model. weights: of `one_of_each(config)`, taken over without a copy. operations, attention: as
    OmniGen2Transformer takes them, a host's own where it has any.
    """

    def __init__(
        self,
        config: OmniGen2Config,
        weights: Mapping[str, Tensor],
        inputs: Inputs,
        *,
        operations=torch.nn,
        attention: Attention | None = None,
    ):
        self.inputs, self.attention = inputs, attention
        self.model = self._build(one_of_each(config), weights, operations)
        self.without_layers = self._build(replace(config, num_layers=0, num_refiner_layers=0), weights, operations)
        self.precision = precision_for(inputs.dtype, attention)

    @staticmethod
    def _build(config: OmniGen2Config, weights: Mapping[str, Tensor], operations) -> OmniGen2Transformer:
        model = OmniGen2Transformer(config, operations=operations, device="meta")
        load_weights(model, {name: weights[name] for name in model.state_dict()}, "the drawn weights")
        return model.eval().requires_grad_(False)

    def make(self, case: Case, step: Step) -> Action:
        """See `Steps.make`."""
        return getattr(self, f"_{step.kind}")(case, step)

    def _layer(self, case: Case, step: Step, rows: slice | None = None) -> Action:
        layout = case.layout(branch_of(case, step))
        table = self._table(layout)
        x, modulation = self.inputs.tokens(1, step.keys), self._modulation_of(self.model.layers[0])
        return lambda: self.model.layers[0](x, modulation, table, None, self.precision, None, rows)

    def _last(self, case: Case, step: Step) -> Action:
        return self._layer(case, step, slice(step.keys - step.queries, step.keys))

    def _image(self, case: Case, step: Step) -> Action:
        layout = case.layout(branch_of(case, step))
        table = parts(self._table(layout), [(0, layout.image_start)], step.queries)
        x, modulation = self.inputs.tokens(1, step.queries), self._modulation_of(self.model.layers[0])
        config = self.inputs.config
        head = config.hidden_size // config.num_attention_heads
        kept = self.inputs.draw(2, 1, config.num_kv_heads, step.keys - step.queries, head)

        def with_kept(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            return torch.cat((kept[0], keys), dim=2), torch.cat((kept[1], values), dim=2)

        return lambda: self.model.layers[0](x, modulation, table, None, self.precision, with_kept)

    def _text(self, case: Case, step: Step) -> Action:
        x, table = self.inputs.tokens(1, TEXT), parts(self._table(case.layout("cond")), [(0, 0)], TEXT)
        return lambda: self.model.context_refiner[0](x, table, None, self.precision)

    def _noise(self, case: Case, step: Step) -> Action:
        layout = case.layout("cond")
        return self._refiner(self.model.noise_refiner[0], case, step, [layout.image_start])

    def _reference(self, case: Case, step: Step) -> Action:
        return self._refiner(self.model.ref_image_refiner[0], case, step, case.layout("cond").reference_starts)

    def _refiner(self, block, case: Case, step: Step, starts) -> Action:
        table = parts(self._table(case.layout("cond")), [(0, start) for start in starts], step.queries)
        x, modulation = self.inputs.tokens(step.batch, step.queries), self._modulation_of(block)
        return lambda: block(x, modulation, table, None, self.precision)

    def _modulation(self, case: Case, step: Step) -> Action:
        temb = self.inputs.time_embedding()
        return lambda: self.model.layers[0].modulation(temb, self.precision)[0]

    def _ends(self, case: Case, step: Step) -> Action:
        """A step's first evaluation: later ones of the step find the image embedded."""
        branch = branch_of(case, step)
        latents, text = self.inputs.latents(case), self.inputs.text(branch)
        references = [self.inputs.references(case, branch)]
        run, steps = Run(1 << 30), count()

        def evaluate() -> Tensor:
            step = next(steps)
            time = torch.full((1,), 0.5 + 1e-6 * step, device=self.inputs.device)
            state = run.evaluation(branch, step, text_key=branch)
            return self.without_layers(latents, time, text, None, references, attention=self.attention, state=state)

        return evaluate

    def _table(self, layout) -> tuple[Tensor, Tensor]:
        return batch_rotation((layout,), self.inputs.config.axes_dim_rope, self.inputs.device)

    def _modulation_of(self, block) -> tuple[Tensor, ...]:
        return block.modulation(self.inputs.time_embedding(), self.precision)
