"""Nodes for the tests only: they bring tensors and figures out of the server's process."""
import functools
import gc
import importlib
import json
import os
import sys
import time

import folder_paths
import torch
from safetensors.torch import load_file, save_file

import comfy.patcher_extension

from . import decoding, native, reflecting, writing


def core(name):
    """A module of the pack's omnigen2_core, which the server knows by the pack's path."""
    pack, = (module for module in sys.modules if module.endswith("OmniGen2.omnigen2_core"))
    return importlib.import_module(f"{pack}.{name}")


class TestSaveTensors:
    """Write what comes in to a safetensors file in the output folder.

    Keys: `latent`, `noise_mask`, `image`, `mask`, `sigmas`; a conditioning gives `cond.0`,
    `attention_mask.0` and `reference.0.0`, one number for each entry.
    """

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING", {"default": "tensors"})},
                "optional": {"latent": ("LATENT",), "image": ("IMAGE",), "mask": ("MASK",), "sigmas": ("SIGMAS",),
                             "conditioning": ("CONDITIONING",)}}

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "save"
    CATEGORY = "testing"

    def save(self, name, latent=None, image=None, mask=None, sigmas=None, conditioning=None):
        found = {"image": image, "mask": mask, "sigmas": sigmas}
        if latent is not None:
            found |= {"latent": latent["samples"], "noise_mask": latent.get("noise_mask")}
        for index, (cond, extra) in enumerate(conditioning or []):
            found |= {f"cond.{index}": cond, f"attention_mask.{index}": extra.get("attention_mask")}
            found |= {f"reference.{index}.{i}": r for i, r in enumerate(extra.get("reference_latents") or [])}
        file = f"{name}.safetensors"
        save_file({key: value.detach().cpu().clone().contiguous() for key, value in found.items() if value is not None},
                  os.path.join(folder_paths.get_output_directory(), file))
        return {"ui": {"tensors": [file]}}


class TestLoadLatent:
    """A latent from the tensor `latent` of a safetensors file in the input folder."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"file": ("STRING", {"default": ""})}}

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "load"
    CATEGORY = "testing"

    def load(self, file):
        return ({"samples": load_file(os.path.join(folder_paths.get_input_directory(), file))["latent"]},)


class TestBatchConditionings:
    """Two prompts as one batch: the shorter is padded with zeros, and the mask says so."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"first": ("CONDITIONING",), "second": ("CONDITIONING",)}}

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "batch"
    CATEGORY = "testing"

    def batch(self, first, second):
        rows = [first[0][0][0], second[0][0][0]]
        text = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(text.shape[1])[None] < lengths[:, None]).to(torch.int64)
        return ([[text, {**first[0][1], "attention_mask": mask}]],)


class TestCompiledGraphs:
    """How many graphs PyTorch has compiled in this server once `after` is there."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"after": ("*",)}}

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "count"
    CATEGORY = "testing"

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True

    def count(self, after):
        from torch._dynamo.utils import counters

        return {"ui": {"record": [json.dumps(dict(counters["stats"]))]}}


class TestGiveName:
    """A file name that is known only when the workflow runs."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING", {"default": ""})}}

    RETURN_TYPES = ("*",)
    FUNCTION = "give"
    CATEGORY = "testing"

    def give(self, name):
        return (name,)


class TestCountEvaluations:
    """The same model, and a record that grows with every call of it: one entry, its batch rows, a call.

    Two counts are kept: what samplers ask for (`calls`) and what the diffusion module computes
    (`forwards`), which is less where equal conditionings are computed once.
    """

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    RETURN_TYPES = ("MODEL", "TEST_RECORD")
    FUNCTION = "count"
    CATEGORY = "testing"

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")  # a cached record would go on growing

    def count(self, model):
        model, record = model.clone(), {"calls": [], "sigmas": [], "forwards": []}

        def apply_model(executor, x, t, *args, **kwargs):
            record["calls"].append(x.shape[0])
            record["sigmas"].append(float(t.flatten()[0]))
            return executor(x, t, *args, **kwargs)

        def forward(executor, x, *args, **kwargs):
            record["forwards"].append(x.shape[0])
            return executor(x, *args, **kwargs)

        types = comfy.patcher_extension.WrappersMP
        model.add_wrapper_with_key(types.APPLY_MODEL, "testing", apply_model)
        model.add_wrapper_with_key(types.DIFFUSION_MODEL, "testing", forward)
        return (model, record)


class TestRecordCache:
    """The same model with a cache that skips nothing, and a record of the branch and step of every evaluation."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    RETURN_TYPES = ("MODEL", "TEST_RECORD")
    FUNCTION = "add"
    CATEGORY = "testing"

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def add(self, model):
        model, record = model.clone(), {"evaluations": []}

        class Cache:
            def run_layers(self, stack, evaluation):
                record["evaluations"].append((evaluation.branch, evaluation.step))
                return stack.run()

        run = functools.partial(core("acceleration.protocol").Run, make_cache=Cache)
        model.model_options["transformer_options"]["omnigen2_make_run"] = run
        return (model, record)


class TestRecordRoom:
    """The same model, and a record of how many pictures ComfyUI makes room for when it samples."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    RETURN_TYPES = ("MODEL", "TEST_RECORD")
    FUNCTION = "record"
    CATEGORY = "testing"

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def record(self, model):
        model, record = model.clone(), {"pictures": []}

        def prepare(executor, model, noise_shape, *args, **kwargs):
            record["pictures"].append(noise_shape[0])
            return executor(model, noise_shape, *args, **kwargs)

        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, "testing", prepare)
        return (model, record)


