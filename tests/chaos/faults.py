# The kinds of faults: what is drawn for each before a run, what begins, and what ends it. All
# randomness is in `draw`, so that a seed makes the same schedule again; only time is real. What
# begins returns False when nothing could happen, for instance because its process was down already.

from places import BOTH, CONTROL, DATA, DOWN, UP

HOURS = 3600


class Kind:
    """One kind of fault. `need` says what a run must have for it, in words of `Setup`."""

    def __init__(self, draw, begin, need=(), weight=1.0, waits=False):
        self.draw, self.begin, self.need, self.weight = draw, begin, frozenset(need), weight
        self.waits = waits  # it happens later than it begins, or never, and says so itself


def some_worker(rng, setup):
    return f"w{rng.randrange(setup['workers']) + 1}"


def for_a_while(run, begin, end, name, seconds):
    """Begins now, and ends later even if the batch is over by then. False if it did not begin."""
    if begin(name) is False:
        return False
    run.later(seconds, lambda: end(name))
    return True


# -- processes ------------------------------------------------------------------------------------

def draw_kill(rng, setup):
    return {"worker": some_worker(rng, setup), "restart_after": rng.uniform(0.05, 0.8)}


def begin_kill(run, worker, restart_after):
    return run.fleet.kill(worker, restart_after)


def draw_freeze(shortest, longest):
    def draw(rng, setup):
        return {"worker": some_worker(rng, setup),
                "seconds": rng.uniform(shortest, longest) * setup["lost_after_ms"] / 1000}
    return draw


def begin_freeze(run, worker, seconds):
    return for_a_while(run, run.fleet.freeze, run.fleet.thaw, worker, seconds)


def draw_slow(rng, setup):
    return {"worker": some_worker(rng, setup), "seconds": rng.uniform(0.5, 2.0),
            "share": rng.uniform(0.5, 0.95)}


def begin_slow(run, worker, seconds, share):
    """Runs only for a share of each 50 ms."""
    if not run.fleet.is_up(worker):
        return False
    period, until = 0.05, run.now() + seconds

    def stop():
        if run.now() < until:
            held = run.fleet.freeze(worker)
            run.later(period * share, lambda: go(held))

    def go(held):
        if held:
            run.fleet.thaw(worker)
        run.later(period * (1 - share), stop)

    stop()
    return True


def draw_starve(rng, setup):
    return {"worker": some_worker(rng, setup), "spare_bytes": rng.choice((0, 0, 1 << 16, 1 << 20)),
            "seconds": rng.uniform(0.5, 2.0)}


def begin_starve(run, worker, spare_bytes, seconds):
    if not run.fleet.starve(worker, spare_bytes):
        return False
    run.later(seconds, lambda: run.fleet.feed(worker))
    return True


def begin_kill_scheduler(run, restart_after):
    return run.fleet.kill("s", restart_after)


def begin_freeze_scheduler(run, seconds):
    return for_a_while(run, run.fleet.freeze, run.fleet.thaw, "s", seconds)


def begin_kill_controller(run, which, restart_after):
    if not run.fleet.is_up(which) or run.fleet.has_all(which):
        return False
    return run.fleet.kill(which, restart_after)


def begin_freeze_controller(run, which, seconds):
    return for_a_while(run, run.fleet.freeze, run.fleet.thaw, which, seconds)


def begin_kill_drafts(run, restart_after):
    return run.fleet.kill("d", restart_after)


def begin_disk_full(run, seconds):
    run.fleet.fill_disk()
    run.later(seconds, run.fleet.empty_disk)


def begin_clock_jump(run, role, seconds):
    run.fleet.jump(role, seconds)


# -- the network ----------------------------------------------------------------------------------

def draw_partition(rng, setup):
    return {"name": some_worker(rng, setup),
            "seconds": rng.uniform(0.3, 2.5) * setup["lost_after_ms"] / 1000}


def trouble(run, name, begin, seconds):
    """A trouble of the network of a role, for so long. False if nobody is there to have it."""
    if not run.fleet.takes_part(name):
        return False
    begin()
    run.later(seconds, lambda: run.place.heal(name))
    return True


def begin_partition(run, name, seconds):
    return trouble(run, name, lambda: run.place.partition(name), seconds)


