# Goal: who opens the scheduler's metrics port in a browser sees the live cluster, and the page
# fetches nothing but from there, runs nothing but its own script and tells nothing private.
# Method: real clusters with a running batch; a headless Chromium renders the page, and its DOM, its
# console and its log of requests are read. `ROLLCAST_PAGE_SHOT=FILE` keeps the picture. Without
# a chromium they fail: `make test` installs it, and a test that skips itself is one nobody runs.

import json
import os
import re
import shutil
import signal
import subprocess
import time
import unittest
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import cluster
from cluster import wait_until
from rollcast import Client

SECRET = "the-key-of-a-batch"
BYTES_MAX = 400_000


class Rendered(HTMLParser):
    """What a test asks of a DOM: attributes named data-*, and the text of elements by id."""

    def __init__(self, text):
        super().__init__()
        self.data, self.ids, self.text, self._open = [], {}, [], []
        self.chunks, self.responses = {}, {}  # what runs on each worker; all; tokens of each
        self._worker = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.data += [(k, v) for k, v in attributes.items() if k.startswith("data-")]
        if "data-worker" in attributes:
            self._worker = self.chunks.setdefault(attributes["data-worker"], {})
        if "data-chunk" in attributes:
            self._worker[attributes["data-chunk"]] = int(attributes["data-tokens"])
        if "data-response" in attributes:
            self.responses[attributes["data-response"]] = int(attributes["data-tokens"])
        if tag not in ("meta", "link", "br", "img", "path"):
            self._open.append((tag, attributes.get("id")))

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, text):
        if any(tag in ("script", "style") for tag, _ in self._open):
            return
        self.text.append(text)
        for _, name in self._open:
            if name:
                self.ids[name] = self.ids.get(name, "") + text

    def all(self, name):
        return {v for k, v in self.data if k == name}


def browse(url, folder, *flags):
    """Renders a page. Returns its DOM, the lines of its console, and the URLs it asked for."""
    if not shutil.which("chromium"):
        raise AssertionError("not installed: chromium; deploy/install_deps.sh --test")
    log = Path(folder) / "net.json"
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--disable-dev-shm-usage", f"--user-data-dir={folder}/profile",
         "--enable-logging=stderr", f"--log-net-log={log}", "--virtual-time-budget=2500",
         "--window-size=1100,1000", *flags, "--dump-dom", url],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        timeout=240, env={**os.environ, "HOME": str(folder)})
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    events = (event.get("params", {}) for event in json.loads(log.read_text())["events"])
    asked = {(p["initiator"], p["url"]) for p in events if "initiator" in p and "url" in p}
    return done.stdout, console, asked


