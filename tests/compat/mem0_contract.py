"""One scenario, played by the real mem0 and by ours: what comes back, as shapes.

    python tests/compat/mem0_contract.py real    in an environment with mem0ai: prints JSON
    python tests/compat/mem0_contract.py ours    in ours

The calls are those of mem0 2.x, or of 1.x where mem0ai 1.x is installed; `ours 1` asks ours for
the older ones. The recordings beside this file are what mem0ai 2.2.1 and 1.0.11 said. Texts and
ids are left out: two systems write them differently. What they agree on is which keys there are,
of which type, which events, how many results, and what is refused with which error.
"""

import asyncio
import json
import os
import re
import socket
import sys
import tempfile
import uuid
from datetime import datetime

EVENTS = ("ADD", "UPDATE", "DELETE")
REFUSALS = ("ValidationError", "ValueError")


def shape(value):
    match value:
        case None:
            return "null"
        case bool():
            return str(value)
        case int() | float():
            return "number"
        case str():
            return shape_of_text(value)
        case dict():
            return {key: shape(value[key]) for key in sorted(value)}
        case list():
            kinds = {json.dumps(shape(item), sort_keys=True) for item in value}
            return {"items": len(value), "of": [json.loads(kind) for kind in sorted(kinds)]}
    return type(value).__name__


def shape_of_text(text):
    if text in EVENTS:
        return text
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return "md5" if re.fullmatch("[0-9a-f]{32}", text) else "text"
    if len(text) <= 10:
        return "date"
    return "moment" if moment.tzinfo else "moment without a zone"


class Seen:
    """Plays calls and keeps what came back, by name."""

    def __init__(self, memory, run):
        self.memory, self.run, self.shapes = memory, run, {}

    def __call__(self, name, method, *positional, **named):
        try:
            value = self.run(getattr(self.memory, method)(*positional, **named))
        except Exception as error:
            kinds = [kind.__name__ for kind in type(error).__mro__]
            self.shapes[name] = {"raises": [k for k in kinds if k in REFUSALS] or kinds[:1]}
            return None
        self.shapes[name] = shape(value)
        return value

    def count(self, name, *call, **named):
        """Which ones come back is chance: only how many counts."""
        self(name, *call, **named)
        self.shapes[name] = self.shapes[name]["results"]["items"]


def anew(seen, say):
    """Fill it: three of andrew's through three scopes, one of an agent's, one of a number's."""
    say("add buddy")
    seen("add a text", "add", "I adopted a dog named Buddy", user_id="andrew")
    say("nothing")
    seen("add what holds no fact", "add", "Hm.", user_id="andrew")
    pets = [
        {"role": "system", "content": "You are a vet."},
        {"role": "user", "content": "My cat is Tom", "name": "Andrew"},
        {"role": "assistant", "content": "Tom is a good name"},
    ]
    added = seen(
        "add messages as they are",
        "add",
        pets,
        user_id="andrew",
        agent_id="vet",
        run_id="r1",
        infer=False,
        metadata={"topic": "pets", "year": 2021, "tags": ["a", "b"]},
    )
    one = {"role": "user", "content": "The vet opens at nine"}
    seen("add a message as it is", "add", one, agent_id="vet", infer=False)
    seen("a number as an id", "add", one, user_id=7, infer=False, metadata={"year": 2024})
    return added["results"][0]["id"]


def refusals(seen):
    seen("add without an id", "add", "x")
    seen("add with an empty id", "add", "x", user_id=" ")
    seen("add with a space in an id", "add", "x", user_id="a b")
    seen("add no messages", "add", 12, user_id="a")
    seen("add of an unknown type", "add", "x", user_id="a", memory_type="bogus")
    seen("delete_all of nobody", "delete_all")
    unknown = str(uuid.uuid4())
    seen("get what is unknown", "get", unknown)
    seen("delete what is unknown", "delete", unknown)
    seen("history of what is unknown", "history", unknown)


