# A Prometheus of the test's own, on a free port, over processes of Rollcast.

import json
import math
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

from cluster import _die_with_parent, http_get, wait_until

SCRAPE_S = 1


class Prometheus:
    """Scrapes `targets` (job to processes) every second and evaluates `rules`; ended by `kill`."""

    def __init__(self, directory, targets, rules=()):
        directory.mkdir()
        config = directory / "prometheus.yml"
        # JSON is YAML.
        config.write_text(json.dumps({
            "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
            "rule_files": [str(r) for r in rules],
            "scrape_configs": [
                {"job_name": job, "static_configs": [
                    {"targets": [p.metrics.removeprefix("http://") for p in processes]}]}
                for job, processes in targets.items()],
        }))
        self.wanted = sum(len(processes) for processes in targets.values())
        self.begun = time.time()
        self.log = directory / "log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                ["prometheus", f"--config.file={config}",
                 f"--storage.tsdb.path={directory / 'data'}", "--web.listen-address=127.0.0.1:0"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_die_with_parent)
        self.url = wait_until(self._address, "prometheus listens", 30.0)
        wait_until(lambda: http_get(self.url + "/-/ready")[0] == 200, "prometheus is ready", 30.0)

    def _address(self):
        """It chooses the port and says so."""
        assert self.process.poll() is None, self.log.read_text()
        found = re.search(r'msg="Listening on" address=(\S+)', self.log.read_text())
        return f"http://{found[1]}" if found else None

    def kill(self):
        self.process.kill()
        self.process.wait()

    def get(self, path, **parameters):
        """The `data` of an answer; what is wrong with a query is an AssertionError."""
        body = urllib.parse.urlencode(parameters).encode() if parameters else None
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}", body, 10.0) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(error.read().decode()) from None

    def over_time(self, query):
        """What a graph of the test's time shows: the finite values of every line, by its labels."""
        found = self.get("query_range", query=query, start=self.begun, end=time.time(), step=1)
        lines = {}
        for line in found["result"]:
            finite = [v for v in (float(value) for _, value in line["values"]) if math.isfinite(v)]
            lines[json.dumps(line["metric"], sort_keys=True)] = finite
        return lines

    def now(self, query):
        """The values of a query now."""
        return [float(r["value"][1]) for r in self.get("query", query=query)["result"]]

    def wait_for_targets(self):
        wait_until(lambda: sum(self.now("up")) == self.wanted, "every target is scraped", 30.0, 0.1)
