"""Draw, look at what was drawn, and correct it; or draw several and choose. No user interface.

    looker = model_looker(assistant)
    record = Record(Task("a red circle left of a blue square"))
    reflect(record, drawer, PromptedReflector(looker.ask), QuestionVerifier(looker), rounds=2, seed=7)
    record.best.picture, to_text(record), to_json(record)
"""

from .bench import Stage
from .best_of import best_of
from .endpoint import Endpoint
from .looker import Looker
from .loop import MAX_ROUNDS, reflect
from .model_looker import model_looker
from .opinion import Reflection, Reflector, Scope, Verdict
from .prompted import PromptedReflector
from .record import Record, Round, Stop
from .redraw import Origin, Redraw
from .score import Check, Examiner, Score, Verifier
from .task import Drawer, Editor, Task
from .trained import TrainedReflector, assistant_writer, trained_verifier
from .transcript import from_dict, to_dict, to_json, to_text
from .verifier import QuestionVerifier

__all__ = [
    "MAX_ROUNDS", "Check", "Drawer", "Editor", "Endpoint", "Examiner", "Looker", "Origin", "PromptedReflector",
    "QuestionVerifier", "Record", "Redraw", "Reflection", "Reflector", "Round", "Scope", "Score", "Stage", "Stop",
    "Task", "TrainedReflector", "Verdict", "Verifier", "assistant_writer", "best_of", "from_dict", "model_looker",
    "reflect", "to_dict", "to_json", "to_text", "trained_verifier",
]  # fmt: skip