def old(seen, say):
    """The call forms of mem0 1.x."""
    cat = anew(seen, say)
    say("update buddy")
    seen("add that updates", "add", "I adopted another dog, Scout", user_id="andrew")
    say("delete buddy")
    seen("add that deletes", "add", "I gave the dogs away", user_id="andrew")
    refusals(seen)
    seen("get", "get", cat)
    seen("get_all", "get_all", user_id="andrew")
    seen("get_all of two ids", "get_all", user_id="andrew", agent_id="vet")
    seen("get_all of an agent", "get_all", agent_id="vet")
    seen.count("get_all, at most one", "get_all", user_id="andrew", limit=1)
    seen("get_all with a filter", "get_all", user_id="andrew", filters={"topic": "pets"})
    seen("get_all of nobody", "get_all")
    seen("search", "search", "cat", user_id="andrew")
    seen.count("search, at most one", "search", "cat", user_id="andrew", limit=1)
    seen("search with a filter", "search", "cat", user_id="andrew", filters={"topic": "pets"})
    seen("search of an actor", "search", "cat", user_id="andrew", filters={"actor_id": "Andrew"})
    seen("search of nobody", "search", "cat")
    seen("search without a reranker", "search", "cat", user_id="andrew", rerank=False)
    seen("update", "update", cat, "My cat is Felix")
    seen("update by name", "update", memory_id=cat, data="My cat is Garfield")
    seen("update with metadata", "update", cat, "My cat is Tom", metadata={"year": 2022})
    seen("update what is unknown", "update", str(uuid.uuid4()), "x")
    seen("get after update", "get", cat)
    seen("history", "history", cat)
    seen("delete", "delete", cat)
    seen("get after delete", "get", cat)
    seen("history after delete", "history", cat)
    seen("delete_all", "delete_all", user_id="andrew")
    seen("get_all after delete_all", "get_all", user_id="andrew")
    seen("others after delete_all", "get_all", agent_id="vet")
    seen("reset", "reset")
    seen("get_all after reset", "get_all", agent_id="vet")


def new(seen, say):
    """The call forms of mem0 2.x."""
    cat = anew(seen, say)
    refusals(seen)
    andrew = {"user_id": "andrew"}
    for year in (2020, 2999):
        seen(
            f"add what expires in {year}",
            "add",
            f"The offer ends in {year}",
            user_id="andrew",
            infer=False,
            expiration_date=f"{year}-01-01",
        )
    seen("add with a bad date", "add", "x", user_id="a", infer=False, expiration_date="soon")
    seen("get", "get", cat)
    seen("get_all", "get_all", filters=andrew)
    seen("get_all of a number", "get_all", filters={"user_id": 7})
    seen("get_all of an agent", "get_all", filters={"agent_id": "vet"})
    seen("get_all of a run", "get_all", filters={**andrew, "run_id": "r1"})
    seen.count("get_all, at most one", "get_all", filters=andrew, top_k=1)
    seen("get_all with what expired", "get_all", filters=andrew, show_expired=True)
    seen("get_all of nobody", "get_all")
    seen("get_all of an empty id", "get_all", filters={"user_id": ""})
    seen("get_all, a wrong number", "get_all", filters=andrew, top_k=-1)
    seen("search", "search", "cat", filters=andrew)
    seen.count("search, at most one", "search", "cat", filters=andrew, top_k=1)
    seen("search, none", "search", "cat", filters=andrew, top_k=0)
    seen("search of nobody", "search", "cat")
    seen("search for nothing", "search", " ", filters=andrew)
    seen("search, a wrong number", "search", "cat", filters=andrew, top_k="many")
    seen("search, a wrong threshold", "search", "cat", filters=andrew, threshold=2)
    for name, condition in CONDITIONS.items():
        seen(f"search where {name}", "search", "cat", filters={**andrew, **condition}, threshold=0)
    seen("update", "update", cat, text="My cat is Felix")
    seen("update by position", "update", cat, "My cat is Fritz")
    seen("update by the old name", "update", memory_id=cat, data="My cat is Garfield")
    seen("update metadata alone", "update", cat, metadata={"year": 2022})
    seen("update the expiration alone", "update", cat, expiration_date="2999-12-31")
    seen("get after update", "get", cat)
    seen("update to never expire", "update", cat, expiration_date=None)
    seen("update of nothing", "update", cat)
    seen("update what is unknown", "update", str(uuid.uuid4()), text="x")
    seen("history", "history", cat)
    seen("delete", "delete", cat)
    seen("get after delete", "get", cat)
    seen("history after delete", "history", cat)
    seen("delete_all", "delete_all", user_id="andrew")
    seen("get_all after delete_all", "get_all", filters=andrew)
    seen("others after delete_all", "get_all", filters={"agent_id": "vet"})
    seen("reset", "reset")
    seen("get_all after reset", "get_all", filters={"agent_id": "vet"})


