#include "cli/bench_model.hpp"
#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "engine/backend/machine_rates.hpp"
#include "engine/base/prng.hpp"
#include "engine/step/engine.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace rollcast::cli {

namespace {

using clock = std::chrono::steady_clock;
using nlohmann::ordered_json;

constexpr std::uint32_t prefill_tokens = 512;
constexpr std::uint32_t context_tokens = 256;
constexpr std::uint32_t decode_tokens = 64;
constexpr std::array<std::uint32_t, 4> batches{1, 4, 16, 64};

/// Parameters of all layers that one token goes through.
double layer_weights_count(const model_config& c) {
  const double q = static_cast<double>(c.heads * c.head_dim);
  const double kv = static_cast<double>(c.kv_heads * c.head_dim);
  const double hidden = static_cast<double>(c.hidden);
  const double width = static_cast<double>(
    c.experts.count != 0 ? c.experts.per_token * c.experts.intermediate : c.intermediate);
  const double router = hidden * static_cast<double>(c.experts.count);
  return static_cast<double>(c.layers)
         * (hidden * (q + 2 * kv) + q * hidden + 3 * hidden * width + router);
}

/// Parameters of the experts that `rows` tokens need beyond one token's own, if each chooses its
/// experts evenly.
double further_experts_count(const model_config& c, double rows) {
  if (c.experts.count == 0)
    return 0;
  const double count = static_cast<double>(c.experts.count);
  const double chosen = static_cast<double>(c.experts.per_token);
  const double needed = count * (1 - std::pow(1 - chosen / count, rows));
  return static_cast<double>(c.layers) * 3 * static_cast<double>(c.hidden * c.experts.intermediate)
         * (needed - chosen);
}

/// Bytes that one decode step must read and operations that it must do.
struct work {
  double bytes = 0;
  double flops = 0;
};

work step_work(const model_config& c, const numerics_profile& profile, double rows, double keys) {
  const double matrix = layer_weights_count(c) + static_cast<double>(c.hidden * c.vocabulary);
  const double kv_row = 2.0 * static_cast<double>(c.layers * c.kv_heads * c.head_dim)
                        * kernels::size_of(profile.kv_type);
  const double attention = 4.0 * static_cast<double>(c.layers * c.heads * c.head_dim) * keys;
  return {(matrix + further_experts_count(c, rows)) * 2 + rows * keys * kv_row,
          rows * (2 * matrix + attention)};
}

chunk_request random_request(prng& random, std::uint64_t id, std::uint32_t prompt,
                             std::uint32_t generate) {
  chunk_request request;
  request.response = {id};
  for (std::uint32_t i = 0; i < prompt; ++i)
    request.tokens.push_back(static_cast<token_id>(random.below(32000)));
  request.prompt_tokens = prompt;
  request.sampling.max_new_tokens = generate;
  request.sampling.ignore_eos = true;
  request.sampling.seed = id;
  request.generate_max = generate;
  return request;
}

double seconds_since(clock::time_point begin) {
  return std::chrono::duration<double>(clock::now() - begin).count();
}

double prefill_rate(engine& sut, prng& random) {
  const auto begin = clock::now();
  if (!sut.admit(random_request(random, random.next(), prefill_tokens, 1)))
    return 0;
  while (sut.has_work())
    sut.step();
  return prefill_tokens / seconds_since(begin);
}

/// Tokens a second of `batch` responses that all have their context and only decode.
double decode_rate(engine& sut, prng& random, std::uint32_t batch) {
  for (std::uint32_t i = 0; i < batch; ++i)
    if (!sut.admit(random_request(random, random.next(), context_tokens, decode_tokens)))
      return 0;
  while (sut.stats().generated_tokens == 0 || sut.waiting() > 0)
    sut.step();
  const auto prompts = [&] { return sut.stats().prompt_tokens; };
  for (auto seen = prompts();; seen = prompts()) { // until a step computes no prompt row any more
    sut.step();
    if (prompts() == seen)
      break;
  }
  const auto generated = sut.stats().generated_tokens;
  const auto begin = clock::now();
  std::uint64_t steps = 0;
  for (; sut.running() == batch; ++steps)
    sut.step();
  const double seconds = seconds_since(begin);
  const auto tokens = sut.stats().generated_tokens - generated;
  while (sut.has_work())
    sut.step();
  return static_cast<double>(tokens) / seconds;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

model_config config_of(const bench_engine_options& options) {
  return options.family == "moe" ? bench_moe_config() : bench_config();
}

result<ordered_json> bench_profile(const std::filesystem::path& model, const std::string& name,
                                   const bench_engine_options& options, std::uint32_t threads,
                                   const machine_rates& machine) {
  const auto profile = find_profile(name);
  if (!profile)
    return fail(profile);
  device_options device;
  device.model = model;
  device.numerics = name;
  device.threads = threads;
  device.instruction_set = options.instruction_set;
  device.kv_blocks = 64 * (context_tokens + decode_tokens) / device.block_tokens + 64;
  auto opened = open_device(device);
  if (!opened)
    return fail(opened);
  engine sut{std::move(*opened), limits_of(device)};
  prng random{1};
  const auto repeated = [&](auto measure) {
    measure(); // warm up
    std::vector<double> runs;
    for (std::uint32_t i = 0; i < options.repeats; ++i)
      runs.push_back(measure());
    return median(std::move(runs));
  };
  const model_config config = config_of(options);
  const double peak = profile->arithmetic == kernels::arithmetic::bf16 ? machine.bf16_flops_per_s
                                                                       : machine.f32_flops_per_s;
  ordered_json decode, bandwidth_share, fma_share;
  const double prefill = repeated([&] { return prefill_rate(sut, random); });
  const double prefill_flops =
    2 * layer_weights_count(config)
    + 4.0 * static_cast<double>(config.layers * config.heads * config.head_dim) * prefill_tokens
        / 2;
  fma_share["prefill"] = peak > 0 ? prefill * prefill_flops / peak : 0;
  for (const std::uint32_t batch : batches) {
    const double rate = repeated([&] { return decode_rate(sut, random, batch); });
    const std::string key = std::to_string(batch);
    const work step = step_work(config, *profile, batch, context_tokens + decode_tokens / 2.0);
    decode[key] = rate;
    bandwidth_share[key] =
      machine.read_bytes_per_s > 0 ? rate / batch * step.bytes / machine.read_bytes_per_s : 0;
    fma_share[key] = peak > 0 ? rate / batch * step.flops / peak : 0;
  }
  return ordered_json{{"prefill_tokens_per_s", prefill},
                      {"decode_tokens_per_s", std::move(decode)},
                      {"bandwidth_share", std::move(bandwidth_share)},
                      {"fma_share", std::move(fma_share)}};
}

int write_json(const std::filesystem::path& path, const ordered_json& json) {
  if (path.empty()) {
    std::printf("%s\n", json.dump(2).c_str());
    return exit_done;
  }
  std::ofstream out{path};
  out << json.dump(2) << '\n';
  out.flush();
  return out ? exit_done : refuse({errc::io_failed, "cannot write " + path.string(), {}});
}

} // namespace

int run_bench_engine(const bench_engine_options& options) {
  if (!options.out.empty() && !std::ofstream{options.out, std::ios::app})
    return refuse({errc::io_failed, "cannot write " + options.out.string(), {}});
  const std::uint32_t threads =
    options.threads != 0 ? options.threads : std::max(1u, std::thread::hardware_concurrency());
  const auto model = bench_model::make(1, config_of(options));
  if (!model)
    return refuse(model.error());
  const machine_rates machine = measure_machine(threads);
  ordered_json json;
  std::vector<std::string> profiles{"cpu-f32-v1", "cpu-bf16-v1"};
  if (!options.profile.empty())
    profiles = {options.profile};
  result<void> ok;
  for (const auto& name : profiles) {
    auto measured = bench_profile(model->path(), name, options, threads, machine);
    if (!measured) {
      ok = fail(measured);
      break;
    }
    json[name] = std::move(*measured);
  }
  if (!ok)
    return refuse(ok.error());
  json["model"] = {{"family", options.family},
                   {"active_layer_parameters", layer_weights_count(config_of(options))}};
  json["machine"] = {{"threads", threads},
                     {"read_bytes_per_s", machine.read_bytes_per_s},
                     {"f32_flops_per_s", machine.f32_flops_per_s},
                     {"bf16_flops_per_s", machine.bf16_flops_per_s}};
  return write_json(options.out, json);
}

} // namespace rollcast::cli
