"""Ways to sample that a search tries: each method alone, methods together, and the presets.

A candidate is written as the settings in which it differs from the plain path: "steps=16,context_refresh=3".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

from ..acceleration.presets import PRESETS, Acceleration, Preset
from ..errors import OmniGen2Error
from ..guidance import Guidance
from ..profile import PUBLISHED, ModelProfile
from ..schedule import timesteps
from ..solvers import make_solver

PLAIN_STEPS = 50


@dataclass(frozen=True)
class Candidate:
    """Methods that save work, and what beside them only the sampler can follow.

    guidance_end: share of the run after which nothing is guided; None is what suits the model. shift: times the time
    shift that follows from the picture's size.

    Raises OmniGen2Error for settings that `Acceleration` does not take.
    """

    acceleration: Acceleration = field(default_factory=Acceleration)
    steps: int = PLAIN_STEPS
    solver: str = "euler"
    guidance_end: float | None = None
    shift: float = 1.0

    def __str__(self) -> str:
        """The settings that `parse` makes this of; the number of steps is always among them."""
        settings, plain = _settings(self), _settings(PLAIN)
        told = {"steps": self.steps} | {name: value for name, value in settings.items() if value != plain[name]}
        return ",".join(f"{name}={value if isinstance(value, str) else format(value, 'g')}" for name, value in told.items())

    def guidance_range(self, profile: ModelProfile) -> tuple[float, float]:
        """First and last share of the run that is guided."""
        return 0.0, profile.guidance_end if self.guidance_end is None else self.guidance_end

    def without_methods(self) -> "Candidate":
        """The same run with everything computed."""
        return replace(self, acceleration=Acceleration())


def _settings(candidate: Candidate) -> dict[str, object]:
    own = {name: value for name, value in vars(candidate).items() if name != "acceleration"}
    return own | asdict(candidate.acceleration)


PLAIN = Candidate()
"""What every speed and every score is held against."""

_TYPES = {"solver": str, "guidance_end": float, "shift": float} | {
    name: type(value) for name, value in {"steps": PLAIN.steps, **asdict(PLAIN.acceleration)}.items()
}

ALONE = {
    "fewer steps": ("steps=16", "steps=12", "steps=8"),
    "fewer steps, second order": ("steps=12,solver=dpmpp_2m", "steps=8,solver=dpmpp_2m"),
    "second order, less shift": ("steps=12,solver=dpmpp_2m,shift=0.6", "steps=8,solver=dpmpp_2m,shift=0.6"),
    "guidance range": ("guidance_end=0.5", "guidance_end=0.3"),
    "kept text and references": ("context_refresh=3", "context_refresh=5", "context_refresh=6"),
    "guidance reuse": ("guidance_every=2", "guidance_every=4"),
    "adaptive guidance": ("disagreement=0.01", "disagreement=0.05"),
    "first-block cache": ("first_block=0.1", "first_block=0.2"),
    "TeaCache": ("teacache=0.05", "teacache=0.1"),
    "TaylorSeer": ("taylorseer=2", "taylorseer=4"),
}
"""By method: settings with all other methods off."""

TOGETHER = (
    "steps=20,context_refresh=3,guidance_every=3",
    "steps=16,context_refresh=3,guidance_every=2",
    "steps=16,solver=dpmpp_2m,context_refresh=3,guidance_every=2",
    "steps=12,context_refresh=4,guidance_every=4",
    "steps=10,context_refresh=4,guidance_every=3",
    "steps=10,solver=dpmpp_2m,context_refresh=4,guidance_every=3",
    "steps=8,context_refresh=3,guidance_every=2",
    "steps=8,shift=0.6,context_refresh=3,guidance_every=2",
    "steps=8,solver=dpmpp_2m,context_refresh=3,guidance_every=2",
    "steps=16,solver=dpmpp_2m,shift=0.6,context_refresh=3,guidance_every=2",
    "steps=16,solver=dpmpp_2m,shift=1.5,context_refresh=3,guidance_every=2",
    "steps=10,solver=dpmpp_2m,shift=0.6,context_refresh=5,guidance_every=2",
    "steps=10,solver=dpmpp_2m,shift=1.5,context_refresh=5,guidance_every=2",
    "steps=10,shift=0.6,context_refresh=5,guidance_every=2",
    "steps=16,context_refresh=3,disagreement=0.01",
    "steps=16,context_refresh=3,guidance_every=2,first_block=0.1",
    "steps=16,context_refresh=3,guidance_every=2,teacache=0.05",
    "steps=16,context_refresh=3,guidance_every=2,taylorseer=2",
)
"""Methods together, as fast as a preset has to be."""


def of_preset(preset: Preset) -> Candidate:
    """A preset with the run for which it was chosen."""
    return Candidate(preset.acceleration, preset.steps, preset.solver)


def parse(text: str) -> Candidate:
    """A preset's name, or settings such as "steps=16,context_refresh=4" that change the plain path.

    Raises OmniGen2Error for a name or a value that cannot be.
    """
    if text in PRESETS:
        return of_preset(PRESETS[text])
    own, methods = {}, {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in _TYPES:
            raise OmniGen2Error(f"{name!r} is no preset and no setting; choose from {', '.join([*PRESETS, *_TYPES])}.")
        try:
            number = _TYPES[name](value)
        except ValueError:
            raise OmniGen2Error(f"{name} is {value!r}; give a number.") from None
        (methods if name in vars(PLAIN.acceleration) else own)[name] = number
    candidate = replace(PLAIN, **own, acceleration=Acceleration(**methods))
    _check_run(candidate)
    return candidate


def _check_run(candidate: Candidate) -> None:
    """Raises OmniGen2Error for a run that the sampler would refuse."""
    try:
        make_solver(candidate.solver)
        Guidance(range=candidate.guidance_range(PUBLISHED))
        timesteps(candidate.steps, 2, 2, shift=candidate.shift)
    except ValueError as error:
        raise OmniGen2Error(str(error)) from None


def name_of(candidate: Candidate) -> str:
    """What a candidate is called where people read it: a preset's name and settings, or its settings alone."""
    names = [name for name, preset in PRESETS.items() if of_preset(preset) == candidate]
    return " = ".join([*names, str(candidate)])
