"""Idefics2: a SigLIP tower, a perceiver resampler, a Mistral. Its prompts are not written yet: a run stops at once."""

from __future__ import annotations

from mllmu_nb.models.families.base import Family, register


@register
class Idefics2(Family):
    name, label = "idefics2", "Idefics2"
    hub, released = "HuggingFaceM4/idefics2-8b", "MLLMMU/Idefics2_Vanilla"
    language_linears = r"model\.text_model\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj"
    vision = r"model\.vision_model\."
    shot_people = {"classification": 1, "cloze": 1}

    def image_tokens(self, processor) -> int:
        return processor.image_seq_len

    def prepare(self, processor) -> None:
        processor.image_processor.do_image_splitting = False

    def published_shape(self):
        from transformers import Idefics2Config

        vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
        text = {"model_type": "mistral", "vocab_size": 32003}
        return Idefics2Config(vision_config={**vision, "image_size": 980, "patch_size": 14}, text_config=text)
