"""``mllmu-nb judge RUN ..``: a model behind an OpenAI-compatible endpoint grades the free answers of finished runs
(``docs/scoring.md``, "A judge"). Only text is sent: a question, its true answer and the answer to be judged."""

import argparse
import json
import os
import re
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from mllmu_nb.errors import KitError
from mllmu_nb.reporting.runs import read_run
from mllmu_nb.scoring import judge, text

EXAMPLES = ("judge results/miniature/runs/*", "judge results/miniature/runs/* --yes --jobs 16")
VARIABLE, DEFAULT = "MLLMU_NB_JUDGE_MODEL", "gpt-4o-mini"
PRICES = (0.15, 0.60)  # gpt-4o-mini's, in dollars per million tokens, when this was written
TRIES = 3  # per question, if its reply has no valid grade; the client itself repeats lost requests
REPLY_TOKENS = 200  # at most
LIKE_A_KEY = 8  # characters: a shorter key, for an endpoint that needs none, may be a word of a reply
REFUSED = 5  # questions: if the first so many are all refused, the reason is not their content
TOKENS_A_CHARACTER = 0.25  # of English text, for the estimate
Texts = tuple[str, str, str]  # question, truth, answer


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="finished runs, all in one results folder")
    parser.add_argument("--yes", action="store_true", help="ask the judge; without it, only estimate the cost")
    parser.add_argument("--jobs", type=int, default=8, metavar="N", help="questions at a time (default: 8)")
    about = "dollars for a million tokens sent and received, for the estimate (default: gpt-4o-mini's)"
    parser.add_argument("--prices", type=float, nargs=2, metavar=("IN", "OUT"), help=about)


def main(options: argparse.Namespace) -> int:
    """Estimate, ask, and print how far judge and rubric agree. Returns 1 if answers have no grade."""
    if options.jobs < 1:
        raise KitError(f"--jobs must be at least 1, not {options.jobs}")
    prices = options.prices or (PRICES if model_name() == DEFAULT else ())
    if not all(0 <= price < inf for price in prices):
        raise KitError(f"--prices must be two numbers from 0 on, not {prices[0]} and {prices[1]}")
    folders = {run.resolve().parent.parent for run in options.runs}
    if len(folders) > 1:  # replies are stored beside their runs
        raise KitError(f"give runs of one folder at a time, not of {', '.join(sorted(map(str, folders)))}")
    answers = pd.concat([read_run(folder).answers for folder in options.runs], ignore_index=True)
    path, failed = folders.pop() / judge.FILE, 0
    asked = unjudged(answers, path)
    sent, received, cost = estimate(asked, prices or (0, 0))
    rates = " and ".join(f"${price:g}" for price in prices)
    price = f", about ${cost:.2f} at {rates} a million tokens (--prices)" if prices else " (--prices adds the cost)"
    print(
        f"{len(asked)} answers to be judged by {model_name()}: about {sent:,} tokens sent, at most {received:,} "
        f"received{price}; without a valid grade an answer is asked about again, {TRIES} times at most"
    )
    if asked and not options.yes:
        print("nothing was sent: add --yes to ask")
        return 0
    if asked:
        failed = ask(asked, path, client(), jobs=options.jobs)
    print(agreement(judge.with_grades(answers, path)))
    if failed:
        print(f"{failed} answers have no valid grade and no score; the same command asks for them again")
    return 1 if failed else 0


def model_name() -> str:
    return os.environ.get(VARIABLE) or DEFAULT


