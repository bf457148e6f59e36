"""Who reflects on a picture and who scores it: the MODEL's own encoder, an endpoint of the user's, or nobody."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from typing import Any, Callable, Sequence, TypeVar

import comfy.model_management
from PIL import Image

from ...omnigen2_core.checkpoints import require_vision
from ...omnigen2_core.errors import CheckpointError, PromptError
from ...omnigen2_core.reflection import (
    Endpoint,
    Looker,
    PromptedReflector,
    QuestionVerifier,
    Reflection,
    Reflector,
    Score,
    Task,
    TrainedReflector,
    Verifier,
    assistant_writer,
    model_looker,
    trained_verifier,
)
from ...omnigen2_core.reflection.looker import Shown
from .assistant import HostAssistant, assistant_of

WAYS = ("auto", "prompted", "trained")
JUDGES = ("model", "own_endpoint")
T = TypeVar("T")
BETWEEN_LOOKS = 0.1
"""Seconds between two looks whether a run was cancelled, while a server elsewhere is waited for."""
AT_ONCE = 4
"""Questions in one pass of the encoder. Each carries its own pictures."""


@dataclass(frozen=True)
class Blind:
    """`Reflector`, `Verifier` and `Examiner` where nobody can look: no opinion on any picture, and why."""

    reason: str
    questions: tuple[str, ...] = ()

    def __call__(self, task: Task, picture: Image.Image, earlier: Any = ()) -> Reflection:
        return Reflection.no_opinion(self.reason)

    def examiner(self, task: Task) -> "Blind":
        return self

    def score(self, picture: Image.Image) -> Score:
        return Score(note=self.reason)

    def prefer(self, first: Image.Image, second: Image.Image) -> None:
        return None


def onlooker_of(clip: Any) -> HostAssistant | Blind:
    """The encoder of a CLIP if it can look at pictures, else why it cannot. Whoever shares it looks at a picture once."""
    try:
        assistant = assistant_of(clip)
        require_vision(assistant.encoder.part.info)
    except (CheckpointError, PromptError) as error:
        return Blind(str(error))
    return assistant


def reflector_of(onlooker: HostAssistant | Blind, way: str) -> Reflector:
    """Who looks at a picture and says what is wrong: the encoder, in one of WAYS, or `Blind` where it cannot look.

    "auto" takes the trained form where the weights' profile says that they were fine-tuned to it.
    """
    if isinstance(onlooker, Blind):
        return onlooker
    if way == "trained" or (way == "auto" and _is_trained(onlooker)):
        return TrainedReflector(assistant_writer(onlooker, on_step=_check_cancelled))
    return PromptedReflector(host_looker(onlooker).ask)


def verifier_of(onlooker: HostAssistant | Blind, judge: str) -> Verifier:
    """Who scores pictures: the encoder, `Blind` where it cannot look, or the endpoint that the environment names.

    Weights that were fine-tuned to reflect are asked what they were taught, whichever way the reflector takes.

    Raises JudgeError when the endpoint is asked for and the environment does not name it.
    """
    if judge == "own_endpoint":
        return QuestionVerifier(_cancellable(Endpoint.from_environment()))
    if isinstance(onlooker, Blind):
        return onlooker
    looker = host_looker(onlooker)
    return trained_verifier(looker) if _is_trained(onlooker) else QuestionVerifier(looker)


def host_looker(assistant: HostAssistant) -> Looker:
    """The encoder as one who answers; the run can be cancelled at every token, and between passes of yes/no questions."""
    return model_looker(assistant, batch=AT_ONCE, on_step=_check_cancelled)


def _is_trained(assistant: HostAssistant) -> bool:
    return assistant.encoder.profile.trained_reflection


def _cancellable(endpoint: Endpoint) -> Looker:
    """Asks one question at a time, and waits for no answer once the run was cancelled, nor asks again."""
    cancelled = threading.Event()
    looker = endpoint.looker(pause=lambda seconds: not cancelled.wait(seconds))

    def ask(questions: Sequence[str], images: Shown) -> list[str]:
        answers: list[str] = []
        for question, own in zip(questions, images, strict=True):
            try:
                answers += _unless_cancelled(lambda question=question, own=own: looker.ask([question], [own]))
            except comfy.model_management.InterruptProcessingException:
                cancelled.set()
                raise
        return answers

    return Looker(ask)


def _unless_cancelled(work: Callable[[], T]) -> T:
    """What `work` returns or raises. A cancelled run leaves it to itself, and what it still brings is dropped."""
    outcome: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((work(), None))
        except BaseException as failure:
            outcome.put((None, failure))

    _check_cancelled()
    threading.Thread(target=run, daemon=True).start()
    while True:
        try:
            result, failure = outcome.get(timeout=BETWEEN_LOOKS)
        except queue.Empty:
            _check_cancelled()
            continue
        if failure is not None:
            raise failure
        return result


def _check_cancelled(step: int = 0) -> None:
    """Raises ComfyUI's exception when the run was cancelled; also a callback for steps of writing."""
    comfy.model_management.throw_exception_if_processing_interrupted()
