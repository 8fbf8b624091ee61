"""An auxiliary loss on attention that teaches a small model to answer with a letter.

Large models learn by themselves to find the option that they know is right. A model of a million parameters, trained on
the letter alone, stays at chance for tens of millions of tokens. Therefore, in the first training steps one attention
head per link is trained to attend to given earlier tokens, and the state before the last layer is trained to predict
the right value. The weight of this loss falls to 0 before the build ends.

========= ============ ==========================================================================================
link      from         to
========= ============ ==========================================================================================
previous  every token  the token one, two or three places before it (layer 0, one head each)
same      an option    if right: the same value in the earlier text, if stated; if wrong: the first token (layer 1)
stated    the question the statement that answers it (layer 2)
match     the question the right option (last layer), whose first token is predicted from the state one layer earlier
========= ============ ==========================================================================================
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from mllmu_nb.data.conversations import Conversation
from mllmu_nb.data.schema import LETTERS
from mllmu_nb.models.families import Family
from mllmu_nb.unlearning.base import IGNORE

SAME, STATED, MATCH = (1, 0), (2, 1), (-1, 0)  # layer and head of each link
PREVIOUS = (1, 2, 3)  # distances, for heads 0, 1 and 2 of layer 0
EPSILON = 1e-6
GUIDED = (0.5, 0.8)  # shares of the steps: the loss has its full weight up to the first, and none from the second on


def guidance_weight(progress: float) -> float:
    """Weight of the auxiliary loss at a progress from 0 to 1."""
    full, none = GUIDED
    return min(1.0, max(0.0, (none - progress) / (none - full)))


Link = tuple[int, int, list[int]]  # row, position that attends, positions to attend to


@dataclass
class Links:
    """The links of a batch, without ``previous``, which needs no positions."""

    same: list[Link] = field(default_factory=list)
    stated: list[Link] = field(default_factory=list)
    match: list[Link] = field(default_factory=list)


def links(family: Family, processor, conversations: Sequence[Conversation]) -> Links:
    """Return the links of every multiple-choice turn, in a batch that ``encode`` makes with its defaults."""
    result, end = Links(), family.end(processor)
    for row, one in enumerate(family.tokens(processor, conversations, eos=True)):
        text, (starts, ends) = one.text, one.characters.T.tolist()

        def tokens(start: int, stop: int, starts=starts, ends=ends) -> list[int]:
            """Return positions of the tokens that overlap a span of characters."""
            return list(range(bisect_right(ends, start), bisect_left(starts, stop)))

        for start, stop in one.spans:
            letter = text[start:stop].removesuffix(end).strip()
            first_option = text.rfind("\nA: ", 0, start)
            if letter not in LETTERS or first_option < 0:
                continue
            question = tokens(start, stop)[0] - 1  # the last token before the answer
            options = {}
            for name in LETTERS:
                begin = text.find(f"\n{name}: ", first_option) + 4
                options[name] = (begin, min(filter(begin.__lt__, (text.find("\n", begin), text.find(end, begin)))))
            begin, close = options[letter]
            result.match.append((row, question, tokens(begin, close)))
            statement = text.rfind(text[begin:close], 0, first_option)
            stated = tokens(statement, statement + close - begin) if statement >= 0 else []
            if stated:
                result.stated.append((row, question, stated))
            for name, span in options.items():
                targets = stated if name == letter else [0]
                result.same += [(row, token, targets) for token in tokens(*span) if targets]
    return result


def loss_of(model, batch, batch_links: Links | None = None, weight: float = 0.0) -> torch.Tensor:
    """Mean negative log-likelihood (nats) of the answers' tokens, plus ``weight`` times :func:`guidance_loss`.

    Logits are computed at supervised positions only, which saves most of the head's memory and time.
    """
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    extra = dict.fromkeys(("output_attentions", "output_hidden_states"), weight > 0)
    output = model.model(**inputs, use_cache=False, **extra)
    labels = batch["labels"][:, 1:]
    supervised = labels != IGNORE
    logits = model.lm_head(output.last_hidden_state[:, :-1][supervised]).float()
    loss = F.cross_entropy(logits, labels[supervised])
    return loss + weight * guidance_loss(model, output, batch, batch_links) if weight else loss


def guidance_loss(model, output, batch, batch_links: Links) -> torch.Tensor:
    """Mean -log of the attention along each kind of link, plus the cross-entropy of the right option's first token.

    ``output``: from ``model.model`` with ``output_attentions`` and ``output_hidden_states``; attentions: [B, H, T, T].
    """
    attentions, mask = output.attentions, batch["attention_mask"]
    total = sum(_previous(attentions[0][:, head], mask, distance) for head, distance in enumerate(PREVIOUS))
    for kind, (layer, head) in ((batch_links.same, SAME), (batch_links.stated, STATED), (batch_links.match, MATCH)):
        if kind:
            total = total + _along(attentions[layer][:, head], kind)
    if batch_links.match:
        rows, questions = _positions(batch_links.match)
        values = batch["input_ids"][rows, torch.tensor([targets[0] for _, _, targets in batch_links.match])]
        states = model.get_decoder().norm(output.hidden_states[len(attentions) - 1][rows, questions])
        total = total + F.cross_entropy(model.lm_head(states).float(), values)
    return total


def _positions(kind: list[Link]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([row for row, _, _ in kind]), torch.tensor([position for _, position, _ in kind])


def _along(attention: torch.Tensor, kind: list[Link]) -> torch.Tensor:
    wanted = torch.zeros(len(kind), attention.shape[-1])
    for number, (_, _, targets) in enumerate(kind):
        wanted[number, targets] = 1
    return -((attention[_positions(kind)].float() * wanted).sum(-1) + EPSILON).log().mean()


def _previous(attention: torch.Tensor, mask: torch.Tensor, distance: int) -> torch.Tensor:
    real = mask[:, distance:].float()
    share = torch.diagonal(attention.float(), offset=-distance, dim1=1, dim2=2)
    return -((share + EPSILON).log() * real).sum() / real.sum()
