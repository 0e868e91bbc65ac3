"""A real HTTP server on this machine that plays an OpenAI-compatible service."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """An OpenAI-compatible server that does as `respond(body) -> (status, reply)` says.

    What it was asked is in `bodies`; `models` is the answer to GET /models.
    """

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.models: tuple[int, object] = (200, {"data": [{"id": "m"}, {"id": "n"}]})
        self.headers: list[dict] = []
        self.extra: dict[str, str] = {}
        self.respond = lambda body: (200, completion("Hi"))
        self.embed = lambda texts: (200, embeddings([[len(t), 1.0, 0.0] for t in texts]))
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.bodies.append(body)
                outer.headers.append({name.lower(): v for name, v in self.headers.items()})
                asked = outer.embed(body["input"]) if "input" in body else outer.respond(body)
                self.send(*asked)

            def do_GET(self):
                assert self.path == "/v1/models"
                self.send(*outer.models)

            def send(self, status, reply):
                data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                for name, value in outer.extra.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


def completion(text, finish="stop"):
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3},
    }


def embeddings(vectors):
    return {"data": [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]}
