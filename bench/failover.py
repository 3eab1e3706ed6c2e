"""The load of failover.rs through redis-py's client for sentinels, on its defaults but for a time-out, without which it waits for ever."""

import asyncio
import sys
import time

from redis.asyncio.sentinel import Sentinel

seeds, start, callers, turn, length = sys.argv[1], *map(int, sys.argv[2:])


def now():
    return time.time_ns() // 1000


async def caller(client, number, calls):
    due, count = turn * number // callers, 0
    while due <= length:
        await asyncio.sleep(max(0, start + due - now()) / 1e6)
        begun = now()
        try:
            await client.incr(f"n:{number}:{count}")
            outcome = "ok"
        except Exception:
            outcome = "failed"  # whether it was applied is not told
        calls.append(f"{number} {count} {begun} {now()} {outcome}")
        count += 1
        due += turn
        while start + due <= now():
            due += turn


async def main():
    hosts = [(host, int(port)) for host, port in (seed.split(":") for seed in seeds.split(","))]
    sentinel = Sentinel(hosts, socket_timeout=1)
    client = sentinel.master_for("main", socket_timeout=1)
    await client.ping()
    calls = []
    await asyncio.gather(*(caller(client, number, calls) for number in range(callers)))
    print("\n".join(calls))


asyncio.run(main())
