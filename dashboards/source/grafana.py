# The few words in which the dashboards are written: which process a series comes from, what is
# computed from it, and what a panel is. `dashboard` turns them into what Grafana imports.

SCHEMA_VERSION = 39  # of Grafana 10.4; newer ones bring it up to date when they load it

# How a process is told by its `job`: alone, or after the namespace, as a PodMonitor names it.
JOBS = {"scheduler": "(.*/)?rollcast-scheduler", "worker": "(.*/)?rollcast-worker",
        "draft-server": "(.*/)?rollcast-draft-server",
        "all": "(.*/)?rollcast-(scheduler|worker|draft-server)"}
NAMESPACE = 'namespace=~"$namespace"'

# What happens all the time is looked at over a few scrapes, what happens once a batch over longer.
NOW = "$__rate_interval"
WINDOW = "$window"


# -- series -------------------------------------------------------------------


def of(role, name, *matchers):
    """The series `name` of the processes of one role, or of `all`."""
    return name + "{" + ",".join([f'job=~"{JOBS[role]}"', NAMESPACE, *matchers]) + "}"


def scheduler(name, *matchers):
    return of("scheduler", name, *matchers)


def worker(name, *matchers):
    return of("worker", name, *matchers)


def draft_server(name, *matchers):
    return of("draft-server", name, *matchers)


# -- what is computed from them -----------------------------------------------


def rate(series, over=NOW):
    return f"rate({series}[{over}])"


def increase(series, over=WINDOW):
    return f"increase({series}[{over}])"


def total(expression, *by):
    """The sum, of each of `by`."""
    return f"sum by ({', '.join(by)}) ({expression})" if by else f"sum({expression})"


def mean(role, name, *by, over=NOW):
    """Of a histogram's observations."""
    return (total(rate(role(name + "_sum"), over), *by) + " / "
            + total(rate(role(name + "_count"), over), *by))


def quantile(q, role, name, *by, over=NOW):
    """Of a histogram's observations, between its buckets' bounds."""
    return f"histogram_quantile({q}, {total(rate(role(name + '_bucket'), over), 'le', *by)})"


# -- panels -------------------------------------------------------------------

PER_SECOND = {"tokens": "suffix: tokens/s", "responses": "suffix: responses/s",
              "frames": "suffix: frames/s", "bytes": "Bps"}
PROCESS = "{{pod}} {{instance}}"  # a pod's name where there is one


def row(title):
    return {"row": title}


def panel(title, unit, shows, wrong, *queries, width=8, kind="timeseries", stacked=False,
          max=None):
    """`queries` are pairs of an expression and a legend. `wrong` says what to do."""
    return {"title": title, "unit": unit, "shows": shows, "wrong": wrong, "queries": queries,
            "width": width, "kind": kind, "stacked": stacked, "max": max}


def _fields(p):
    defaults = {"unit": p["unit"], "min": 0}
    if p["max"] is not None:
        defaults["max"] = p["max"]
    if p["kind"] == "timeseries":
        defaults["custom"] = {"lineWidth": 1, "fillOpacity": 30 if p["stacked"] else 10,
                              "stacking": {"mode": "normal" if p["stacked"] else "none"}}
    return {"defaults": defaults, "overrides": []}


def _options(p):
    if p["kind"] == "stat":
        return {"colorMode": "value", "graphMode": "area", "textMode": "auto",
                "reduceOptions": {"calcs": ["lastNotNull"]}}
    return {"legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"}}


def _panel(p, number, x, y):
    return {
        "id": number,
        "type": p["kind"],
        "title": p["title"],
        "description": f"{p['shows']}\n\n**When it looks wrong:** {p['wrong']}",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"h": 8, "w": p["width"], "x": x, "y": y},
        "fieldConfig": _fields(p),
        "options": _options(p),
        "targets": [{"refId": chr(ord("A") + n), "expr": expression, "legendFormat": legend}
                    for n, (expression, legend) in enumerate(p["queries"])],
    }


def _laid_out(panels):
    """Panels from left to right and from top to bottom; a row begins a line of its own."""
    x = y = 0
    for number, p in enumerate(panels, 1):
        if "row" in p:
            y, x = y + (8 if x else 0), 0
            yield {"id": number, "type": "row", "title": p["row"], "collapsed": False,
                   "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}, "panels": []}
            y += 1
            continue
        if x + p["width"] > 24:
            x, y = 0, y + 8
        yield _panel(p, number, x, y)
        x += p["width"]


def _variables():
    prometheus = {"type": "prometheus", "uid": "${datasource}"}
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        {"name": "namespace", "type": "query", "label": "Namespace", "datasource": prometheus,
         "query": {"query": "label_values(rollcast_build_info, namespace)", "refId": "namespace"},
         "refresh": 2, "includeAll": True, "allValue": ".*", "multi": False,
         "current": {"text": "All", "value": "$__all"}},
        {"name": "window", "type": "interval", "label": "Batches and updates of the last",
         "query": "10m,1h,6h,1d", "current": {"text": "1h", "value": "1h"},
         "options": [{"text": t, "value": t, "selected": t == "1h"}
                     for t in ("10m", "1h", "6h", "1d")]},
    ]


def dashboard(name, title, *panels):
    """What Grafana imports. Its `uid` is what links and bookmarks name; it never changes."""
    return {
        "title": f"Rollcast: {title}",
        "uid": f"rollcast-{name}",
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "tags": ["rollcast"],
        "links": [{"type": "dashboards", "title": "Rollcast", "tags": ["rollcast"],
                   "asDropdown": True, "includeVars": True, "keepTime": True}],
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "templating": {"list": _variables()},
        "panels": list(_laid_out(panels)),
    }
