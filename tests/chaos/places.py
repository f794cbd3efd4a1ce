# Where a cluster under test runs: on loopback, its links through a relay, or on hosts of its own,
# which are network namespaces joined by a bridge. Both know the same troubles by the same names.
#
# Names: "s" is the scheduler, "w1"... are workers, "d" is the draft server, "c" the controllers.

import ctypes
import os
import subprocess
import time
from pathlib import Path

from relay import DOWN, UP, Relay

FRONTEND, CONTROL, WEIGHTS, DATA, DRAFTS = 7450, 7451, 7455, 7460, 7453
BOTH = (UP, DOWN)
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Loopback:
    """Every role has an address of its own in 127/8, and is dialled at another one, where the relay
    listens. A worker that is partitioned hears nothing from the scheduler and serves nobody."""

    name = "loopback"

    def __init__(self, workers):
        self._net = f"127.{os.getpid() % 250 + 1}.{time.monotonic_ns() // 1000 % 250 + 1}"
        self._numbers = {"s": 1, "d": 2, "c": 3, **{f"w{n}": 10 + n for n in range(1, workers + 1)}}
        self.relay = Relay()
        real = self.address
        self.relay.add("c>s", (self.dialled("s", "c"), FRONTEND), (real("s"), FRONTEND))
        self.relay.add("weights s", (self.dialled("s", "*"), WEIGHTS), (real("s"), WEIGHTS))
        self.relay.add("drafts", (self.dialled("d", "*"), DRAFTS), (real("d"), DRAFTS))
        for n in range(1, workers + 1):
            w = f"w{n}"
            self.relay.add(f"{w}>s", (self.dialled("s", w), CONTROL), (real("s"), CONTROL))
            self.relay.add(f"data {w}", (self.dialled(w, "*"), DATA), (real(w), DATA))
            self.relay.add(f"weights {w}", (self.dialled(w, "*"), WEIGHTS), (real(w), WEIGHTS))
        self._workers = [f"w{n}" for n in range(1, workers + 1)]

    def address(self, name):
        """Where it binds."""
        return f"{self._net}.{self._numbers[name]}"

    def dialled(self, name, by):
        """Where `by` finds it; "*": where all that are not named find it."""
        if name == "s" and by != "*":
            return f"{self._net}.{100 + self._numbers[by]}"
        return f"{self._net}.{150 + self._numbers[name]}"

    def enter(self, _name):
        """What a process of that role does first."""

    def links_of(self, name):
        """Every link that a role takes part in, as far as it can be told apart."""
        if name == "s":
            return ["c>s", "weights s"] + [f"{w}>s" for w in self._workers]
        if name == "d":
            return ["drafts"]
        if name == "c":
            return ["c>s"]
        return [f"{name}>s", f"data {name}", f"weights {name}"]

    def partition(self, name):
        for link in self.links_of(name):
            self.relay.hold(link)

    def block_one_way(self, name, port, outward):
        """Bytes towards that port of a role pass no more, or its answers do not."""
        for link in self._links_at(name, port):
            self.relay.hold(link, (DOWN,) if outward else (UP,))

    def heal(self, name):
        for link in self.links_of(name):
            self.relay.let_go(link)

    def _links_at(self, name, port):
        if port == CONTROL:  # a worker has none: the one that it dials
            return [f"{name}>s"]
        return [f"{'data' if port == DATA else 'weights'} {name}"]

    def close(self):
        self.relay.close()


