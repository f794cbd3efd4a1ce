# Does drafting pay, and if not, why?

from grafana import (PER_SECOND, PROCESS, dashboard, draft_server, mean, of, panel, quantile, rate,
                     row, total, worker)

DRAFTED = "rollcast_draft_tokens_total"
KEPT = "rollcast_accepted_tokens_total"
MADE = "rollcast_generated_tokens_total"

GAIN = [
    row("Gain"),
    panel(
        "Tokens drafted and kept", PER_SECOND["tokens"],
        "Drafted tokens that were verified, and those of them that were right, by drafter.",
        "Both 0: drafting is off (`--speculate`), or does not pay now. With `auto` that is a "
        "choice, see the budget.",
        (total(rate(worker(DRAFTED)), "drafter"), "drafted ({{drafter}})"),
        (total(rate(worker(KEPT)), "drafter"), "kept ({{drafter}})")),
    panel(
        "Acceptance by drafter", "percentunit",
        "Of the drafted tokens, how many were right. Empty while nothing is drafted.",
        "It falls when responses of a group have little in common; `auto` then drafts less. Near 0 "
        "for long with `self` or `group`: drafting costs and gives nothing, the alert "
        "RollcastAcceptanceCollapsed.",
        (total(rate(worker(KEPT)), "drafter") + " / " + total(rate(worker(DRAFTED)), "drafter"),
         "{{drafter}}"), max=1),
    panel(
        "Acceptance by worker", "percentunit",
        "The same by worker. Workers that share what groups write should be alike.",
        "One is lower: it does not hear of siblings. Look at its staleness, gaps and drops below.",
        (total(rate(worker(KEPT)), "pod", "instance") + " / "
         + total(rate(worker(DRAFTED)), "pod", "instance"), PROCESS), max=1),
    panel(
        "Share of tokens that drafts gave", "percentunit",
        "Kept drafted tokens over all sampled ones: passes of the model that were saved.",
        "0 with drafts on: see acceptance. It is the gain before its price: rows and look-up.",
        (total(rate(worker(KEPT))) + " / " + total(rate(worker(MADE))), "share"), max=1),
    panel(
        "Gain in tokens a pass", "suffix: x",
        "Tokens that a response gets from one pass of the model, by worker: 1 is what it has "
        "without drafts. An upper bound of the speed-up, because longer steps take longer.",
        "1 with drafts on: nothing is kept. Above 1 and throughput does not rise: rows are dear "
        "here; use `auto`, which measures that.",
        (total(rate(worker(MADE)), "pod", "instance") + " / ("
         + total(rate(worker(MADE)), "pod", "instance") + " - "
         + total(rate(worker(KEPT)), "pod", "instance") + ")", PROCESS)),
    panel(
        "Acceptance length", "suffix: tokens",
        "Tokens that a step gives to a response that had a draft, the bonus token included: mean "
        "and median. 1 is none kept.",
        "It should rise as siblings finish. If it does not, siblings differ, or are on workers "
        "that are not heard of.",
        (mean(worker, "rollcast_acceptance_length"), "mean"),
        (quantile(0.5, worker, "rollcast_acceptance_length"), "median")),
]

PRICE = [
    row("Price"),
    panel(
        "Budget chosen", "suffix: tokens",
        "Drafted tokens of a step: mean and 95 %.",
        "0 at large batches is right where rows are dear. 0 at small batches means that nothing "
        "was found to draft.",
        (mean(worker, "rollcast_draft_budget_tokens"), "mean"),
        (quantile(0.95, worker, "rollcast_draft_budget_tokens"), "95 %")),
    panel(
        "Draft time by worker", "percentunit",
        "Share of step time that looking drafts up takes.",
        "Above 2 %: the index has outgrown the cache; have fewer groups in flight.",
        (total(rate(worker("rollcast_draft_seconds_sum")), "pod", "instance") + " / "
         + total(rate(worker("rollcast_step_seconds_sum")), "pod", "instance"), PROCESS)),
    panel(
        "Index memory", "bytes",
        "Memory of a worker's draft index, and of the draft server.",
        "Both are bounded; at the bound the oldest groups are forgotten and drafts get shorter. "
        "Raise the draft server's `--memory-mib` if it stays there.",
        (worker("rollcast_draft_index_bytes"), PROCESS),
        (draft_server("rollcast_draft_bytes"), "draft server " + PROCESS)),
]

EXCHANGE = [
    row("Exchange between workers"),
    panel(
        "Siblings heard of", PER_SECOND["tokens"],
        "Tokens of siblings on other workers that came by the draft server, and those that it "
        "sent on, repeats included.",
        "Only the second moves: workers do not take them; look at gaps and drops. Both 0 with "
        "`group` or `auto` on several workers: they do not reach the draft server.",
        (total(rate(worker("rollcast_sibling_tokens_total"))), "heard"),
        (total(rate(draft_server("rollcast_draft_relayed_tokens_total"))), "sent on")),
    panel(
        "Staleness of siblings' tokens", "s",
        "Age of siblings' tokens when the drafter gets them, the network left out: median and "
        "99 %.",
        "Seconds: the worker's link or its engine's thread is held up; compare its step time.",
        (quantile(0.5, worker, "rollcast_draft_staleness_seconds"), "median"),
        (quantile(0.99, worker, "rollcast_draft_staleness_seconds"), "99 %")),
    panel(
        "Groups followed", "short",
        "Groups that the draft server keeps, and pairs of a group and a worker that follows it.",
        "0 while workers decode with `group` or `auto`: they do not reach it; check "
        "`--draft-server` and its port.",
        (total(draft_server("rollcast_draft_groups")), "groups"),
        (total(draft_server("rollcast_draft_followers")), "followers")),
    panel(
        "Gaps and drops", "suffix: /s",
        "Streams found short and completed, frames that the draft server did not take or send, and "
        "what workers had no room for or refused.",
        "A steady rate: a queue that is too small, or a broken link. `malformed` or `refused`: "
        "something else talks to these ports, see deploy/SECURITY.md. Drafts get shorter, nothing "
        "else.",
        (total(rate(of("all", "rollcast_draft_gaps_repaired_total")), "job"), "repaired ({{job}})"),
        (total(rate(draft_server("rollcast_draft_frames_dropped_total")), "reason"),
         "dropped ({{reason}})"),
        (total(rate(worker("rollcast_draft_link_dropped_total"))), "no room (workers)"),
        (total(rate(worker("rollcast_draft_link_rejected_total"))), "refused (workers)"),
        width=24),
]

MODEL = [
    row("Draft model"),
    panel(
        "Passes of the draft model", "suffix: /s",
        "Forward passes of an MTP layer or an EAGLE-3 head, all workers.",
        "0 with `mtp` or `eagle3`: no drafts are asked for; look at the budget. With `auto`: the "
        "model does not pay at this batch size.",
        (total(rate(worker("rollcast_draft_model_passes_total"))), "passes")),
    panel(
        "What the draft model could not see", "suffix: /s",
        "Contexts that it began anew, because its own was full or steps without drafts lay "
        "between, and responses that its KV had no blocks for.",
        "Restarts at a steady rate: responses are longer than its context (2048 tokens of a "
        "published EAGLE-3 head). Starved: its KV blocks are too few for this batch. Acceptance "
        "falls, nothing else.",
        (total(rate(worker("rollcast_draft_context_restarts_total"))), "restarts"),
        (total(rate(worker("rollcast_draft_contexts_starved_total"))), "starved")),
]

DASHBOARD = dashboard("speculation", "speculation", *GAIN, *PRICE, *MODEL, *EXCHANGE)
