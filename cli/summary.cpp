#include "cli/summary.hpp"

#include <nlohmann/json.hpp>

#include <cinttypes>
#include <cstdio>

namespace rollcast::cli {

namespace {

nlohmann::ordered_json json_of(const wire::worker_summary& w) {
  return {{"worker", w.worker.value},
          {"name", w.name},
          {"tokens", w.tokens},
          {"tokens_per_s", w.tokens_per_s},
          {"busy_s", w.busy_s},
          {"worker_idle_fraction", w.idle_fraction},
          {"chunks", w.chunks},
          {"migrations", w.migrations},
          {"migrated_bytes", w.migrated_bytes},
          {"recomputed_tokens", w.recomputed_tokens},
          {"preemptions", w.preemptions},
          {"draft_tokens", w.draft_tokens},
          {"accepted_tokens", w.accepted_tokens},
          {"mean_acceptance_length", w.mean_acceptance_length}};
}

} // namespace

std::string to_json(const wire::batch_summary& s) {
  nlohmann::ordered_json json{{"responses", s.responses},
                              {"tokens", s.tokens},
                              {"wall_s", s.wall_s},
                              {"tokens_per_s", s.tokens_per_s},
                              {"makespan_s", s.makespan_s},
                              {"tail_s", s.tail_s},
                              {"worker_idle_fraction", s.worker_idle_fraction},
                              {"chunks", s.chunks},
                              {"migrations", s.migrations},
                              {"migrated_bytes", s.migrated_bytes},
                              {"recomputed_tokens", s.recomputed_tokens},
                              {"preemptions", s.preemptions},
                              {"draft_tokens", s.draft_tokens},
                              {"accepted_tokens", s.accepted_tokens},
                              {"mean_acceptance_length", s.mean_acceptance_length},
                              {"numerics_profile", s.numerics_profile},
                              {"policy", s.policy},
                              {"speculate", s.speculate}};
  auto workers = nlohmann::ordered_json::array();
  for (const auto& worker : s.workers)
    workers.push_back(json_of(worker));
  json["workers"] = std::move(workers);
  return json.dump(2);
}

void print_table(const wire::batch_summary& s, const std::filesystem::path& responses) {
  std::printf("%-22s %" PRIu64 " (%" PRIu64 " tokens)\n", "responses", s.responses, s.tokens);
  std::printf("%-22s %.2f s (tail %.2f s), %.0f tokens/s\n", "makespan", s.makespan_s, s.tail_s,
              s.tokens_per_s);
  std::printf("%-22s %s, %s\n", "policy, numerics", s.policy.c_str(), s.numerics_profile.c_str());
  std::printf("%-22s %" PRIu64 " chunks, %" PRIu64 " moves (%.1f MB), %" PRIu64
              " tokens recomputed, %" PRIu64 " preemptions\n",
              "scheduling", s.chunks, s.migrations, static_cast<double>(s.migrated_bytes) / 1e6,
              s.recomputed_tokens, s.preemptions);
  std::printf("%-22s %10s %9s %7s %7s\n", "worker", "tokens", "tokens/s", "idle", "chunks");
  for (const auto& w : s.workers)
    std::printf("%-22s %10" PRIu64 " %9.0f %6.1f%% %7" PRIu64 "\n", w.name.c_str(), w.tokens,
                w.tokens_per_s, 100 * w.idle_fraction, w.chunks);
  std::printf("responses are in %s\n", responses.c_str());
}

} // namespace rollcast::cli
