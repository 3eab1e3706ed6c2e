"""Tests that break the Redis of an application and assert what a user gets.

    pip install -r requirements.txt
    steadfast drill proxy --api 127.0.0.1:8474 &
    pytest test_price.py

They speak Toxiproxy's API by a client that is published for it, so they run before Toxiproxy too.
"""

import os
import time
import uuid

import pytest
import redis
from toxiproxy import Toxiproxy

REDIS = os.environ.get("REDIS_ADDR", "127.0.0.1:6379")
API = os.environ.get("TOXIPROXY_ADDR", "127.0.0.1:8474")
KEY = f"price:{uuid.uuid4()}"


def todays_price(address: str) -> str:
    """The application: today's price from Redis, or else the list price."""
    host, port = address.rsplit(":", 1)
    options = {"socket_timeout": 1, "socket_connect_timeout": 1, "retry": None}
    try:
        with redis.Redis(host, int(port), decode_responses=True, **options) as client:
            return client.get(KEY) or "list price"
    except redis.RedisError:
        return "list price"


@pytest.fixture
def proxy():
    """A way to Redis that can be broken, new for each test."""
    host, port = REDIS.rsplit(":", 1)
    with redis.Redis(host, int(port)) as well:
        well.set(KEY, "3", ex=600)
    server = Toxiproxy()
    api_host, api_port = API.rsplit(":", 1)
    server.update_api_consumer(api_host, int(api_port))
    name = f"test-{uuid.uuid4()}"
    yield server.create(name=name, upstream=REDIS)
    server.destroy(server.get_proxy(name))


def user_gets(expected: str, proxy) -> None:
    asked = time.monotonic()
    assert todays_price(proxy.listen) == expected
    assert time.monotonic() - asked < 5, "whatever Redis does, a user does not wait longer"


def test_all_is_well(proxy):
    user_gets("3", proxy)


def test_redis_is_down_and_comes_back(proxy):
    proxy.disable()
    user_gets("list price", proxy)
    proxy.enable()
    user_gets("3", proxy)


@pytest.mark.parametrize(
    "toxic, attributes",
    [
        ("latency", {"latency": 10_000}),
        ("timeout", {"timeout": 0}),
        ("resp_error", {"error": "loading", "commands": ["GET"]}),  # not in Toxiproxy
    ],
)
def test_redis_does_not_answer_as_it_should(proxy, toxic, attributes):
    proxy.add_toxic(type=toxic, attributes=attributes)
    user_gets("list price", proxy)