def draw_block(rng, setup):
    return {"name": some_worker(rng, setup), "outward": rng.random() < 0.5,
            "seconds": rng.uniform(0.5, 2.5) * setup["lost_after_ms"] / 1000}


def begin_block(port):
    def begin(run, name, outward, seconds):
        return trouble(run, name, lambda: run.place.block_one_way(name, port, outward), seconds)
    return begin


def draw_loss(rng, setup):
    return {"name": rng.choice((some_worker(rng, setup), "s", "c")),
            "percent": rng.choice((1, 5, 20, 30)), "seconds": rng.uniform(0.5, 2.0)}


def begin_loss(run, name, percent, seconds):
    return trouble(run, name, lambda: run.place.lose(name, percent), seconds)


def begin_link_down(run, name, seconds):
    return trouble(run, name, lambda: run.place.link_down(name), seconds)


def draw_delay(rng, setup):
    return {"name": rng.choice((some_worker(rng, setup), "s", "c")),
            "delay_s": rng.choice((0.002, 0.02, 0.1)),
            "bytes_per_s": rng.choice((0, 1 << 16, 1 << 20)), "seconds": rng.uniform(0.5, 2.0)}


def begin_delay(run, name, delay_s, bytes_per_s, seconds):
    def begin():
        for link in run.place.links_of(name):
            run.place.relay.slow(link, delay_s, bytes_per_s)
    return trouble(run, name, begin, seconds)


def begin_reset(run, name):
    return sum(run.place.relay.cut(link) for link in run.place.links_of(name)) > 0


# -- in the middle of a transfer ------------------------------------------------------------------

def draw_cut(rng, setup):
    source = some_worker(rng, setup)
    other = rng.choice([f"w{n}" for n in range(1, setup["workers"] + 1) if f"w{n}" != source])
    return {"source": source, "other": other, "direction": rng.choice(BOTH),
            "after_bytes": int(2 ** rng.uniform(0, 17)),
            "how": rng.choice(("kill_source", "kill_other", "freeze_source", "reset", "hold"))}


def begin_cut_migration(run, source, other, direction, after_bytes, how):
    """At a given byte of what goes to or from the port where a worker hands out KV."""
    cut_at(run, f"data {source}", source, other, direction, after_bytes, how)


def cut_at(run, link, source, other, direction, after_bytes, how):
    """Arms a link; what happens, happens in this byte, and its consequences in the run's thread."""
    fleet, relay = run.fleet, run.place.relay
    done = run.mark_later()
    happened = True  # a byte passes, so there is a connection to hold or to reset

    def act():
        nonlocal happened
        # In the relay's thread, so that not one byte more passes.
        if how == "hold":
            relay.hold(link)
        elif how.startswith("kill"):
            happened = fleet.strike(source if how == "kill_source" else other)
        elif how == "freeze_source":
            happened = fleet.freeze(source)
        run.from_thread(aftermath)

    def aftermath():
        if not happened:
            return
        done()
        if how == "freeze_source":
            run.later(1.5 * run.setup["lost_after_ms"] / 1000, lambda: fleet.thaw(source))
        elif how == "hold":
            run.later(run.setup["lost_after_ms"] / 1000, lambda: relay.let_go(link))

    relay.arm(link, direction, after_bytes, act, how == "reset")


def draw_weights(rng, setup):
    return {"content": rng.choice(("new", "old")), "flip": rng.choice(("batch", "chunk")),
            "how": rng.choice(("none", "kill_worker", "kill_worker", "freeze_worker",
                               "kill_command", "kill_scheduler")),
            "worker": some_worker(rng, setup), "after_s": rng.uniform(0.0, 0.4)}


def begin_weights(run, content, flip, how, worker, after_s):
    """An update begins; a moment later, which may be any step of it, somebody is lost."""
    if flip == "chunk":
        content = "old"  # with other tensors a response of two versions has no oracle
    done = run.mark_later()
    run.publish(content, flip)

    def hurt():
        if how == "kill_worker":
            acted = run.fleet.kill(worker)
        elif how == "freeze_worker":
            acted = begin_freeze(run, worker, 1.5 * run.setup["lost_after_ms"] / 1000)
        elif how == "kill_command":
            acted = run.fleet.is_up("weights")
            if acted:
                run.fleet.processes["weights"].kill()
        else:
            acted = how == "kill_scheduler" and run.setup["journal"] and run.fleet.kill("s")
        if acted:
            done()

    run.later(after_s, hurt)


