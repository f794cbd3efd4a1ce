# The first page to look at: does the cluster work, and where does its time go?

from grafana import (PER_SECOND, PROCESS, WINDOW, dashboard, increase, mean, panel, quantile, rate,
                     row, scheduler, total, worker)

WORK = [
    row("Work"),
    panel(
        "Throughput", PER_SECOND["tokens"],
        "Tokens a second: accepted into responses, sampled by workers, prompts of new batches, "
        "prompts prefilled, and tokens scored for controllers. Sampled is a little above "
        "accepted: the difference was lost with a worker, or is not reported yet.",
        "Accepted falls and running does not: look at the step time below. Sampled stays far above "
        "accepted: workers are lost in their chunks, look at SRE. All 0 with work waiting: the "
        "alert RollcastBatchStuck.",
        (total(rate(scheduler("rollcast_generated_tokens_total"))), "accepted"),
        (total(rate(worker("rollcast_generated_tokens_total"))), "sampled"),
        (total(rate(scheduler("rollcast_prompt_tokens_total"))), "prompts of new batches"),
        (total(rate(worker("rollcast_prompt_tokens_total"))), "prompts prefilled"),
        (total(rate(scheduler("rollcast_scored_tokens_total"))), "scored")),
    panel(
        "Running and waiting", "short",
        "Responses on a worker, and accepted ones that wait for a place, as the scheduler counts "
        "them.",
        "Waiting high for all of a batch: add workers, they shorten it. Waiting above 0 with "
        "nothing running: no worker is ready, or serving is paused for new weights. Running low "
        "at the end of each batch is the tail, see below.",
        (total(scheduler("rollcast_requests_running")), "running"),
        (total(scheduler("rollcast_requests_waiting")), "waiting"), stacked=True),
    panel(
        "Finished responses", PER_SECOND["responses"],
        "Responses a second by the reason they ended.",
        "Many of `length`: the limit of new tokens cuts answers off, and the trainer learns from "
        "halves. `cancelled` without anybody cancelling: a controller loses its batches, look "
        "at its log.",
        (total(rate(scheduler("rollcast_responses_total")), "finish_reason"), "{{finish_reason}}")),
]

BATCHES = [
    row("Batches of the last $window"),
    panel(
        "Makespan", "s",
        "From a batch's acceptance to its last response: mean, median and 95 %, of the batches "
        "that ended in the window. Empty when none did.",
        "It grows with the same prompts: compare throughput then and now. If that is the same, "
        "responses got longer, which is the training's doing.",
        (mean(scheduler, "rollcast_batch_makespan_seconds", over=WINDOW), "mean"),
        (quantile(0.5, scheduler, "rollcast_batch_makespan_seconds", over=WINDOW), "median"),
        (quantile(0.95, scheduler, "rollcast_batch_makespan_seconds", over=WINDOW), "95 %")),
    panel(
        "Tail", "s",
        "How long batches had at most 10 % of their responses unfinished: mean and 95 %. In the "
        "tail most of the fleet has nothing to do.",
        "See the share beside it. Seconds alone say little: they grow with the longest answer.",
        (mean(scheduler, "rollcast_batch_tail_seconds", over=WINDOW), "mean"),
        (quantile(0.95, scheduler, "rollcast_batch_tail_seconds", over=WINDOW), "95 %")),
    panel(
        "Tail's share of the makespan", "percentunit",
        "What part of all batches' time was tail.",
        "Above a half: policy `context`, smaller chunks, drafts (`--speculate auto`), or larger "
        "batches: RollcastTailLong. A short batch on a large fleet is all tail.",
        (total(rate(scheduler("rollcast_batch_tail_seconds_sum"), WINDOW)) + " / "
         + total(rate(scheduler("rollcast_batch_makespan_seconds_sum"), WINDOW)), "share"), max=1),
    panel(
        "Error of the length estimate", "suffix: tokens",
        "How far a finished response's length was from what its group's siblings had let expect "
        "when it was last placed: mean, median and 90 %. The policy begins the longest first.",
        "About as large as a response: the estimate is worth nothing, as with groups of 1 or "
        "siblings that have little in common. Larger groups help; nothing is wrong with results.",
        (mean(scheduler, "rollcast_length_estimate_error_tokens", over=WINDOW), "mean"),
        (quantile(0.5, scheduler, "rollcast_length_estimate_error_tokens", over=WINDOW), "median"),
        (quantile(0.9, scheduler, "rollcast_length_estimate_error_tokens", over=WINDOW), "90 %"),
        width=12),
    panel(
        "Batches that ended", "short",
        "How many batches ended in the window.",
        "0 while the trainer waits: look at running and waiting above.",
        (total(increase(scheduler("rollcast_batch_makespan_seconds_count"))), "batches"),
        width=12, kind="stat"),
]

