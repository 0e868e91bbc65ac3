"""What mem0's own hosted client does with our server.

    MEM0_TELEMETRY=False python tests/compat/mem0_client.py URL KEY    in an environment with mem0ai

Every call of `MemoryClient` that the server knows, once; then the same of `AsyncMemoryClient`.
"""

import asyncio
import ipaddress
import socket
import sys

connect = socket.socket.connect


def local_only(self, address):
    if isinstance(address, tuple) and not ipaddress.ip_address(address[0]).is_loopback:
        raise AssertionError(f"the client tried to reach {address}")
    return connect(self, address)


socket.socket.connect = local_only

from mem0 import AsyncMemoryClient, MemoryClient  # noqa: E402
from mem0.client.types import GetAllMemoryOptions  # noqa: E402
from mem0.exceptions import MemoryNotFoundError, ValidationError  # noqa: E402

ANN = {"user_id": "ann"}


def refused(error, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except error:
        return
    raise AssertionError(f"{call.__name__} raised no {error.__name__}")


def play(client):
    music = {"topic": "music"}
    (event,) = client.add("I play the oboe", user_id="ann", metadata=music)["results"]
    assert event["event"] == "ADD" and "oboe" in event["memory"]
    messages = [{"role": "user", "content": "The vet opens at nine"}]
    client.add(messages, filters=ANN, infer=False, timestamp=1683554160)
    client.add(messages, user_id="ben", agent_id="vet")
    assert client.get(event["id"])["metadata"] == music
    refused(MemoryNotFoundError, client.get, "none")

    (found,) = client.search("oboe", filters=ANN, top_k=1)["results"]
    assert found["id"] == event["id"] and 0 < found["score"] <= 1
    both = {"AND": [{"user_id": "ann"}, {"topic": "music"}]}
    assert [item["id"] for item in client.search("nine", filters=both)["results"]] == [found["id"]]
    refused(ValidationError, client.search, "oboe")

    assert client.get_all(filters=ANN)["count"] == 2
    page = client.get_all(GetAllMemoryOptions(filters=ANN, page=2, page_size=1))
    assert len(page["results"]) == 1 and page["next"] is None and "page=1" in page["previous"]

    client.update(event["id"], text="I play the cello", metadata={"since": 2020})
    client.update(event["id"], expiration_date="2099-12-31")
    assert client.update(event["id"], expiration_date=None)["memory"] == "I play the cello"
    told = [(row["event"], row["new_memory"]) for row in client.history(event["id"])]
    assert told[1] == ("UPDATE", "I play the cello") and len(told) == 4

    names = [(one["type"], one["name"]) for one in client.users()["results"]]
    assert names == [("user", "ann"), ("user", "ben"), ("agent", "vet")]

    ids = [item["id"] for item in client.get_all(filters=ANN)["results"]]
    client.batch_update([{"memory_id": id, "text": f"changed {id}"} for id in ids])
    assert client.get(ids[0])["memory"] == f"changed {ids[0]}"
    lost = [{"memory_id": ids[0]}, {"memory_id": "none"}]
    refused(MemoryNotFoundError, client.batch_delete, lost)
    assert client.get(ids[0])  # all or none
    client.batch_delete(lost[:1])
    refused(MemoryNotFoundError, client.get, ids[0])
    client.delete(ids[1])
    assert client.get_all(filters=ANN)["results"] == []

    client.add("I am back", user_id="ann")
    client.delete_all(user_id="ann")
    client.add("I am back", user_id="ann")
    client.delete_all(filters=ANN)
    assert client.get_all(filters=ANN)["count"] == 0
    client.delete_users(agent_id="vet")
    assert client.get_all(filters={"user_id": "ben"})["count"] == 0
    client.reset()
    assert client.users()["results"] == []


async def play_async(client):
    (event,) = (await client.add("I play the oboe", user_id="cy"))["results"]
    found = await client.search("oboe", filters={"user_id": "cy"})
    assert found["results"][0]["id"] == event["id"]
    await client.delete(event["id"])


if __name__ == "__main__":
    host, key = sys.argv[1:]
    refused(ValueError, MemoryClient, host=host, api_key="wrong")
    play(MemoryClient(host=host, api_key=key))
    asyncio.run(play_async(AsyncMemoryClient(host=host, api_key=key)))
    print("all is well")
