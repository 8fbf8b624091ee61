"""Miniatures: the real classes of transformers, small enough for two CPU cores.

A family has a miniature if ``SPECIAL_TOKENS``, ``SHAPES`` and ``PROCESSORS`` have an entry with its name.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from mllmu_nb.data.portraits import SIZE
from mllmu_nb.models.families import idefics2
from mllmu_nb.models.families import qwen2_5_vl as qwen

VOCABULARY = 2048
PATCH = 16  # pixels per side of a patch
LATENTS = 16  # tokens per picture from Idefics2's resampler: as many as in the miniature LLaVA
SPECIAL_TOKENS = {
    "llava": {"image_token": "<image>"},
    "idefics2": {
        "image_token": "<image>",
        "image_boundary_token": "<fake_token_around_image>",
        "end_of_utterance_token": idefics2.END,
    },
    "qwen2_5_vl": {
        "image_token": qwen.IMAGE,
        "vision_start_token": qwen.VISION_START,
        "vision_end_token": qwen.VISION_END,
        "start_token": qwen.START,
        "end_token": qwen.END,
    },
}


def make_tokenizer(
    corpus: Iterable[str], vocabulary: int = VOCABULARY, family: str = "llava"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: every byte is in the alphabet, so no text is unknown."""
    tokenizer, own = Tokenizer(models.BPE()), SPECIAL_TOKENS[family]
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>", *own.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
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
    return PROCESSORS[family](tokenizer)


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
    shape = SHAPES[family](tokenizer, vision, text)
    model = AutoModelForImageTextToText.from_config(shape, attn_implementation="eager")  # at this size faster than sdpa
    for name, parameter in model.named_parameters():
        if name.endswith(".latents"):  # transformers starts them all equal, and equal ones would stay equal
            torch.nn.init.normal_(parameter)
    return model


# -- LLaVA --------------------------------------------------------------------------------------------------------


def _llava_shape(tokenizer, vision: dict, text: dict):
    return transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision),
        text_config=transformers.LlamaConfig(**text),
        image_token_id=tokenizer.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(SIZE // PATCH) ** 2,
    )


def _llava_processor(tokenizer):
    side = {"height": SIZE, "width": SIZE}
    return transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=side),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


# -- Idefics2 -----------------------------------------------------------------------------------------------------


def _idefics2_shape(tokenizer, vision: dict, text: dict):
    heads, end = text["num_attention_heads"], tokenizer.convert_tokens_to_ids(idefics2.END)
    perceiver = {
        "hidden_size": text["hidden_size"],
        "resampler_n_latents": LATENTS,
        "resampler_depth": 1,
        "resampler_n_heads": heads,
        "resampler_head_dim": text["hidden_size"] // heads,
        "num_key_value_heads": heads // 2,
        "initializer_range": text["initializer_range"],
    }
    return transformers.Idefics2Config(
        vision_config=vision,
        text_config={"model_type": "mistral", "sliding_window": None, **text, "eos_token_id": end},
        perceiver_config=perceiver,
        image_token_id=tokenizer.image_token_id,
    )


def _idefics2_processor(tokenizer):
    pictures = transformers.Idefics2ImageProcessorPil(size={"shortest_edge": SIZE, "longest_edge": SIZE})
    return transformers.Idefics2Processor(pictures, tokenizer, image_seq_len=LATENTS)


# -- Qwen2.5-VL ---------------------------------------------------------------------------------------------------


def _qwen_shape(tokenizer, vision: dict, text: dict):
    ids, half = tokenizer.convert_tokens_to_ids, text["hidden_size"] // text["num_attention_heads"] // 2
    sections = [half - 2 * (half // 3), half // 3, half // 3]
    tower = {
        "hidden_size": vision["hidden_size"],
        "intermediate_size": vision["intermediate_size"],
        "depth": vision["num_hidden_layers"],
        "num_heads": vision["num_attention_heads"],
        "patch_size": PATCH // 2,
        "window_size": 4 * PATCH,
        "out_hidden_size": text["hidden_size"],
        "fullatt_block_indexes": [vision["num_hidden_layers"] - 1],
        "initializer_range": vision["initializer_range"],
    }
    rotary = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}
    return transformers.Qwen2_5_VLConfig(
        vision_config=tower,
        text_config={**text, "rope_parameters": rotary, "eos_token_id": ids(qwen.END)},
        image_token_id=tokenizer.image_token_id,
        video_token_id=len(tokenizer),  # no such token: this ID is not in the vocabulary
        vision_start_token_id=ids(qwen.VISION_START),
        vision_end_token_id=ids(qwen.VISION_END),
    )


def _qwen_processor(tokenizer):
    size = {"shortest_edge": SIZE**2 // 4, "longest_edge": SIZE**2}
    return qwen.reader()(transformers.Qwen2VLImageProcessorPil(size=size, patch_size=8, merge_size=2), tokenizer)


SHAPES = {"llava": _llava_shape, "idefics2": _idefics2_shape, "qwen2_5_vl": _qwen_shape}
PROCESSORS = {"llava": _llava_processor, "idefics2": _idefics2_processor, "qwen2_5_vl": _qwen_processor}
