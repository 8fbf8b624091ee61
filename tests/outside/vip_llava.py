"""VIP-LLaVA: LLaVA with several layers of the tower under its projector, and with Vicuna's older role words."""

from mllmu_nb.models.families import register
from mllmu_nb.models.families.llava import Llava


@register
class VipLlava(Llava):
    """``{system}###Human: <image>\\n{prompt}###Assistant: {answer}{eos}``"""

    name, label, hub = "vipllava", "VIP-LLaVA", "llava-hf/vip-llava-7b-hf"
    next_turn = "###Human:"

    def render(self, conversation, slot="<image>", eos=""):
        text, spans = conversation.system, []
        for turn in conversation.turns:
            shown = f"{slot}\n" if turn.image is not None else ""
            plain = turn.reply.startswith("ASSISTANT:")
            text += f"###Human: {shown}{turn.prompt}" + ("###Assistant:" if plain else f"\n{turn.reply}")
            if turn.answer:
                start = len(text)
                text += f" {turn.answer}{eos if plain else ''}"
                spans.append((start, len(text)))
        return text, spans

    def published_shape(self):
        from transformers import VipLlavaConfig

        return VipLlavaConfig(text_config={"model_type": "llama", "vocab_size": 32064})
