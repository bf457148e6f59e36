"""Stand-ins at the seams of the reflection package: a drawer whose pictures are plain, and those who judge them.

A picture's red value, 0..100, is how good it is; the verifier sees that, and nothing else is shared between them.
"""

from PIL import Image

from omnigen2_core.reflection.loop import reflect
from omnigen2_core.reflection.opinion import Reflection, Scope
from omnigen2_core.reflection.score import Check, Score
from omnigen2_core.reflection.task import Task

TASK = Task("a red circle")
FAULT = Reflection.wrong("the circle is blue", "Make the circle red", Scope.ATTRIBUTE)
MISPLACED = Reflection.wrong("the circle is on the left", "Move the circle to the right", Scope.LAYOUT)
RIGHT = Reflection.satisfied()


def picture(quality):
    """A picture that is as good as `quality` says, 0..100."""
    return Image.new("RGB", (8, 8), (quality, 0, 0))


def quality_of(image):
    return image.getpixel((0, 0))[0]


class ScriptedDrawer:
    """Draws pictures of the given qualities in turn; an exception among them is raised instead."""

    def __init__(self, *qualities):
        self.qualities = list(qualities)
        self.calls = []

    def __call__(self, prompt, references, seed):
        self.calls.append((prompt, tuple(references), seed))
        quality = self.qualities.pop(0)
        if isinstance(quality, BaseException):
            raise quality
        return picture(quality)


class ScriptedReflector:
    """Says the given reflections in turn, the last of them for ever."""

    def __init__(self, *reflections):
        self.reflections = list(reflections)
        self.earlier = []

    def __call__(self, task, image, earlier=()):
        self.earlier.append(list(earlier))
        said = self.reflections.pop(0) if len(self.reflections) > 1 else self.reflections[0]
        if isinstance(said, BaseException):
            raise said
        return said


class QualityVerifier:
    """Scores a picture by its quality; side by side it prefers what `preference` says. Qualities in `blind` get no score."""

    questions = ("Is it good?",)

    def __init__(self, preference=None, blind=()):
        self.preference = preference
        self.blind = blind
        self.compared = []
        self.tasks = []

    def examiner(self, task):
        self.tasks.append(task)
        return self

    def score(self, image):
        quality = quality_of(image)
        return Score((Check(*self.questions, None if quality in self.blind else quality / 100),))

    def prefer(self, first, second):
        self.compared.append((quality_of(first), quality_of(second)))
        return self.preference


def run(qualities, *reflections, verifier=None, task=TASK, **options):
    """A finished run over scripted pictures, and the drawer that made them."""
    drawer = ScriptedDrawer(*qualities)
    record = reflect(task, drawer, ScriptedReflector(*reflections), verifier or QualityVerifier(), **options)
    return record, drawer


def qualities(record):
    return [quality_of(entry.picture) for entry in record.rounds]
