"""predictions -> the numbers of a table, with intervals for differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from memory_r1.data import ADVERSARIAL, Question, session_of
from memory_r1.errors import ConfigError
from memory_r1.text import bleu1, em, f1, f1_official, rouge_l_recall
from memory_r1.types import Answer, Entry

RECALL_AT = 60
"""The most entries the recall columns allow for: the paper's number of memories."""
SESSIONS_AT = (5, 10)
"""The first places that LongMemEval's measures of retrieval look at."""
BY_WORDS = ("em", "f1", "f1_official", "bleu1", "rouge_l_recall")
"""The measures that compare words; fields of `Prediction`, 0..1."""

Verdicts = Mapping[tuple[str, int], bool | None]
"""By (question_id, sessions): whether a judge finds the answer right; None: it did not say."""
Floats = npt.NDArray[np.float64]
Row = dict[str, float | int | None]
"""The columns of one row of a table; see `measures`."""


@dataclass(frozen=True)
class Prediction:
    """One line of predictions.jsonl: a question, what was retrieved for it, what was answered.

    em, f1, f1_official, bleu1 and rouge_l_recall are 0..1, each the best over the accepted
    answers.
    """

    question_id: str
    dialogue_id: str
    category: int
    question: str
    gold: str
    prediction: str
    retrieved: list[dict[str, Any]]
    """[{"entry_id", "source_turns", "score"}], in the order the Answer Agent is shown them; score
    is what search gave it, None where nothing was ranked."""
    used: list[str]
    """Ids of the entries the answer named."""
    em: float
    f1: float
    f1_official: float
    bleu1: float
    latency: dict[str, float]
    """Seconds per component; with a batch, seconds of the whole batch."""
    tokens: list[int]
    """Of the prompt and of the completion."""
    prompt_hash: str
    calls: int = 0
    """How often a model was asked for it."""
    evidence: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    kind: str = ""
    phenomenon: str = ""
    groups: list[str] = field(default_factory=list)
    """The rows of a table that it counts in."""
    sessions: int = 0
    """How many sessions the memory had seen when it was asked; 0: the whole dialogue."""
    memories: int = 0
    """How many entries the bank had then."""
    guidance: str = ""
    """See `data.Question.guidance`."""
    rouge_l_recall: float = 0.0

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from the other predictions of its run: (question_id, sessions)."""
        return self.question_id, self.sessions

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def compare(question: Question, answer: Answer) -> Prediction:
    """Compare an answer with the gold answers, by words only."""

    def best(measure: Callable[[str, str], float]) -> float:
        return max(float(measure(answer.text, gold)) for gold in question.golds)

    return Prediction(
        question_id=question.id,
        dialogue_id=question.dialogue_id,
        category=question.category,
        question=question.text,
        gold=question.answer,
        prediction=answer.text,
        retrieved=[
            {"entry_id": entry.id, "source_turns": list(entry.sources), "score": score}
            for entry, score in zip_longest(answer.retrieved, answer.scores)
        ],
        used=[entry.id for entry in answer.used],
        em=best(em),
        f1=best(f1),
        f1_official=best(lambda said, gold: f1_official(said, gold, question.category)),
        bleu1=best(bleu1),
        rouge_l_recall=best(rouge_l_recall),
        latency=dict(answer.latency),
        tokens=list(answer.tokens),
        prompt_hash=answer.prompt_hash,
        evidence=list(question.evidence),
        accepted=list(question.accepted),
        kind=question.kind,
        phenomenon=question.phenomenon,
        groups=list(question.groups),
        guidance=question.guidance,
    )


def recall(prediction: Prediction, k: int = RECALL_AT) -> float | None:
    """Share (0..1) of the evidence turns that the retrieved entries, at most k, rest on.

    None for what can't be scored: a question without evidence, more than k entries, and a system
    that shows all it has.
    """
    if not prediction.evidence or len(prediction.retrieved) > k or shows_all(prediction):
        return None
    seen = {turn for entry in prediction.retrieved for turn in entry["source_turns"]}
    return sum(turn in seen for turn in prediction.evidence) / len(prediction.evidence)


def shows_all(prediction: Prediction) -> bool:
    """Whether nothing was chosen from a bank that holds something, as in the full context."""
    return not prediction.retrieved and prediction.memories > 0


def recall_any(ranking: Sequence[Hashable], relevant: Collection[Hashable], k: int) -> float:
    """1.0 when at least one relevant id is among the first k, else 0.0 (LongMemEval)."""
    return float(not set(relevant).isdisjoint(ranking[:k]))


def recall_all(ranking: Sequence[Hashable], relevant: Collection[Hashable], k: int) -> float:
    """1.0 when every relevant id is among the first k, else 0.0 (LongMemEval)."""
    return float(set(relevant) <= set(ranking[:k]))


def ndcg(ranking: Sequence[Hashable], relevant: Collection[Hashable], k: int) -> float:
    """Discounted gain of the first k ids over that of the best order, 0..1.

    ranking: ids, best first, each once. A relevant id gains 1 in the first place and 1 / log2(i)
    in place i from the second on, as in LongMemEval's evaluation: so the second place loses
    nothing. 0.0 when nothing is relevant.
    """
    wanted = set(relevant)
    gained = sum(_gain(i) for i, found in enumerate(ranking[:k], 1) if found in wanted)
    best = sum(_gain(i) for i in range(1, min(k, len(wanted)) + 1))
    return gained / best if best else 0.0


def _gain(place: int) -> float:
    return 1.0 if place == 1 else 1 / math.log2(place)


def ranked_sessions(prediction: Prediction) -> list[int] | None:
    """The sessions that the retrieved entries rest on, best first, each at its best place.

    Entries count in the order of their scores, whatever order they were shown in. [] where
    nothing was found, None where what was shown was not ranked.
    """
    if shows_all(prediction) or any(entry.get("score") is None for entry in prediction.retrieved):
        return None
    best_first = sorted(prediction.retrieved, key=lambda entry: -entry["score"])
    sessions = (session_of(turn) for entry in best_first for turn in entry["source_turns"])
    return list(dict.fromkeys(session for session in sessions if session is not None))


def measures(predictions: Sequence[Prediction], verdicts: Verdicts | None = None) -> Row:
    """The columns of one row: shares as 0..100 with one decimal, None where nothing counts.

    verdicts: of a judge. "judge" is the share of right answers among those it decided on,
    "unscored" the share of all that it did not: its reply was no verdict, or it was never asked.
    docs/metrics.md defines every column.
    """
    found = [share for p in predictions if (share := recall(p)) is not None]
    sources = [len(entry["source_turns"]) for p in predictions for entry in p.retrieved]
    return {
        "n": len(predictions),
        **{name: percent([getattr(p, name) for p in predictions]) for name in BY_WORDS},
        **judged(predictions, verdicts),
        f"recall@{RECALL_AT}": percent(found),
        f"all@{RECALL_AT}": percent([float(share == 1.0) for share in found]),
        **_by_session(predictions),
        "answer_words": _mean([len(p.prediction.split()) for p in predictions]),
        # An entry that cites every turn would have perfect recall: shown beside it.
        "sources_per_entry": _mean(sources),
    }


def judged(predictions: Sequence[Prediction], verdicts: Verdicts | None) -> Row:
    """The two columns that come from a judge: "judge" and "unscored"; see `measures`."""
    if verdicts is None:
        return {"judge": None, "unscored": None}
    said = [verdicts.get(p.key) for p in predictions]
    return {
        "judge": percent([float(right) for right in said if right is not None]),
        "unscored": percent([float(right is None) for right in said]),
    }


def _by_session(predictions: Sequence[Prediction]) -> Row:
    """LongMemEval's measures of retrieval, with the sessions of the evidence as what is sought."""
    rankings = []
    for prediction in predictions:
        relevant = {session_of(turn) for turn in prediction.evidence} - {None}
        ranking = ranked_sessions(prediction)
        if relevant and ranking is not None and prediction.category != ADVERSARIAL:
            rankings.append((ranking, relevant))
    by_name = {"recall_any": recall_any, "recall_all": recall_all, "ndcg": ndcg}
    return {
        f"session_{name}@{k}": percent([measure(*pair, k) for pair in rankings])
        for k in SESSIONS_AT
        for name, measure in by_name.items()
    }


