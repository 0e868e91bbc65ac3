"""A chatbot on OpenAI's client that knows in a new chat what was said in the last one.

The service stands between the chatbot and the model: `memory-r1 serve --upstream URL`.
pip install 'memory-r1[serve]' openai
"""

import json
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
from openai import OpenAI


def chatbot(url: str) -> None:
    """The whole chatbot; that it remembers is a matter of its URL."""
    client = OpenAI(base_url=url, api_key="none")

    def say(chat: list, said: str) -> str:
        """Print the reply as it comes; returns the id of the message that is remembered."""
        chat.append({"role": "user", "content": said})
        response = client.chat.completions.with_raw_response.create(
            model="my-model", messages=chat, user="kim", stream=True
        )
        print(f"Kim: {said}\nBot: ", end="")
        reply = ""
        for chunk in response.parse():
            part = chunk.choices[0].delta.content or ""
            print(part, end="", flush=True)
            reply += part
        print()
        chat.append({"role": "assistant", "content": reply})
        return response.headers["x-memory-message"]

    monday: list = []
    say(monday, "What do I play?")
    last = say(monday, "I play the oboe.")
    while httpx.get(f"{url}/messages/{last}", params={"user_id": "kim"}).json()["state"] != "done":
        time.sleep(0.1)  # at night what was said is remembered
    tuesday: list = []
    say(tuesday, "What do I play, again?")


class Model(BaseHTTPRequestHandler):
    """Stands in for the model: http://localhost:8000/v1 of vLLM, Ollama or llama.cpp."""

    def do_POST(self) -> None:
        """Say in two chunks what can be said of an oboe."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        known = "oboe" in json.dumps(body["messages"])
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for part in ("You play ", "the oboe.") if known else ("I don't ", "know yet."):
            choice = {"index": 0, "delta": {"content": part}, "finish_reason": None}
            self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


with ThreadingHTTPServer(("127.0.0.1", 0), Model) as model:
    threading.Thread(target=model.serve_forever, daemon=True).start()
    upstream = f"http://127.0.0.1:{model.server_port}/v1"
    command = ["memory-r1", "serve", "--port", "0", "--store", "chatbot.db", "--upstream", upstream]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as service:
        # Its first line says where it listens: "memory-r1 on http://127.0.0.1:40123  (...".
        chatbot(service.stderr.readline().split()[2] + "/v1")
        service.terminate()
    model.shutdown()
