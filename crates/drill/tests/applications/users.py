"""A small HTTP application before Redis, as seven authors might have written it. Usage: users.py PORT KIND

GET /users/7 answers {"name": …, "stale": …}, PUT /users/7 with {"name": …} changes it. A dictionary is its database, or, if it is told of one, a server
at DATABASE_HOST and DATABASE_PORT.
"""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import redis

port, kind = int(sys.argv[1]), sys.argv[2]
# Longer than a busy machine takes.
patience = None if kind == "hangs" else 1.0
cache = redis.Redis(
    host=os.environ["REDIS_HOST"],
    port=int(os.environ["REDIS_PORT"]),
    socket_timeout=patience,
    socket_connect_timeout=patience,
    retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
    decode_responses=True,
)
database, last_seen, given_up, in_doubt = {}, {}, threading.Event(), threading.Event()


stored = None
if "DATABASE_PORT" in os.environ:
    where = {"host": os.environ["DATABASE_HOST"], "port": int(os.environ["DATABASE_PORT"])}
    stored = redis.Redis(**where, socket_timeout=1.0, decode_responses=True)


def from_database(key):
    return (stored.get(key) if stored else database.get(key)) or "unknown"


def read(key):
    if given_up.is_set():
        return from_database(key)
    try:
        name = cache.get(key)
        if name is None:
            name = from_database(key)
            # Not for long: a write between these two lines leaves the old name in the cache.
            cache.set(key, name, px=300)
        last_seen.setdefault(key, name)
        return name
    except redis.RedisError:
        if kind == "answers-500":
            raise
        if kind == "exits":
            os._exit(1)
        if kind == "gives-up":
            given_up.set()
        if kind == "stays-stale":
            in_doubt.set()
        if kind == "serves-the-overwritten":
            return last_seen.get(key, "unknown")
        return from_database(key)


def write(key, name):
    if stored:
        stored.set(key, name)
    database[key] = name
    try:
        cache.delete(key)
    except redis.RedisError:
        if kind == "exits":
            os._exit(1)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        try:
            self.answer(200, {"name": read(self.path), "stale": in_doubt.is_set()})
        except redis.RedisError as error:
            self.answer(500, {"error": str(error)})

    def do_PUT(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        try:
            write(self.path, body["name"])
            self.answer(200, body)
        except redis.RedisError as error:
            self.answer(500, {"error": str(error)})

    def answer(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128


print("listening", flush=True)
Server(("127.0.0.1", port), Handler).serve_forever()
