"""A real HTTP server on this machine that speaks vLLM's API, with our own sampler behind it.

It refuses what vLLM refuses: unknown models, adapters that are loaded already, and both weight
endpoints unless it was started for them.
"""

import copy
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from memory_r1.llm.local import LocalLLM
from memory_r1.llm.sampler import sample


class FakeVllm:
    """Serves the model in a folder, called "base", and adapters to it.

    fault:   called with (path, body) before anything else; a (status, reply) it returns is sent
    stale:   adapters and weights are taken politely and ignored
    asked:   (path, body) of every request
    """

    def __init__(self, folder, *, adapters=True, development=False, port=0):
        self.base = LocalLLM(str(folder)).copy().model  # not the weights that are trained
        self.adapters = {}
        self.asked = []
        self.fault = lambda path, body: None
        self.stale = False
        self.allowed = {"load_lora_adapter": adapters, "unload_lora_adapter": adapters}
        self.allowed |= {"collective_rpc": development, "reset_prefix_cache": development}
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                length = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(length) or b"null")
                self.reply(*outer.handle(self.path, body))

            def do_GET(self):
                self.reply(*outer.handle(self.path, None))

            def reply(self, status, answer):
                data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def handle(self, path, body):
        with self._lock:
            self.asked.append((path, body))
            if (answer := self.fault(path, body)) is not None:
                return answer
            name = path.removeprefix("/v1").strip("/")
            if not self.allowed.get(name, True):
                return 404, {"detail": "Not Found"}
            return getattr(self, name)(body)

    def models(self, body):
        served = [{"id": "base", "root": "/models/base", "parent": None}]
        served += [
            {"id": name, "root": path, "parent": "base"}
            for name, (path, _) in self.adapters.items()
        ]
        return 200, {"object": "list", "data": served}

    def load_lora_adapter(self, body):
        from peft import PeftModel

        name, path = body["lora_name"], body["lora_path"]
        if name in self.adapters:
            return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded"}}
        if not (Path(path) / "adapter_config.json").is_file():
            return 404, {"error": {"message": f"No adapter found for {path}"}}
        model = copy.deepcopy(self.base)
        if not self.stale:
            model = PeftModel.from_pretrained(model, path)
        self.adapters[name] = (path, model)
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload_lora_adapter(self, body):
        if self.adapters.pop(body["lora_name"], None) is None:
            return 404, {"error": {"message": "The lora adapter cannot be found."}}
        return 200, "Success"

    def collective_rpc(self, body):
        assert body["method"] == "reload_weights"
        if not self.stale:
            self.base = LocalLLM(body["kwargs"]["weights_path"]).copy().model
        return 200, {"results": [None]}

    def reset_prefix_cache(self, body):
        return 200, ""

    def completions(self, body):
        if body["model"] == "base":
            model = self.base
        elif body["model"] in self.adapters:
            model = self.adapters[body["model"]][1]
        else:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        assert (body["top_p"], body["top_k"], body["min_p"]) == (1.0, -1, 0.0)
        [replies] = sample(
            model,
            [body["prompt"]],
            counts=body["n"],
            max_tokens=body["max_tokens"],
            temperature=body["temperature"],
            end=body["stop_token_ids"],
            seed=body["seed"],
        )
        choices = [
            {
                "index": i,
                "text": "not to be read",
                "token_ids": list(reply.ids),
                "prompt_token_ids": body["prompt"],
                "logprobs": {"token_logprobs": list(reply.logps)},
                "finish_reason": "stop" if reply.finished else "length",
            }
            for i, reply in enumerate(replies)
        ]
        return 200, {"model": body["model"], "choices": choices[::-1]}
