# Who serves which weights, and what a change of them costs.

from grafana import (PER_SECOND, PROCESS, WINDOW, dashboard, increase, mean, panel, quantile, rate,
                     row, scheduler, total, worker)

PHASES = ("`receiving` is from the controller, `distributing` to the workers and into their second "
          "buffers, `waiting` until what ran had ended, `flipping` the change itself")

EPOCHS = [
    row("Epochs"),
    panel(
        "Epoch by process", "none",
        "Weight version that the scheduler places work for, and that each worker serves. They "
        "change together.",
        "A worker on another line for minutes gets no work: the alert RollcastWeightEpochsDiffer.",
        (scheduler("rollcast_weight_epoch"), "scheduler " + PROCESS),
        (worker("rollcast_weight_epoch"), PROCESS), width=12),
    panel(
        "Workers by state", "short",
        "Stale workers do not serve the scheduler's epoch yet. One that was started late or was "
        "away is stale until it has pulled the weights.",
        "Stale for minutes: its log says what it pulls and from whom. All stale: the only worker "
        "that held the weights has gone; publish them again.",
        (total(scheduler("rollcast_workers"), "state"), "{{state}}"), stacked=True),
    panel(
        "Workers off the epoch", "short",
        "Workers whose epoch is not the scheduler's.",
        "Above 0 for more than the time that a pull takes: see Epoch by process for which.",
        ("count(" + worker("rollcast_weight_epoch") + " != on (namespace) group_left () "
         "max by (namespace) (" + scheduler("rollcast_weight_epoch") + ")) or vector(0)",
         "workers"), width=4, kind="stat"),
]

UPDATES = [
    row("Updates of the last $window"),
    panel(
        "Updates by result", "short",
        "Updates that ended in the window. `rolled_back` is a return to the epoch before, on "
        "demand.",
        "`aborted`: the controller went away or was silent, a tensor was refused, a disk or the "
        "journal did not keep up. The scheduler's log has one line for each.",
        (total(increase(scheduler("rollcast_weight_updates_total")), "result"), "{{result}}")),
    panel(
        "Time by phase, mean", "s",
        "What an update takes: " + PHASES + ".",
        "Receiving long: the controller or its link. Distributing long: the network between "
        "workers, or `--weight-threads`. Waiting long: responses are long; "
        "`--flip chunk` does not wait. Flipping above a second: a worker did not answer.",
        (mean(scheduler, "rollcast_weight_update_seconds", "phase", over=WINDOW), "{{phase}}"),
        stacked=True),
    panel(
        "Time by phase, 95 %", "s",
        "The slow updates: " + PHASES + ".",
        "Far above the mean: a worker was lost or frozen meanwhile, look at SRE at that time.",
        (quantile(0.95, scheduler, "rollcast_weight_update_seconds", "phase", over=WINDOW),
         "{{phase}}")),
    panel(
        "Pause for a change", "s",
        "How long nothing was placed once nothing ran: mean and 95 %. The only time that an "
        "update takes from serving.",
        "Above a second: the journal is slow to write the decision (SRE), or a worker is slow to "
        "answer.",
        (mean(scheduler, "rollcast_weight_pause_seconds", over=WINDOW), "mean"),
        (quantile(0.95, scheduler, "rollcast_weight_pause_seconds", over=WINDOW), "95 %")),
    panel(
        "Share of time paused", "percentunit",
        "The pauses together, of all time.",
        "Above a few per cent: updates are too frequent for their pauses; see there.",
        (total(rate(scheduler("rollcast_weight_pause_seconds_sum"), WINDOW)), "share"), max=1),
    panel(
        "Scores", PER_SECOND["tokens"],
        "Tokens a second that controllers had scored, at the present epoch or the one before.",
        "0 while a trainer waits for scores: they wait for a change of weights or a ready worker.",
        (total(rate(scheduler("rollcast_scored_tokens_total"))), "scored")),
]

DASHBOARD = dashboard("weights", "weights", *EPOCHS, *UPDATES)
