"""A testing node for what the encoder says of pictures."""
import json
import math

import torch

ANNOUNCEMENT = "<|img|>"


class TestReflects:
    """A CLIP that answers by a script, one entry a question: a text is written, a number is the chance of yes.

    The script is a JSON list. A text ends the turn, or with <|img|> at its end announces a picture. A number below 0 makes neither yes nor no likely. Every question of a batch gets the same
    answer.
    """

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"clip": ("CLIP",), "script": ("STRING", {"default": "[]", "multiline": True})}}

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "reflect"
    CATEGORY = "testing"

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")  # the script would go on where it stopped

    def reflect(self, clip, script):
        clip, tokenizer = clip.clone(), clip.tokenizer.tokenizer
        vocabulary = clip.cond_stage_model.transformer.config.text["vocab_size"]
        entries, following = json.loads(script), []

        def logits(hidden, head_weight=None):
            scores = torch.full((len(hidden), vocabulary), -100.0, device=hidden.device)
            if not following and isinstance(entries[0], float):
                chance = entries.pop(0)
                if chance >= 0:
                    for word, value in (("yes", chance), ("no", 1.0 - chance)):
                        scores[:, tokenizer.encode(word)[0]] = math.log(max(value, 1e-9))
                return scores
            if not following:
                text = entries.pop(0)
                end = tokenizer.special.img if text.endswith(ANNOUNCEMENT) else tokenizer.special.im_end
                following.extend([*tokenizer.encode(text.removesuffix(ANNOUNCEMENT)), end])
            scores[:, following.pop(0)] = 100.0
            return scores

        clip.patcher.add_object_patch("transformer.logits", logits)
        return (clip,)


NODES = {node.__name__: node for node in (TestReflects,)}