WORKERS = [
    row("Workers"),
    panel(
        "Workers by state", "short",
        "Registered workers. A stale one does not serve the cluster's weight epoch yet and gets no "
        "work; a draining one finishes what it has and leaves.",
        "Fewer than were started: look at the missing ones' logs, they say whom they dial. Stale "
        "for minutes: the Weights dashboard.",
        (total(scheduler("rollcast_workers"), "state"), "{{state}}"), stacked=True),
    panel(
        "Load by worker", "short",
        "Responses that take part in a worker's steps.",
        "One far above the others for long: it is slow, or the others have no free KV blocks. One "
        "at 0 while work waits: not ready, or paused.",
        (worker("rollcast_requests_running"), PROCESS)),
    panel(
        "Admitted and not stepped yet, by worker", "short",
        "Responses that a worker has taken on and that take part in no step yet.",
        "Above 0 for long: prompts are prefilled (see rows of a step), KV is on its way, or the "
        "engine stands; then /healthz of that worker says for how long.",
        (worker("rollcast_requests_waiting"), PROCESS)),
    panel(
        "Tokens by worker", PER_SECOND["tokens"],
        "Tokens that each worker samples a second.",
        "One is slower at the same load: another process on its machine, a throttled device, or "
        "fewer threads. Compare its step time.",
        (rate(worker("rollcast_generated_tokens_total")), PROCESS)),
    panel(
        "Step time by worker", "s",
        "Mean time of one engine step, and the 99 % over all workers.",
        "It grows with rows of a step; at the same rows it must not. If one worker's is longer, "
        "move that worker.",
        (mean(worker, "rollcast_step_seconds", "pod", "instance"), PROCESS),
        (quantile(0.99, worker, "rollcast_step_seconds"), "99 % of all")),
    panel(
        "Rows of a step by worker", "suffix: rows",
        "Activation rows of a step, mean: decoded responses, drafted tokens and prefilled tokens.",
        "Near 1 in a batch's middle: the fleet is too large for the batch, or KV blocks are too "
        "few to run more at a time.",
        (mean(worker, "rollcast_batch_rows", "pod", "instance"), PROCESS)),
    panel(
        "Busy share by worker", "percentunit",
        "What part of its time a worker spends in steps.",
        "Low while work waits: the worker waits for KV, weights or the scheduler. Look at the "
        "scheduler's decision time (SRE) and at migrations.",
        (rate(worker("rollcast_step_seconds_sum")), PROCESS), width=24, max=1),
]

