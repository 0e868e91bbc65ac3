"""Sampling on a vLLM server, tested on a real HTTP server that speaks its API."""

from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

from made_models import random_tiny  # noqa: E402
from vllm_server import FakeVllm  # noqa: E402

from memory_r1.config import Settings  # noqa: E402
from memory_r1.errors import ConfigError, MemoryR1Error, ModelUnavailable  # noqa: E402
from memory_r1.llm import Agents  # noqa: E402
from memory_r1.llm.local import LocalLLM  # noqa: E402
from memory_r1.train import learn as learning  # noqa: E402
from memory_r1.train.adapters import open_policy  # noqa: E402
from memory_r1.train.curves import read_metrics  # noqa: E402
from memory_r1.train.episodes import Outcome  # noqa: E402
from memory_r1.train.grpo import Grpo  # noqa: E402
from memory_r1.train.learn import learn  # noqa: E402
from memory_r1.train.policy import Policy  # noqa: E402
from memory_r1.train.remote import RemoteSampler, agree  # noqa: E402
from memory_r1.train.runfile import Grpo as GrpoSettings  # noqa: E402
from memory_r1.train.runfile import (  # noqa: E402
    Lora,
    Optimizer,
    Rollout,
    Run,
    Sampler,
    Steps,
    World,
)
from memory_r1.train.stage import Stage  # noqa: E402
from memory_r1.train.vllm import Ask, VllmServer  # noqa: E402
from memory_r1.types import Prompt  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def serve(folder):
    """A function that starts a server."""
    started = []

    def start(**settings):
        started.append(FakeVllm(folder, **settings))
        return started[-1]

    yield start
    for server in started:
        server.close()


@dataclass
class Capitals:
    """Pays for replies that begin with a capital; one in four of a random policy's do."""

    about: str
    policy: Policy
    turns: int = 1
    malformed: int = 0
    steps: int = 0

    def __post_init__(self):
        self.said = []

    @property
    def done(self):
        return self.steps == self.turns

    def prompt(self):
        return Prompt((("user", f"question {self.about} {' '.join(self.said[-1:])} =>"),))

    def step(self, completion):
        self.steps += 1
        self.said.append(completion.text)

    @property
    def key(self):
        return (self.about, *self.said)

    def judge(self):
        paid = sum(text[:1].isupper() for text in self.said) / len(self.said)
        return Outcome(paid, paid, paid)
        yield


class Practice(Stage):
    turns = 1

    def begin(self, start):
        return Capitals(start, self.policy, self.turns)


def make_run(url, **changes):
    settings = {
        "kind": "manager",
        "model": "x",
        "world": World(),
        "rollout": Rollout(prompts=4, group_size=8, max_tokens=2),
        "grpo": GrpoSettings(kl=0.0),
        "optimizer": Optimizer(lr=2e-2),
        "steps": Steps(total=4, checkpoint_every=2),
        "sampler": Sampler(url, retries=1, wait=30.0),
    }
    return Run(**{**settings, **changes})


def make_stage(folder, run, rank=0):
    """Where all weights are trained, or an adapter of this rank."""
    if rank:
        run = replace(run, lora=Lora(rank=rank, targets=("q_proj", "v_proj")))
    starts = ["Andrew", "Buddy", "Scout", "a dog"]
    policy = open_policy(run, LocalLLM(str(folder)))
    return Practice(run, policy, Agents(), Settings(), starts, [], {})


@pytest.fixture
def attach(serve, tmp_path):
    """A function that has a stage sampled by its run's server, and returns it."""
    with ExitStack() as held:

        def attached(stage, said=None, sleep=lambda seconds: None):
            say = (lambda text: None) if said is None else said.append
            sampler = RemoteSampler(stage.policy, stage.run.sampler, tmp_path, say, sleep)
            stage.sampler = held.enter_context(sampler)
            return stage

        yield attached


PROMPTS = [Prompt((("user", f"question {name} =>"),)) for name in ("Andrew", "Buddy", "Andrew")]


ASK = Ask("base", (1, 2), 1, 30, 1.0, (0,), 7)


def completions(server):
    return [body for path, body in server.asked if path == "/v1/completions"]


# --- tokens


