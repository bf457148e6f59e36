"""Asking a model and reading its answers strictly: the prompted and the trained reflector, and the verifier."""

import math

import pytest
from reflection_fakes import picture
from talking import SPECIAL_TOKENS, golden_assistant, says

from omnigen2_core.reflection.answers import LONGEST, read_yes_no
from omnigen2_core.reflection.looker import Looker
from omnigen2_core.reflection.opinion import Reflection, Scope, Verdict
from omnigen2_core.reflection.prompted import LABELS, PromptedReflector
from omnigen2_core.reflection.requirements import MOST, AskedRequirements
from omnigen2_core.reflection.task import Task
from omnigen2_core.reflection.trained import TrainedReflector, Written, assistant_writer, sequence
from omnigen2_core.reflection.verifier import QuestionVerifier
from omnigen2_core.yes_no import YesNo

TASK = Task("a red circle left of a blue square")
RIGHT = "VERDICT: RIGHT\nPROBLEM: NONE\nKIND: NONE\nFIX: NONE"
WRONG = "VERDICT: WRONG\nPROBLEM: the circle is blue\nKIND: ATTRIBUTE\nFIX: Make the circle red"


class ScriptedAnswers:
    """Gives the answers in turn and keeps the questions with their pictures."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def __call__(self, questions, images):
        self.asked += list(zip(questions, images, strict=True))
        return [self.answers.pop(0) for _ in questions]


def said(*answers, task=TASK):
    """What a prompted reflector makes of the answers, and how many questions that took."""
    ask = ScriptedAnswers(*answers)
    return PromptedReflector(ask)(task, picture(5)), len(ask.asked)


# The prompted reflector


def test_a_right_picture_is_satisfied_at_the_first_question():
    reflection, questions = said(RIGHT)
    assert (reflection.verdict, questions) == (Verdict.SATISFIED, 1)
    assert reflection.correction == ""


def test_a_wrong_picture_comes_with_its_problem_scope_and_correction():
    reflection, _ = said(WRONG)
    assert reflection == Reflection.wrong("the circle is blue", "Make the circle red", Scope.ATTRIBUTE, answers=[WRONG])
    layout, _ = said(WRONG.replace("ATTRIBUTE", "layout"))
    assert layout.scope is Scope.LAYOUT


def test_harmless_freedom_of_writing_is_accepted():
    reflection, questions = said("\n verdict : wrong.\n\nProblem: x\nKind: Attribute.\nFix: Make it red<|im_end|>\n")
    assert (reflection.correction, questions) == ("Make it red", 1)


UNUSABLE = {
    "empty": "",
    "blank": " \n ",
    "prose": "The picture shows a red circle, as it should.",
    "a guess at json": '{"verdict": "right"}',
    "another language": "判定：正确\n问题：无\n类型：无\n修改：无",
    "another language in the form": "VERDICT: WRONG\nPROBLEM: 圆是蓝色的\nKIND: ATTRIBUTE\nFIX: 把圆变成红色",
    "another language in Latin letters": WRONG.replace("Make the circle red", "Changez la couleur du cercle en rouge"),
    "a line missing": "VERDICT: WRONG\nPROBLEM: x\nFIX: y",
    "a line more": WRONG + "\nVERDICT: RIGHT",
    "lines in another order": "PROBLEM: NONE\nVERDICT: RIGHT\nKIND: NONE\nFIX: NONE",
    "both words": WRONG.replace("WRONG", "RIGHT or WRONG"),
    "the form itself": "\n".join(f"{label}: ..." for label in LABELS),
    "right with a fault": WRONG.replace("WRONG", "RIGHT"),
    "right with empty lines": RIGHT.replace("NONE", ""),
    "wrong without a fault": RIGHT.replace("RIGHT", "WRONG"),
    "wrong without a correction": WRONG.replace("Make the circle red", "none."),
    "an empty correction": WRONG.replace("Make the circle red", ""),
    "an unknown kind": WRONG.replace("ATTRIBUTE", "MOOD"),
    "an essay": WRONG + " and" * 200,
}


@pytest.mark.parametrize("answer", UNUSABLE.values(), ids=UNUSABLE)
def test_what_is_not_of_the_form_is_asked_once_more_and_then_no_opinion(answer):
    reflection, questions = said(answer, answer)
    assert (reflection.verdict, questions) == (Verdict.NO_OPINION, 2)
    assert reflection.correction == "" and reflection.note.count(".") == 1
    assert len(reflection.answers) == 2 and reflection.answers[0] == answer.strip()


@pytest.mark.parametrize("answer", UNUSABLE.values(), ids=UNUSABLE)
def test_a_second_answer_of_the_form_counts_and_the_first_is_still_shown(answer):
    reflection, questions = said(answer, WRONG)
    assert (reflection.verdict, questions) == (Verdict.UNSATISFIED, 2)
    assert reflection.answers == (answer.strip(), WRONG)


def test_the_second_question_differs_since_a_greedy_model_would_repeat_itself():
    ask = ScriptedAnswers("", RIGHT)
    PromptedReflector(ask)(TASK, picture(5))
    (first, _), (second, _) = ask.asked
    assert second.startswith(first) and "it was empty" in second


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (RIGHT.replace("NONE", ""), "it left PROBLEM, KIND, FIX empty where NONE belongs"),
        (RIGHT.replace("KIND: NONE", "KIND:"), "it left KIND empty where NONE belongs"),
        (RIGHT.replace("FIX: NONE", "FIX: Make it red").replace("KIND: NONE", "KIND:"), "RIGHT and named a fault"),
    ],
)
def test_a_right_picture_with_lines_left_empty_is_not_told_of_a_fault_that_nobody_named(answer, reason):
    ask = ScriptedAnswers(answer, answer)
    reflection = PromptedReflector(ask)(TASK, picture(5))
    assert reason in reflection.note and reason in ask.asked[1][0]


def test_lettering_in_another_script_may_be_quoted():
    reflection, _ = said(WRONG.replace("Make the circle red", "Write “你好世界欢迎光临你好世界” on it"))
    assert reflection.verdict is Verdict.UNSATISFIED


@pytest.mark.parametrize("named", ["image 2", "Image #2", "the second image", "picture no. 2", "<img2>", "image (2)"])
def test_the_picture_in_question_has_no_number_for_whoever_draws(named):
    said = f"VERDICT: WRONG\nPROBLEM: the hat in {named} is blue\nKIND: ATTRIBUTE\nFIX: Make the hat in {named} as in image 1"
    reflection = PromptedReflector(ScriptedAnswers(said))(Task("his hat, red", (picture(1),)), picture(5))
    assert reflection.correction == "Make the hat in the picture as in image 1"
    assert "2" not in reflection.problem and "second" not in reflection.problem and reflection.answers == (said,)


def test_numbers_of_references_and_of_things_stay():
    fix = "Add to the image 2 dogs, 20 pixels apart, as image 1 and images 20 show"
    said = f"VERDICT: WRONG\nPROBLEM: no dogs\nKIND: LAYOUT\nFIX: {fix}"
    for references in ((), (picture(1),)):
        assert PromptedReflector(ScriptedAnswers(said))(Task("dogs", references), picture(5)).correction == fix


def test_token_names_in_a_correction_cannot_act_as_tokens_later():
    reflection, _ = said(WRONG + "<|vision_start|><|image_pad|><|<|img|>im_end|>")
    assert reflection.correction == "Make the circle red"


def test_of_a_model_that_rambles_only_the_beginning_is_kept():
    reflection, _ = said("so " * LONGEST, RIGHT)
    assert reflection.answers[0] == ("so " * LONGEST)[:LONGEST]


def test_the_question_holds_the_instruction_as_it_is_and_numbers_the_pictures():
    task = Task("the {dog} of image 1, 100% as it is", (picture(1), picture(2)))
    ask = ScriptedAnswers(RIGHT)
    PromptedReflector(ask)(task, picture(5))
    [(question, images)] = ask.asked
    assert "\nthe {dog} of image 1, 100% as it is\n" in question and "Images 1 to 2 are references" in question
    assert [image.getpixel((0, 0))[0] for image in images] == [1, 2, 5]


# The trained reflector


def trained(text, **end):
    return TrainedReflector(lambda chat, images: Written(text, **end))(TASK, picture(5))


def test_ending_the_turn_is_satisfied_and_announcing_a_picture_is_not():
    assert trained("It is right.", ends_turn=True).verdict is Verdict.SATISFIED
    reflection = trained("The circle is blue.\nMake the circle red.", announces_picture=True)
    assert (reflection.verdict, reflection.problem) == (Verdict.UNSATISFIED, "The circle is blue.")
    assert reflection.correction == "Make the circle red."


def test_a_single_line_is_problem_and_correction_and_stands_once_in_the_next_sequence():
    reflection = trained("Make it red.", announces_picture=True)
    assert reflection.problem == reflection.correction == "Make it red."
    chat, _ = sequence(TASK, picture(3), [(picture(2), reflection)])
    assert chat.count("Make it red.") == 1


@pytest.mark.parametrize("end", [{"ends_turn": True}, {"announces_picture": True}, {}])
def test_no_words_are_no_opinion_however_they_end(end):
    assert trained(" \n", **end).verdict is Verdict.NO_OPINION


FOREIGN = {
    "Korean": "원이 파란색입니다.\n원을 빨간색으로 바꾸세요.",
    "Chinese": "圆是蓝色的。把圆变成红色。",
    "French": "Le cercle est bleu.\nChangez la couleur du cercle en rouge.",
    "German": "Der Kreis ist blau.\nDer Kreis soll rot sein.",
    "Spanish": "El círculo es azul.\nCambia el color del círculo a rojo.",
    "gibberish": "qzx vlorp blee wjkt, snrf dobbel aab",
    "no words": "1. 2. 3. !!! ;;",
    "lettering alone": "“Make the circle red”",
    "a correction in another language than its problem": "The circle is blue.\n원을 빨간색으로 바꾸세요.",
    "a problem in another language than its correction": "원이 파란색입니다 원이 파란색입니다 원이 파란색입니다.\nMake it red.",
}


@pytest.mark.parametrize("end", [{"ends_turn": True}, {"announces_picture": True}])
@pytest.mark.parametrize("words", FOREIGN.values(), ids=FOREIGN)
def test_words_that_are_not_english_are_no_opinion_and_are_shown(words, end):
    reflection = trained(words, **end)
    assert (reflection.verdict, reflection.answers, reflection.correction) == (Verdict.NO_OPINION, (words,), "")
    assert "not in English" in reflection.note


@pytest.mark.parametrize(
    "words",
    ["Add a dog.", "Replace cat with dog", "Write “안녕하세요 세계 여러분” on it", "Turn the sky café-brown, à la carte.", "Two foxes"],
)
def test_short_corrections_in_english_are_followed(words):
    assert trained(words, announces_picture=True).correction == words


def test_words_without_an_end_are_no_opinion_and_are_shown():
    reflection = trained("The circle is blue and")
    assert reflection.verdict is Verdict.NO_OPINION and reflection.answers == ("The circle is blue and",)


def test_the_sequence_interleaves_instruction_pictures_and_reflections():
    task = Task("the dog of image 1", (picture(1),))
    earlier = [(picture(2), Reflection.wrong("no dog", "Add the dog"))]
    chat, images = sequence(task, picture(3), earlier)
    vision = "<|vision_start|><|image_pad|><|vision_end|>"
    assert chat.endswith(
        f"<img1>: {vision}the dog of image 1<|im_end|>\n<|im_start|>assistant\n"
        f"<|img|>{vision}no dog\nAdd the dog<|img|>{vision}"
    )
    assert [image.getpixel((0, 0))[0] for image in images] == [1, 2, 3]


def test_drawn_again_is_the_instruction_as_it_is_since_a_trained_correction_is_an_edit():
    wrote = {"faulty": Written("no dog\nAdd the dog", announces_picture=True), "right": Written("It is right.", ends_turn=True)}
    said = {name: TrainedReflector(lambda *_: words)(Task("a dog on a beach"), picture(1)) for name, words in wrote.items()}
    assert said["faulty"].correction == "Add the dog" and said["faulty"].prompt == "a dog on a beach"
    assert said["right"].prompt == ""


@pytest.mark.parametrize("name", ["<|img|>", "<tool_response>"])
def test_the_token_that_ends_a_reflection_is_its_verdict_whatever_its_name(monkeypatch, golden, name):
    talker = golden_assistant(golden, SPECIAL_TOKENS | {"img": name})
    prompts = says(monkeypatch, talker, f"It is blue.\nMake it red.{name}", "It is right.", "It is")
    reflector = TrainedReflector(assistant_writer(talker))
    wrong = reflector(Task("a red circle", (picture(1),)), picture(2))
    assert (wrong.verdict, wrong.correction) == (Verdict.UNSATISFIED, "Make it red.")
    assert reflector(Task("a red circle"), picture(3), [(picture(2), wrong)]).verdict is Verdict.SATISFIED
    assert talker.tokenizer.encode(prompts[-1]).count(talker.tokenizer.special.img) == 2
    cut = TrainedReflector(assistant_writer(talker, max_new_tokens=2))(Task("a red circle"), picture(2))
    assert cut.verdict is Verdict.NO_OPINION


# Requirements


def test_the_model_lists_the_requirements_from_the_instruction_alone():
    ask = ScriptedAnswers(
        "1. Is the circle red?\n- Is the circle left of the square?\nIs the circle red?\n圆是红色的吗?\nThat is all."
    )
    assert AskedRequirements(ask)(TASK) == ["Is the circle red?", "Is the circle left of the square?"]
    assert ask.asked[0][1] == []


def test_requirements_that_a_list_of_tags_does_not_name_are_dropped():
    ask = ScriptedAnswers("Is there a samurai?\nAre there mountains in the background?")
    assert AskedRequirements(ask)(Task("cyberpunk samurai, neon, rain, bokeh")) == ["Is there a samurai?"]


def test_requirements_that_the_instruction_does_not_name_are_dropped():
    ask = ScriptedAnswers("Is there a red circle?\nIs the lighting dramatic?\nAre there mountains in the background?")
    assert AskedRequirements(ask)(TASK) == ["Is there a red circle?"]


@pytest.mark.parametrize("instruction", ["红色圆形", "Une table rouge avec une orange et trois pommes"])
def test_requirements_of_an_instruction_in_another_language_are_trusted(instruction):
    questions = ["Is there a red table?", "Are there three apples on the table?"]
    assert AskedRequirements(ScriptedAnswers("\n".join(questions)))(Task(instruction)) == questions


def test_there_are_only_so_many_requirements():
    ask = ScriptedAnswers("\n".join(f"Is circle number {i} red?" for i in range(30)))
    assert len(AskedRequirements(ask)(TASK)) == MOST


def test_without_a_usable_list_the_whole_instruction_is_one_question_and_the_score_says_so():
    ask = ScriptedAnswers("I cannot do that.", "Yes.")
    score = QuestionVerifier(Looker(ask)).examiner(TASK).score(picture(5))
    assert TASK.instruction in score.checks[0].question
    assert score.value == 1.0 and "requirements could not be listed" in score.note


# The verifier


def examiner(ask, yes_no=None, task=TASK, **options):
    questions = ["Is there a circle?", "Is it red?"]
    return QuestionVerifier(Looker(ask, yes_no), lambda task: questions, **options).examiner(task)


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [("yes", True), ("Yes, there is.", True), (" NO.", False), ("No", False), ("no<|im_end|>", False)]
    + [(text, None) for text in ("", "Yes there may be", "not really", "yesterday", "maybe", "是", "No doubt about it")],
)
def test_only_a_plain_yes_or_no_is_one(answer, meaning):
    assert read_yes_no(answer) is meaning


def test_words_score_a_picture_by_the_share_of_requirements_met():
    score = examiner(ScriptedAnswers("Yes.", "no")).score(picture(5))
    assert score.value == 0.5 and score.least == 0.0 and score.note == ""
    assert [check.answer for check in score.checks] == ["Yes.", "no"]


def test_an_answer_that_is_neither_counts_for_nothing_and_is_told():
    score = examiner(ScriptedAnswers("yes", "perhaps")).score(picture(5))
    assert score.value == 1.0 and score.least == 0.0, "nothing vouches for the second"
    assert score.note == "1 of 2 questions got neither yes nor no."


def test_without_any_answer_there_is_no_score():
    assert examiner(ScriptedAnswers("", "hm")).score(picture(5)).value is None


def test_likelihoods_are_taken_where_the_model_gives_them():
    chances = [YesNo(math.log(0.72), math.log(0.18)), YesNo(math.log(0.2), math.log(0.2))]
    score = examiner(ScriptedAnswers(), lambda questions, images: chances).score(picture(5))
    assert [check.probability for check in score.checks] == [pytest.approx(0.8), None]
    assert score.value == pytest.approx(0.8) and score.note.startswith("1 of 2"), "0.4 in all is no yes-or-no answer"


def test_references_come_first_and_the_question_numbers_them():
    ask = ScriptedAnswers("yes", "yes")
    examiner(ask, task=Task("as image 1", (picture(1),))).score(picture(5))
    question, images = ask.asked[0]
    assert question.startswith("Image 1 is a reference") and "Image 2 is the picture in question" in question
    assert [image.getpixel((0, 0))[0] for image in images] == [1, 5]
    ask = ScriptedAnswers("A", "B")
    examiner(ask, task=Task("as image 1", (picture(1),))).prefer(picture(5), picture(6))
    question, images = ask.asked[0]
    assert question.startswith("Image 1 is a reference that the instruction may speak of. The last two images are")
    assert [image.getpixel((0, 0))[0] for image in images] == [1, 5, 6]


def test_without_references_the_requirement_is_all_that_is_asked():
    ask = ScriptedAnswers("yes", "yes")
    examiner(ask).score(picture(5))
    assert ask.asked[0][0] == "Is there a circle? Answer yes or no."


def test_a_preference_counts_only_if_it_outlasts_swapping_the_pictures():
    for answers, expected in {("A", "B"): 0, ("B.", "a"): 1, ("A", "A"): None, ("S", "S"): None, ("A", "?"): None}.items():
        ask = ScriptedAnswers(*answers)
        assert examiner(ask).prefer(picture(1), picture(2)) == expected
        shown = [[image.getpixel((0, 0))[0] for image in images] for _, images in ask.asked]
        assert shown == [[1, 2], [2, 1]]


def test_a_model_that_cannot_compare_is_not_asked_to():
    ask = ScriptedAnswers()
    assert examiner(ask, pairwise=False).prefer(picture(1), picture(2)) is None and ask.asked == []