CONDITIONS = {
    "equal": {"topic": "pets"},
    "eq": {"topic": {"eq": "pets"}},
    "ne": {"topic": {"ne": "pets"}},
    "in": {"topic": {"in": ["pets", "cars"]}},
    "nin": {"topic": {"nin": ["pets", "cars"]}},
    "gte": {"year": {"gte": 2021}},
    "between": {"year": {"gt": 2020, "lte": 2021}},
    "lt": {"year": {"lt": 2021}},
    "contains": {"topic": {"contains": "et"}},
    "icontains": {"topic": {"icontains": "PET"}},
    "there": {"topic": "*"},
    "actor": {"actor_id": "Andrew"},
    "role": {"role": "assistant"},
    "run": {"run_id": "r1"},
    "AND": {"AND": [{"topic": "pets"}, {"year": 2021}]},
    "OR": {"OR": [{"topic": "pets"}, {"topic": "cars"}]},
    "NOT": {"NOT": [{"topic": "pets"}]},
    "an unknown operator": {"topic": {"like": "pets"}},
    "a wrong OR": {"OR": "pets"},
}


def vector(text):
    """(8,) the letters of a text, counted: a deterministic embedder that needs nothing."""
    counts = [1.0] * 8
    for letter in text.casefold():
        counts[ord(letter) % 8] += 1
    length = sum(count * count for count in counts) ** 0.5
    return [count / length for count in counts]


# What a model says in each system's own form; every list is one `say`.
REAL = {
    2: {
        "add buddy": [{"memory": [{"id": "0", "text": "Andrew has a dog, Buddy"}]}],
        "nothing": [{"memory": []}],
    },
    1: {
        "add buddy": [
            {"facts": ["Has a dog, Buddy"]},
            {"memory": [{"id": "0", "text": "Has a dog, Buddy", "event": "ADD"}]},
        ],
        "nothing": [{"facts": []}],
        "update buddy": [
            {"facts": ["Has another dog, Scout"]},
            {
                "memory": [
                    {
                        "id": "BUDDY",
                        "text": "Has two dogs, Buddy and Scout",
                        "event": "UPDATE",
                        "old_memory": "Has a dog, Buddy",
                    }
                ]
            },
        ],
        "delete buddy": [
            {"facts": ["Has no dogs"]},
            {"memory": [{"id": "BUDDY", "text": "Has two dogs", "event": "DELETE"}]},
        ],
    },
}
OURS = {
    "add buddy": [
        {"facts": [{"text": "Andrew has a dog, Buddy"}]},
        {"operations": [{"op": "ADD", "text": "Andrew has a dog, Buddy"}]},
    ],
    "nothing": [{"facts": []}],
    "update buddy": [
        {"facts": [{"text": "Andrew has another dog, Scout"}]},
        {"operations": [{"op": "UPDATE", "id": 0, "text": "Andrew has two dogs"}]},
    ],
    "delete buddy": [
        {"facts": [{"text": "Andrew has no dogs"}]},
        {"operations": [{"op": "DELETE", "id": 0}]},
    ],
}


