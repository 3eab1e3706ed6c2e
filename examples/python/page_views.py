"""Counts page views in Redis, and goes on counting in memory while Redis is away.

An ordinary small program with redis-py, to be drilled without a change to it:

    steadfast drill run restart-5s --target 127.0.0.1:6379 --command 'python3 examples/python/page_views.py --seconds 20'

It takes Redis' address from REDIS_URL, which the drill points at its proxy.
Exit status 0: every view was counted, and those kept back while Redis was away have reached it.
"""

import argparse
import os
import sys
import time

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=float, default=100, help="page views a second")
    arguments = parser.parse_args()

    client = redis.Redis.from_url(
        os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"),
        socket_timeout=0.3,
        socket_connect_timeout=0.3,
        retry=Retry(ExponentialBackoff(cap=0.05, base=0.01), 2),
    )
    key = f"page-views:{os.getpid()}"
    views, kept_back, failures = 0, 0, 0
    started = time.monotonic()
    while time.monotonic() - started < arguments.seconds:
        views += 1
        kept_back += 1
        try:
            client.incrby(key, kept_back)
            kept_back = 0
        except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError):
            failures += 1
        time.sleep(1 / arguments.rate)

    try:
        if kept_back:
            client.incrby(key, kept_back)
        client.delete(key)
    except redis.RedisError as error:
        print(f"page_views: {kept_back} of {views} views never reached Redis: {error}")
        return 1
    print(f"page_views: {views} views counted; Redis failed {failures} times meanwhile")
    return 0


if __name__ == "__main__":
    sys.exit(main())