def client(timeout: float = 60.0, retries: int = 5) -> Any:
    """The ``openai`` client. It reads OPENAI_API_KEY and OPENAI_BASE_URL by itself, and repeats lost connections, 429
    and 5xx with growing pauses. Raises KitError if the package or the key is missing, or if the key or the address is
    malformed."""
    try:
        import openai
    except ImportError:
        raise KitError("the judge needs the package openai: pip install -e '.[judge]'") from None
    key, address = (os.environ.get(name, "") for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"))
    if not key:
        raise KitError("the judge needs a key: set OPENAI_API_KEY (any text where the endpoint asks for none)")
    if not re.fullmatch("[!-~]+", key):  # it is sent in a header
        raise KitError("OPENAI_API_KEY contains a blank, a line break or a non-ASCII character: set it to the key only")
    if address and not re.fullmatch(r"https?://[^\s/]\S*", address):
        raise KitError("OPENAI_BASE_URL must be an address such as https://host/v1")  # it may hold a password
    try:
        return openai.OpenAI(timeout=timeout, max_retries=retries)
    except Exception as error:  # of the library that openai uses; its text may hold a password of the address
        kind = type(error).__name__
        raise KitError(f"OPENAI_BASE_URL cannot be used ({kind}): set it to an address like https://host/v1") from None


def unjudged(answers: pd.DataFrame, path: Path) -> list[Texts]:
    """The free answers without a stored reply, each once. Raises KitError if stored replies are of another judge."""
    stored, name = judge.replies(path), model_name()
    if others := set(stored["judge"]) - {name}:
        raise KitError(f"{path} holds replies of {', '.join(sorted(others))}: move it away to ask {name}")
    known, texts = set(stored["hash"]), dict.fromkeys(judge.free_answers(answers))
    return [one for one in texts if judge.hash_of(name, *one) not in known]


def message(texts: Texts) -> str:
    """The message to the judge. It is JSON, so an answer cannot end its own field."""
    return json.dumps(dict(zip(("question", "truth", "answer"), texts, strict=True)), ensure_ascii=False)


def estimate(asked: list[Texts], prices: Iterable[float]) -> tuple[int, int, float]:
    """Tokens sent, tokens received at most, and what they cost; ``prices`` are per million of each."""
    characters = sum(len(judge.INSTRUCTIONS) + len(message(texts)) for texts in asked)
    tokens = round(TOKENS_A_CHARACTER * characters), REPLY_TOKENS * len(asked)
    return *tokens, sum(n * price for n, price in zip(tokens, prices, strict=True)) / 1e6


def ask(asked: list[Texts], path: Path, endpoint: Any, *, jobs: int = 8) -> int:
    """Send ``asked`` to the judge, ``jobs`` at a time, and append each valid reply to ``path`` as it comes. Returns
    how many got none. Raises KitError if the endpoint refuses the key, the model or every question, or cannot be
    reached, or if another model answers than the one behind the stored replies."""
    name, writing, graded, refused = model_name(), threading.Lock(), 0, 0
    models = set(judge.replies(path)["model"])  # that have answered; two could not be scored together
    with open(path, "a", encoding="utf-8") as file, ThreadPoolExecutor(jobs) as pool:
        if not path.read_bytes().endswith(b"\n"):
            file.write("\n")  # after a line that was cut off

        def failed(texts: Texts) -> bool:
            nonlocal graded, refused
            reply = _reply(endpoint, name, texts)
            with writing:
                graded, refused = graded + bool(reply), refused + (reply == {})
                if not graded and refused >= REFUSED:
                    what = f"refuses every question (HTTP 400 or 422): {name} may not know the settings it gets"
                    raise KitError(f"the judge's endpoint {what}: see {VARIABLE}")
                if reply:
                    models.add(reply["model"])
                    if len(models) > 1:
                        advice = f"move {path} away, or name one in {VARIABLE}"
                        raise KitError(f"answers to {name} come from {' and '.join(sorted(models))}: {advice}")
                    line = {"hash": judge.hash_of(name, *texts), "judge": name, **reply}
                    print(json.dumps(line), file=file, flush=True)
            return not reply

        try:
            return sum(tqdm(pool.map(failed, asked), total=len(asked)))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            endpoint.close()  # no request is repeated; those that are under way end after the client's timeout
            raise


def _reply(endpoint: Any, name: str, texts: Texts) -> dict[str, str] | None:
    """A ``reply`` with a valid grade and the ``model`` that gave it, since a name may mean another model tomorrow; None
    if ``TRIES`` replies have no valid grade; empty if the endpoint refuses the question, as a filter does. Error texts
    of the endpoint are not repeated: they may contain the key."""
    import openai

    messages = [{"role": "system", "content": judge.INSTRUCTIONS}, {"role": "user", "content": message(texts)}]
    how = {"temperature": 0, "max_tokens": REPLY_TOKENS, "response_format": {"type": "json_object"}}
    for _ in range(TRIES):
        try:
            reply = endpoint.chat.completions.create(model=name, messages=messages, **how)
            if not hasattr(reply, "choices"):  # such as a web page
                what = "answers with something else than completions"
                raise KitError(f"the judge's endpoint {what}: see OPENAI_BASE_URL, which often ends in /v1")
            judge.grade(content := reply.choices[0].message.content)
            if len(endpoint.api_key) >= LIKE_A_KEY and endpoint.api_key in repr([reply.model, json.loads(content)]):
                raise ValueError("a reply that repeats the key is not stored")
            return {"model": str(reply.model or name), "reply": content}
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            what = f"refuses the key or the model {name} (HTTP {error.status_code})"
            raise KitError(f"the judge's endpoint {what}: see OPENAI_API_KEY, OPENAI_BASE_URL, {VARIABLE}") from None
        except (openai.BadRequestError, openai.UnprocessableEntityError):
            return {}
        except KitError:
            raise
        except openai.APIError as error:
            status = getattr(error, "status_code", None)
            what = f"keeps failing (HTTP {status})" if status else "cannot be reached or is too slow"
            what += ": run the same command again later; replies are kept"
            raise KitError(f"the judge's endpoint {what}") from None
        except (ValueError, TypeError, IndexError, AttributeError, RecursionError):
            continue
    return None


def agreement(answers: pd.DataFrame) -> str:
    """How far the judge's grades and the rubric's agree, over the answers that have both."""
    if not (known := judge.agreement(judge.judged(answers), text.factuality(answers))):
        return "no answer has a grade of both judge and rubric"
    rank = f"{known.rank:.2f}".replace("nan", "unknown, because one of them gives a single grade")
    return (
        f"judge and rubric over {known.answers} answers: means {known.judge:.2f} and {known.rubric:.2f}, "
        f"{known.within:.0%} within one point, rank correlation {rank}"
    )