class Page(cluster.ClusterTest):
    def cluster_at_work(self, workers=2, **settings):
        up = self.up(workers=workers, max_batch=24, chunk_tokens=64, **settings)
        prompts = cluster.first_prompts(self.work / "prompts.jsonl", 200)
        self.submit(up.endpoint, prompts, group_size=24, max_new_tokens=1536, batch_key=SECRET,
                    tokenizer=cluster.COLLATZ / "tokenizer.json")
        wait_until(lambda: self.has_lengths(up), "groups whose length is known")
        return up

    def view(self, up):
        code, body = cluster.http_get(up.metrics + "/status.json")
        self.assertEqual(code, 200)
        self.assertLess(len(body), BYTES_MAX)
        return json.loads(body)

    def has_lengths(self, up):
        seen = self.view(up)
        return seen.get("tokens_per_s", 0) > 0 and sum(
            g["expected"] > 0 and any(m["tokens"] for m in g["members"])
            for g in seen["groups"]) >= 6 and seen["responses"] > 200

    def hold(self, up):
        """Stops the workers, in the middle of what they do, so that the view stays as it is.
        Returns it."""
        for worker in cluster.ready_workers(up.endpoint).values():
            self.addCleanup(os.kill, worker["pid"], signal.SIGCONT)
            os.kill(worker["pid"], signal.SIGSTOP)
        seen = []

        def still():  # what was on its way has arrived, and been shown
            view = self.view(up)
            seen.append((view["workers"], view["groups"]))
            time.sleep(0.5)
            return len(seen) > 2 and seen[-1] == seen[-3] and view

        return wait_until(still, "the view stays as it is")

    def picture(self, up, file):
        """Of the moment at which of the first groups two have finished members and a line that is
        not at the limit. By another process: --dump-dom and --screenshot exclude each other."""
        def tells():
            first = self.view(up)["groups"][:5]
            return sum(g["finished"] >= 5 and 0 < g["expected"] < 1400 for g in first) >= 2

        wait_until(tells, "something to look at", timeout=400)
        subprocess.run(["chromium", "--headless", "--no-sandbox", "--disable-gpu",
                        "--hide-scrollbars", "--virtual-time-budget=2500",
                        "--window-size=1100,860", f"--screenshot={file}", up.metrics],
                       check=True, timeout=240, stderr=subprocess.DEVNULL)

    def test_shows_the_live_cluster(self):
        up = self.cluster_at_work(workers=3, lost_after_ms=600_000)
        if os.environ.get("ROLLCAST_PAGE_SHOT"):
            self.picture(up, os.environ["ROLLCAST_PAGE_SHOT"])
        before = self.hold(up)
        dom, console, asked = browse(up.metrics + "/", self.work)
        page = Rendered(dom)
        self.assertEqual(page.all("data-worker"), {str(w["id"]) for w in before["workers"]}, dom)
        for worker in before["workers"]:
            self.assertIn(worker["name"], page.ids["workers"])
        self.assertEqual(page.all("data-epoch"), {str(before["epoch"])})
        self.assertGreaterEqual(len(page.all("data-group")), 6)
        self.assertTrue(any(int(n) > 0 for n in page.all("data-expected")))
        self.assertEqual(page.chunks, {
            str(w["id"]): {f"{c['group']}/{c['index']}": c["tokens"] for c in w["chunks"]}
            for w in before["workers"]}, "the chunks on each worker")
        self.assertTrue(any(page.chunks.values()), "none runs")
        begun = {f"{g['id']}/{m['index']}": m["tokens"] for g in before["groups"]
                 for m in g["members"] if m["tokens"] or m["at"] != "waiting"}
        self.assertEqual(page.responses, begun, "the actual lengths")
        self.assertGreater(max(page.responses.values()), 0)
        done = [m["tokens"] for g in before["groups"] for m in g["members"] if m["at"] == "done"]
        self.assertTrue(done)
        self.assertGreater(min(done), 0)
        self.assertRegex(page.ids["batches"], r"of 4800 responses")
        self.assertIn("cpu-f32-v1", page.ids["about"])
        self.assertEqual(page.ids.get("alerts", "").strip(), "")
        self.assertEqual(console, [])
        theirs = {url for who, url in asked if who.startswith(up.metrics)}
        self.assertIn(up.metrics + "/status.json", theirs)
        self.assertEqual({url for url in theirs if not url.startswith(up.metrics + "/")}, set())

    def test_says_what_is_wrong(self):
        up = self.cluster_at_work()
        os.kill(cluster.ready_workers(up.endpoint)[1]["pid"], signal.SIGKILL)
        wait_until(lambda: any("was lost" in a["text"] for a in self.view(up)["alerts"]),
                   "an alert")
        dom, console, _ = browse(up.metrics + "/", self.work)
        page = Rendered(dom)
        self.assertRegex(page.ids["alerts"], r"Worker \S+ was lost \d+ s ago")
        self.assertEqual(console, [])

    def test_alerts_follow_the_cluster(self):
        scheduler = self.scheduler()

        def alerts():
            return " ".join(a["text"] for a in self.view(scheduler).get("alerts", []))

        wait_until(lambda: "No worker is here" in alerts(), "nobody is here")
        worker = self.worker(scheduler)
        wait_until(lambda: self.view(scheduler)["workers"] and not alerts(), "all is well")
        with Client(scheduler.endpoint) as client:
            client.pause()
            wait_until(lambda: "paused" in alerts(), "paused")
            client.resume()
            wait_until(lambda: not alerts(), "all is well again")
        worker.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "No worker is here" in alerts(), "it has left")
        self.assertNotIn("lost", alerts())

    def test_makes_nothing_of_a_name_but_text(self):
        scheduler = self.scheduler()
        name = "<img src=x onerror=alert(1)><script>alert(2)</script>"
        self.worker(scheduler, name=name)
        wait_until(lambda: cluster.ready_workers(scheduler.endpoint), "the worker")
        wait_until(lambda: self.view(scheduler).get("workers"), "it on the board")
        dom, console, _ = browse(scheduler.metrics + "/", self.work)
        self.assertIn("&lt;img src=x onerror=alert(1)&gt;", dom)
        self.assertNotIn("<img", dom)
        self.assertEqual(dom.count("<script"), 1)
        self.assertEqual(console, [])

    def test_is_one_file_that_allows_nothing_else(self):
        scheduler = self.scheduler()
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(scheduler.metrics + "/", timeout=5) as answer:
            policy = answer.headers["Content-Security-Policy"]
            page = answer.read().decode()
        self.assertIn("default-src 'none'", policy)
        self.assertRegex(policy, r"script-src 'sha256-[^' ]+';")
        self.assertNotIn("unsafe", policy)
        addresses = set(re.findall(r"(?:https?:)?//[a-z][\w.]+", page))
        self.assertEqual(addresses, {"http://www.w3.org"})  # the name of SVG, which is not fetched
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            self.assertNotIn(word, page)

    def test_tells_nothing_private(self):
        up = self.cluster_at_work()
        _, body = cluster.http_get(up.metrics + "/status.json")
        for private in (SECRET, "tcp://", str(self.work), "token_ids", "prompt"):
            self.assertNotIn(private, body)

    def test_is_small_with_a_thousand_groups(self):
        up = self.up(workers=1, max_batch=24, chunk_tokens=16)
        prompts = cluster.write_lines(
            self.work / "many.jsonl",
            [{"prompt_token_ids": list(f"{n}:".encode())} for n in range(27, 1027)])
        self.submit(up.endpoint, prompts, group_size=8, max_new_tokens=512)
        wait_until(lambda: self.view(up).get("live_groups") == 1000
                   and len(self.view(up)["groups"]) == 40, "forty of a thousand groups")
        seen = self.view(up)
        self.assertLess(len(json.dumps(seen)), 100_000)
        self.assertLess(seen["age_s"], 5)


if __name__ == "__main__":
    unittest.main()
