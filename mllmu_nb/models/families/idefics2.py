"""Idefics2: a SigLIP tower, a perceiver resampler, a Mistral."""

import copy

import torch

from mllmu_nb.data.conversations import Conversation
from mllmu_nb.models.families.base import USUAL, Family, chat, distinct, register
from mllmu_nb.models.families.llava import Llava

END = "<end_of_utterance>"
PARTS = 5  # of a split picture: four quarters and the whole


@register
class Idefics2(Family):
    """``System: {system}{end}\\nUser:{picture} {prompt}{end}\\nAssistant: {answer}{end}``, its chat template, also for
    worked examples. Pictures are not split.

    The released code trains like this but asks differently: with LLaVA's prompts and split pictures. A conversation
    under the protocol ``upstream`` is written that way, for the processor of :meth:`asking`.
    """

    name, label = "idefics2", "Idefics2"
    hub, released = "HuggingFaceM4/idefics2-8b", "MLLMMU/Idefics2_Vanilla"
    next_turn = "User:"
    language_linears = r"model\.text_model\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj"
    vision, whole = r"model\.vision_model\.", ("vision_model", "connector", "lm_head")
    lmms_eval = "idefics2"
    shot_people = {"classification": 1, "cloze": 1}

    def render(self, conversation: Conversation, slot: str = "<image>", eos: str = "") -> tuple[str, list]:
        if conversation.protocol == "upstream":
            return Llava().render(conversation, slot, eos)
        system = f"System: {conversation.system}{END}\n" if conversation.system else ""
        return chat(conversation, slot, eos, END, system, "User:", "Assistant:", " ")

    def slot(self, processor) -> str:
        edge = processor.fake_image_token
        parts = PARTS if processor.image_processor.do_image_splitting else 1
        return edge + parts * (processor.image_token + edge)

    def image_tokens(self, processor, picture) -> int:
        return processor.image_seq_len

    def end(self, processor) -> str:
        return END

    def pictures(self, processor, rows):
        """Return ``pixel_values`` [all pictures, parts, 3, H, W] and ``pixel_attention_mask`` [all pictures, parts, H,
        W], padded to the largest; the model itself flattens the first two dimensions, row after row."""
        decoded, places = distinct(rows)
        if not decoded:
            return {}
        tensors = processor.image_processor(images=[[picture] for picture in decoded], return_tensors="pt")
        return {name: tensor[places] for name, tensor in tensors.items()}

    def load_processor(self, source: str, **origin):
        processor = super().load_processor(source, **origin)
        processor.image_processor.do_image_splitting = False
        return processor

    def asking(self, processor, protocol):
        if protocol != "upstream":
            return processor
        split = copy.copy(processor)
        split.image_processor = copy.copy(processor.image_processor)
        split.image_processor.do_image_splitting = True
        return split

    def published_shape(self):
        from transformers import Idefics2Config

        vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
        text = {"model_type": "mistral", "vocab_size": 32003, "max_position_embeddings": 32768}
        return Idefics2Config(vision_config={**vision, "image_size": 980, "patch_size": 14}, text_config=text)

    def usual_tokens(self, shape) -> int:
        return shape.perceiver_config.resampler_n_latents

    def parts(self, protocol):
        return PARTS if protocol == "upstream" else 1

    def usual_pictures(self, shape, ids):
        side = min(USUAL, shape.vision_config.image_size)
        mask = torch.ones(len(ids), 1, side, side, dtype=torch.long)
        return {"pixel_values": torch.ones(len(ids), 1, 3, side, side), "pixel_attention_mask": mask}