class TestLeak:
    """The same model, accelerated, with a fault: memory that outlives its run, or is shared by branches or a batch."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "between": (["runs", "branches", "items"],)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "leak"
    CATEGORY = "testing"

    def leak(self, model, between):
        model = model.clone()
        options = model.model_options["transformer_options"]
        make_run, made = options["omnigen2_make_run"], {}

        def outliving(steps):
            return made.setdefault("run", make_run(steps))

        def shared_by_branches(steps):
            run = make_run(steps)
            evaluation = run.evaluation
            run.evaluation = lambda branch, step, text_key=None, **rest: evaluation("all", step, None, **rest)
            return run

        def shared_by_items(steps):
            run = make_run(steps)
            make_context = run.make_context

            def first_item_for_all():
                context = make_context()
                keys_values = context.keys_values

                def keep_first(layer, joint, keys, values):
                    out = keys_values(layer, joint, keys, values)
                    context._kept[layer] = tuple(kept[:1].expand_as(kept) for kept in context._kept[layer])
                    return out

                context.keys_values = keep_first
                return context

            run.make_context = first_item_for_all
            return run

        options["omnigen2_make_run"] = {"runs": outliving, "branches": shared_by_branches, "items": shared_by_items}[between]
        return (model,)


class TestReplaceBlocks:
    """The same model with its second layer replaced by itself."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "replace"
    CATEGORY = "testing"

    def replace(self, model):
        model = model.clone()
        model.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "single_block", 1)
        return (model,)


class TestOnlyPrompt:
    """The same model with a guidance that evaluates the negative prompt and pays no heed to it."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "ignore"
    CATEGORY = "testing"

    def ignore(self, model):
        model = model.clone()
        model.set_model_sampler_cfg_function(lambda args: args["cond"])
        return (model,)


class TestFadeAttention:
    """The same model with an attention that grows weaker as the noise does."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "fade"
    CATEGORY = "testing"

    def fade(self, model):
        model = model.clone()

        def attend(original, *args, **kwargs):
            return original(*args, **kwargs) * float(kwargs["transformer_options"]["sigmas"][0])

        model.model_options.setdefault("transformer_options", {})["optimized_attention_override"] = attend
        return (model,)


class TestDoubleGuidance:
    """The same model with guidance twice as strong, by a function that knows of a prediction and its negative only."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "double"
    CATEGORY = "testing"

    def double(self, model):
        model = model.clone()

        def before_guidance(args):
            cond, uncond = args["conds_out"]
            return [uncond + 2 * (cond - uncond), uncond]

        model.set_model_sampler_pre_cfg_function(before_guidance)
        return (model,)


class TestSlowModel:
    """The same model with evaluations that take at least this many seconds."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "seconds": ("FLOAT", {"default": 0.5})}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "slow"
    CATEGORY = "testing"

    def slow(self, model, seconds):
        model = model.clone()

        def apply_model(executor, *args, **kwargs):
            time.sleep(seconds)
            return executor(*args, **kwargs)

        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "testing slow", apply_model)
        return (model,)


class TestCountAlive:
    """How many objects of these classes, by name, are in this server's memory."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"names": ("STRING", {"default": ""})}}

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "count"
    CATEGORY = "testing"

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def count(self, names):
        gc.collect()
        alive = [type(thing).__name__ for thing in gc.get_objects()]
        return {"ui": {"record": [json.dumps({name: alive.count(name) for name in names.split()})]}}


class TestReadRecord:
    """Report a record once `after` is there."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"record": ("TEST_RECORD",), "after": ("*",)}}

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "read"
    CATEGORY = "testing"

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True

    def read(self, record, after):
        return {"ui": {"record": [json.dumps(record)]}}


class TestInspectModel:
    """Report the classes, dtypes and patches of a MODEL."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "inspect"
    CATEGORY = "testing"

    def inspect(self, model):
        base = model.model
        dtypes = {}
        for parameter in base.diffusion_model.parameters():
            dtypes[str(parameter.dtype)] = dtypes.get(str(parameter.dtype), 0) + parameter.numel()
        record = {"model": type(base).__name__, "module": type(base.diffusion_model).__name__,
                  "patcher": type(model).__name__, "dtypes": dtypes, "compute_dtype": str(base.get_dtype_inference()),
                  "patches": len(model.patches), "load_device": str(model.load_device)}
        return {"ui": {"record": [json.dumps(record)]}}


class TestScaleLatent:
    """A latent times a number: a node that changes a latent without a model."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"latent": ("LATENT",), "factor": ("FLOAT", {"default": 1.0, "min": -1e6, "max": 1e6})}}

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "scale"
    CATEGORY = "testing"

    def scale(self, latent, factor):
        return ({**latent, "samples": torch.as_tensor(latent["samples"]) * factor},)


NODE_CLASS_MAPPINGS = {node.__name__: node for node in (
    TestSaveTensors, TestLoadLatent, TestBatchConditionings, TestCompiledGraphs, TestGiveName, TestCountEvaluations,
    TestRecordCache, TestRecordRoom, TestLeak, TestReplaceBlocks, TestOnlyPrompt, TestFadeAttention, TestDoubleGuidance, TestSlowModel, TestCountAlive, TestReadRecord, TestInspectModel, TestScaleLatent)} | decoding.NODES | native.NODES | reflecting.NODES | writing.NODES
