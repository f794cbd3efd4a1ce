#pragma once

#include "engine/base/error.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace rollcast::sim {

/// One response as it would have come out: everything that scheduling can depend on.
struct traced_response {
  std::uint64_t group = 0;
  std::uint32_t index = 0; ///< 0 is the group's probe.
  std::uint32_t prompt_tokens = 0;
  std::uint32_t output_tokens = 0; ///< At least 1.
  friend bool operator==(const traced_response&, const traced_response&) = default;
};

/// A batch to simulate: its responses by (group, index).
struct workload {
  std::string name;
  std::uint32_t tokens_max = 0; ///< Limit of generated tokens, at least the longest output.
  std::vector<traced_response> responses;
};

/// What a workload is drawn from. Lengths are lognormal, cut at `tokens_max` as a real sampler cuts
/// them: length = min(tokens_max, exp(m + spread (sqrt(s) g + sqrt(1 - s) e))), g one standard
/// normal a prompt, e one a response. m and s are solved for the mean and the variance share.
struct workload_spec {
  std::string name;
  std::uint32_t groups = 0;
  std::uint32_t group_size = 0;
  std::uint32_t tokens_max = 0;
  double mean_tokens = 0;        ///< Of the length after the cut.
  double spread = 1;             ///< Standard deviation of the logarithm before the cut.
  double variance_between = 0;   ///< Share of the lengths' variance that the prompt explains.
  std::uint32_t prompt_mean = 0; ///< Prompts are uniform in [prompt_mean / 2, prompt_mean * 3 / 2].
};

/// m and s of `workload_spec`.
struct length_fit {
  double location = 0;       ///< m
  double latent_between = 0; ///< s
};

/// The three published workloads (Seer, arXiv 2511.14617v3, Table 3): "moonlight", "qwen2-vl-72b",
/// "kimi-k2". Nothing for another name.
std::optional<workload_spec> find_workload(std::string_view name);

/// Names that `find_workload` knows.
const std::vector<std::string>& workload_names();

/// Solves m and s by bisection over a fixed quadrature; the same on every call. `variance_between`
/// is held to [0, 1].
length_fit fit_lengths(const workload_spec& spec);

/// Draws one batch. g is stratified over the prompts and e over the responses (a Latin hypercube,
/// shuffled by `seed`), so that every draw has the mean and the tail of the spec, and seeds differ
/// only in who is long and where he stands.
workload draw_workload(const workload_spec& spec, std::uint64_t seed);

/// Mean, longest, and the share of the variance between groups (one-way analysis of variance,
/// within-group mean square taken out of the between-group one).
struct length_statistics {
  double mean = 0;
  std::uint32_t longest = 0;
  double variance_between = 0;
  double at_limit = 0; ///< Share of responses cut at the limit.
};

length_statistics measure_lengths(const workload& batch);

} // namespace rollcast::sim
