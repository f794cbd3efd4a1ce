#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cli/response_file.hpp"
#include "engine/dump/dump_writer.hpp"
#include "engine/step/engine.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace rollcast::cli {

namespace {

/// Sums differences in double; a NaN or a missing value must not look like agreement.
struct difference {
  double max = 0;
  double sum = 0;
  std::size_t tokens = 0;

  void add(float scored, float recorded) {
    const double d = std::abs(static_cast<double>(scored) - static_cast<double>(recorded));
    max = std::isnan(d) ? d : std::max(max, d);
    sum += d;
    ++tokens;
  }
  bool exact() const { return max == 0.0 && sum == 0.0; }
};

std::string line_of(const score_options& options, std::size_t index) {
  return options.responses.string() + ":" + std::to_string(index + 1);
}

/// Refuses what cannot be scored, or not together with the file's first response.
result<void> check(const response_record& r, const std::string& where, const std::string& profile) {
  if (r.logprobs.size() != r.token_ids.size())
    return fail(errc::bad_prompt, where + ": " + std::to_string(r.logprobs.size())
                                    + " logprobs for " + std::to_string(r.token_ids.size())
                                    + " tokens");
  if (!r.numerics_profile.empty() && r.numerics_profile != profile)
    return fail(errc::numerics_mismatch,
                where + ": " + r.numerics_profile + ", but the file begins with " + profile);
  if (!(r.temperature >= 0 && std::isfinite(r.temperature)))
    return fail(errc::bad_sampling, where + ": temperature " + std::to_string(r.temperature)
                                      + " must be finite and at least 0");
  if (r.prompt_token_ids.empty())
    return fail(errc::bad_prompt, where + ": has no prompt, whose last row predicts the response");
  return {};
}

std::vector<token_id> tokens_of(const response_record& r) {
  std::vector<token_id> tokens = r.prompt_token_ids;
  tokens.insert(tokens.end(), r.token_ids.begin(), r.token_ids.end());
  return tokens;
}

dump_sequence dumped(const response_record& r, const score_options& options) {
  const auto tokens = tokens_of(r);
  return {r.id.empty() ? "group " + std::to_string(r.group) + " index " + std::to_string(r.index)
                       : r.id,
          static_cast<std::uint32_t>(tokens.size()),
          static_cast<std::uint32_t>(r.prompt_token_ids.size()), hash_of(std::span{tokens}),
          options.temperature.value_or(r.temperature)};
}

/// Refuses a dump that would be too large, else makes its directory and has the device show its
/// work to it.
result<std::unique_ptr<dump_writer>> open_dump(const score_options& options,
                                               const std::vector<response_record>& responses,
                                               backend& device) {
  const auto config = load_config(options.device.model);
  if (!config)
    return fail(config);
  dump_header header;
  header.rollcast_version = ROLLCAST_VERSION;
  header.model = options.device.model.string();
  header.weights_hash = to_string(device.weights_hash());
  header.numerics_profile = device.numerics().name;
  header.numerics_hash = to_string(device.numerics().hash());
  header.layers = static_cast<std::uint32_t>(config->layers);
  header.operations = operations_of(*config);
  header.values = options.dump_values;
  header.value_rows = options.dump_rows;
  std::uint64_t total = 0;
  for (const auto& r : responses) {
    const auto bytes = r.token_ids.empty() ? dump_bytes{} : bytes_of(header, dumped(r, options));
    total += bytes.hashes + bytes.values;
  }
  if (total > options.dump_bytes_max)
    return fail(errc::bad_config,
                "the dump would have " + std::to_string(total) + " bytes, --dump-bytes-max is "
                  + std::to_string(options.dump_bytes_max)
                  + ": dump fewer responses or fewer values (--dump-rows), or allow more");
  auto dump = dump_writer::create(options.dump, std::move(header));
  if (!dump)
    return fail(dump);
  if (!device.observe(dump->get()))
    return fail(errc::bad_config, "this device does not show what it computes: it has no dumps");
  return dump;
}

/// Sequences that the engine is given together. It keeps its passes full with fewer.
constexpr std::size_t batch_max = 64;

/// Scores responses, those behind `lines`, together. A failure is said of the first line that has
/// it.
result<void> score_together(engine& scorer, const std::vector<response_record>& responses,
                            std::span<const std::size_t> lines, const score_options& options,
                            std::vector<std::vector<float>>& logprobs) {
  std::vector<std::vector<token_id>> tokens;
  std::vector<score_request> wanted;
  tokens.reserve(lines.size());
  for (const auto line : lines) {
    const auto& r = responses[line];
    tokens.push_back(tokens_of(r));
    wanted.push_back({tokens.back(), static_cast<std::uint32_t>(r.prompt_token_ids.size()),
                      options.temperature.value_or(r.temperature)});
  }
  auto scored = scorer.score(wanted, logprobs);
  if (scored)
    return scored;
  if (lines.size() == 1)
    return fail(scored.error().code, line_of(options, lines[0]) + ": " + scored.error().detail);
  for (const auto line : lines) // which of them it is
    if (auto alone = score_together(scorer, responses, {&line, 1}, options, logprobs); !alone)
      return alone;
  return scored;
}

/// The lines that have tokens to score, in runs that are scored together. A dump takes one sequence
/// after another.
std::vector<std::vector<std::size_t>> runs_of(const std::vector<response_record>& responses,
                                              bool dumps) {
  std::vector<std::vector<std::size_t>> runs;
  for (std::size_t line = 0; line < responses.size(); ++line) {
    if (responses[line].token_ids.empty())
      continue;
    if (runs.empty() || runs.back().size() == (dumps ? 1 : batch_max))
      runs.emplace_back();
    runs.back().push_back(line);
  }
  return runs;
}

/// Scores all responses against what they say themselves, and dumps them if there is a dump.
result<difference> score_all(engine& scorer, dump_writer* dump,
                             const std::vector<response_record>& responses,
                             const score_options& options) {
  difference total;
  std::vector<std::vector<float>> logprobs;
  for (const auto& lines : runs_of(responses, dump != nullptr)) {
    const auto& first = responses[lines.front()];
    if (auto ok = dump != nullptr ? dump->begin(dumped(first, options)) : result<void>{}; !ok)
      return fail(ok);
    if (auto ok = score_together(scorer, responses, lines, options, logprobs); !ok)
      return fail(ok);
    if (auto ok = dump != nullptr ? dump->end() : result<void>{}; !ok)
      return fail(ok);
    for (std::size_t i = 0; i < lines.size(); ++i)
      for (std::size_t t = 0; t < logprobs[i].size(); ++t)
        total.add(logprobs[i][t], responses[lines[i]].logprobs[t]);
  }
  return total;
}

} // namespace

