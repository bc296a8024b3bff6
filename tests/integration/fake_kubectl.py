"""A stand-in for `kubectl port-forward`: `fake_kubectl.py LOG port-forward --address 127.0.0.1 TARGET [PORT]:PORT`.

It answers HTTP itself, and ends as kubectl does when its pod goes: at
GET /lost. Each start appends a line "PID PORT" to LOG.
"""

import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        print(f"Handling connection for {self.server.server_port}", flush=True)
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()
        if self.path == "/lost":
            threading.Thread(target=self.server.shutdown).start()

    def log_message(self, format: str, *args: object) -> None:
        pass


def main(log: str, command: str, *rest: str) -> None:
    option, address, target, ports = rest
    assert (command, option, address) == ("port-forward", "--address", "127.0.0.1")
    if target == "service/missing":
        sys.exit('Error from server (NotFound): services "missing" not found')
    local, _, _ = ports.partition(":")
    with ThreadingHTTPServer((address, int(local or 0)), Handler) as server:
        with open(log, "a") as file:
            file.write(f"{os.getpid()} {server.server_port}\n")
        if target == "service/pending":
            sys.exit("error: unable to forward port because pod is not running. Current status=Pending")
        print(f"Forwarding from 127.0.0.1:{server.server_port} -> 4443", flush=True)
        server.serve_forever(poll_interval=0.02)
    sys.exit("error: lost connection to pod")


if __name__ == "__main__":
    main(*sys.argv[1:])
