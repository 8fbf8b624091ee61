"""How much memory a run will need, from the shape of its model alone: nothing is loaded and nothing is computed.

Weights, adapters, gradients and optimizer states are counted on the meta device. What autograd keeps between forward
and backward is estimated by formula (:func:`kept_by_layers`); an allocator's reserve and fragments are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForImageTextToText

from mllmu_nb.models import families
from mllmu_nb.models.load import count_trainable, unfreeze
from mllmu_nb.unlearning.base import Recipe

GIB = 2**30
TEXT = 64  # tokens of a question with its answer, rounded up; a worked example with four options takes about twice that
ANSWER = 32  # supervised tokens of an answer, rounded up
STATES = 12  # bytes beside a trained fp32 parameter: its gradient and AdamW's two moments
LIBRARIES = 1 * GIB  # Python with torch and transformers, or a GPU's context: measured 0.5 to 0.9


@dataclass(frozen=True)
class Need:
    """Bytes by what they hold. ``parameters`` and ``trained`` are counts; a fresh adapter is not among the first."""

    parameters: int
    weights: int
    trained: int = 0
    states: int = 0
    kept: int = 0  # what autograd keeps, estimated
    cache: int = 0  # keys and values while questions are answered

    @property
    def most(self) -> int:
        """Training and answering come one after the other, so the larger of the two counts."""
        return LIBRARIES + self.weights + max(self.states + self.kept, self.cache)


def kept_by_layers(shape, sequences: int, length: int, element: int, adapters: bool, eager: bool) -> int:
    """Bytes that autograd keeps of the layers of ``shape`` (the language model's or vision tower's configuration).

    Per layer and token, h wide and i inside the MLP: norms and attention about 12 h, the MLP 4 i; an adapter with
    dropout keeps each projection's input again, 6 h + i; eager attention keeps two matrices of scores a head.
    """
    h, i = shape.hidden_size, shape.intermediate_size
    token = 12 * h + 4 * i + (6 * h + i if adapters else 0)
    token += 2 * shape.num_attention_heads * length if eager else 0
    return shape.num_hidden_layers * sequences * length * token * element


class Estimate:
    """Of a model of ``shape`` (a transformers configuration) whose weights and activations take ``element`` bytes, and
    whose attention is written out when ``eager``."""

    def __init__(self, shape, element: int, eager: bool):
        with torch.device("meta"):
            self.model = AutoModelForImageTextToText.from_config(shape)
        self.shape, self.element, self.eager = shape, element, eager
        self.parameters = sum(p.numel() for p in self.model.parameters())
        resampled = getattr(shape, "perceiver_config", None)
        self.image_tokens = resampled.resampler_n_latents if resampled else shape.image_seq_length

    def trained(self, recipe: Recipe, full: bool, where: str = "") -> int:
        """How many parameters train: all but the vision tower's when ``full``, else those of an adapter of the recipe's
        rank at ``where`` (a method's own pattern) or the recipe's reach."""
        if full:
            return count_trainable(unfreeze(self.model))
        targets = families.of(self.model).adapter_targets(self.model, where or recipe.adapter_reach)
        layers = [self.model.get_submodule(path) for path in targets]
        return sum(recipe.lora_r * (layer.in_features + layer.out_features) for layer in layers)

    def answering(self, questions: int, shots: int) -> Need:
        """While so many questions are answered at once, each behind ``shots`` worked examples."""
        text = self.shape.text_config
        length = (1 + shots) * (self.image_tokens + 2 * TEXT)
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        cache = questions * length * text.num_hidden_layers * 2 * text.num_key_value_heads * head * self.element
        return Need(self.parameters, self.parameters * self.element, cache=cache)

    def training(self, recipe: Recipe, full: bool, where: str = "") -> Need:
        """While it is trained by ``recipe``."""
        text, vision = self.shape.text_config, self.shape.vision_config
        adapters = not full and recipe.lora_dropout > 0
        length = self.image_tokens + recipe.turns * TEXT
        kept = kept_by_layers(text, recipe.batch_size, length, self.element, adapters, self.eager)
        # logits in fp32 at the supervised positions: as they are, as log-probabilities, and their gradient
        kept += recipe.batch_size * recipe.turns * ANSWER * text.vocab_size * 4 * 3
        if recipe.adapter_reach == "upstream" and not full:  # a frozen tower keeps nothing
            patches = (vision.image_size // vision.patch_size) ** 2
            kept += kept_by_layers(vision, recipe.batch_size, patches, self.element, adapters, self.eager)
        trained = self.trained(recipe, full, where)
        states = trained * (STATES + (0 if full else 4))  # an adapter itself is not among the weights
        return Need(self.parameters, self.parameters * self.element, trained, states, kept)