@pytest.mark.parametrize("rank", [0, 3])
def test_the_server_samples_what_the_policy_itself_would(folder, serve, attach, rank):
    server = serve(development=True)
    run = make_run(server.url, rollout=Rollout(max_tokens=9, temperature=0.7))
    sampler = attach(make_stage(folder, run, rank)).sampler
    sampler.publish(0)
    steps = sampler.generate(PROMPTS, seed=5)
    asked = completions(server)
    assert sorted(body["n"] for body in asked) == [1, 2], "equal prompts travel together"
    assert [list(step.prompt_ids) for step in steps] == [
        sampler.policy.llm.encode(prompt) for prompt in PROMPTS
    ]
    assert steps[0].ids != steps[2].ids
    assert steps[0].text == sampler.policy.llm.decode(steps[0].ids)
    assert all(step.finished == (step.ids[-1] in sampler.policy.llm.end_ids) for step in steps)
    assert agree(sampler.policy, steps).worst < 1e-4
    again = sampler.generate(PROMPTS, seed=5)
    assert again == steps and sampler.generate(PROMPTS, seed=6) != steps


def test_the_distribution_is_not_cut(folder, serve, attach):
    server = serve(development=True)
    run = make_run(server.url, rollout=Rollout(temperature=0.7))
    sampler = attach(make_stage(folder, run)).sampler
    sampler.publish(0)
    sampler.generate(PROMPTS[:1], seed=0)
    [body] = completions(server)
    assert {name: body[name] for name in ("temperature", "top_p", "top_k", "min_p")} == {
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
    }
    assert body["return_token_ids"] is True and body["repetition_penalty"] == 1.0


@pytest.fixture(scope="module")
def echo(folder):
    """A server whose completions are set by the test."""
    server = FakeVllm(folder, development=True)
    server.client = VllmServer(server.url, key="sk-secret", retries=0)
    yield server
    server.client.close()
    server.close()


def answer(body, ids, logps, reason="length", **changes):
    logprobs = {"token_logprobs": logps}
    choice = {"index": 0, "token_ids": ids, "logprobs": logprobs, "finish_reason": reason}
    return 200, {"model": body["model"], "choices": [{**choice, **changes}]}


@given(st.lists(st.tuples(st.integers(0, 200_000), st.floats(-50, 0)), min_size=1, max_size=30))
def test_any_tokens_arrive_as_they_were_sampled(echo, sampled):
    """Also those that no tokenizer would make of their text."""
    ids, logps = zip(*sampled, strict=True)
    echo.fault = lambda path, body: answer(body, ids, logps) if body else None
    [reply] = echo.client.complete(ASK)
    assert (reply.ids, reply.logps, reply.stopped) == (ids, logps, False)


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (lambda body: (200, {"choices": []}), "no completion with token ids"),
        (lambda body: (200, "<html>"), "no completion with token ids .*takes vLLM 0.10.2 or later"),
        (lambda body: answer(body, None, [-1.0]), "takes vLLM 0.10.2 or later"),
        (lambda body: answer(body, [5], [None]), "takes vLLM 0.10.2 or later"),
        (lambda body: answer(body, [], []), "a completion of 0 tokens"),
        (lambda body: answer(body, [5, 6], [-1.0]), "2 tokens with 1 log-probs"),
        (lambda body: answer(body, [5], [-1.0], "abort"), "ended by 'abort'"),
        (lambda body: answer(body, [5], [-1.0], prompt_token_ids=[9]), "read another prompt"),
        (lambda body: answer({"model": "other"}, [5], [-1.0]), "it used 'other'"),
        (lambda body: (400, {"error": {"message": "too long"}}), "HTTP 400: .*too long"),
        (lambda body: (401, "who? sk-secret"), r"HTTP 401: who\? \[key\]"),
    ],
)
def test_what_is_no_completion_is_named_and_never_a_sample(echo, made, complaint):
    echo.fault = lambda path, body: made(body) if body else None
    with pytest.raises(ModelUnavailable, match=complaint) as caught:
        echo.client.complete(ASK)
    assert "sk-secret" not in str(caught.value)


def test_a_reply_that_ends_at_a_token_unknown_here_is_refused(folder, serve, attach):
    server = serve(development=True)
    sampler = attach(make_stage(folder, make_run(server.url))).sampler
    sampler.publish(0)
    odd = max(sampler.policy.llm.end_ids) + 1
    server.fault = lambda path, body: (
        answer(body, [odd], [-1.0], "stop") if path.endswith("completions") else None
    )
    with pytest.raises(ConfigError, match=f"at token {odd}.*--generation-config vllm"):
        sampler.generate(PROMPTS[:1], seed=0)


# --- weights


