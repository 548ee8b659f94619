"""Toolkits of langchain-community: a database, files, and requests to a server on this machine.

    pip install langchain langchain-community
    python examples/toolkits.py [MODEL]

The model has to be one that calls tools.
"""

import json
import sqlite3
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

from langchain.agents import create_agent
from langchain_community.agent_toolkits import FileManagementToolkit, SQLDatabaseToolkit
from langchain_community.agent_toolkits.openapi.toolkit import RequestsToolkit
from langchain_community.utilities import SQLDatabase
from langchain_community.utilities.requests import TextRequestsWrapper

from langchain_car_vllm import ChatVllmMlx

model = sys.argv[1] if len(sys.argv) > 1 else "mlx-community/Qwen3-4B-4bit"
llm = ChatVllmMlx(model=model, temperature=0, max_tokens=160)


class Shop(BaseHTTPRequestHandler):
    """Tells the price of tea."""

    def do_GET(self) -> None:
        body = json.dumps({"item": "tea", "price": 3.5}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def run(tools: list, question: str) -> None:
    """Ask an agent, and show what it called and what came back."""
    agent = create_agent(llm, tools)
    print(f"?? {question}")
    messages = agent.invoke(
        {"messages": [{"role": "user", "content": question}]}, {"recursion_limit": 9}
    )["messages"]
    for message in messages:
        for call in getattr(message, "tool_calls", ()):
            print(f"-- called {call['name']}({call['args']})")
        if message.type == "tool":
            print(f"-- got {message.text[:80]!r}")
    print(messages[-1].text)


with TemporaryDirectory() as scratch:
    database = Path(scratch) / "shop.sqlite"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE sales (item TEXT, pieces INTEGER)")
        connection.executemany("INSERT INTO sales VALUES (?, ?)", [("tea", 3), ("bread", 8)])
    toolkit = SQLDatabaseToolkit(db=SQLDatabase.from_uri(f"sqlite:///{database}"), llm=llm)
    queries = [tool for tool in toolkit.get_tools() if tool.name == "sql_db_query"]
    run(queries, "Run this query: SELECT SUM(pieces) FROM sales")

    (Path(scratch) / "note.txt").write_text("The key is under the mat.")
    files = FileManagementToolkit(root_dir=scratch, selected_tools=["read_file"]).get_tools()
    run(files, "Read the file note.txt and tell me where the key is.")

server = ThreadingHTTPServer(("127.0.0.1", 0), Shop)
threading.Thread(target=server.serve_forever, daemon=True).start()
requests = RequestsToolkit(
    requests_wrapper=TextRequestsWrapper(headers={}), allow_dangerous_requests=True
)
get = [tool for tool in requests.get_tools() if tool.name == "requests_get"]
run(get, f"Get http://127.0.0.1:{server.server_port}/tea and tell me the price.")
server.shutdown()
