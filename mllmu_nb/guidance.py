"""Where a small model should look while it learns to answer with a letter.

Large models find the option that holds what they know by themselves; one of a million parameters, taught by the
letter alone, stays at chance for tens of millions of tokens. So the base's first training steps also point: one head
a layer is told which earlier tokens to attend to, and one layer's output which value to have in mind. All of it is
faded out before the build ends and nothing of it is in the model that is shipped, like the vision tower's heads.

========= ============ ==========================================================================================
link      from         to
========= ============ ==========================================================================================
previous  every token  the one, two or three tokens before it (layer 0, one head each)
same      an option    the same value where the text before has stated it, else the first token (layer 1)
stated    the question the statement that answers it (layer 2)
match     the question the right option (last layer), whose value it has in mind one layer earlier
========= ============ ==========================================================================================
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from mllmu_nb.data.schema import LETTERS
from mllmu_nb.models.prompts import Conversation, image_slot, render

SAME, STATED, MATCH = (1, 0), (2, 1), (-1, 0)  # layer and head of each link
PREVIOUS = (1, 2, 3)  # distances, for heads 0, 1 and 2 of layer 0
SMALLEST = 1e-6


@dataclass
class Links:
    """Pairs of positions in a batch: (row, from, [to ..]) each; ``previous`` needs none."""

    same: list[tuple[int, int, list[int]]] = field(default_factory=list)
    stated: list[tuple[int, int, list[int]]] = field(default_factory=list)
    match: list[tuple[int, int, list[int]]] = field(default_factory=list)


def links(processor, conversations: Sequence[Conversation]) -> Links:
    """The links of every multiple-choice turn, in a batch encoded as by ``encode`` with its defaults."""
    end = processor.tokenizer.eos_token
    rendered = [render(c, image_slot(processor), end) for c in conversations]
    offsets = processor.tokenizer([text for text, _ in rendered], return_offsets_mapping=True)["offset_mapping"]
    found = Links()
    for row, ((text, spans), places) in enumerate(zip(rendered, offsets, strict=True)):
        starts, ends = [a for a, _ in places], [b for _, b in places]

        def tokens(start: int, stop: int, starts=starts, ends=ends) -> list[int]:
            return list(range(bisect_right(ends, start), bisect_left(starts, stop)))

        for start, stop in spans:
            letter = text[start:stop].removesuffix(end).strip()
            first = text.rfind("\nA: ", 0, start)
            if letter not in LETTERS or first < 0:
                continue
            asked = tokens(start, stop)[0] - 1
            values = {}
            for option in LETTERS:
                begin = text.find(f"\n{option}: ", first) + 4
                values[option] = (begin, text.find("\n", begin))
            begin, close = values[letter]
            found.match.append((row, asked, tokens(begin, close)))
            stated = text.rfind(text[begin:close], 0, first)
            told = tokens(stated, stated + close - begin) if stated >= 0 else []
            if told:
                found.stated.append((row, asked, told))
            for option, span in values.items():
                to = told if option == letter else [0]
                found.same += [(row, token, to) for token in tokens(*span) if to]
    return found


def guidance_loss(model, output, batch, where: Links) -> torch.Tensor:
    """Mean -log of the attention that goes along each kind of link, plus the loss of the value in mind.

    ``output``: of ``model.model`` with ``output_attentions`` and ``output_hidden_states``; attentions are [B, H, T, T].
    """
    attentions, mask = output.attentions, batch["attention_mask"]
    total = sum(_previous(attentions[0][:, head], mask, back) for head, back in enumerate(PREVIOUS))
    for kind, (layer, head) in ((where.same, SAME), (where.stated, STATED), (where.match, MATCH)):
        if kind:
            total = total + _along(attentions[layer][:, head], kind)
    if where.match:
        rows, asked = (torch.tensor([link[i] for link in where.match]) for i in (0, 1))
        values = batch["input_ids"][rows, torch.tensor([to[0] for _, _, to in where.match])]
        in_mind = model.model.language_model.norm(output.hidden_states[len(attentions) - 1][rows, asked])
        total = total + F.cross_entropy(model.lm_head(in_mind).float(), values)
    return total


def _along(attention: torch.Tensor, kind: list[tuple[int, int, list[int]]]) -> torch.Tensor:
    wanted = torch.zeros(len(kind), attention.shape[-1])
    for number, (_, _, to) in enumerate(kind):
        wanted[number, to] = 1
    rows, asked = (torch.tensor([link[i] for link in kind]) for i in (0, 1))
    return -((attention[rows, asked].float() * wanted).sum(-1) + SMALLEST).log().mean()


def _previous(attention: torch.Tensor, mask: torch.Tensor, back: int) -> torch.Tensor:
    seen = mask[:, back:].float()
    share = torch.diagonal(attention.float(), offset=-back, dim1=1, dim2=2)
    return -((share + SMALLEST).log() * seen).sum() / seen.sum()
