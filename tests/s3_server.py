"""A server of S3's protocol on loopback: moto's, which the real client talks to."""

import contextlib
import threading
import urllib.request
import uuid

import fsspec

# Of the client: where the server is, and credentials that it takes.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}


class Server:
    """The server, what it was asked for, and what happens before it answers."""

    def __init__(self):
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log_request(self, code="-", size="-"):
                pass

        app = DomainDispatcherApplication(create_backend_app)
        self.asked = []  # method and path of each request
        self.before = lambda method, path: None

        def answer(environ, start_response):
            asked = environ["REQUEST_METHOD"], environ["PATH_INFO"]
            self.asked.append(asked)
            self.before(*asked)
            return app(environ, start_response)

        self._server = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.environ = CREDENTIALS | {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.client = fsspec.filesystem(
            "s3",
            key=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            secret=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=self.url,
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def number(self, method, *words):
        """Count the requests of a method whose path holds all words."""
        return sum(
            how == method and all(word in path for word in words) for how, path in self.asked
        )

    @contextlib.contextmanager
    def strict(self):
        """Let nobody in but those whom it knows, which are none."""
        self._moto("reset-auth", b"0")
        try:
            yield
        finally:
            self._moto("reset-auth", b"inf")

    def _moto(self, what, data):
        request = urllib.request.Request(
            f"{self.url}/moto-api/{what}", data, {"Content-Type": "application/octet-stream"}
        )
        urllib.request.urlopen(request).read()


class Bucket:
    """A bucket of the server; the client here is not the one that is tested."""

    def __init__(self, server):
        self.server, self.fs = server, server.client
        self.name = f"bucket-{uuid.uuid4().hex[:12]}"
        self.address = f"s3://{self.name}"
        self.fs.mkdir(self.name)

    def put(self, name, data=b"x"):
        self.fs.pipe_file(f"{self.name}/{name}", data)

    def put_all(self, directory, name):
        for file in sorted(directory.rglob("*")):
            if file.is_file():
                self.put(f"{name}/{file.relative_to(directory).as_posix()}", file.read_bytes())

    def read(self, name):
        return self.fs.cat_file(f"{self.name}/{name}")

    def names(self, below=""):
        """List the objects below a folder, by their names in it."""
        top = f"{self.name}/{below}".rstrip("/")
        return sorted(x.removeprefix(f"{top}/") for x in self.fs.find(top))
