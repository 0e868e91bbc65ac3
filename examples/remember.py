"""Remember, search, ask, correct and undo, without any language model or network."""

from memory_r1 import Memory

with Memory("remember.db") as memory:
    memory.add("I moved to Lisbon.", user_id="ann", speaker="Ann", timestamp="2023-05-08")
    memory.add("My bicycle is green.", user_id="ann", speaker="Ann", timestamp="2023-06-01")

    best = memory.search("where does Ann live?", user_id="ann", k=1)[0]
    print("found:   ", best.entry.text)

    answer = memory.ask("When did Ann move to Lisbon?", user_id="ann")
    print("answer:  ", answer.text)
    print("because: ", answer.used[0].text)

    row = memory.update(best.entry.id, "Ann moved to Porto.", user_id="ann")
    print("now:     ", memory.get(best.entry.id, user_id="ann").text)

    memory.undo(row.id, user_id="ann")
    print("undone:  ", memory.get(best.entry.id, user_id="ann").text)
    print("journal: ", [row.op for row in memory.journal(user_id="ann")])
    memory.forget("ann")
