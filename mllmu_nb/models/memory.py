"""How much memory a run will need, from the shape of its model alone: nothing is loaded and nothing is computed.

Weights, adapters, gradients and optimizer states are counted on the meta device. What autograd keeps between forward
and backward is estimated by formula (:func:`activations`); an allocator's reserve and fragments are not included.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForImageTextToText

from mllmu_nb.models import families
from mllmu_nb.models.families.base import USUAL
from mllmu_nb.models.load import count_trainable, unfreeze
from mllmu_nb.unlearning.base import Recipe

GIB = 2**30
TEXT = 64  # tokens of a question with its answer, rounded up; a worked example with four options takes about twice that
ANSWER = 32  # supervised tokens of an answer, rounded up
STATES = 12  # bytes beside a trained fp32 parameter: its gradient and AdamW's two moments
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}  # of a number
LIBRARIES = 1 * GIB  # Python with torch and transformers, or a GPU's context: measured 0.5 to 0.9


def activations(
    shape, sequences: int, length: int, element: int, adapters: bool, eager: bool, checkpointing: bool = False
) -> int:
    """Bytes that autograd keeps of the layers of ``shape`` (the language model's or vision tower's configuration).

    Per layer and token, h wide and i inside the MLP: the two norms and what enters and leaves the attention about 12 h,
    the MLP's gate, up, their activation and product 4 i; an adapter with dropout keeps each projection's input again,
    6 h + i. Eager attention keeps two matrices of scores a head. With checkpointing a layer keeps what enters it,
    and only one at a time keeps the rest.
    """
    h, i = shape.hidden_size, shape.intermediate_size
    token = 12 * h + 4 * i + (6 * h + i if adapters else 0)
    token += 2 * shape.num_attention_heads * length if eager else 0
    layers = shape.num_hidden_layers
    kept = layers * h + token if checkpointing else layers * token
    return sequences * length * kept * element


class Estimate:
    """Of a model of ``shape`` (a transformers configuration) with ``eager`` attention or not. :meth:`answering` and
    :meth:`training` give GiB by what they hold."""

    def __init__(self, shape, eager: bool):
        with torch.device("meta"):
            self.model = AutoModelForImageTextToText.from_config(shape)
        self.shape, self.eager = shape, eager
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.family = families.of(self.model)
        self.image_tokens = self.family.usual_tokens(shape)

    def trained(self, recipe: Recipe, full: bool, where: str = "") -> int:
        """How many parameters train: all but the vision tower's when ``full``, else those of an adapter of the recipe's
        rank at ``where`` (a method's own pattern) or the recipe's reach."""
        if full:
            return count_trainable(unfreeze(self.model))
        targets = self.family.adapter_targets(self.model, where or recipe.adapter_reach)
        layers = [self.model.get_submodule(path) for path in targets]
        return sum(recipe.lora_r * (layer.in_features + layer.out_features) for layer in layers)

    def answering(self, questions: int, shots: int, precision: str) -> dict[str, float]:
        """While so many questions are answered at once, each after ``shots`` worked examples."""
        text, element = self.shape.text_config, BYTES[precision]
        length = (1 + shots) * (self.image_tokens + 2 * TEXT)
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        cache = questions * length * text.num_hidden_layers * 2 * text.num_key_value_heads * head * element
        return self._gib(element, {"keys and values": cache})

    def training(self, recipe: Recipe, full: bool, where: str = "") -> dict[str, float]:
        """While it is trained by ``recipe``."""
        text, vision, element = self.shape.text_config, self.shape.vision_config, BYTES[recipe.precision]
        adapters, rows = not full and recipe.lora_dropout > 0, recipe.micro_batch or recipe.batch_size
        how = {"element": element, "adapters": adapters, "eager": self.eager, "checkpointing": recipe.checkpointing}
        length = self.image_tokens + recipe.turns * TEXT
        kept = activations(text, rows, length, **how)
        # logits in fp32 at the supervised positions: as they are, as log-probabilities, and their gradient
        kept += rows * recipe.turns * ANSWER * text.vocab_size * 4 * 3
        if recipe.adapter_reach == "upstream" and not full:  # a frozen tower keeps nothing
            patches = (min(getattr(vision, "image_size", USUAL), USUAL) // vision.patch_size) ** 2
            kept += activations(vision, rows, patches, **how)
        states = self.trained(recipe, full, where) * (STATES + (0 if full else 4))  # an adapter adds its own weights
        return self._gib(element, {"trained with their states": states, "activations": kept})

    def _gib(self, element: int, more: dict[str, int]) -> dict[str, float]:
        held = {"weights": self.parameters * element, **more, "libraries": LIBRARIES}
        return {what: size / GIB for what, size in held.items()}
