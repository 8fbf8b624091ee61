"""How much memory a run will need, from the shapes of its model alone: nothing is loaded and nothing is computed.

Weights, adapters, gradients and optimizer states are counted on the meta device. What autograd keeps between forward
and backward is estimated by formula (:func:`kept_by_layers`); an allocator's reserve and fragments are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForImageTextToText, Idefics2Config, LlavaConfig

from mllmu_nb.models.load import attach_lora, count_trainable

GIB = 2**30
TEXT = 64  # tokens of a question with its answer, rounded up; a worked example with four options takes about twice that
ANSWER = 32  # supervised tokens of an answer, rounded up
STATES = 12  # bytes beside a trained fp32 parameter: its gradient and AdamW's two moments
LIBRARIES = 1 * GIB  # Python with torch and transformers, or a GPU's context: measured 0.5 to 0.9


@dataclass(frozen=True)
class Need:
    """Bytes, part by part. ``kept`` is the estimate of what autograd keeps, ``cache`` keys and values of answering."""

    parameters: int  # how many, not bytes
    trained: int  # how many of them, or of the adapter's
    weights: int
    states: int
    kept: int
    cache: int

    @property
    def most(self) -> int:
        """Training and answering come one after the other, so the larger of the two counts."""
        return LIBRARIES + self.weights + max(self.states + self.kept, self.cache)


def published_shape(base_model: str):
    """The configuration of the 7B and 8B base models as their authors printed it, for when no file of it is at hand."""
    if base_model == "llava":
        return LlavaConfig(text_config={"model_type": "llama", "vocab_size": 32064})  # all else is the class's default
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    text = {"model_type": "mistral", "vocab_size": 32003}
    return Idefics2Config(vision_config={**vision, "image_size": 980, "patch_size": 14}, text_config=text)


def image_tokens(shape) -> int:
    """Positions that one picture takes among the language model's: 576 in LLaVA-1.5, 64 in Idefics2."""
    if hasattr(shape, "perceiver_config"):
        return shape.perceiver_config.resampler_n_latents
    return shape.image_seq_length


def kept_by_layers(part, sequences: int, length: int, element: int, adapters: bool, eager: bool) -> int:
    """Bytes that autograd keeps of the layers of ``part`` (the language model's or vision tower's configuration).

    Per layer and token, h wide and i inside the MLP: the two norms and what enters and leaves the attention about 12 h,
    the MLP's gate, up, their activation and product 4 i; an adapter with dropout keeps each projection's input again,
    6 h + i. Written-out (eager) attention keeps two matrices of scores a head. No checkpointing is assumed, since
    the loop does none.
    """
    h, i = part.hidden_size, part.intermediate_size
    token = 12 * h + 4 * i + (6 * h + i if adapters else 0)
    token += 2 * part.num_attention_heads * length if eager else 0
    return part.num_hidden_layers * sequences * length * token * element


def need(
    shape,
    *,
    element: int,
    eager: bool,
    recipe=None,
    full: bool = False,
    answering: int = 0,
    shots: int = 0,
) -> Need:
    """What a model of ``shape`` (a transformers configuration) needs to be trained by ``recipe`` and to answer.

    ``element`` is the bytes of a weight and of an activation; ``full`` trains all weights, otherwise adapters of the
    recipe's rank on what its ``lora_reach`` names. ``answering`` questions are asked at once behind ``shots`` worked
    examples.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(shape)
    parameters = sum(p.numel() for p in model.parameters())
    text, vision = shape.text_config, shape.vision_config
    trained = kept = states = 0
    if recipe:
        length = image_tokens(shape) + recipe.turns * TEXT
        adapters = not full and recipe.lora_dropout > 0
        kept = kept_by_layers(text, recipe.batch_size, length, element, adapters, eager)
        # logits in fp32 at the supervised positions: as they are, as log-probabilities, and their gradient
        kept += recipe.batch_size * recipe.turns * ANSWER * text.vocab_size * 4 * 3
        if full or recipe.lora_reach == "upstream":
            patches = (vision.image_size // vision.patch_size) ** 2
            kept += kept_by_layers(vision, recipe.batch_size, patches, element, adapters, eager)
        if full:
            trained, states = parameters, parameters * STATES
        else:
            with torch.device("meta"):
                sizes = (recipe.lora_r, recipe.lora_alpha, recipe.lora_dropout)
                trained = count_trainable(attach_lora(model, *sizes, reach=recipe.lora_reach))
            states = trained * (4 + STATES)  # the adapter itself is not among the weights
    cache = 0
    if answering:
        length = (1 + shots) * (image_tokens(shape) + 2 * TEXT)
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        cache = answering * length * text.num_hidden_layers * 2 * text.num_key_value_heads * head * element
    return Need(parameters, trained, parameters * element, states, kept, cache)