@pytest.mark.parametrize("rank", [0, 3])
def test_a_training_is_sampled_with_its_present_weights(folder, serve, tmp_path, monkeypatch, rank):
    server = serve(development=not rank, adapters=bool(rank))
    run = make_run(server.url, steps=Steps(total=3))
    monkeypatch.setattr(learning, "prepare", lambda run, say: make_stage(folder, run, rank))
    learn(run, tmp_path / "out")
    rows = read_metrics(tmp_path / "out" / "metrics.jsonl")[1:]
    assert len(rows) == 3
    assert all(row["sampler_difference"] < 1e-4 for row in rows)
    assert all(row["logp_difference"] < 1e-3 for row in rows if "logp_difference" in row)
    assert all(row["sampler_dropped"] == 0 and row["seconds_publish"] > 0 for row in rows)
    models = [body["model"] for body in completions(server)]
    assert len(set(models)) == (3 if rank else 1), "an adapter's name never comes back"
    assert not server.adapters, "the last adapter was taken away"
    assert not (tmp_path / "out" / "sampler").exists()


def test_a_policy_on_a_server_learns(folder, serve, attach):
    server = serve(development=True)
    stage = attach(make_stage(folder, make_run(server.url)))
    algorithm = Grpo(stage)
    rewards = [algorithm.step(n)[0]["reward_mean"] for n in range(20)]
    assert sum(rewards[:2]) / 2 < 0.4
    assert sum(rewards[-2:]) / 2 > 0.7


@pytest.mark.parametrize("rank", [0, 3])
def test_samples_of_stale_weights_are_not_trained_on(folder, serve, attach, rank):
    server = serve(development=True)
    run = make_run(server.url, sampler=Sampler(server.url, tolerance=1e-3))
    stage = attach(make_stage(folder, run, rank))
    algorithm = Grpo(stage)
    algorithm.step(0)
    server.stale = True
    before = {name: p.clone() for name, p in stage.policy.named_parameters().items()}
    with pytest.raises(MemoryR1Error, match="step 2 was not sampled with the weights in training"):
        algorithm.step(1)
    assert all(torch.equal(before[n], p) for n, p in stage.policy.named_parameters().items())


def test_a_server_of_another_model_is_noticed_before_the_first_update(folder, serve, attach):
    server = serve(development=True)
    server.stale = True
    with torch.no_grad():
        for parameter in server.base.parameters():
            parameter.mul_(1.5)
    stage = attach(make_stage(folder, make_run(server.url)))
    with pytest.raises(MemoryR1Error, match="step 1 was not sampled .* the same base model"):
        Grpo(stage).step(0)


@pytest.mark.parametrize(
    ("rank", "remedy"),
    [(0, "VLLM_SERVER_DEV_MODE=1, or train an adapter"), (3, "VLLM_ALLOW_RUNTIME_LORA_UPDATING")],
)
def test_a_server_that_takes_no_weights_says_how_to_start_it(folder, serve, attach, rank, remedy):
    server = serve(adapters=False)
    stage = attach(make_stage(folder, make_run(server.url), rank))
    with pytest.raises(ModelUnavailable, match=remedy):
        stage.rollouts(0)


def test_of_several_models_one_has_to_be_named(folder, serve, attach):
    server = serve(development=True)
    two = {"data": [{"id": "base"}, {"id": "other"}, {"id": "tuned", "parent": "base"}]}
    server.fault = lambda path, body: (200, two) if path == "/v1/models" else None
    run = make_run(server.url)
    with pytest.raises(ConfigError, match="serves base, other; say with sampler.model which"):
        attach(make_stage(folder, run))
    named = replace(run, sampler=Sampler(server.url, model="base"))
    assert attach(make_stage(folder, named)).rollouts(0)


# --- failures


def failing(server, prompt, status=500):
    """The server fails this prompt, always."""

    def fault(path, body):
        wrong = path == "/v1/completions" and body["prompt"] == prompt
        return (status, {"error": {"message": "CUDA error"}}) if wrong else None

    server.fault = fault


@pytest.mark.parametrize("status", [400, 500])
def test_a_group_the_server_fails_is_dropped_and_counted(folder, serve, attach, status):
    server, said = serve(development=True), []
    stage = attach(make_stage(folder, make_run(server.url)), said)
    failing(server, stage.policy.llm.encode(Capitals("Buddy", stage.policy).prompt()), status)
    metrics, played = Grpo(stage).step(0)
    assert all((r.outcome is None) == (r.episode.about == "Buddy") for r in played)
    assert metrics["infra_failures"] == stage.sampler.noted["sampler_dropped"] == 8
    assert metrics["grad_norm"] > 0, "the other groups were trained on"
    assert len(said) == 1 and "goes on without some groups" in said[0] and "CUDA error" in said[0]


