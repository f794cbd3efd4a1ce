#include "cluster/sim/workload.hpp"

#include "cluster/sim/normal.hpp"
#include "engine/base/prng.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace rollcast::sim {

namespace {

constexpr int nodes = 200; // of the quadrature: midpoints of equal probability
constexpr int rounds = 60; // of a bisection

double node(int i) {
  return normal_quantile((i + 0.5) / nodes);
}

double cut_length(double latent, double location, const workload_spec& spec) {
  return std::min(std::exp(location + spec.spread * latent), double{1} * spec.tokens_max);
}

double mean_at(double location, const workload_spec& spec) {
  constexpr int fine = nodes * 20; // one dimension can afford the far tail
  double sum = 0;
  for (int i = 0; i < fine; ++i)
    sum += cut_length(normal_quantile((i + 0.5) / fine), location, spec);
  return sum / fine;
}

/// Share of the variance of the lengths that g explains when it has `latent` of the latent
/// variance.
double share_at(double latent, double location, const workload_spec& spec) {
  const double between = std::sqrt(latent);
  const double within = std::sqrt(1 - latent);
  double sum = 0, squares = 0, squared_means = 0;
  for (int i = 0; i < nodes; ++i) {
    double of_prompt = 0;
    for (int j = 0; j < nodes; ++j) {
      const double length = cut_length(between * node(i) + within * node(j), location, spec);
      of_prompt += length;
      squares += length * length;
    }
    of_prompt /= nodes;
    sum += of_prompt;
    squared_means += of_prompt * of_prompt;
  }
  const double mean = sum / nodes;
  const double whole = squares / (double{nodes} * nodes) - mean * mean;
  return whole > 0 ? (squared_means / nodes - mean * mean) / whole : 0;
}

template <class Function>
double bisect(double low, double high, double wanted, Function rising) {
  for (int i = 0; i < rounds; ++i) {
    const double middle = (low + high) / 2;
    (rising(middle) < wanted ? low : high) = middle;
  }
  return (low + high) / 2;
}

double unit(prng& random) {
  return (static_cast<double>(random.next() >> 11) + 0.5) * 0x1p-53;
}

/// `count` standard normals, one from each of `count` slices of equal probability, shuffled.
std::vector<double> stratified_normals(std::uint32_t count, prng& random) {
  std::vector<double> out(count);
  for (std::uint32_t i = 0; i < count; ++i)
    out[i] = normal_quantile((i + unit(random)) / count);
  for (std::uint32_t i = count; i > 1; --i)
    std::swap(out[i - 1], out[random.below(i)]);
  return out;
}

} // namespace

const std::vector<std::string>& workload_names() {
  static const std::vector<std::string> names{"moonlight", "qwen2-vl-72b", "kimi-k2"};
  return names;
}

std::optional<workload_spec> find_workload(std::string_view name) {
  // groups, members, limit, mean: published. The spread is fitted to the published tail share of
  // the baseline, the share between prompts is published for another model family, and prompt
  // lengths are assumed (README.md tells which is which).
  if (name == "moonlight")
    return workload_spec{"moonlight", 400, 8, 65'536, 22'386, 0.63, 0.648, 512};
  if (name == "qwen2-vl-72b")
    return workload_spec{"qwen2-vl-72b", 600, 16, 40'960, 7'615, 1.214, 0.648, 1'024};
  if (name == "kimi-k2")
    return workload_spec{"kimi-k2", 800, 8, 98'304, 38'959, 1.300, 0.648, 512};
  return std::nullopt;
}

length_fit fit_lengths(const workload_spec& spec) {
  length_fit fit;
  fit.location = bisect(0, std::log(double{1} * spec.tokens_max) + 4, spec.mean_tokens,
                        [&](double location) { return mean_at(location, spec); });
  const double wanted = std::clamp(spec.variance_between, 0.0, 1.0);
  fit.latent_between =
    wanted == 0 ? 0
    : wanted == 1
      ? 1
      : bisect(0, 1, wanted, [&](double latent) { return share_at(latent, fit.location, spec); });
  return fit;
}

workload draw_workload(const workload_spec& spec, std::uint64_t seed) {
  const auto fit = fit_lengths(spec);
  const double between = std::sqrt(fit.latent_between);
  const double within = std::sqrt(1 - fit.latent_between);
  prng random{seed};
  const auto prompts = stratified_normals(spec.groups, random);
  const auto members = stratified_normals(spec.groups * spec.group_size, random);
  workload out{spec.name, spec.tokens_max, {}};
  out.responses.reserve(std::size_t{spec.groups} * spec.group_size);
  for (std::uint32_t group = 0; group < spec.groups; ++group) {
    const auto prompt =
      spec.prompt_mean / 2 + static_cast<std::uint32_t>(random.below(spec.prompt_mean + 1));
    for (std::uint32_t index = 0; index < spec.group_size; ++index) {
      const double latent =
        between * prompts[group] + within * members[group * spec.group_size + index];
      const double length = cut_length(latent, fit.location, spec);
      out.responses.push_back({group, index, std::max(1u, prompt),
                               std::max(1u, static_cast<std::uint32_t>(std::lround(length)))});
    }
  }
  return out;
}

length_statistics measure_lengths(const workload& batch) {
  length_statistics out;
  const auto& all = batch.responses;
  const auto count = static_cast<double>(all.size());
  double within = 0, between = 0, squared_sizes = 0, groups = 0, at_limit = 0;
  for (const auto& r : all) {
    out.mean += r.output_tokens / count;
    out.longest = std::max(out.longest, r.output_tokens);
    at_limit += r.output_tokens == batch.tokens_max;
  }
  for (std::size_t begin = 0; begin < all.size();) {
    auto end = begin;
    double sum = 0;
    for (; end < all.size() && all[end].group == all[begin].group; ++end)
      sum += all[end].output_tokens;
    const auto size = static_cast<double>(end - begin);
    const double mean = sum / size;
    for (; begin < end; ++begin)
      within += (all[begin].output_tokens - mean) * (all[begin].output_tokens - mean);
    between += size * (mean - out.mean) * (mean - out.mean);
    squared_sizes += size * size;
    ++groups;
  }
  out.at_limit = count > 0 ? at_limit / count : 0;
  if (groups < 2 || count <= groups)
    return out;
  const double within_square = within / (count - groups);
  const double typical_size = (count - squared_sizes / count) / (groups - 1);
  const double of_groups = std::max(0.0, (between / (groups - 1) - within_square) / typical_size);
  if (of_groups + within_square > 0)
    out.variance_between = of_groups / (of_groups + within_square);
  return out;
}

} // namespace rollcast::sim
