"""What Claude, Cursor and VS Code do: start `memory-r1 mcp` and call its tools.

pip install 'memory-r1[serve]'
"""

import asyncio

from mcp import Client, StdioServerParameters

server = StdioServerParameters(
    command="memory-r1", args=["mcp", "--store", "mcp.db", "--user", "ann"]
)


async def main() -> None:
    """Add, search, change, and take the change back."""
    async with Client(server) as client:
        print("tools: ", ", ".join(tool.name for tool in (await client.list_tools()).tools))

        async def call(name: str, **arguments: object) -> dict:
            result = await client.call_tool(name, arguments)
            assert not result.is_error, result.content
            return result.structured_content

        added = await call("add_memory", text="I moved to Lisbon.", timestamp="2023-05-08")
        memory_id = added["operations"][0]["memory_id"]
        await call("update_memory", memory_id=memory_id, text="Ann moved to Porto.")
        await call("undo", target=memory_id)
        found = await call("search_memories", query="Where does she live?")
        print("found: ", found["memories"][0]["text"])


asyncio.run(main())
