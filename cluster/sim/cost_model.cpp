#include "cluster/sim/cost_model.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <fstream>

namespace rollcast::sim {

std::optional<cost_model> find_cost_model(std::string_view name) {
  // KV bytes of a token are those of the architecture; the time per cached token is those bytes
  // over 75 % (60 % on one GPU) of the memory bandwidth of the instance's H800s (3.35 TB/s each);
  // prefill is twice the active weights over 40 % of their bf16 rate (990 TFLOP/s). A link is eight
  // (one, for the one-GPU instance) 400 Gb/s ports at half speed. Spill space is half of the
  // published 2 TB of memory for eight GPUs, over PCIe 5 x16. batch_max is vLLM's default.
  // kv_blocks, step_fixed_s and step_row_s are fitted to the published baseline (README.md).
  // A drafted token costs as one of a prompt; draft_step_s is 52.5 % of step_fixed_s (README.md).
  cost_model m;
  m.name = name;
  m.batch_max = 256;
  if (name == "moonlight") { // 27 layers of 576 bf16 (MLA), 2.2 G active weights, one GPU
    m.workers = 32;
    m.kv_bytes_per_token = 31'104;
    m.kv_blocks = 36'258;
    m.step_fixed_s = 0.0227;
    m.step_row_s = 1.17e-5;
    m.step_kv_token_s = 1.55e-8;
    m.prefill_token_s = 1.1e-5;
    m.draft_step_s = 0.0119;
    m.draft_row_s = 1.1e-5;
    m.migration_bytes_per_s = 25e9;
    m.spill_tokens = 4'018'000;
    m.spill_bytes_per_s = 50e9;
    return m;
  }
  if (name == "qwen2-vl-72b") { // 80 layers of 8 key-value heads of 128, bf16, eight GPUs
    m.workers = 16;
    m.kv_bytes_per_token = 327'680;
    m.kv_blocks = 83'412;
    m.step_fixed_s = 0.0318;
    m.step_row_s = 9.49e-6;
    m.step_kv_token_s = 1.63e-8;
    m.prefill_token_s = 4.5e-5;
    m.draft_step_s = 0.0167;
    m.draft_row_s = 4.5e-5;
    m.migration_bytes_per_s = 200e9;
    m.spill_tokens = 3'051'000;
    m.spill_bytes_per_s = 400e9;
    return m;
  }
  if (name == "kimi-k2") { // 61 layers of 576 bf16 (MLA), 32 G active weights, 32 GPUs
    m.workers = 8;
    m.kv_bytes_per_token = 70'272;
    m.kv_blocks = 478'000;
    m.step_fixed_s = 0.0487;
    m.step_row_s = 2.4e-6;
    m.step_kv_token_s = 8.7e-10;
    m.prefill_token_s = 5e-6;
    m.draft_step_s = 0.0256;
    m.draft_row_s = 5e-6;
    m.migration_bytes_per_s = 800e9;
    m.spill_tokens = 56'921'000;
    m.spill_bytes_per_s = 1.6e12;
    return m;
  }
  if (name == "cpu") { // a 100 M model on two cores; `read_cost_model` replaces what it measures
    m.workers = 2;
    m.kv_bytes_per_token = 24'576;
    m.kv_blocks = 512;
    m.batch_max = 64;
    m.step_fixed_s = 0.012;
    m.step_row_s = 0.0015;
    m.step_kv_token_s = 1.6e-6;
    m.prefill_token_s = 0.0012;
    m.draft_row_s = 0.0015;
    return m;
  }
  return std::nullopt;
}

result<void> check(const cost_model& m) {
  const auto positive = [](double x) { return std::isfinite(x) && x > 0; };
  const auto cost = [](double x) { return std::isfinite(x) && x >= 0; };
  const auto named = [&](const std::string& what) {
    return fail(errc::bad_config, "cost model " + m.name + ": " + what);
  };
  if (m.workers == 0 || m.workers > 65'536)
    return named("workers is " + std::to_string(m.workers) + ", give 1 to 65536");
  if (m.kv_blocks == 0 || m.block_tokens == 0 || m.batch_max == 0)
    return named("kv_blocks, block_tokens and batch_max must be at least 1");
  if (!positive(m.step_fixed_s) || !cost(m.step_row_s) || !cost(m.step_kv_token_s)
      || !cost(m.prefill_token_s) || !cost(m.draft_step_s) || !cost(m.draft_row_s))
    return named("step costs must be finite, and the fixed one above 0");
  if (!positive(m.spill_bytes_per_s))
    return named("spill bandwidth must be above 0");
  if (!positive(m.migration_bytes_per_s) || !cost(m.migration_fixed_s) || !cost(m.message_s))
    return named("migration bandwidth must be above 0, latencies at least 0");
  return {};
}

namespace {

/// Least-squares line through (batch, step seconds), held to a positive fixed part.
void fit_steps(const nlohmann::json& decode, cost_model& model) {
  double n = 0, x = 0, y = 0, xx = 0, xy = 0, least = 1e9;
  for (const auto& [batch, rate] : decode.items()) {
    const double rows = std::strtod(batch.c_str(), nullptr);
    const double step = rows / rate.get<double>();
    n += 1;
    x += rows;
    y += step;
    xx += rows * rows;
    xy += rows * step;
    least = std::min(least, step);
  }
  const double spread = n * xx - x * x;
  model.step_row_s = spread > 0 ? std::max(0.0, (n * xy - x * y) / spread) : 0;
  // A line through times that bend may leave less than nothing for an empty step.
  model.step_fixed_s = std::max(least / 4, (y - model.step_row_s * x) / n);
  model.draft_row_s = model.step_row_s; // the engine computes it like any other
  model.step_kv_token_s = 0;            // bench engine measures one context length
}

} // namespace

result<cost_model> read_cost_model(const std::filesystem::path& path) {
  std::ifstream file{path};
  if (!file)
    return fail(errc::io_failed, "cannot read cost model " + path.string());
  const auto json = nlohmann::json::parse(file, nullptr, false);
  const auto wrong = [&](const std::string& what) {
    return fail(errc::bad_config,
                path.string() + ": " + what + "; give the output of rollcast bench engine");
  };
  if (!json.is_object())
    return wrong("not a JSON object");
  const auto* profile = json.contains("cpu-f32-v1") ? &json["cpu-f32-v1"] : nullptr;
  if (profile == nullptr && json.contains("cpu-bf16-v1"))
    profile = &json["cpu-bf16-v1"];
  if (profile == nullptr || !profile->is_object())
    return wrong("no profile cpu-f32-v1 or cpu-bf16-v1");
  const auto decode = profile->value("decode_tokens_per_s", nlohmann::json{});
  const auto prefill = profile->value("prefill_tokens_per_s", nlohmann::json{});
  if (!decode.is_object() || decode.empty() || !prefill.is_number())
    return wrong("no decode_tokens_per_s by batch or no prefill_tokens_per_s");
  for (const auto& [batch, rate] : decode.items())
    if (!rate.is_number() || rate.get<double>() <= 0 || std::strtod(batch.c_str(), nullptr) < 1)
      return wrong("decode_tokens_per_s of batch \"" + batch + "\" is no positive number");
  if (prefill.get<double>() <= 0)
    return wrong("prefill_tokens_per_s is not above 0");
  auto model = *find_cost_model("cpu");
  model.name = path.filename().string();
  model.prefill_token_s = 1 / prefill.get<double>();
  fit_steps(decode, model);
  return model;
}

} // namespace rollcast::sim
