"""A FastAPI application with a pool of connections to Redis, a degraded mode and health checks, to be drilled as it stands.

    pip install -r requirements.txt
    steadfast drill run scenario.toml --target 127.0.0.1:6379 --command 'uvicorn app:app --port 8000'

Redis is optional: the application starts and serves without it. Its database is a dictionary.
"""

import logging
import os
import time
from contextlib import asynccontextmanager
from typing import Optional

import redis.asyncio as redis
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel
from redis.exceptions import RedisError

log = logging.getLogger("uvicorn.error")
pool: Optional[redis.ConnectionPool] = None
client: Optional[redis.Redis] = None
users = {number: f"user {number}" for number in range(1, 1001)}


async def init_redis() -> None:
    """Makes the pool; a Redis that is away is logged, and no reason not to start."""
    global pool, client
    pool = redis.ConnectionPool.from_url(
        os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"),
        max_connections=10,
        socket_timeout=3,
        socket_connect_timeout=3,
        health_check_interval=30,
        decode_responses=True,
    )
    client = redis.Redis(connection_pool=pool)
    try:
        await client.ping()
    except RedisError as error:
        log.warning("starting without Redis: %s", error)
        client = None


async def close_redis() -> None:
    if pool is not None:
        await pool.disconnect()


async def get_redis() -> Optional[redis.Redis]:
    return client


async def check_redis_health(timeout: float = 1.0) -> tuple[bool, float, str]:
    if client is None:
        return False, 0.0, "not connected"
    started = time.perf_counter()
    try:
        await client.ping()
    except RedisError as error:
        return False, (time.perf_counter() - started) * 1e3, str(error)
    return True, (time.perf_counter() - started) * 1e3, "ok"


@asynccontextmanager
async def lifespan(_: FastAPI):
    await init_redis()
    yield
    await close_redis()


app = FastAPI(lifespan=lifespan)


class User(BaseModel):
    name: str


@app.get("/users/{number}")
async def read_user(number: int, cache: Optional[redis.Redis] = Depends(get_redis)):
    key = f"user:{number}"
    if cache is not None:
        try:
            if (name := await cache.get(key)) is not None:
                return {"id": number, "name": name, "source": "redis"}
        except RedisError as error:
            log.warning("Redis failed, asking the database: %s", error)
    if number not in users:
        raise HTTPException(404)
    if cache is not None:
        try:
            await cache.set(key, users[number], ex=360)
        except RedisError:
            pass
    return {"id": number, "name": users[number], "source": "database"}


@app.put("/users/{number}")
async def change_user(number: int, user: User, cache: Optional[redis.Redis] = Depends(get_redis)):
    users[number] = user.name
    if cache is not None:
        try:
            await cache.delete(f"user:{number}")
        except RedisError as error:
            log.warning("the old name stays in Redis: %s", error)
    return {"id": number, "name": user.name}


@app.get("/health/live")
async def live():
    return "alive"


@app.get("/health")
async def health():
    healthy, latency_ms, message = await check_redis_health()
    status = "ok" if healthy else "degraded"
    redis_check = {"status": status, "latency_ms": latency_ms, "message": message}
    return {"status": status, "checks": {"redis": redis_check}}
