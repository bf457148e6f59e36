"""The model as judge: each requirement of an instruction asked about the picture as a yes/no question.

Small questions about one thing each are what a small model answers best; a mark from 0 to 10 is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Sequence

from PIL import Image

from .answers import clean, read_yes_no
from .looker import Looker, numbered_pictures
from .pairwise import better_of
from .requirements import AskedRequirements, whole_question
from .score import Check, Score
from .task import Task

LEAST_MASS = 0.5
"""If yes and no together are less likely than this, the model would answer something else and has no opinion."""

FORM = "{pictures}{question} Answer yes or no."


@dataclass(frozen=True)
class QuestionVerifier:
    """A `Verifier` that asks a `Looker`.

    Attributes:
        looker: Who answers. With likelihoods they make the score, else strictly read words do.
        requirements: From a task to its questions; None lets the looker list them. A model with a world of its own
            has better ones.
        form: How a requirement is put; `{pictures}` becomes the numbering of images where there are references.
        pairwise: Whether two pictures can be compared when their scores are close. Off for models that were never
            taught to.
    """

    looker: Looker
    requirements: Callable[[Task], Sequence[str]] | None = None
    form: str = FORM
    pairwise: bool = True

    def examiner(self, task: Task) -> "QuestionExaminer":
        """Lists the requirements. Without any, the whole instruction is one question, and every score says so."""
        listed = self.requirements or AskedRequirements(self.looker.ask)
        questions = tuple(listed(task))
        note = "" if questions else "The requirements could not be listed; the whole instruction was one question."
        return QuestionExaminer(self, task, questions or (whole_question(task),), note)


@dataclass(frozen=True)
class QuestionExaminer:
    """An `Examiner` with one task's questions."""

    verifier: QuestionVerifier
    task: Task
    questions: tuple[str, ...]
    note: str

    def score(self, picture: Image.Image) -> Score:
        """Asks all questions about the picture, in one call."""
        looker, references = self.verifier.looker, self.task.references
        pictures = f"{numbered_pictures(len(references))} Of that one: " if references else ""
        asked = [self.verifier.form.format(pictures=pictures, question=question) for question in self.questions]
        shown = [[*references, picture]] * len(asked)
        if looker.yes_no is None:
            checks = [_read(*pair) for pair in zip(self.questions, looker.ask(asked, shown), strict=True)]
        else:
            checks = [
                Check(question, chance.probability if chance.mass >= LEAST_MASS else None)
                for question, chance in zip(self.questions, looker.yes_no(asked, shown), strict=True)
            ]
        unknown = sum(check.probability is None for check in checks)
        unanswered = f"{unknown} of {len(checks)} questions got neither yes nor no." if unknown else ""
        return Score(tuple(checks), " ".join(filter(None, (self.note, unanswered))))

    def prefer(self, first: Image.Image, second: Image.Image) -> int | None:
        """Asks which is better, in both orders, where the verifier may."""
        if not self.verifier.pairwise:
            return None
        return better_of(self.verifier.looker.ask, self.task, first, second)


def _read(question: str, answer: str) -> Check:
    met = read_yes_no(answer)
    return Check(question, None if met is None else float(met), clean(answer))
