"""LLaVA-1.5: a CLIP tower, a projector, a Llama."""

from mllmu_nb.data.conversations import Conversation
from mllmu_nb.models.families.base import Family, register


@register
class Llava(Family):
    """``{system} USER: <image>\\n{prompt}\\nASSISTANT: {answer}{eos}``; few-shot examples end with a line break."""

    name, label = "llava", "LLaVA"
    hub, released, anchor = "llava-hf/llava-1.5-7b-hf", "MLLMMU/LLaVA_Vanilla", 0.5708306366835779
    language_linears = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj"
    vision, whole = r"model\.vision_tower\.", ("vision_tower", "multi_modal_projector", "lm_head")
    lmms_eval = "llava_hf"

    def render(self, conversation: Conversation, slot: str = "<image>", eos: str = "") -> tuple[str, list]:
        """No space follows an open ``ASSISTANT:``, because the first token of the answer includes it."""
        text, spans = (f"{conversation.system} " if conversation.system else ""), []
        for turn in conversation.turns:
            # without a picture upstream's few-shot and choice prompts keep the line break after "USER:"
            gap, shown = ("\n", "") if turn.image is None else (" ", f"{slot}\n")
            text += f"USER:{gap if turn.gap is None else turn.gap}{shown}{turn.prompt}\n{turn.reply}"
            if turn.answer:
                usual = turn.reply.strip() == "ASSISTANT:"  # not the word of a few-shot example
                text = text.rstrip(" ")
                start = len(text)
                text += f" {turn.answer}{eos if usual else ''}"
                spans.append((start, len(text)))
                text += "" if usual else "\n"
        return text, spans

    def image_tokens(self, processor, picture) -> int:
        side = processor.image_processor.crop_size
        rows, columns = side["height"] // processor.patch_size, side["width"] // processor.patch_size
        count = rows * columns + processor.num_additional_image_tokens
        return count - 1 if processor.vision_feature_select_strategy == "default" else count

    def published_shape(self):
        from transformers import LlavaConfig

        return LlavaConfig(text_config={"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096})