int run_score(const score_options& options) {
  auto responses = read_responses(options.responses);
  if (!responses)
    return refuse(responses.error());
  if (options.temperature && !(*options.temperature >= 0 && std::isfinite(*options.temperature)))
    return refuse({errc::bad_sampling,
                   "temperature is " + std::to_string(*options.temperature)
                     + ": it must be finite and at least 0",
                   {}});
  if (!options.dump.empty() && options.device.device != "cpu")
    return refuse({errc::bad_config,
                   "device " + options.device.device
                     + " does not show what it computes, so there are no dumps of it: leave --dump "
                       "out, or give --device cpu",
                   {}});
  auto device_settings = options.device;
  // A file knows the profile that made it; scoring in another one can only differ.
  if (!options.numerics_given && !responses->empty()
      && !responses->front().numerics_profile.empty())
    device_settings.numerics = responses->front().numerics_profile;
  auto device = open_device(device_settings);
  if (!device)
    return refuse(device.error());
  if (responses->empty())
    return refuse({errc::bad_prompt, options.responses.string() + " holds no response", {}});
  for (std::size_t i = 0; i < responses->size(); ++i)
    if (auto ok = check((*responses)[i], line_of(options, i), responses->front().numerics_profile);
        !ok)
      return refuse(ok.error());
  const auto has_tokens = [](const response_record& r) { return !r.token_ids.empty(); };
  if (std::ranges::none_of(*responses, has_tokens))
    return refuse({errc::bad_prompt,
                   options.responses.string() + ": none of its " + std::to_string(responses->size())
                     + " responses has a token, so there is nothing to score",
                   {}});
  std::unique_ptr<dump_writer> dump; // outlives the engine, whose device shows it its work
  if (!options.dump.empty()) {
    auto opened = open_dump(options, *responses, **device);
    if (!opened)
      return refuse(opened.error());
    dump = std::move(*opened);
  }
  const std::string numerics{(*device)->numerics().name};
  engine scorer{std::move(*device), limits_of(device_settings)};
  const auto total = score_all(scorer, dump.get(), *responses, options);
  if (!total)
    return refuse(total.error());
  if (dump)
    if (auto ok = dump->finish(); !ok)
      return refuse(ok.error());
  std::printf("scored %zu tokens of %zu responses with %s: max abs difference %.9g, mean %.9g\n",
              total->tokens, responses->size(), numerics.c_str(), total->max,
              total->sum / static_cast<double>(total->tokens));
  return total->exact() ? exit_done : exit_check_failed;
}

} // namespace rollcast::cli
