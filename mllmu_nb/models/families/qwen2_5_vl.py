"""Qwen2.5-VL: the number of tokens per picture depends on its size; positions have three axes (M-RoPE)."""

import io
from functools import cache
from typing import Any

import torch
from PIL import Image

from mllmu_nb.data.conversations import Conversation
from mllmu_nb.models.families.base import USUAL, Family, chat, distinct, register

IMAGE, VISION_START, VISION_END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
START, END = "<|im_start|>", "<|im_end|>"


@cache
def reader() -> Any:
    """The class of the processor. It is made when it is first needed: importing transformers takes seconds."""
    from transformers import ProcessorMixin

    class Reader(ProcessorMixin):
        """Tokenizer and image processor. The library's own processor also reads videos, which needs torchvision. Saved
        files name that one, so that others can load them."""

        def __init__(self, image_processor=None, tokenizer=None, **kwargs):
            self.image_token, self.image_token_id = IMAGE, tokenizer.convert_tokens_to_ids(IMAGE)
            super().__init__(image_processor, tokenizer)

        def to_dict(self, *args, **kwargs):
            video = {name: getattr(self.image_processor, name) for name in ("patch_size", "merge_size")}
            video |= {"video_processor_type": "Qwen2VLVideoProcessor"}
            named = {"processor_class": "Qwen2_5_VLProcessor", "video_processor": video}
            return {**super().to_dict(*args, **kwargs), **named}

    return Reader


@register
class Qwen25VL(Family):
    """``{start}system\\n{system}{end}\\n{start}user\\n{picture}{prompt}{end}\\n{start}assistant\\n{answer}{end}``, its
    chat template, also for worked examples."""

    name, label = "qwen2_5_vl", "Qwen2.5-VL"
    hub = "Qwen/Qwen2.5-VL-7B-Instruct"
    next_turn = START
    language_linears = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj"
    vision, whole = r"model\.visual\.(?!merger)", ("visual", "lm_head")
    lmms_eval = "qwen2_5_vl"

    def render(self, conversation: Conversation, slot: str = IMAGE, eos: str = "") -> tuple[str, list]:
        system = f"{START}system\n{conversation.system or 'You are a helpful assistant.'}{END}\n"
        return chat(conversation, slot, eos, END, system, f"{START}user\n", f"{START}assistant\n")

    def slot(self, processor) -> str:
        return VISION_START + IMAGE + VISION_END

    def image_tokens(self, processor, picture) -> int:
        images = processor.image_processor
        width, height = (Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture).size
        return images.get_number_of_image_patches(height, width) // images.merge_size**2

    def end(self, processor) -> str:
        return END

    def pictures(self, processor, rows):
        """Return ``pixel_values`` [patches of all pictures, values], ``image_grid_thw`` [all pictures, 3], row after
        row."""
        decoded, places = distinct(rows)
        if not decoded:
            return {}
        each = [processor.image_processor(images=[picture], return_tensors="pt") for picture in decoded]
        return {name: torch.cat([each[place][name] for place in places]) for name in each[0]}

    def encode(self, processor, conversations, *args, **kwargs):
        """Mark the tokens of pictures, from which the model itself finds the positions of a whole batch."""
        batch = super().encode(processor, conversations, *args, **kwargs)
        return {**batch, "mm_token_type_ids": (batch["input_ids"] == processor.image_token_id).int()}

    def positions(self, model, batch, start):
        """Return [3, B, T]: time, row and column. Text after a picture continues after the picture's longer side."""
        core, grids = getattr(model, "get_base_model", lambda: model)(), batch.get("image_grid_thw")
        if grids is None:  # also for an image token that the model itself has written
            # all axes are equal; the model's own way goes row by row, and a GPU waits for each
            return super().positions(model, batch, start).expand(3, -1, -1)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        kinds = (ids == core.config.image_token_id).int()
        return core.model.get_rope_index(ids, kinds, grids, attention_mask=mask)[0] + start[:, None]

    def load_processor(self, source: str, **origin):
        return reader().from_pretrained(source, backend="pil", **origin)

    def published_shape(self):
        from transformers import Qwen2_5_VLConfig

        text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
        text |= {"num_key_value_heads": 4, "max_position_embeddings": 128_000, "vocab_size": 152_064}
        rotary = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
        vision = {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584}
        return Qwen2_5_VLConfig(vision_config=vision, text_config={**text, "rope_parameters": rotary})

    def usual_tokens(self, shape) -> int:
        return (USUAL // (shape.vision_config.patch_size * shape.vision_config.spatial_merge_size)) ** 2

    def usual_pictures(self, shape, ids):
        vision = shape.vision_config
        side = USUAL // (vision.patch_size * vision.spatial_merge_size) * vision.spatial_merge_size  # patches
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        kinds = {"mm_token_type_ids": (ids == shape.image_token_id).int()}
        grids = torch.tensor([[1, side, side]] * len(ids))
        return {"pixel_values": torch.ones(len(ids) * side**2, values), "image_grid_thw": grids, **kinds}
