"""predictions -> the numbers of a table, with intervals for differences."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from memory_r1.data import CATEGORIES, Question
from memory_r1.errors import ConfigError
from memory_r1.text import bleu1, em, f1, f1_official
from memory_r1.types import Answer, Entry

Benchmark = Literal["locomo", "world"]

RECALL_AT = 60
"""The most entries the recall columns allow for: the paper's number of memories."""

PAPER_NAMES: Mapping[int, str] = {
    1: "single-hop",
    2: "temporal",
    3: "multi-hop",
    4: "open-domain",
    5: "adversarial",
}
"""What Memory-R1's and Mem0's tables call LoCoMo's categories; they swap three of the names."""


@dataclass(frozen=True)
class Prediction:
    """One line of predictions.jsonl: a question, what was retrieved for it, what was answered.

    em, f1, f1_official and bleu1 are 0..1, each the best over the accepted answers.
    """

    question_id: str
    dialogue_id: str
    category: int
    question: str
    gold: str
    prediction: str
    retrieved: list[dict[str, Any]]
    """[{"entry_id", "source_turns"}], in the order the Answer Agent is shown them."""
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
    evidence: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    kind: str = ""
    phenomenon: str = ""

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def judge(question: Question, answer: Answer) -> Prediction:
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
        retrieved=[{"entry_id": e.id, "source_turns": list(e.sources)} for e in answer.retrieved],
        used=[entry.id for entry in answer.used],
        em=best(em),
        f1=best(f1),
        f1_official=best(lambda said, gold: f1_official(said, gold, question.category)),
        bleu1=best(bleu1),
        latency=dict(answer.latency),
        tokens=list(answer.tokens),
        prompt_hash=answer.prompt_hash,
        evidence=list(question.evidence),
        accepted=list(question.accepted),
        kind=question.kind,
        phenomenon=question.phenomenon,
    )


def recall(prediction: Prediction, k: int = RECALL_AT) -> float | None:
    """Share (0..1) of the evidence turns that the retrieved entries, at most k, rest on.

    None for what can't be scored: a question without evidence, or more than k entries.
    """
    if not prediction.evidence or len(prediction.retrieved) > k:
        return None
    seen = {turn for entry in prediction.retrieved for turn in entry["source_turns"]}
    return sum(turn in seen for turn in prediction.evidence) / len(prediction.evidence)


def measures(predictions: Sequence[Prediction]) -> dict[str, float | int | None]:
    """The columns of one row: shares as 0..100 with one decimal, None where nothing counts."""
    found = [share for p in predictions if (share := recall(p)) is not None]
    sources = [len(entry["source_turns"]) for p in predictions for entry in p.retrieved]
    return {
        "n": len(predictions),
        "em": percent([p.em for p in predictions]),
        "f1": percent([p.f1 for p in predictions]),
        "f1_official": percent([p.f1_official for p in predictions]),
        "bleu1": percent([p.bleu1 for p in predictions]),
        f"recall@{RECALL_AT}": percent(found),
        f"all@{RECALL_AT}": percent([float(share == 1.0) for share in found]),
        "answer_words": _mean([len(p.prediction.split()) for p in predictions]),
        # An entry that cites every turn would have perfect recall: shown beside it.
        "sources_per_entry": _mean(sources),
    }


def group_names(benchmark: Benchmark, prediction: Prediction) -> list[str]:
    """The groups a prediction counts in: LoCoMo's category, the world's kind and phenomenon."""
    if benchmark == "locomo":
        category = prediction.category
        official, paper = CATEGORIES[category], PAPER_NAMES[category]
        same = official == paper
        return [f"{category} {official}" if same else f"{category} {official} (paper: {paper})"]
    names = [f"kind: {prediction.kind}"] if prediction.kind else []
    if prediction.phenomenon:
        names.append(f"phenomenon: {prediction.phenomenon}")
    return names


def groups(
    benchmark: Benchmark, predictions: Sequence[Prediction]
) -> dict[str, dict[str, float | int | None]]:
    """`measures` of each group, in order of the names."""
    members: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        for name in group_names(benchmark, prediction):
            members.setdefault(name, []).append(prediction)
    return {name: measures(members[name]) for name in sorted(members)}


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
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):  # one row at a time: 10,000 x 1,307 at once would take 100 MB
        means[i] = gaps[generator.integers(len(gaps), size=len(gaps))].mean()
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(gaps.mean()), float(low), float(high))


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 1) if len(values) else None


def percent(shares: Sequence[float]) -> float | None:
    """The mean of shares 0..1, as 0..100 with one decimal; None of none."""
    return round(100 * float(np.mean(shares)), 1) if len(shares) else None
