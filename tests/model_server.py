"""A real HTTP server on this machine that plays an OpenAI-compatible service."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """An OpenAI-compatible server that does as `respond(body) -> (status, reply)` says.

    A chat that is neither a dict nor bytes is sent piece by piece: an Event in it is waited for,
    and at None the server dies. What it was asked is in `bodies`; `models` is the answer to GET
    /models.
    """

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.models: tuple[int, object] = (200, {"data": [{"id": "m"}, {"id": "n"}]})
        self.headers: list[dict] = []
        self.extra: dict[str, str] = {}
        self.kind = "text/event-stream; charset=utf-8"  # of what is sent piece by piece
        self.respond = lambda body: (200, completion("Hi"))
        self.embed = lambda texts: (200, embeddings([[len(t), 1.0, 0.0] for t in texts]))
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.bodies.append(body)
                outer.headers.append({name.lower(): v for name, v in self.headers.items()})
                if "input" in body:
                    self.send(*outer.embed(body["input"]))
                else:
                    self.say(*outer.respond(body))

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

            def say(self, status, parts):
                if isinstance(parts, dict | bytes):
                    self.send(status, parts)
                    return
                self.protocol_version, self.close_connection = "HTTP/1.1", True
                self.send_response(200)
                self.send_header("content-type", outer.kind)
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for part in parts:
                    if part is None:
                        return
                    if isinstance(part, threading.Event):
                        part.wait(10)
                        continue
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                    self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")

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


def event(data):
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def chunk(delta, finish=None):
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    known = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return event({**known, "choices": [choice]})


def chunks(*texts):
    said = [chunk({"content": text}) for text in texts]
    return [chunk({"role": "assistant"}), *said, chunk({}, "stop"), b"data: [DONE]\n\n"]
