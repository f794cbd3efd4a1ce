#include "cli/bench_model.hpp"
#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "engine/backend/cuda_backend.hpp"
#include "engine/backend/cuda_rates.hpp"
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
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace rollcast::cli {

namespace {

using clock = std::chrono::steady_clock;
using nlohmann::ordered_json;

constexpr std::uint32_t prefill_tokens = 512;
constexpr std::uint32_t gpu_prefill_tokens = 4096; ///< In one pass: what fills a GPU.
constexpr std::uint32_t context_tokens = 256;
constexpr std::uint32_t decode_tokens = 64;
constexpr std::array<std::uint32_t, 4> batches{1, 4, 16, 64};
constexpr std::array<std::uint32_t, 5> product_rows{1, 8, 64, 256, 4096};

/// What is measured, and what it is held against.
struct subject {
  std::filesystem::path model;
  model_config config;
  device_options device;
  std::uint32_t prefill_tokens = 0;
  double bytes_per_s = 0; ///< Of the machine; 0: not known.
  double flops_per_s = 0;
};

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

chunk_request random_request(prng& random, std::uint32_t vocabulary, std::uint32_t prompt,
                             std::uint32_t generate) {
  const std::uint64_t id = random.next();
  chunk_request request;
  request.response = {id};
  for (std::uint32_t i = 0; i < prompt; ++i)
    request.tokens.push_back(static_cast<token_id>(random.below(vocabulary)));
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

double prefill_rate(engine& sut, prng& random, std::uint32_t tokens) {
  const auto begin = clock::now();
  if (!sut.admit(random_request(random, sut.device().shape().vocabulary, tokens, 1)))
    return 0;
  while (sut.has_work())
    sut.step();
  return tokens / seconds_since(begin);
}

/// Tokens a second of `batch` responses that all have their context and only decode.
double decode_rate(engine& sut, prng& random, std::uint32_t batch) {
  for (std::uint32_t i = 0; i < batch; ++i)
    if (!sut.admit(
          random_request(random, sut.device().shape().vocabulary, context_tokens, decode_tokens)))
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

result<ordered_json> bench_subject(const subject& what, std::uint32_t repeats) {
  auto opened = open_device(what.device);
  if (!opened)
    return fail(opened);
  const auto profile = (*opened)->numerics();
  engine sut{std::move(*opened), limits_of(what.device)};
  prng random{1};
  const auto repeated = [&](auto measure) {
    measure(); // warm up
    std::vector<double> runs;
    for (std::uint32_t i = 0; i < repeats; ++i)
      runs.push_back(measure());
    return median(std::move(runs));
  };
  const auto& config = what.config;
  const auto share = [](double done, double possible) {
    return possible > 0 ? done / possible : 0;
  };
  ordered_json decode, bandwidth_share, fma_share;
  const double prefill = repeated([&] { return prefill_rate(sut, random, what.prefill_tokens); });
  const double prefill_flops =
    2 * layer_weights_count(config)
    + 4.0 * static_cast<double>(config.layers * config.heads * config.head_dim)
        * what.prefill_tokens / 2;
  fma_share["prefill"] = share(prefill * prefill_flops, what.flops_per_s);
  for (const std::uint32_t batch : batches) {
    const double rate = repeated([&] { return decode_rate(sut, random, batch); });
    const std::string key = std::to_string(batch);
    const work step = step_work(config, profile, batch, context_tokens + decode_tokens / 2.0);
    decode[key] = rate;
    bandwidth_share[key] = share(rate / batch * step.bytes, what.bytes_per_s);
    fma_share[key] = share(rate / batch * step.flops, what.flops_per_s);
  }
  return ordered_json{{"prefill_tokens_per_s", prefill},
                      {"decode_tokens_per_s", std::move(decode)},
                      {"bandwidth_share", std::move(bandwidth_share)},
                      {"fma_share", std::move(fma_share)}};
}

result<subject> subject_of(const bench_engine_options& options,
                           const std::filesystem::path& model) {
  auto config = load_config(model);
  if (!config)
    return fail(config);
  subject out{model, std::move(*config), {}};
  out.device.model = model;
  out.device.device = options.device;
  out.device.instruction_set = options.instruction_set;
  out.prefill_tokens = prefill_tokens;
  const auto held = std::max(64 * (context_tokens + decode_tokens), gpu_prefill_tokens);
  out.device.kv_blocks = held / out.device.block_tokens + 64;
  return out;
}

result<ordered_json> bench_cpu(const bench_engine_options& options,
                               const std::filesystem::path& model) {
  const std::uint32_t threads =
    options.threads != 0 ? options.threads : std::max(1u, std::thread::hardware_concurrency());
  const machine_rates machine = measure_machine(threads);
  ordered_json json;
  double active = 0;
  std::vector<std::string> profiles{"cpu-f32-v1", "cpu-bf16-v1"};
  if (!options.profile.empty())
    profiles = {options.profile};
  for (const auto& name : profiles) {
    const auto profile = find_profile(name);
    if (!profile)
      return fail(profile);
    auto what = subject_of(options, model);
    if (!what)
      return fail(what);
    active = layer_weights_count(what->config);
    what->device.numerics = name;
    what->device.threads = threads;
    what->bytes_per_s = machine.read_bytes_per_s;
    what->flops_per_s = profile->arithmetic == kernels::arithmetic::bf16 ? machine.bf16_flops_per_s
                                                                         : machine.f32_flops_per_s;
    auto measured = bench_subject(*what, options.repeats);
    if (!measured)
      return fail(measured);
    json[name] = std::move(*measured);
  }
  json["model"] = {{"active_layer_parameters", active}};
  json["machine"] = {{"threads", threads},
                     {"read_bytes_per_s", machine.read_bytes_per_s},
                     {"f32_flops_per_s", machine.f32_flops_per_s},
                     {"bf16_flops_per_s", machine.bf16_flops_per_s}};
  return json;
}

/// The price of exactness by rows: time of a layer's products against the maker's library.
ordered_json prices_of(const std::vector<product_times>& products) {
  ordered_json out = ordered_json::object();
  for (const auto& p : products) {
    auto& row = out[std::to_string(p.rows)];
    row["exact_us"] = p.exact_s * 1e6;
    if (p.fast_s > 0) {
      row["cublaslt_us"] = p.fast_s * 1e6;
      row["price"] = p.exact_s / p.fast_s - 1;
    }
  }
  return out;
}

/// What the exact profile takes longer than the other, of whole steps: by batch, and for a prefill.
ordered_json price_of(const ordered_json& exact, const ordered_json& fast) {
  ordered_json out;
  const auto price = [](const ordered_json& rate_exact, const ordered_json& rate_fast) {
    return rate_fast.get<double>() / rate_exact.get<double>() - 1;
  };
  for (const auto& [batch, rate] : exact.at("decode_tokens_per_s").items())
    out["decode"][batch] = price(rate, fast.at("decode_tokens_per_s").at(batch));
  out["prefill"] = price(exact.at("prefill_tokens_per_s"), fast.at("prefill_tokens_per_s"));
  return out;
}

/// Measures the profile that is asked for; without one the exact, and, where there is cuBLASLt, the
/// one that is not.
result<ordered_json> bench_profiles(subject& what, const bench_engine_options& options,
                                    bool has_cublaslt) {
  std::vector<std::string> names{std::string{cuda_profile}};
  if (!options.profile.empty())
    names = {options.profile};
  else if (has_cublaslt)
    names.emplace_back(cuda_fast_profile);
  ordered_json json;
  for (const auto& name : names) {
    what.device.numerics = name;
    auto measured = bench_subject(what, options.repeats);
    if (!measured)
      return fail(measured);
    json[name] = std::move(*measured);
  }
  if (names.size() == 2)
    json["price"] = price_of(json[names[0]], json[names[1]]);
  return json;
}

result<ordered_json> bench_gpu(const bench_engine_options& options,
                               const std::filesystem::path& model) {
  auto what = subject_of(options, model);
  if (!what)
    return fail(what);
  what->device.numerics = options.profile;
  what->device.inexact = true;
  what->device.threads = options.threads;
  what->device.prefill_rows = gpu_prefill_tokens;
  what->prefill_tokens =
    std::min(gpu_prefill_tokens, static_cast<std::uint32_t>(what->config.max_positions) - 1);
  if (const auto known = profile_of(what->device); !known)
    return fail(known);
  const auto gpu = gpu_of(options.device);
  const auto machine = measure_gpu(**gpu);
  if (!machine)
    return fail(machine);
  const auto products = measure_products(**gpu, what->config, product_rows);
  if (!products)
    return fail(products);
  what->bytes_per_s = machine->copy_bytes_per_s;
  what->flops_per_s = machine->bf16_flops_per_s;
  auto measured = bench_profiles(*what, options, machine->without_cublaslt.empty());
  if (!measured)
    return fail(measured);
  ordered_json json = std::move(*measured);
  json["products"] = prices_of(*products);
  json["machine"] = {{"name", machine->name},
                     {"copy_bytes_per_s", machine->copy_bytes_per_s},
                     {"bf16_flops_per_s", machine->bf16_flops_per_s}};
  if (!machine->without_cublaslt.empty())
    json["machine"]["without_cublaslt"] = machine->without_cublaslt;
  return json;
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
  const auto gpu = gpu_of(options.device);
  if (!gpu)
    return refuse(gpu.error());
  if (*gpu)
    if (const auto there = find_gpu(**gpu); !there)
      return refuse(there.error());
  std::optional<bench_model> made;
  if (options.model.empty()) {
    auto small =
      bench_model::make(1, options.family == "moe" ? bench_moe_config() : bench_config());
    if (!small)
      return refuse(small.error());
    made.emplace(std::move(*small));
  }
  const auto& model = made ? made->path() : options.model;
  auto json = *gpu ? bench_gpu(options, model) : bench_cpu(options, model);
  return json ? write_json(options.out, *json) : refuse(json.error());
}

} // namespace rollcast::cli
