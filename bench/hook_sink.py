"""Where the SDKs of `bench/hook.py` send: an HTTP endpoint that takes everything, or one that is slow or hangs.

    python bench/hook_sink.py ok|slow|hang            an HTTP endpoint
    python bench/hook_sink.py relay HOST PORT         Redis at HOST:PORT, two seconds behind

Prints its port. `GET /bench/received` says how many different calls have arrived; their text holds a number each.
"""

from __future__ import annotations

import asyncio
import gzip
import re
import sys
import zlib

DELAY_S = 2.0
MARK = re.compile(rb"mk-(\d{6})")

received: set[bytes] = set()


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: str) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            body = await body_of(reader, head.lower())
            if " /bench/received " in head:
                answer = str(len(received)).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))
                continue
            if kind == "slow":
                await asyncio.sleep(DELAY_S)
            received.update(MARK.findall(body))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    except (asyncio.IncompleteReadError, ConnectionError):
        return
    finally:
        writer.close()


async def body_of(reader: asyncio.StreamReader, head: str) -> bytes:
    body = b""
    if "transfer-encoding: chunked" in head:
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    elif found := re.search(r"content-length: (\d+)", head):
        body = await reader.readexactly(int(found[1]))
    if "content-encoding: gzip" in head:
        return gzip.decompress(body)
    return zlib.decompress(body) if "content-encoding: deflate" in head else body


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(1 << 16):
        pass
    writer.close()


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
    up, down = await asyncio.open_connection(host, port)

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, delay_s: float) -> None:
        try:
            while data := await source.read(1 << 20):
                await asyncio.sleep(delay_s)
                target.write(data)
                await target.drain()
        except ConnectionError:
            pass
        target.close()

    await asyncio.gather(copy(reader, down, 0.0), copy(up, writer, DELAY_S))


async def main() -> None:
    kind = sys.argv[1]
    if kind == "relay":
        host, port = sys.argv[2], int(sys.argv[3])
        server = await asyncio.start_server(lambda r, w: relay(r, w, host, port), "127.0.0.1", 0)
    elif kind == "hang":
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
    else:
        server = await asyncio.start_server(lambda r, w: http(r, w, kind), "127.0.0.1", 0, limit=1 << 20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
