"""An MCP server on standard input and output: a shop's shelf."""

from mcp.server.fastmcp import FastMCP

server = FastMCP("inventory")


@server.tool(name="shelf.count")
def count(item: str) -> str:
    """Count the pieces of an item on the shelf."""
    return f"{item}: 7 pieces"


@server.tool()
def broken(item: str) -> str:
    """Fail, as tools do."""
    raise ValueError("the shelf is closed")


server.run("stdio")
