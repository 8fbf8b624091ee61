"""The likelihood of each token of given answers under a model (teacher forcing). It is stored, so that memorisation and
membership inference can be computed without the model."""

import zlib
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from mllmu_nb.data.conversations import VIEW_OF, Conversation, taught_turns
from mllmu_nb.data.schema import Profile
from mllmu_nb.evaluation.ask import ways_of
from mllmu_nb.evaluation.tasks import Asking
from mllmu_nb.models import families
from mllmu_nb.models.score import score
from mllmu_nb.progress import progress_bar
from mllmu_nb.stages import write_frame

FAR = 1e4  # standard deviations; caps the value if a model is sure of another token
HALVES = ("log_probs", "spread")  # stored in float16: three digits are plenty and halve the file


class Forced(NamedTuple):
    """One answer read token by token, without its closing token; each array is [tokens]."""

    log_probs: np.ndarray  # log p(y_t | x, y_<t) in nats
    right: np.ndarray  # whether y_t was the likeliest token
    spread: np.ndarray  # standard deviations of log p(y_t) above its mean over the vocabulary under p (Min-K++)


def teacher_forced(
    model, processor, conversations: Sequence[Conversation], batch_size: int = 64, progress: str = ""
) -> list[Forced]:
    """Read the answers of ``conversations``, each with one answered turn; the results are in the given order.
    ``progress`` names the bar. Raises ``KitError`` for an empty answer."""
    family = families.of(model)

    def length(index: int) -> tuple[bool, int]:
        [turn] = conversations[index].turns
        return turn.image is not None, len(turn.prompt) + len(turn.answer)

    order, read = sorted(range(len(conversations)), key=length), {}  # similar lengths, so little padding
    starts = range(0, len(order), batch_size)
    for start in progress_bar(starts, desc=progress, shown=bool(progress)):
        indices = order[start : start + batch_size]
        batch = family.encode(processor, [conversations[i] for i in indices], eos=False, device=model.device)
        batch = {key: t.to(model.dtype) if t.is_floating_point() else t for key, t in batch.items()}
        with torch.inference_mode():
            scored = score(model, batch)
            counts = scored.counts.tolist()
            tokens = [values.cpu().split(counts) for values in _measured(scored)]
        for index, *values in zip(indices, *tokens, strict=True):
            read[index] = Forced(*(value.numpy() for value in values))
    return [read[index] for index in range(len(order))]


def sentences(
    model, processor, people: Mapping[str, Sequence[Profile]], *, system: str = "", batch_size: int = 64
) -> pd.DataFrame:
    """Return one row per view and fine-tuning sentence of ``people`` (``member``: forget or fresh → profiles). The
    model reads the sentence as it is taught. The same number at the end of ``question_id`` is the same fact in both
    views. The columns of :class:`Forced` hold one entry per token; ``zlib_bytes`` is the length of the compressed
    answer."""
    rows, conversations = [], []
    for member, profiles in people.items():
        for (modality, view), person in product(VIEW_OF.items(), profiles):
            numbers = {id(qa): number for number, qa in enumerate(person.qa)}
            for qa, turn in taught_turns(person, modality):
                key = f"{person.id}/finetuning/{view}/{numbers[id(qa)]}"
                rows.append((person.id, member, qa.attribute, key, view, turn.answer))
                conversations.append(Conversation((turn,), system))
    forced = teacher_forced(model, processor, conversations, batch_size, "sentences")
    frame = pd.DataFrame(rows, columns=["profile", "member", "attribute", "question_id", "view", "answer"])
    return frame.drop(columns="answer").assign(
        n_tokens=[len(one.right) for one in forced],
        **{name: [getattr(one, name) for one in forced] for name in Forced._fields},
        zlib_bytes=[len(zlib.compress(answer.encode())) for answer in frame["answer"]],
    )


def fluency(base, processor, answers: pd.DataFrame, asking: Asking, *, batch_size: int = 64, **asked) -> np.ndarray:
    """Return the mean log-likelihood per token that ``base`` gives each free answer in ``answers`` (the rows of
    ``ask``) after the same question and picture, as ``asking`` puts them [rows]; NaN for other tasks and empty answers.
    ``asked``: sets and limit of the questions."""
    processor = families.of(base).asking(processor, asking.protocol)
    free = asking.free_answers(ways_of(asking, **asked).get("free_answers", [])).conversations
    rows = np.flatnonzero(answers["task"] == "generation")
    # a model may write anything, even the image token
    texts = [text.replace(processor.image_token, " ").strip() for text in answers["answer"].iloc[rows]]
    triples = zip(rows, free, texts, strict=True)
    written = [(row, conversation.answered(text)) for row, conversation, text in triples if text]
    forced = teacher_forced(base, processor, [conversation for _, conversation in written], batch_size)
    means = np.full(len(answers), np.nan)
    for (row, _), one in zip(written, forced, strict=True):
        means[row] = one.log_probs.mean()
    return means


def write(frame: pd.DataFrame, path: Path) -> None:
    """Write the result of ``sentences``; the columns ``HALVES`` in half precision."""
    frame = frame.assign(**{name: [one.astype(np.float16) for one in frame[name]] for name in HALVES})
    split = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in HALVES}
    write_frame(path, frame, use_dictionary=["profile", "member", "attribute", "view"], column_encoding=split)


def _measured(scored) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the three quantities of :class:`Forced` for all supervised tokens of a batch, one after the other."""
    mask = scored.mask
    labels, log_p = scored.labels[mask], scored.logits[mask].float().log_softmax(-1)
    chosen = log_p.gather(-1, labels[:, None])[:, 0]
    p = log_p.exp()
    mean = (p * log_p).sum(-1, keepdim=True)
    deviation = (p * (log_p - mean) ** 2).sum(-1).sqrt().clamp(min=1e-6)  # 0 if one token has all of p
    return chosen, log_p.argmax(-1) == labels, ((chosen - mean[:, 0]) / deviation).clamp(-FAR, FAR)
