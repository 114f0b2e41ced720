"""A bucket store on this machine that speaks as much of the Cloud Storage JSON API as gcsfs asks for, and fails when told to."""

import contextlib
import json
import re
import threading
import urllib.parse
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeBuckets:
    """Objects by (bucket, name); `faults` are the fates of the next requests: None, 503, "short" (bytes missing), "flip" (a wrong bit)."""

    def __init__(self):
        self.objects: dict[tuple[str, str], bytes] = {}
        self.faults: list = []
        self.media_requests: list[str] = []
        self.requests = 0
        self.url = ""

    def fate(self, kinds):
        self.requests += 1
        for index, fault in enumerate(self.faults):
            if fault is None or fault in kinds:
                return self.faults.pop(index)
        return None


def handler(store: FakeBuckets) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def reply(self, code, body=b"", kind="application/json", **headers):
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def describe(self, bucket, name):
            data = store.objects[bucket, name]
            fields = {"kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(data)), "etag": f"e{zlib.crc32(data)}"}
            return fields | {"mediaLink": f"{store.url}/download/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}?alt=media"}

        def do_GET(self):
            url = urllib.parse.urlsplit(self.path)
            query = urllib.parse.parse_qs(url.query)
            found = re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)/o(?:/(.+))?", url.path)
            if not found:
                bucket = url.path.removeprefix("/storage/v1/b/")
                return self.reply(404, b"{}") if "/" in bucket else self.reply(200, json.dumps({"name": bucket}).encode())
            bucket, name = found[1], urllib.parse.unquote(found[2] or "")
            media = "alt" in query
            fate = store.fate((503, "short", "flip") if media else (503,))
            if fate == 503:
                return self.reply(503, b'{"error": {"message": "try later", "code": 503}}')
            if not name:
                prefix = query.get("prefix", [""])[0]
                items = [self.describe(b, n) for b, n in sorted(store.objects) if b == bucket and n.startswith(prefix)]
                return self.reply(200, json.dumps({"kind": "storage#objects", "items": items}).encode())
            if (bucket, name) not in store.objects:
                return self.reply(404, b'{"error": {"message": "not found", "code": 404}}')
            if not media:
                return self.reply(200, json.dumps(self.describe(bucket, name)).encode())
            store.media_requests.append(name)
            data = store.objects[bucket, name]
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if asked:
                data = data[int(asked[1]) : int(asked[2]) + 1 if asked[2] else None]
            if fate == "short":
                data = data[: len(data) // 2]
            if fate == "flip" and data:
                data = bytes([data[0] ^ 1]) + data[1:]
            return self.reply(206 if asked else 200, data, "application/octet-stream")

        def do_POST(self):
            url = urllib.parse.urlsplit(self.path)
            bucket = re.search(r"/b/([^/]+)/o", url.path)[1]
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if store.fate((503,)) == 503:
                return self.reply(503, b"{}")
            query = urllib.parse.parse_qs(url.query)
            if "resumable" in query.get("uploadType", ()):  # a file that was opened for writing: first asked for, then sent
                place = urllib.parse.urlencode({"name": query["name"][0], "upload_id": "any"})
                return self.reply(200, b"{}", Location=f"{store.url}{url.path}?{place}")
            if "upload_id" in query:
                store.objects[bucket, query["name"][0]] = body
                return self.reply(200, json.dumps(self.describe(bucket, query["name"][0])).encode())
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            _, head, content, _ = body.split(b"--" + boundary, 3)
            name = json.loads(head.split(b"\n\n", 1)[1] if b"\n\n" in head else head.split(b"\r\n\r\n", 1)[1])["name"]
            separator = b"\r\n\r\n" if b"\r\n\r\n" in content else b"\n\n"
            data = content.split(separator, 1)[1]
            store.objects[bucket, name] = data[: -len(separator) // 2]
            return self.reply(200, json.dumps(self.describe(bucket, name)).encode())

    return Handler


@contextlib.contextmanager
def serve():
    """A store behind an address of this machine."""
    store = FakeBuckets()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(store))
    store.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