def close_the_network():
    connect = socket.socket.connect

    def local_only(self, address):
        if isinstance(address, tuple) and not str(address[0]).startswith("127."):
            raise AssertionError(f"tried to reach {address}")
        return connect(self, address)

    socket.socket.connect = local_only


def play_real(folder):
    """(version, {kind: shapes}) of the mem0 that is installed."""
    os.environ |= {"MEM0_TELEMETRY": "False", "MEM0_DIR": folder, "HOME": folder}
    close_the_network()
    import mem0
    from mem0.utils.factory import EmbedderFactory, LlmFactory

    class Model:
        def __init__(self):
            self.replies = []

        def generate_response(self, messages, response_format=None, **_):
            reply = json.dumps(self.replies.pop(0))
            # 1.x labels what it shows with numbers; the model points at the one about dogs.
            label = re.search(r"'id': '(\d+)', 'text': '[^']*dog", str(messages))
            return reply.replace("BUDDY", label[1] if label else "0")

    class Letters:
        class config:
            embedding_dims = 8

        def embed(self, text, memory_action=None):
            return vector(text)

        def embed_batch(self, texts, memory_action=None):
            return [vector(text) for text in texts]

    model = Model()
    LlmFactory.create = staticmethod(lambda *_, **__: model)
    EmbedderFactory.create = staticmethod(lambda *_, **__: Letters())
    version = int(mem0.__version__.split(".")[0])

    def play(kind, name):
        where = os.path.join(folder, name)
        config = {
            "vector_store": {
                "provider": "qdrant",
                "config": {"path": where, "embedding_model_dims": 8},
            },
            "history_db_path": os.path.join(folder, name + ".db"),
        }
        seen = Seen(kind.from_config(config), run_of(name))

        def say(what):
            model.replies = json.loads(json.dumps(REAL[version][what]))

        (new if version == 2 else old)(seen, say)
        return seen.shapes

    return mem0.__version__, {
        "sync": play(mem0.Memory, "sync"),
        "async": play(mem0.AsyncMemory, "async"),
    }


def play_ours(folder, version):
    """{kind: shapes} of memory_r1.compat.mem0 for the call forms of a version."""
    import numpy as np

    import memory_r1
    from memory_r1.compat import mem0
    from memory_r1.llm import ScriptedLLM

    class Letters:
        name, dim = "letters", 8

        def embed(self, texts):
            return np.array([vector(text) for text in texts], np.float32).reshape(len(texts), 8)

    def play(kind, name):
        replies = []
        model = ScriptedLLM(lambda prompt: replies.pop(0))
        native = memory_r1.Memory(os.path.join(folder, name), llm=model, embedder=Letters())
        seen = Seen(kind(memory=native), run_of(name))

        def say(what):
            replies[:] = [json.dumps(reply) for reply in OURS[what]]

        (new if version == 2 else old)(seen, say)
        native.close()
        return seen.shapes

    return {"sync": play(mem0.Memory, "sync"), "async": play(mem0.AsyncMemory, "async")}


def run_of(name):
    async def awaited(coroutine):
        return await coroutine

    return (lambda value: value) if name == "sync" else (lambda call: asyncio.run(awaited(call)))


def written(recording):
    """The recording as text, one call per line."""
    lines = [
        f"  {json.dumps(kind)}: {{\n"
        + ",\n".join(f"   {json.dumps(name)}: {json.dumps(seen)}" for name, seen in shapes.items())
        + "\n  }"
        for kind, shapes in recording["shapes"].items()
    ]
    head = f'{{\n "mem0ai": {json.dumps(recording["mem0ai"])},\n "shapes": {{\n'
    return head + ",\n".join(lines) + "\n }\n}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as where:
        if sys.argv[1] == "real":
            played, seen = play_real(where)
        else:
            played, seen = None, play_ours(where, int((sys.argv + ["2"])[2]))
    print(written({"mem0ai": played, "shapes": seen}))
