"""A mirror of a public data set on this machine, which `mdrelax data fetch` reaches as a proxy.

So the command uses the real names and addresses. `python tests/trials/mirror.py FILE` prints its port and serves the
bytes of FILE for every address, a little at a time, and from any place on (Range). What comes by https is refused, so
that the next mirror is tried.
"""

import http.server
import re
import sys
import time
from pathlib import Path

CHUNK = 16384  # bytes
PAUSE = 0.05  # seconds between chunks


class Mirror(http.server.BaseHTTPRequestHandler):
    """Answers every request with the rest of one file."""

    content = b""

    def do_GET(self) -> None:
        """The file from the requested byte on."""
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        first = int(wanted[1]) if wanted else 0
        if wanted and first >= len(self.content):
            self.send_error(416)
            return
        rest = self.content[first:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        for place in range(0, len(rest), CHUNK):
            try:
                self.wfile.write(rest[place : place + CHUNK])
            except OSError:  # the reader was killed
                return
            time.sleep(PAUSE)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    Mirror.content = Path(sys.argv[1]).read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    print(server.server_address[1], flush=True)
    server.serve_forever()
