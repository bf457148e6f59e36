"""Testing nodes for what the encoder writes."""
import gc
import json
import os
import sys
import time

import torch
from PIL import Image

from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.text_encoders.omnigen2 import Omnigen2Model


class TestWrites:
    """A CLIP that writes `text` whatever it is asked, and takes at least so many seconds for every token.

    until: a file; the last token is not written before there is one.
    """

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"clip": ("CLIP",), "text": ("STRING", {"default": ""}), "seconds": ("FLOAT", {"default": 0.0})},
                "optional": {"until": ("STRING", {"default": ""})}}

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "write"
    CATEGORY = "testing"

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")  # an interrupted one would go on where it stopped

    def write(self, clip, text, seconds, until=""):
        clip, tokenizer = clip.clone(), clip.tokenizer.tokenizer
        vocabulary = clip.cond_stage_model.transformer.config.text["vocab_size"]
        tokens = [*tokenizer.encode(text), tokenizer.special.im_end]
        following = []

        def logits(hidden, head_weight=None):
            time.sleep(seconds)
            if not following:
                following.extend(tokens)
            while until and len(following) == 1 and not os.path.exists(until):
                throw_exception_if_processing_interrupted()
                time.sleep(0.02)
            scores = torch.zeros(len(hidden), vocabulary, device=hidden.device)
            scores[:, following.pop(0)] = 100.0
            return scores

        clip.patcher.add_object_patch("transformer.logits", logits)
        return (clip,)


class TestWritesCount:
    """A CLIP that writes how many pictures, other than opened files, are in this server's memory while it answers."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"clip": ("CLIP",)}}

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "write"
    CATEGORY = "testing"

    def write(self, clip):
        clip, tokenizer = clip.clone(), clip.tokenizer.tokenizer
        vocabulary = clip.cond_stage_model.transformer.config.text["vocab_size"]
        following = []

        def logits(hidden, head_weight=None):
            if not following:
                gc.collect()
                count = sum(type(thing) is Image.Image for thing in gc.get_objects())
                following.extend([*tokenizer.encode(str(count)), tokenizer.special.im_end])
            scores = torch.zeros(len(hidden), vocabulary, device=hidden.device)
            scores[:, following.pop(0)] = 100.0
            return scores

        clip.patcher.add_object_patch("transformer.logits", logits)
        return (clip,)


class TestWritesSlowly:
    """A CLIP that writes what it would write by itself, and takes at least so many seconds for every token."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"clip": ("CLIP",), "seconds": ("FLOAT", {"default": 0.0})}}

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "slow_down"
    CATEGORY = "testing"

    def slow_down(self, clip, seconds):
        clip = clip.clone()
        transformer = clip.cond_stage_model.transformer
        # The class's: the instance may still have the patch of an earlier run.
        own = type(transformer).logits

        def logits(*args, **kwargs):
            time.sleep(seconds)
            return own(transformer, *args, **kwargs)

        clip.patcher.add_object_patch("transformer.logits", logits)
        return (clip,)


class TestCoreClip:
    """The CLIP with an encoder of the class that ComfyUI's own loader uses, and nothing in it."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"clip": ("CLIP",)}}

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "swap"
    CATEGORY = "testing"

    def swap(self, clip):
        clip = clip.clone()
        clip.cond_stage_model = Omnigen2Model.__new__(Omnigen2Model)
        return (clip,)


class TestTexts:
    """A list of texts, one a line."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"lines": ("STRING", {"default": "", "multiline": True})}}

    RETURN_TYPES = ("STRING",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "split"
    CATEGORY = "testing"

    def split(self, lines):
        return (lines.splitlines(),)


class TestWritingMemory:
    """The bytes that the pack asks of ComfyUI beside the weights before it writes."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"clip": ("CLIP",), "prompt": ("STRING", {"default": ""}), "answers": ("INT", {"default": 1}),
                             "max_length": ("INT", {"default": 1, "max": 1 << 20}), "pictures": ("INT", {"default": 0})}}

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "estimate"
    CATEGORY = "testing"

    def estimate(self, clip, prompt, answers, max_length, pictures):
        encoder, tokenizer = clip.cond_stage_model, clip.tokenizer
        pack = type(encoder).__module__.rpartition(".")[0]
        shown = [({"type": "image", "data": Image.new("RGB", (560, 560))}, 1.0)] * pictures
        rows = [[*shown, *((token, 1.0) for token in tokenizer.tokenizer.encode(prompt))]] * answers
        needed = sys.modules[f"{pack}.assistant"].writing_memory(encoder, rows, max_length)
        return {"ui": {"record": [json.dumps({"bytes": needed})]}}


NODES = {node.__name__: node for node in (
    TestWrites, TestWritesCount, TestWritesSlowly, TestCoreClip, TestTexts, TestWritingMemory)}