KV_CACHE = [
    row("KV"),
    panel(
        "KV blocks by state", "suffix: blocks",
        "Blocks of all workers: free, of running responses, and parked, which hold responses "
        "between two chunks.",
        "Free near 0 is good use as long as little is recomputed. With much recomputed: more "
        "`--kv-blocks`, spill space, or a smaller `--max-batch`.",
        (total(worker("rollcast_kv_blocks"), "state"), "{{state}}"), stacked=True),
    panel(
        "Free KV blocks by worker", "percentunit",
        "Each worker's free share.",
        "One is full and others are not: responses are too long to be moved cheaply. Look at the "
        "prices below.",
        (total(worker("rollcast_kv_blocks", 'state="free"'), "pod", "instance") + " / "
         + total(worker("rollcast_kv_blocks"), "pod", "instance"), PROCESS), max=1),
    panel(
        "Migrations by path", PER_SECOND["responses"],
        "Responses a second whose KV moved to another worker, by the transport that carried it.",
        "More than chunks end: loads swing, raise `--chunk-tokens`. 0 with several busy workers: "
        "moving is dearer than computing again (prices below), or the data ports are closed; a "
        "worker's log names the peer that it cannot reach.",
        (total(rate(scheduler("rollcast_migrations_total")), "path"), "{{path}}")),
    panel(
        "KV moved", "Bps",
        "Bytes of those moves.",
        "Near what the network carries: moves take the bandwidth of weights and drafts. Raise "
        "`--chunk-tokens`.",
        (total(rate(scheduler("rollcast_migrated_bytes_total"))), "bytes")),
    panel(
        "Moved by the group of devices", "Bps",
        "Bytes a second of KV and of new weights that GPUs gave each other without ZeroMQ "
        "(`--collectives`); weights as they were sent, once for all who received them.",
        "0 with KV moving above, on a cluster of GPUs: no group is open, see beside it. CPU "
        "workers have none.",
        (total(rate(scheduler("rollcast_collective_bytes_total")), "what"), "{{what}}")),
    panel(
        "The group of devices", "short",
        "Workers in the group that is open, and over $window: groups formed, groups that failed, "
        "rounds of transfers, and transfers that it did not make and ZeroMQ did.",
        "Groups that fail: the alert RollcastCollectivesFail. Members below the number of GPU "
        "workers: two share a GPU, or a worker has no libnccl.so.2, which its log says.",
        (total(scheduler("rollcast_collective_members")), "members"),
        (total(increase(scheduler("rollcast_collective_epochs_total")), "result"),
         "groups {{result}}"),
        (total(increase(scheduler("rollcast_collective_rounds_total"))), "rounds"),
        (total(increase(worker("rollcast_collective_fallbacks_total")), "what"),
         "{{what}} by ZeroMQ instead")),
    panel(
        "Tokens computed again", PER_SECOND["tokens"],
        "Tokens that were prefilled again because their KV was gone or cheaper to compute than to "
        "move, as the scheduler and as the workers count them.",
        "See the share beside it. The workers' count is the larger one: what they lost with a "
        "process is not told any more.",
        (total(rate(scheduler("rollcast_recomputed_tokens_total"))), "scheduler"),
        (total(rate(worker("rollcast_recomputed_tokens_total"))), "workers")),
    panel(
        "Share computed again by worker", "percentunit",
        "Tokens prefilled again over tokens sampled.",
        "Above a fifth for long: the worker churns, the alert RollcastKvChurn says what to do. A "
        "peak after a lost worker is right.",
        (total(rate(worker("rollcast_recomputed_tokens_total")), "pod", "instance") + " / "
         + total(rate(worker("rollcast_generated_tokens_total")), "pod", "instance"), PROCESS)),
    panel(
        "Preemptions", PER_SECOND["responses"],
        "Responses a second that were thrown out of a running batch for want of KV blocks, of the "
        "cluster and by worker. Only policy `static` does that.",
        "Blocks are too few for `--max-batch`: more `--kv-blocks`, fewer responses at a time, or "
        "policy `context`, which does not start what it has no room for.",
        (total(rate(scheduler("rollcast_preemptions_total"))), "cluster"),
        (rate(worker("rollcast_preemptions_total")), PROCESS)),
    panel(
        "KV spilled", "bytes",
        "KV of waiting responses outside the engines' blocks, by tier.",
        "At the configured bound: further KV is computed again. Raise `--kv-spill-memory-mib` or "
        "`--kv-spill-disk-mib`.",
        (total(worker("rollcast_kv_spilled_bytes"), "tier"), "{{tier}}"), stacked=True),
    panel(
        "Spills and restores", PER_SECOND["responses"],
        "Responses a second whose KV left the blocks, came back, or could be neither.",
        "Failures: the spill directory is full or unwritable; the worker's log has the line. "
        "Nothing is lost, it is computed again.",
        (total(rate(worker("rollcast_kv_spills_total"))), "spilled"),
        (total(rate(worker("rollcast_kv_restores_total"))), "restored"),
        (total(rate(worker("rollcast_kv_spill_failures_total"))), "failed")),
    panel(
        "Prices of KV by worker", "s",
        "What a worker has measured: seconds to compute a token again, and to move or to restore a "
        "byte. 0: not known yet. The scheduler chooses by them.",
        "A move's price ten times another worker's: a slow link to it. With `--kv-prices assumed` "
        "they are measured and not used.",
        (worker("rollcast_recompute_seconds_per_token"), "a token again, " + PROCESS),
        (worker("rollcast_kv_move_seconds_per_byte"), "a byte moved, " + PROCESS),
        (worker("rollcast_kv_restore_seconds_per_byte"), "a byte restored, " + PROCESS)),
]

DASHBOARD = dashboard("cluster", "cluster", *WORK, *BATCHES, *WORKERS, *KV_CACHE)
