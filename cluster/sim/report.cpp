#include "cluster/sim/report.hpp"

#include <algorithm>
#include <cmath>

namespace rollcast::sim {

nlohmann::ordered_json figures_of(const workload& batch, const sim_result& run) {
  // Of the last twentieth to finish: when, as a share of the makespan, they started.
  std::vector<response_times> last = run.responses;
  const auto twentieth = std::max<std::size_t>(1, last.size() / 20);
  std::nth_element(
    last.begin(), last.begin() + static_cast<std::ptrdiff_t>(twentieth - 1), last.end(),
    [](const response_times& a, const response_times& b) { return a.ended_s > b.ended_s; });
  double started = 0;
  for (std::size_t i = 0; i < twentieth; ++i)
    started += last[i].started_s / static_cast<double>(twentieth);
  const auto lengths = measure_lengths(batch);
  return {{"throughput_tokens_per_s", static_cast<double>(run.generated_tokens) / run.makespan_s},
          {"makespan_s", run.makespan_s},
          {"tail_s", run.tail_s},
          {"idle_fraction", run.idle_fraction},
          {"preemptions", run.preemptions},
          {"migrations", run.migrations},
          {"migrated_bytes", run.migrated_bytes},
          {"recomputed_tokens", run.recomputed_tokens},
          {"evictions", run.evictions},
          {"spills", run.spills},
          {"chunks", run.chunks},
          {"draft_tokens", run.draft_tokens},
          {"accepted_tokens", run.accepted_tokens},
          {"mean_acceptance_length", run.mean_acceptance_length},
          {"generated_tokens", run.generated_tokens},
          {"estimate_error_tokens", run.estimate_error_tokens},
          {"estimated_share", run.estimated_share},
          {"kv_fraction_max", run.busy_kv_fraction},
          {"last_started_fraction", started / run.makespan_s},
          {"length_mean", lengths.mean},
          {"length_max", lengths.longest},
          {"length_variance_between", lengths.variance_between}};
}

nlohmann::ordered_json mean_figures(const std::vector<nlohmann::ordered_json>& runs) {
  const auto count = static_cast<double>(runs.size());
  nlohmann::ordered_json out, spread;
  for (const auto& [key, first] : runs.front().items()) {
    double sum = 0, least = first.get<double>(), most = least, squares = 0;
    for (const auto& run : runs) {
      const double x = run[key].get<double>();
      sum += x;
      least = std::min(least, x);
      most = std::max(most, x);
    }
    for (const auto& run : runs)
      squares += std::pow(run[key].get<double>() - sum / count, 2);
    out[key] = runs.size() == 1 ? first : nlohmann::ordered_json(sum / count);
    if (runs.size() > 1)
      spread[key] = {{"min", least}, {"max", most}, {"stdev", std::sqrt(squares / (count - 1))}};
  }
  if (runs.size() > 1)
    out["spread"] = std::move(spread);
  return out;
}

} // namespace rollcast::sim