def last_asked(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Each question as it was asked last: after the most sessions (a streaming run asks again)."""
    by_sessions = sorted(predictions, key=lambda prediction: prediction.sessions)
    return list({prediction.question_id: prediction for prediction in by_sessions}.values())


def groups(predictions: Sequence[Prediction], verdicts: Verdicts | None = None) -> dict[str, Row]:
    """`measures` of each group, in order of the names."""
    members: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        for name in prediction.groups:
            members.setdefault(name, []).append(prediction)
    return {name: measures(members[name], verdicts) for name in sorted(members)}


def intervals(
    predictions: Sequence[Prediction],
    verdicts: Verdicts | None = None,
    *,
    seed: int = 0,
    resamples: int = 10_000,
) -> dict[str, list[float]]:
    """Where the means over other questions of this kind would lie: [low, high], 0..100.

    The middle 95% of the means of resampled questions (percentile bootstrap), one decimal, for
    the measures by words and, with verdicts, for "judge" over the answers it decided on. A
    measure that nothing counts for is left out. A question that is there twice, asked after
    different numbers of sessions, counts as two; see `last_asked`.
    """
    if not predictions:
        return {}
    predictions = sorted(predictions, key=lambda p: p.key)  # batches end in any order
    columns = {name: [getattr(p, name) for p in predictions] for name in BY_WORDS}
    said = [(verdicts or {}).get(p.key) for p in predictions]
    columns["judge"] = [math.nan if right is None else float(right) for right in said]
    columns = {name: of for name, of in columns.items() if not np.isnan(of).all()}
    scores = np.array(list(columns.values()), dtype=np.float64).T
    means = _resampled_means(scores, seed, resamples)
    low, high = 100 * np.nanpercentile(means, [2.5, 97.5], axis=0)
    return {
        name: [round(float(a), 1), round(float(b), 1)]
        for name, a, b in zip(columns, low, high, strict=True)
    }


def _resampled_means(scores: Floats, seed: int, resamples: int) -> Floats:
    """Means of `scores`, (questions, columns), over questions drawn with replacement.

    A NaN is a question that its column does not count. Returns (resamples, columns), NaN where a
    draw holds no question that counts.
    """
    generator = np.random.default_rng(seed)
    size = len(scores)
    counted = ~np.isnan(scores)
    filled = np.where(counted, scores, 0.0)
    means = np.empty((resamples, scores.shape[1]))
    block = max(1, 500_000 // size)  # 10,000 draws of 1,307 questions at once would take 100 MB
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
        with np.errstate(invalid="ignore"):
            means[start : start + rows] = (times @ filled) / (times @ counted.astype(np.float64))
    return means


def percentiles(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Median and 95th percentile, in seconds, of each component."""
    return {
        component: {
            "p50": round(float(np.percentile(values, 50)), 4),
            "p95": round(float(np.percentile(values, 95)), 4),
        }
        for component, values in sorted(seconds.items())
        if values
    }


def latencies(predictions: Sequence[Prediction]) -> dict[str, list[float]]:
    """The seconds of each component over all predictions."""
    seconds: dict[str, list[float]] = {}
    for prediction in predictions:
        for component, value in prediction.latency.items():
            seconds.setdefault(component, []).append(value)
    return seconds


def sources_of_targets(events: Sequence[Mapping[str, Any]]) -> list[frozenset[str]]:
    """For each labelled event of a world's dialogue, the turns that its right target rests on."""
    rests_on: dict[str, frozenset[str]] = {}
    found = []
    for event in events:
        old = rests_on.get(event["target"], frozenset())
        found.append(old)
        match event["op"]:
            case "ADD":
                rests_on[event["text"]] = frozenset([event["dia_id"]])
            case "UPDATE":
                rests_on.pop(event["target"], None)
                rests_on[event["text"]] = old | {event["dia_id"]}
            case "DELETE":
                rests_on.pop(event["target"], None)
    return found


def names_target(entry: Entry, target: str, sources: Collection[str]) -> bool:
    """Whether an operation on `entry` concerns the right target.

    It does when the entry says just that, or rests on one of the turns (`sources`) that the
    target rests on: a manager that words its memories in its own way may still point right.
    An empty target (nothing should be changed) is named by none.
    """
    return bool(target) and (entry.text == target or not set(sources).isdisjoint(entry.sources))


class Interval(NamedTuple):
    """A difference of two means and where it lies in 95% of the resamples."""

    difference: float
    low: float
    high: float


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], seed: int = 0, *, resamples: int = 10_000
) -> Interval:
    """How much higher a's mean is than b's on the same questions, with a 95% interval.

    a, b: (questions,) scores in the same order and unit. Questions are resampled with
    replacement, both scores of a question together (Koehn 2004).
    Raises ConfigError when the two don't pair up or are empty.
    """
    if len(a) != len(b) or not len(a):
        raise ConfigError(
            f"paired scores are needed, one of each per question; got {len(a)} and {len(b)}"
        )
    gaps = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    low, high = np.percentile(_resampled_means(gaps[:, None], seed, resamples), [2.5, 97.5])
    return Interval(float(gaps.mean()), float(low), float(high))


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 1) if len(values) else None


def percent(shares: Sequence[float]) -> float | None:
    """The mean of shares 0..1, as 0..100 with one decimal; None of none."""
    return round(100 * float(np.mean(shares)), 1) if len(shares) else None
