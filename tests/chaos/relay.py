# A TCP relay between the parts of a cluster on loopback: each link can be held (as a partition
# holds TCP: nothing is lost, nothing arrives), held in one direction, delayed, slowed, cut, and
# armed so that something happens when a given byte has gone through. It has a thread of its own.

import asyncio
import socket
import struct
import threading

UP, DOWN = "up", "down"  # from who dials to who listens, and back
CHUNK = 65536


class Link:
    """All connections to one address that is dialled. Touched by the relay's thread only."""

    def __init__(self, target):
        self.target = target
        self.open = {UP: asyncio.Event(), DOWN: asyncio.Event()}
        self.open[UP].set()
        self.open[DOWN].set()
        self.delay_s = 0.0
        self.bytes_per_s = 0.0  # 0: unlimited
        self.armed = {}  # direction: [bytes left, what to do then, whether to cut]
        self.connections = set()

    def cut(self):
        """Resets every connection. Returns how many there were."""
        pairs = list(self.connections)
        for pair in pairs:
            for writer in pair:
                reset(writer)
        return len(pairs)


def reset(writer):
    """Ends a connection with RST, so that neither side waits for the other's goodbye."""
    raw = writer.get_extra_info("socket")
    if raw is not None:
        try:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass  # closed already
    writer.transport.abort()


class Relay:
    """Links by name. Every method may be called from any thread."""

    def __init__(self):
        self._loop = asyncio.new_event_loop()
        self._links = {}
        self._servers = []
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def add(self, name, listen, target):
        """Listens at (host, port) and passes on to (host, port). One name may have several."""
        asyncio.run_coroutine_threadsafe(self._add(name, listen, target), self._loop).result(5)

    def hold(self, name, directions=(UP, DOWN)):
        """Nothing passes any more, and nobody is told."""
        self._call(name, lambda link: [link.open[d].clear() for d in directions])

    def let_go(self, name):
        """Ends `hold`, `slow` and what was armed."""
        def heal(link):
            link.delay_s = link.bytes_per_s = 0.0
            link.armed.clear()
            for direction in (UP, DOWN):
                link.open[direction].set()
        self._call(name, heal)

    def slow(self, name, delay_s, bytes_per_s=0.0):
        """Each piece is late, and no more bytes a second pass."""
        def begin(link):
            link.delay_s, link.bytes_per_s = delay_s, bytes_per_s
        self._call(name, begin)

    def cut(self, name):
        """Resets the connections of now; new ones are let in. Returns how many there were."""
        async def cut():
            return sum(link.cut() for link in self._links[name])
        return asyncio.run_coroutine_threadsafe(cut(), self._loop).result(5)

    def arm(self, name, direction, after_bytes, action, cut):
        """Calls `action`, in the relay's thread, when so many more bytes have passed that way on
        all connections together; then resets them if `cut`."""
        def begin(link):
            link.armed[direction] = [after_bytes, action, cut]
        self._call(name, begin)

    def close(self):
        """Ends every connection and the thread."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -- in the thread -------------------------------------------------------------------------

    def _call(self, name, what):
        def all_of_them():
            for link in self._links[name]:
                what(link)
        self._loop.call_soon_threadsafe(all_of_them)

    async def _add(self, name, listen, target):
        link = Link(target)
        self._links.setdefault(name, []).append(link)

        async def accept(reader, writer):
            await self._serve(link, reader, writer)

        self._servers.append(await asyncio.start_server(accept, *listen, limit=CHUNK))

    async def _serve(self, link, reader, writer):
        try:
            there = await asyncio.open_connection(*link.target, limit=CHUNK)
        except OSError:
            reset(writer)
            return
        pair = (writer, there[1])
        link.connections.add(pair)
        for each in pair:
            each.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tasks = [
            self._loop.create_task(self._pump(link, UP, reader, there[1])),
            self._loop.create_task(self._pump(link, DOWN, there[0], writer)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Whoever closes, both are closed: no peer here uses a half-open connection.
            for task in tasks:
                task.cancel()
            link.connections.discard(pair)
            for each in pair:
                reset(each) if each.transport.is_closing() else each.close()

    async def _pump(self, link, direction, reader, writer):
        """Reads at once, and writes when it is due, so that a delay does not slow the flow."""
        due = asyncio.Queue(maxsize=64)
        sender = self._loop.create_task(self._send(link, direction, due, writer))
        try:
            while True:
                data = await reader.read(CHUNK)
                await due.put((self._loop.time() + link.delay_s, data))
                if not data:
                    break
            await sender
        except OSError:
            pass  # reset by a peer or by a fault: the other side is closed as well
        finally:
            sender.cancel()

    async def _send(self, link, direction, due, writer):
        try:
            while True:
                at, data = await due.get()
                if not data:
                    return
                wait = at - self._loop.time()
                if link.bytes_per_s:
                    wait = max(wait, 0.0) + len(data) / link.bytes_per_s
                if wait > 0:
                    await asyncio.sleep(wait)
                await link.open[direction].wait()
                await self._write(link, direction, data, writer)
        except OSError:
            return

    @staticmethod
    async def _write(link, direction, data, writer):
        wire = link.armed.get(direction)
        if wire is not None and wire[0] < len(data):
            del link.armed[direction]
            writer.write(data[: wire[0]])
            await writer.drain()
            wire[1]()
            if wire[2]:
                link.cut()
                return
            await asyncio.sleep(0)  # a `hold` that was asked for counts from this byte on
            await link.open[direction].wait()
            data = data[wire[0]:]
        elif wire is not None:
            wire[0] -= len(data)
        writer.write(data)
        await writer.drain()

    async def _close(self):
        for server in self._servers:
            server.close()
        for links in self._links.values():
            for link in links:
                link.cut()
                link.open[UP].set()
                link.open[DOWN].set()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
