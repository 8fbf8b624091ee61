"""A pretended GPU: ``python second_device.py FAMILY`` trains and asks a tiny model on the CPU, there also in half
precision, and on ``card``.

Tensors on ``card`` have their values in main memory, but an operation on tensors of both devices fails, as on a GPU.
How often Python reads from the card is counted: there, a GPU has to finish its work first. Prints what all gave, as
JSON. It runs in a process of its own, since torch keeps a backend once it is registered.
"""

import copy
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import torch
from test_every_family import made
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from mllmu_nb import unlearning
from mllmu_nb.config import Config
from mllmu_nb.data.conversations import training_conversations
from mllmu_nb.data.generate import generate
from mllmu_nb.evaluation import engine, teacher_forced
from mllmu_nb.evaluation.ask import ask
from mllmu_nb.evaluation.engine import Prompts, greedy
from mllmu_nb.models import adapters, families, load
from mllmu_nb.training import finetune, reference_log_probs, unlearn
from mllmu_nb.unlearning.base import METHODS

aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
READ = (aten._local_scalar_dense.default, aten.nonzero.default)
count = SimpleNamespace(reads=0)


class OnCard(torch.Tensor):
    """A tensor that says that it is on the card; ``main`` is the tensor with its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, main):
        how = {"strides": main.stride(), "storage_offset": main.storage_offset(), "dtype": main.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, main.shape, device="card:0", **how)
        made.main = main
        return made

    def __repr__(self):
        return f"OnCard({self.main!r})"

    def tolist(self):
        count.reads += 1
        return self.main.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Card(TorchDispatchMode):
    """Inside, tensors can be made on the card."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args, kwargs):
    """Compute ``func`` in main memory. Raises RuntimeError if its tensors are on both devices."""
    with Card():  # without autograd an operation may come undecomposed
        made = func.decompose(*args, **kwargs)
    if made is not NotImplemented:
        return made
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    on_card = [one for one in tensors if isinstance(one, OnCard)]
    # as on a GPU, the places of a tensor there may be named by a tensor of the CPU
    places = list(map(id, tree_leaves(args[1]))) if func in INDEXED and isinstance(args[0], OnCard) else []
    beside = [one for one in tensors if not isinstance(one, OnCard) and one.dim() and id(one) not in places]
    if on_card and beside and func not in COPIES:
        raise RuntimeError(f"{func} of tensors on the card and of others, with shapes {[one.shape for one in beside]}")
    masks = [one for one in on_card if one.dtype == torch.bool] if func is aten.index.Tensor else []
    count.reads += bool(masks) or (func in READ and bool(on_card))
    goes = bool(on_card)
    if device := kwargs.get("device"):
        goes = torch.device(device).type == "card"
        kwargs = {**kwargs, "device": "cpu"} if goes else kwargs
    if func is aten.copy_.default:
        goes = isinstance(args[0], OnCard)
    args, kwargs = tree_map_only(OnCard, lambda one: one.main, (args, kwargs))
    result, same = func(*args, **kwargs), {id(one.main): one for one in on_card}  # the same one was changed in place
    return tree_map_only(torch.Tensor, lambda one: same.get(id(one), OnCard(one)), result) if goes else result


def tensor(data, *args, device=None, plain=torch.tensor, **more):
    """``torch.tensor``, which does not ask a mode."""
    return plain(tree_map_only(OnCard, OnCard.tolist, data), *args, **more).to(device)


def everything(family: str, device: str, half: bool = False) -> dict[str, list]:
    """The losses of a training in each form and of each method, and the answers of the last model, on ``device``.
    ``half``: in bf16, and in fp16 under the protocol upstream, as on a GPU."""
    known = generate(seed=0, people=8, ratio=38, pool=4, celebrities=4)
    taught = {name: training_conversations(known.members(name)[:2], "multimodal") for name in ("forget", "retain")}
    sets = {name: [replace(one, turns=one.turns[:3]) for one in some] for name, some in taught.items()}
    config = Config(method="ga", modality="multimodal")
    short = {"steps": 2, "epochs": 0, "batch_size": 4, "schedule": "constant", "precision": "bf16" if half else "fp32"}
    with _disable_current_modes():
        loaded, processor = made(families.get(family))
        loaded.set_attn_implementation("sdpa")  # as a larger model is loaded

    def fresh(frozen=True):
        with _disable_current_modes():
            model = copy.deepcopy(loaded)
        return model.to(device, torch.bfloat16 if half and frozen else torch.float32)

    def losses(log):
        return [step["loss"] for step in log.losses]

    full, given = replace(config.training, **short), {}
    lora = replace(full, optimizer="adamw", checkpointing=True)
    for name, recipe in (("full", full), ("checkpointing", lora)):
        model = load.unfreeze(fresh(frozen=False)) if name == "full" else adapters.attach(fresh(), recipe, 0)
        given[name] = losses(finetune(model, processor, sets["retain"], recipe, 0, progress=False))
    trains = [key for key in sorted(METHODS) if METHODS.get(key).streams]
    for key in trains if family == "llava" else trains[:1]:
        method, stored = unlearning.get(*key), None
        recipe = replace(config.unlearning, **short, micro_batch=2)
        if method.passes or method.rate_falls == "epoch":
            recipe = replace(recipe, steps=0, epochs=1, batch_size=3, micro_batch=0)
        if method.other_reference:
            stored = reference_log_probs(fresh(), processor, sets["forget"], recipe)
        model, before = adapters.attach(fresh(), recipe, 0, method.trains), count.reads
        log = unlearn(model, processor, method, sets, recipe, 0, stored, progress=False)
        given[" ".join(key)] = losses(log)
        given[f"reads: {' '.join(key)}"] = [(count.reads - before) / log.steps]
    model = adapters.merge(model)
    for protocol, source in (("clean", "pool"), ("upstream", "upstream")):
        how = {"shots": 1, "shot_source": source, "shot_seed": 0, "scoring": "both", "batch_size": 16, "limit": 1}
        model = model.half() if half and protocol == "upstream" else model
        answers = ask(model, processor, known, scale="miniature", protocol=protocol, **how)
        given[f"answers, {protocol}"] = answers["answer"].tolist()
        given[f"likelihoods, {protocol}"] = answers["option_A"].dropna().tolist()
    opened = [replace(one, turns=(replace(one.turns[0], answer=""),)) for one in sets["forget"]]
    prompts, before = Prompts.of(model, processor, opened), count.reads
    given["tokens"] = greedy(model, processor, prompts)[1]
    given["reads: tokens"] = [count.reads - before]
    sentences = teacher_forced.sentences(model, processor, {"forget": known.members("forget")[:1]})
    return given | {"sentences": [float(one.sum()) for one in sentences["log_probs"]]}


if __name__ == "__main__":
    module = backend_registration._DummyBackendModule()
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    backend_registration._setup_privateuseone_for_python_backend("card", backend_module=module)
    engine._threads = lambda model: 1  # a mode holds for its own thread
    family, result = sys.argv[1], {}
    result |= {"cpu": everything(family, "cpu"), "half": everything(family, "cpu", half=True)}
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter keeps its object, but not its class
    torch.tensor, torch.inference_mode = tensor, torch.no_grad  # in the mode of inference a view of a class fails
    with Card():
        result["card"] = everything(family, "card")
        try:
            torch.ones(2, device="card") + torch.ones(2)
        except RuntimeError as error:
            result["refused"] = str(error)
    print(json.dumps(result))
