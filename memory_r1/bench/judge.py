"""predictions + a language model -> which answers are right  (LLM as a judge).

Every verdict is kept in the run's judgements.jsonl with the reply it was read from, so that a
judge is asked once, and what it said can be looked into and corrected by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from memory_r1 import grading
from memory_r1.bench import score
from memory_r1.bench.folder import RunFolder
from memory_r1.bench.score import Prediction, Verdicts
from memory_r1.errors import ConfigError, DataError, ModelUnavailable
from memory_r1.grading import LABELS, MAX_TOKENS, SCHEMA, Verdict, check, instruction_hash, read
from memory_r1.llm import LLM
from memory_r1.types import Prompt

FILE = "judgements.jsonl"
BATCH = 32
Progress = Callable[[str, int, int], None]
"""Called with "judge" and how many answers of how many are judged."""
Key = tuple[str, int]
"""(question_id, sessions); see `Prediction.key`."""


def render(prediction: Prediction, benchmark: str) -> Prompt:
    """What a judge is shown of an answer; see `grading.render`."""
    golds = (prediction.gold, *prediction.accepted)
    return grading.render(
        benchmark, prediction.question, golds, prediction.prediction, prediction.guidance
    )


@dataclass(frozen=True)
class Judged:
    """What one judge says of the answers of a run."""

    judge: str
    """Its name."""
    prompt_hash: str
    """Of the instruction; see `instruction_hash`."""
    verdicts: Verdicts
    """Of every answer of the run; None also where it was not asked yet."""

    @property
    def unscored(self) -> float | None:
        """Share (0..100) of the answers without a verdict; None of none."""
        return score.percent([float(right is None) for right in self.verdicts.values()])

    def as_json(self) -> dict[str, Any]:
        """What scores.json says under "judge"."""
        return {"name": self.judge, "prompt_hash": self.prompt_hash, "unscored": self.unscored}


def judge(
    folder: RunFolder,
    llm: LLM,
    *,
    benchmark: str,
    progress: Progress = lambda stage, done, total: None,
    batch: int = BATCH,
) -> Judged:
    """Have a model judge all answers of a run so far, finished or not.

    Verdicts are appended to judgements.jsonl as they come, and an answer that has one by this
    judge for the same prompt is not asked about again. Equal prompts (a question asked twice, or
    after every few sessions, with the same answer) are asked once. An empty answer is WRONG
    without a call, also where abstaining is right: the Answer Agent said nothing.

    Raises ConfigError for a model that can't judge, DataError when there is nothing to judge,
    ModelUnavailable when the model stops replying; the same call then goes on from there.
    """
    check(llm)
    predictions = predictions_of(folder)
    if not predictions:
        raise DataError(f"{folder.path} holds no predictions yet: there is nothing to judge")
    log = _Log(folder, llm.name, benchmark, predictions)
    log.copy_known()
    open_ = log.open()
    total = len(predictions)
    progress("judge", log.done, total)
    for start in range(0, len(open_), batch):
        prompts = open_[start : start + batch]
        try:
            completions = llm.complete(
                prompts, max_tokens=MAX_TOKENS, temperature=0.0, schema=SCHEMA
            )
        except ModelUnavailable as error:
            raise ModelUnavailable(
                f"{error} {log.done} of {total} answers are judged, and kept in {FILE}; the same "
                "command goes on."
            ) from error
        for prompt, completion in zip(prompts, completions, strict=True):
            log.write(prompt.hash, read(completion.text))
        progress("judge", log.done, total)
    return log.judged()


class _Log:
    """What a judge has said of the answers as they are now, on disk and here."""

    def __init__(
        self, folder: RunFolder, name: str, benchmark: str, predictions: Sequence[Prediction]
    ) -> None:
        self._folder, self._name = folder, name
        self._instruction_hash = instruction_hash(benchmark)
        self._predictions = {p.key: p for p in predictions}
        self._prompts = {p.key: render(p, benchmark) for p in predictions}
        self._keys_of: dict[str, list[Key]] = {}
        for key, prompt in self._prompts.items():
            self._keys_of.setdefault(prompt.hash, []).append(key)
        self._found: dict[Key, bool | None] = {}
        self._by_prompt: dict[str, Verdict] = {}
        for key, prompt_hash, verdict in _rows(folder, name):
            self._by_prompt[prompt_hash] = verdict
            if key in self._prompts and self._prompts[key].hash == prompt_hash:
                self._found[key] = verdict.correct

    @property
    def done(self) -> int:
        """How many answers have a row."""
        return len(self._found)

    def copy_known(self) -> None:
        """Write rows for the answers whose verdict is known without asking."""
        for prompt_hash, keys in self._keys_of.items():
            if not self._predictions[keys[0]].prediction.strip():
                self.write(prompt_hash, Verdict(False, "", "the Answer Agent said nothing"))
            elif prompt_hash in self._by_prompt:
                self.write(prompt_hash, self._by_prompt[prompt_hash])

    def open(self) -> list[Prompt]:
        """The prompts still to be asked, each once."""
        return [
            self._prompts[keys[0]]
            for keys in self._keys_of.values()
            if any(key not in self._found for key in keys)
        ]

    def write(self, prompt_hash: str, verdict: Verdict) -> None:
        """Keep a verdict for every answer with this prompt that has none."""
        keys = [key for key in self._keys_of[prompt_hash] if key not in self._found]
        self._folder.append(
            FILE,
            (
                {
                    "question_id": key[0],
                    "sessions": key[1],
                    "judge": self._name,
                    "prompt_hash": prompt_hash,
                    "instruction_hash": self._instruction_hash,
                    "verdict": verdict.label,
                    "reply": verdict.reply,
                    "reason": verdict.reason,
                }
                for key in keys
            ),
        )
        self._found |= dict.fromkeys(keys, verdict.correct)

    def judged(self) -> Judged:
        """All that is known."""
        return Judged(
            self._name,
            self._instruction_hash,
            {key: self._found.get(key) for key in self._prompts},
        )


def _rows(folder: RunFolder, name: str) -> Iterator[tuple[Key, str, Verdict]]:
    """(key, prompt hash, verdict) of the rows of one judge."""
    known = {label: correct for correct, label in LABELS.items()}
    for number, row in enumerate(folder.rows(FILE), 1):
        try:
            if row["judge"] == name:
                said = Verdict(known[row["verdict"]], row["reply"], row.get("reason", ""))
                yield (row["question_id"], row["sessions"]), row["prompt_hash"], said
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{folder.path / FILE}, line {number} is no judgement: expected question_id, "
                f"sessions, judge, prompt_hash, reply and a verdict CORRECT, WRONG or null, got "
                f"{str(row)[:120]}. Remove the line to have it judged again"
            ) from error


def judged_by(folder: RunFolder, name: str) -> Judged:
    """What a judge has said so far of the answers of a run, as they are now, without asking it.

    Raises DataError when it has said nothing.
    """
    log = _Log(folder, name, benchmark_of(folder), predictions_of(folder))
    if not log.done:
        raise DataError(
            f"{folder.path / FILE} holds no judgement by {name!r} of these answers; run:  "
            f"memory-r1 judge {folder.path} --judge MODEL"
        )
    return log.judged()


def verdicts(folder: RunFolder, name: str) -> Verdicts:
    """By (question_id, sessions), what a judge has said so far; see `judged_by`."""
    return judged_by(folder, name).verdicts


def rescore(folder: RunFolder, name: str | None = None) -> dict[str, Any]:
    """Write scores.json anew from the predictions and a judge's verdicts; returns its content.

    name: the judge; None: the one that scores.json names, if any. Changed are "overall", "groups",
    "judge" and the judge's columns of "curve"; all else stays as it was measured.
    Raises DataError for a run that has no scores yet, or scores of other answers.
    """
    path = folder.path / "scores.json"
    if not path.exists():
        raise DataError(f"{folder.path} has no scores.json: finish the run, by the same command")
    scores: dict[str, Any] = json.loads(path.read_text("utf-8"))
    name = name or (scores.get("judge") or {}).get("name")
    judged = judged_by(folder, name) if name else None
    said = judged.verdicts if judged else None
    predictions = predictions_of(folder)
    last = score.last_asked(predictions)
    if scores["n"] != len(last):
        raise DataError(
            f"{path} is about {scores['n']} answers, predictions.jsonl holds {len(last)}: finish "
            "the run, by the same command without --limit; verdicts are kept"
        )
    for row in scores.get("curve", ()):
        row |= score.judged([p for p in predictions if p.sessions == row["sessions"]], said)
    spread = score.intervals(last, said, seed=scores.get("seed") or 0)
    scores |= {
        "overall": {**score.measures(last, said), "intervals": spread},
        "groups": score.groups(last, said),
        "judge": judged.as_json() if judged else None,
    }
    folder.write_scores(scores)
    return scores


def open_run(path: Path) -> RunFolder:
    """The folder of a benchmark run that exists. ConfigError when it is none."""
    config = path / "config.json"
    if not config.is_file() or not (path / "predictions.jsonl").is_file():
        raise ConfigError(
            f"{path} is no folder of a benchmark run: expected config.json and predictions.jsonl, "
            "which `memory-r1 bench ... --out FOLDER` writes"
        )
    return RunFolder(path, _config(path))


def benchmark_of(folder: RunFolder) -> str:
    """The name of the benchmark of a run; DataError when its config.json does not say it."""
    match _config(folder.path):
        case {"benchmark": str(name)}:
            return name
    raise DataError(f"{folder.path / 'config.json'} names no benchmark; was it written by bench?")


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path / 'config.json'} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"{path / 'config.json'} should hold an object, got {str(config)[:80]}")
    return config


def predictions_of(folder: RunFolder) -> list[Prediction]:
    """The answers of a run, one per question and number of sessions.

    Raises DataError for rows of another version: a measure they lack is not a zero.
    """
    found: dict[Key, Prediction] = {}
    known = {field.name for field in fields(Prediction)}
    for row in folder.rows("predictions.jsonl"):
        if row.keys() != known:
            raise DataError(
                f"{folder.path / 'predictions.jsonl'} was not written by this version: it differs "
                f"in {', '.join(sorted(row.keys() ^ known))}; run the benchmark again"
            )
        prediction = Prediction(**row)
        found[prediction.key] = prediction
    return list(found.values())
