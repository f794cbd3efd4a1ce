# What an operator on call looks at: who is up, what failed, who knocks, and the journal.

from grafana import (NAMESPACE, PER_SECOND, PROCESS, dashboard, draft_server, increase, of, panel,
                     quantile, rate, row, scheduler, total, worker)

ALIVE = [
    row("Alerts and processes"),
    panel(
        "Alerts that fire", "short",
        "By name, those that are of no namespace too; 0 when none does, or when alerts.yml is not "
        "loaded.",
        "Each has its section in runbook.md.",
        # What is absent has no namespace; it counts whichever is chosen.
        ('sum by (alertname) (ALERTS{alertname=~"Rollcast.*",alertstate="firing",' + NAMESPACE
         + '} or ALERTS{alertname=~"Rollcast.*",alertstate="firing",namespace=""})'
         + " or on () vector(0)", "{{alertname}}"), kind="stat"),
    panel(
        "Processes that answer a scrape", "short",
        "By job. Whether they are ready is another question: Workers by state.",
        "Fewer than were started: RollcastSchedulerDown, RollcastTargetDown.",
        (total(of("all", "up"), "job"), "{{job}}")),
    panel(
        "Workers by state", "short",
        "Registered workers as the scheduler sees them; /readyz of a worker is 200 only in "
        "`ready`, and /readyz of the scheduler only while one is.",
        "No ready one: RollcastNoReadyWorkers.",
        (total(scheduler("rollcast_workers"), "state"), "{{state}}"), stacked=True),
    panel(
        "Workers lost", "short",
        "Workers declared lost in the window. One that was told to stop is not counted.",
        "One now and then costs a chunk of time. Several: RollcastWorkersLost.",
        (total(increase(scheduler("rollcast_worker_lost_total"))), "lost"), kind="stat"),
    panel(
        "What runs", "short",
        "Processes by version and numerics profile. A scheduler has no profile until its first "
        "worker registers, a draft server never has one.",
        "Two versions after an upgrade: it is not over. Two profiles: the second one's workers "
        "are refused, because they would make other bits.",
        ("count by (job, version, numerics_profile) (" + of("all", "rollcast_build_info") + ")",
         "{{job}} {{version}} {{numerics_profile}}")),
    panel(
        "Memory by process", "bytes",
        "Memory of each process that is in RAM. A worker's is its weights and KV blocks from the "
        "start, twice the weights during an update, and what is spilled to memory.",
        "It grows batch by batch and never falls: a controller that acknowledges nothing (see the "
        "journal's size), or our bug. Near the limit of its container: fewer `--kv-blocks`, less "
        "`--kv-spill-memory-mib`.",
        (of("all", "rollcast_resident_bytes"), "{{job}} " + PROCESS)),
    panel(
        "Time of a scrape", "s",
        "How long Prometheus waits for /metrics.",
        "Above 0.1 s: the machine has no time for the process; its probes suffer as well.",
        ("max by (job) (" + of("all", "scrape_duration_seconds") + ")", "{{job}}"), width=24),
]

ERRORS = [
    row("Errors"),
    panel(
        "Failures in the window", "short",
        "What failed and was made good or told to a controller: cancelled responses, aborted "
        "weight updates, KV that could not be spilled.",
        "Cancelled: by whom? Aborted: the scheduler's log, and RollcastWeightUpdatesFail. Spill: "
        "the worker's log and its disk.",
        (total(increase(scheduler("rollcast_responses_total", 'finish_reason="cancelled"'))),
         "responses cancelled"),
        (total(increase(scheduler("rollcast_weight_updates_total", 'result="aborted"'))),
         "weight updates aborted"),
        (total(increase(worker("rollcast_kv_spill_failures_total"))), "spills failed")),
    panel(
        "Frames refused", PER_SECOND["frames"],
        "Frames from outside that a process did not take, by job and reason.",
        "`malformed`, `unimplemented`: a client of another version, or somebody who tries. "
        "`too_large`: split the batch. `over_limit`: a client asks for more than its share. See "
        "RollcastFramesRejected.",
        (total(rate(of("all", "rollcast_frames_rejected_total")), "job", "reason"),
         "{{job}} {{reason}}")),
    panel(
        "Draft frames refused", PER_SECOND["frames"],
        "Frames that the draft server did not take or had no place for, and that workers refused.",
        "`full`: raise `--memory-mib`. `malformed`, refused: something else talks to these ports. "
        "`conflict`: one response was told with two texts, as when two clusters share the server.",
        (total(rate(draft_server("rollcast_draft_frames_dropped_total")), "reason"), "{{reason}}"),
        (total(rate(worker("rollcast_draft_link_rejected_total"))), "refused by workers")),
    panel(
        "Connections refused", "suffix: /s",
        "Connections to the controllers' port that were ended at the door: a failed handshake, or "
        "one too many.",
        "Handshake: a controller with an old key, or a stranger; RollcastConnectionsRefused. Too "
        "many: a client that does not close its own.",
        (total(rate(scheduler("rollcast_connections_refused_total")), "reason"), "{{reason}}")),
    panel(
        "Connections of controllers", "short",
        "Open connections to the controllers' port.",
        "It climbs and never falls: a controller opens one a request. The bound is "
        "`--connections-max`.",
        (total(scheduler("rollcast_controller_connections")), "open")),
    panel(
        "Decision time", "s",
        "Time of one call of the policy's plan: median and 99 %.",
        "Above 10 ms: every worker that waits for its next chunk waits for this. More memory "
        "bandwidth or fewer live responses; report it with the numbers of workers and responses.",
        (quantile(0.5, scheduler, "rollcast_scheduler_decision_seconds"), "median"),
        (quantile(0.99, scheduler, "rollcast_scheduler_decision_seconds"), "99 %")),
]

JOURNAL = [
    row("Journal"),
    panel(
        "Commit time", "s",
        "Time of one commit, the disk's fsync included: median and 99 %. Empty without "
        "`--journal`, or with nothing to write.",
        "99 % above 0.1 s: the disk is shared or slow; results wait for it. "
        "RollcastJournalSlow.",
        (quantile(0.5, scheduler, "rollcast_journal_write_seconds"), "median"),
        (quantile(0.99, scheduler, "rollcast_journal_write_seconds"), "99 %")),
    panel(
        "Commits", "suffix: /s",
        "Commits a second; one takes all the records that wait, so there are 200 at most.",
        "0 while records wait (beside): the disk hangs, RollcastJournalHangs.",
        (total(rate(scheduler("rollcast_journal_write_seconds_count"))), "commits")),
    panel(
        "Records that wait", "bytes",
        "Records that are not on disk yet. Controllers are told nothing that rests on them.",
        "It grows: the disk is too slow for this load, or hangs; see commits. At 256 MiB no new "
        "batch is taken.",
        (total(scheduler("rollcast_journal_pending_bytes")), "waiting")),
    panel(
        "Size", "bytes",
        "Of the journal, free pages left out.",
        "It grows and never shrinks: results are not acknowledged; `rollcast journal inspect` "
        "says whose. `rollcast discard` ends a batch that its controller has left.",
        (total(scheduler("rollcast_journal_bytes")), "journal")),
    panel(
        "Refuses new batches", "none",
        "1 while no new batch is taken because of the journal: a full disk, a failed commit, or a "
        "bound that is reached.",
        "RollcastJournalFull.",
        ("max(" + scheduler("rollcast_journal_full") + ")", "refuses"), width=16, max=1),
]

DASHBOARD = dashboard("sre", "SRE", *ALIVE, *ERRORS, *JOURNAL)
