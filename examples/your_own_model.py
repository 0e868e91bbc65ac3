"""Any object with a name, a style and `complete` can manage a memory; here it reads a script."""

from memory_r1 import Memory
from memory_r1.llm.scripted import ScriptedLLM

llm = ScriptedLLM(
    [
        # The extractor, then the Memory Manager, for each of two turns.
        '{"facts": [{"text": "Kim plays the oboe.", "quote": "I play the oboe"}]}',
        '{"operations": [{"op": "ADD", "text": "Kim plays the oboe."}]}',
        '{"facts": [{"text": "Kim also plays the tuba.", "quote": "the tuba too"}]}',
        '{"operations": [{"op": "UPDATE", "id": 0, "text": "Kim plays the oboe and the tuba."}]}',
        # The Answer Agent.
        "Memories: 0\n**Answer:** 2",
    ]
)

with Memory("ram:", llm=llm) as memory:
    memory.add("I play the oboe.", user_id="kim", speaker="Kim")
    memory.add("And the tuba too.", user_id="kim", speaker="Kim")
    answer = memory.ask("How many instruments does Kim play?", user_id="kim")
    (entry,) = memory.list(user_id="kim")
    print(answer.text, "-", entry.text)
    for version in memory.history(entry.id, user_id="kim"):
        print(f"  version {version.version}: {version.text}")
