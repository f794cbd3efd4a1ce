#include "cluster/batch/batch_tally.hpp"

#include <algorithm>

namespace rollcast {
namespace {

double seconds(std::uint64_t ns) {
  return static_cast<double>(ns) * 1e-9;
}

std::uint64_t minus(std::uint64_t a, std::uint64_t b) {
  return a > b ? a - b : 0;
}

/// Tokens of a verification, its bonus token included; 0 if there was none.
double acceptance_length(std::uint64_t accepted, std::uint64_t verifications) {
  if (verifications == 0)
    return 0;
  return 1 + static_cast<double>(accepted) / static_cast<double>(verifications);
}

} // namespace

void batch_tally::join(worker_id worker, const std::string& name, const engine_stats& stats,
                       std::uint64_t now_ns) {
  shares_.try_emplace(worker, share{name, stats, stats, now_ns, 0, 0, 0, 0, 0});
}

void batch_tally::update(worker_id worker, const engine_stats& stats) {
  if (const auto it = shares_.find(worker); it != shares_.end())
    it->second.last = stats;
}

void batch_tally::leave(worker_id worker, std::uint64_t now_ns) {
  if (const auto it = shares_.find(worker); it != shares_.end() && it->second.until_ns == 0)
    it->second.until_ns = now_ns;
}

void batch_tally::count_chunk(worker_id worker, std::uint64_t tokens) {
  auto& s = shares_[worker];
  ++s.chunks;
  s.tokens += tokens;
}

void batch_tally::count_migration(worker_id target, std::uint64_t bytes) {
  auto& s = shares_[target];
  ++s.migrations;
  s.migrated_bytes += bytes;
}

void batch_tally::summarise(std::uint64_t begin_ns, std::uint64_t end_ns,
                            wire::batch_summary& out) const {
  std::uint64_t busy_ns = 0;
  std::uint64_t present_ns = 0;
  std::uint64_t verifications = 0;
  for (const auto& [worker, s] : shares_) {
    const auto until = s.until_ns == 0 ? end_ns : std::min(s.until_ns, end_ns);
    const auto present = minus(until, std::max(s.from_ns, begin_ns));
    const auto busy = minus(s.last.busy_ns, s.first.busy_ns);
    wire::worker_summary w;
    w.worker = worker;
    w.name = s.name;
    w.tokens = s.tokens;
    w.busy_s = seconds(busy);
    if (present > 0) {
      w.tokens_per_s = static_cast<double>(s.tokens) / seconds(present);
      w.idle_fraction =
        std::clamp(1.0 - static_cast<double>(busy) / static_cast<double>(present), 0.0, 1.0);
    }
    w.chunks = s.chunks;
    w.migrations = s.migrations;
    w.migrated_bytes = s.migrated_bytes;
    w.recomputed_tokens = minus(s.last.recomputed_tokens, s.first.recomputed_tokens);
    w.preemptions = minus(s.last.preemptions, s.first.preemptions);
    w.draft_tokens = minus(s.last.draft_tokens, s.first.draft_tokens);
    w.accepted_tokens = minus(s.last.accepted_tokens, s.first.accepted_tokens);
    const auto verified = minus(s.last.verifications, s.first.verifications);
    w.mean_acceptance_length = acceptance_length(w.accepted_tokens, verified);
    out.chunks += w.chunks;
    out.migrations += w.migrations;
    out.migrated_bytes += w.migrated_bytes;
    out.recomputed_tokens += w.recomputed_tokens;
    out.preemptions += w.preemptions;
    out.draft_tokens += w.draft_tokens;
    out.accepted_tokens += w.accepted_tokens;
    verifications += verified;
    busy_ns += std::min(busy, present);
    present_ns += present;
    out.workers.push_back(std::move(w));
  }
  out.mean_acceptance_length = acceptance_length(out.accepted_tokens, verifications);
  if (present_ns > 0)
    out.worker_idle_fraction = 1.0 - static_cast<double>(busy_ns) / static_cast<double>(present_ns);
}

} // namespace rollcast
