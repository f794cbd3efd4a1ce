#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cli/response_file.hpp"
#include "engine/step/engine.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

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
  engine scorer{std::move(*device), limits_of(device_settings)};
  difference total;
  std::vector<float> logprobs;
  for (std::size_t line = 0; line < responses->size(); ++line) {
    const auto& r = (*responses)[line];
    const std::string where = options.responses.string() + ":" + std::to_string(line + 1);
    if (r.logprobs.size() != r.token_ids.size())
      return refuse({errc::bad_prompt,
                     where + ": " + std::to_string(r.logprobs.size()) + " logprobs for "
                       + std::to_string(r.token_ids.size()) + " tokens",
                     {}});
    if (!r.numerics_profile.empty() && r.numerics_profile != responses->front().numerics_profile)
      return refuse({errc::numerics_mismatch,
                     where + ": " + r.numerics_profile + ", but the file begins with "
                       + responses->front().numerics_profile,
                     {}});
    if (!(r.temperature >= 0 && std::isfinite(r.temperature)))
      return refuse({errc::bad_sampling,
                     where + ": temperature " + std::to_string(r.temperature)
                       + " must be finite and at least 0",
                     {}});
    if (r.token_ids.empty())
      continue;
    std::vector<token_id> tokens = r.prompt_token_ids;
    tokens.insert(tokens.end(), r.token_ids.begin(), r.token_ids.end());
    const float temperature = options.temperature.value_or(r.temperature);
    const auto prompt = static_cast<std::uint32_t>(r.prompt_token_ids.size());
    if (auto ok = scorer.score(tokens, prompt, temperature, logprobs); !ok)
      return refuse({ok.error().code, where + ": " + ok.error().detail, {}});
    for (std::size_t i = 0; i < logprobs.size(); ++i)
      total.add(logprobs[i], r.logprobs[i]);
  }
  if (total.tokens == 0)
    return refuse({errc::bad_prompt,
                   options.responses.string() + ": none of its " + std::to_string(responses->size())
                     + " responses has a token, so there is nothing to score",
                   {}});
  std::printf("scored %zu tokens of %zu responses with %s: max abs difference %.9g, mean %.9g\n",
              total.tokens, responses->size(), device_settings.numerics.c_str(), total.max,
              total.sum / static_cast<double>(total.tokens));
  return total.exact() ? exit_done : exit_check_failed;
}

} // namespace rollcast::cli