def draw_cut_weights(rng, setup):
    drawn = draw_cut(rng, setup)
    drawn["source"] = rng.choice((drawn["source"], "s"))
    if drawn["source"] == "s" and not setup["journal"] and "source" in drawn["how"]:
        drawn["how"] = "kill_other"
    drawn["direction"] = rng.choice((DOWN, DOWN, UP))
    # Some 300 kB are pulled; requests are short.
    longest = 18 if drawn["direction"] == DOWN else 8
    return {**drawn, "after_bytes": int(2 ** rng.uniform(0, longest))}


def begin_cut_weights(run, source, other, direction, after_bytes, how):
    """At a given byte of what a worker pulls from the scheduler or from a peer."""
    cut_at(run, f"weights {source}", source, other, direction, after_bytes, how)
    run.publish("new", "batch")


def over(low, high):
    """A draw of seconds, in units of the time after which a silent peer is given up."""
    return lambda rng, setup: {"seconds": rng.uniform(low, high) * setup["lost_after_ms"] / 1000}


def controller_for(low, high, what):
    return lambda rng, setup: {"which": rng.choice(("run", "python")), what: rng.uniform(low, high)}


KINDS = {
    "kill_worker": Kind(draw_kill, begin_kill, weight=2),
    "freeze_worker": Kind(draw_freeze(1.5, 3.0), begin_freeze),
    "blink_worker": Kind(draw_freeze(0.1, 0.5), begin_freeze),
    "slow_worker": Kind(draw_slow, begin_slow),
    "starve_worker": Kind(draw_starve, begin_starve),
    "kill_scheduler": Kind(
        lambda rng, setup: {"restart_after": rng.uniform(0.1, 1.5)}, begin_kill_scheduler,
        weight=2),
    "freeze_scheduler": Kind(over(1.2, 2.5), begin_freeze_scheduler),
    "kill_controller": Kind(controller_for(0.05, 1.0, "restart_after"), begin_kill_controller),
    "freeze_controller": Kind(controller_for(0.3, 2.0, "seconds"), begin_freeze_controller),
    "kill_draft_server": Kind(
        lambda rng, setup: {"restart_after": rng.uniform(0.1, 1.5)}, begin_kill_drafts,
        ["drafts"]),
    "disk_full": Kind(lambda rng, setup: {"seconds": rng.uniform(0.3, 2.0)}, begin_disk_full,
                      ["tmpfs"]),
    "clock_jump": Kind(
        lambda rng, setup: {"role": rng.choice(("s", "s", some_worker(rng, setup))),
                            "seconds": rng.choice((-1, 1)) * rng.choice((5, HOURS, 24 * HOURS))},
        begin_clock_jump, ["clocks"]),
    "partition_worker": Kind(draw_partition, begin_partition),
    "partition_scheduler": Kind(lambda rng, setup: {**draw_partition(rng, setup), "name": "s"},
                                begin_partition),
    "partition_controller": Kind(lambda rng, setup: {**draw_partition(rng, setup), "name": "c"},
                                 begin_partition),
    "block_data_port": Kind(draw_block, begin_block(DATA), ["migration"]),
    "block_control_port": Kind(draw_block, begin_block(CONTROL)),
    "packet_loss": Kind(draw_loss, begin_loss, ["hosts"]),
    "link_down": Kind(draw_partition, begin_link_down, ["hosts"]),
    "delay": Kind(draw_delay, begin_delay, ["loopback"]),
    "reset_connections": Kind(
        lambda rng, setup: {"name": rng.choice((some_worker(rng, setup), "s", "c"))}, begin_reset,
        ["loopback"]),
    "cut_migration": Kind(draw_cut, begin_cut_migration, ["loopback", "migration"], weight=2,
                          waits=True),
    "weights": Kind(draw_weights, begin_weights, ["weights"], weight=2, waits=True),
    "cut_weights": Kind(draw_cut_weights, begin_cut_weights, ["loopback", "weights"], weight=2,
                        waits=True),
}