def _run(*command, said=None):
    done = subprocess.run(command, input=said, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Hosts:
    """Every role in a network namespace, as on a host of its own; a veth pair each leads to a
    bridge in a namespace that stands for the switch. Troubles are nft rules and downed links."""

    name = "hosts"

    @staticmethod
    def why_not():
        """Why there can be none on this machine, or nothing."""
        probe = f"rcc{os.getpid()}-probe"
        try:
            _run("ip", "netns", "add", probe)
        except OSError as error:
            return str(error)
        try:
            _run("ip", "netns", "exec", probe, "nft", "list", "tables")
            _run("ip", "-n", probe, "link", "add", "x", "type", "bridge")
        except OSError as error:
            return str(error)
        finally:
            subprocess.run(["ip", "netns", "del", probe], check=False, capture_output=True)
        return ""

    @staticmethod
    def sweep():
        """Takes away what a harness that was killed has left."""
        for file in Path("/run/netns").glob("rcc*-*") if Path("/run/netns").exists() else ():
            if not Path(f"/proc/{file.name[3:].split('-')[0]}").exists():
                subprocess.run(["ip", "netns", "del", file.name], check=False, capture_output=True)

    def __init__(self, workers):
        self._prefix = f"rcc{os.getpid()}-"
        self._names = ["s", "d", "c"] + [f"w{n}" for n in range(1, workers + 1)]
        self._rules = {}
        self._down = set()
        self.relay = None
        switch = self._space("sw")
        made = [f"netns add {switch}"] + [f"netns add {self._space(n)}" for n in self._names]
        _run("ip", "-batch", "-", said="\n".join(made) + "\n")
        _run("ip", "-n", switch, "-batch", "-", said="\n".join(
            ["link add name lan type bridge forward_delay 0", "link set lan up"]
            + [f"link add p-{n} type veth peer name e0 netns {self._space(n)}\n"
               f"link set p-{n} master lan up" for n in self._names]) + "\n")
        for n in self._names:
            _run("ip", "-n", self._space(n), "-batch", "-", said=(
                f"link set lo up\naddr add {self.address(n)}/24 dev e0\nlink set e0 up\n"))
        self._nft("add table bridge chaos\n"
                  "add chain bridge chaos forward { type filter hook forward priority 0; }\n")

    def _space(self, name):
        return self._prefix + name

    def address(self, name):
        return f"10.77.0.{self._names.index(name) + 1}"

    def dialled(self, name, _by):
        return self.address(name)

    def enter(self, name):
        """Joins the host. Called in the child, before its program starts."""
        handle = os.open(f"/run/netns/{self._space(name)}", os.O_RDONLY)
        if _libc.setns(handle, _CLONE_NEWNET) != 0:
            os._exit(127)
        os.close(handle)

    def partition(self, name):
        self._add(name, f'iifname "p-{name}" drop', f'oifname "p-{name}" drop')

    def block_one_way(self, name, port, outward):
        if port == CONTROL:  # a worker dials it, so it is the port of the other side
            rule = (f'iifname "p-{name}" tcp dport {port} drop' if not outward
                    else f'oifname "p-{name}" tcp sport {port} drop')
        else:
            rule = (f'oifname "p-{name}" tcp dport {port} drop' if not outward
                    else f'iifname "p-{name}" tcp sport {port} drop')
        self._add(name, rule)

    def lose(self, name, percent):
        """That share of the packets from and to a host is lost."""
        chance = f"numgen random mod 100 < {percent} drop"
        self._add(name, f'iifname "p-{name}" {chance}', f'oifname "p-{name}" {chance}')

    def link_down(self, name):
        self._down.add(name)
        _run("ip", "-n", self._space("sw"), "link", "set", f"p-{name}", "down")

    def heal(self, name):
        if name in self._down:
            self._down.discard(name)
            _run("ip", "-n", self._space("sw"), "link", "set", f"p-{name}", "up")
        if self._rules.pop(name, None):
            self._apply()

    def _add(self, name, *rules):
        self._rules.setdefault(name, []).extend(rules)
        self._apply()

    def _apply(self):
        lines = ["flush chain bridge chaos forward"]
        for rules in self._rules.values():
            lines += [f"add rule bridge chaos forward {rule}" for rule in rules]
        self._nft("\n".join(lines) + "\n")

    def _nft(self, said):
        _run("ip", "netns", "exec", self._space("sw"), "nft", "-f", "-", said=said)

    def close(self):
        for name in ["sw", *self._names]:
            subprocess.run(["ip", "netns", "del", self._space(name)], check=False,
                           capture_output=True)
