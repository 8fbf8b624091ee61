"""Miniatures: the real classes of transformers, small enough for two CPU cores; each family's file has its own part."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from mllmu_nb.data.portraits import SIZE
from mllmu_nb.models import families
from mllmu_nb.models.families.base import PATCH

VOCABULARY = 2048
SPECIAL = ("<pad>", "<s>", "</s>")


def make_tokenizer(
    corpus: Iterable[str], vocabulary: int = VOCABULARY, family: str = "llava"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: every byte is in the alphabet, so no text is unknown."""
    tokenizer, own = Tokenizer(models.BPE()), families.get(family).special_tokens
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*SPECIAL, *own.values()],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", extra_special_tokens=own
    )


def make_processor(tokenizer: PreTrainedTokenizerFast, family: str = "llava") -> ProcessorMixin:
    """The family's own processor, for pictures of 64 × 64 pixels."""
    return families.get(family).miniature_processor(tokenizer)


def make_model(
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    family: str = "llava",
) -> PreTrainedModel:
    """A randomly initialised model. ``width``, ``layers`` and ``heads`` are the language model's."""
    vision = {
        "hidden_size": 96,
        "intermediate_size": 288,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
        "initializer_range": 0.08,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 2048,
        "initializer_range": 0.08,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(seed)
    shape = families.get(family).miniature_shape(tokenizer, vision, text)
    model = AutoModelForImageTextToText.from_config(shape, attn_implementation="eager")  # at this size faster than sdpa
    for name, parameter in model.named_parameters():
        if name.endswith(".latents"):  # transformers starts a resampler's all alike, and alike they would stay
            torch.nn.init.normal_(parameter)
    return model