def test_an_episode_lost_on_its_way_takes_its_group_along(folder, serve, attach):
    server = serve(development=True)
    stage = attach(make_stage(folder, make_run(server.url)))
    stage.turns = 2
    whole, _ = stage.rollouts(0)
    second = list(whole[11].steps[1].prompt_ids)
    hit = {w.episode.about for w in whole if list(w.steps[1].prompt_ids) == second}
    failing(server, second)
    played, groups = stage.rollouts(0)
    assert (
        {r.episode.about for r in played if r.outcome is None} == hit == {played[11].episode.about}
    )
    assert sum(r.lost for r in played) < 8
    assert sum(r.outcome is None for r in played) == 8
    assert len(played[11].steps) == 1


def test_a_busy_server_is_asked_again(folder, serve, attach):
    server, pauses = serve(development=True), []
    stage = attach(make_stage(folder, make_run(server.url)), sleep=pauses.append)
    seen = set()

    def busy_once(path, body):
        if path == "/v1/completions" and str(body["prompt"]) not in seen:
            seen.add(str(body["prompt"]))
            return 503, "busy"
        return None

    server.fault = busy_once
    played, _ = stage.rollouts(0)
    assert all(rollout.outcome for rollout in played)
    assert pauses == [0.5] * 4


def test_a_server_that_fails_every_prompt_stops_the_run(folder, serve, attach):
    server = serve(development=True)
    server.fault = lambda path, body: (500, "no GPU") if "completions" in path else None
    with pytest.raises(ModelUnavailable, match="HTTP 500: no GPU"):
        attach(make_stage(folder, make_run(server.url))).rollouts(0)


@pytest.mark.parametrize("rank", [0, 3])
def test_a_run_pauses_for_a_server_that_restarts_and_gives_it_the_weights_again(
    folder, serve, attach, rank
):
    server, said, waits = serve(development=True), [], []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 12:  # the retries of the prompts, then a look or two
            serve(development=True, port=server.port)

    stage = attach(make_stage(folder, make_run(server.url), rank), said, sleep)
    algorithm = Grpo(stage)
    algorithm.step(0)
    publish = stage.sampler.publish

    def publish_and_die(step):
        publish(step)
        server.close()

    stage.sampler.publish = publish_and_die
    metrics, played = algorithm.step(1)
    assert all(rollout.outcome for rollout in played)
    assert stage.sampler.noted["sampler_difference"] < 1e-4
    assert said[0].startswith("paused for at most 30 s: the sampler at http://127.0.0.1")
    assert said[1:] == ["the server is back; the run goes on"]


def test_a_run_whose_server_stays_away_stops_and_can_be_resumed(
    folder, serve, tmp_path, monkeypatch
):
    server = serve(development=True)
    run = make_run(server.url, sampler=Sampler(server.url, retries=0, wait=0.0))
    monkeypatch.setattr(learning, "prepare", lambda run, say: make_stage(folder, run))

    def away(step, metrics):
        if step == 3:
            server.close()

    with pytest.raises(ModelUnavailable, match="start the server and go on with --resume"):
        learn(run, tmp_path / "out", watch=away)
    back = serve(development=True)
    moved = replace(run, sampler=Sampler(back.url))
    learn(moved, tmp_path / "out", resume=True)
    rows = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"sampler": ("localhost:8000",)}, "sampler.url is 'localhost:8000'; expected a URL such"),
        ({"kind": "sft", "world": None}, "kind 'sft' samples nothing; leave out .sampler."),
        ({"engine": "verl"}, "has a sampler of its own; leave out .sampler."),
    ],
)
def test_a_sampler_that_makes_no_sense_is_refused_with_the_remedy(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        url = settings.pop("sampler", ("http://127.0.0.1:9/v1",))
        make_run(*url, **settings)


def test_without_a_server_the_run_does_not_start(folder, attach):
    run = make_run("http://127.0.0.1:9/v1")
    with pytest.raises(ModelUnavailable, match=r"127.0.0.1:9/v1 failed: ConnectError.*2 attempts"):
        attach(make_stage(folder, run))
