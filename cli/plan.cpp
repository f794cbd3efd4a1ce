#include "cli/plan.hpp"

#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "engine/base/machine_memory.hpp"
#include "engine/model/checkpoint.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <optional>
#include <string>
#include <system_error>

namespace rollcast::cli {

namespace {

using json = nlohmann::ordered_json;

struct plan {
  std::string device;
  std::string memory_source;
  model_config config;
  numerics_profile profile;
  weight_footprint weights;
  sizing_question asked;
  sizing found;
};

result<kernels::dtype> dtype_of(const model_config& config) {
  if (config.dtype == "bfloat16")
    return kernels::dtype::bf16;
  if (config.dtype == "float16")
    return kernels::dtype::f16;
  if (config.dtype == "float32")
    return kernels::dtype::f32;
  return fail(errc::bad_config, "config.json says dtype '" + config.dtype
                                  + "' and there is no safetensors file to tell it: it must be "
                                    "bfloat16, float16 or float32");
}

bool has_tensors(const std::filesystem::path& directory) {
  std::error_code failed;
  for (const auto& entry : std::filesystem::directory_iterator{directory, failed})
    if (entry.path().extension() == ".safetensors")
      return true;
  return false;
}

/// From the headers of the tensors if they are here, else by the dtype that config.json names.
result<weight_footprint> weights_of(const std::filesystem::path& directory,
                                    const model_config& config, kernels::arithmetic how) {
  if (!has_tensors(directory))
    return weight_footprint_of(config, how, [&](const std::string&) { return dtype_of(config); });
  const auto source = checkpoint::open(directory);
  if (!source)
    return fail(source);
  return weight_footprint_of(config, how,
                             [&](const std::string& name) { return source->type_of(name); });
}

result<plan> make_plan(const plan_options& options) {
  const bool given = options.memory_gib != 0; // then any name will do
  const auto device = given ? result<known_device>{known_device{
                        options.gpu, std::uint64_t{options.memory_gib} << 30, "--memory-gib"}}
                            : find_device(options.gpu);
  if (!device)
    return fail(device);
  const auto profile = find_profile(options.numerics);
  if (!profile)
    return fail(profile);
  auto config = load_config(options.model);
  if (!config)
    return fail(config);
  const auto weights = weights_of(options.model, *config, profile->arithmetic);
  if (!weights)
    return fail(weights);
  auto asked = options.asked;
  asked.weight_copies = options.no_updates ? 1 : 2;
  if (asked.context == 0)
    asked.context = static_cast<std::uint32_t>(config->max_positions);
  asked.memory_bytes = device->memory_bytes != 0 ? device->memory_bytes : machine_memory_bytes();
  const auto found = size_up(asked, *config, *profile, *weights);
  if (!found)
    return fail(found);
  return plan{std::string{device->name},
              std::string{device->source},
              std::move(*config),
              *profile,
              *weights,
              asked,
              *found};
}

template <class T>
json or_null(const std::optional<T>& value) {
  return value ? json(*value) : json(nullptr);
}

json ports() {
  const scheduler_options scheduler;
  const draft_server_command_options drafts;
  const worker_options worker;
  return {{"controllers", scheduler.listen},
          {"workers", scheduler.control_port},
          {"scheduler_weights", scheduler.weights_port},
          {"scheduler_metrics", scheduler.metrics_port},
          {"worker_data", worker.data_port},
          {"worker_weights", worker.weights_port},
          {"worker_metrics", worker.metrics_port},
          {"draft_server", drafts.listen},
          {"draft_server_metrics", drafts.metrics_port}};
}

json json_of(const plan& p) {
  const auto& s = p.found;
  const auto& q = p.asked;
  return {{"gpu", p.device},
          {"memory_bytes", q.memory_bytes},
          {"memory_source", p.memory_source},
          {"usable_bytes", s.usable_bytes},
          {"numerics_profile", p.profile.name},
          {"parameters", p.weights.parameters},
          {"checkpoint_bytes", p.weights.checkpoint},
          {"weight_bytes", p.weights.packed},
          {"weight_copies", q.weight_copies},
          {"kv_bytes_per_token", s.kv_bytes_per_token},
          {"kv_block_bytes", s.kv_block_bytes},
          {"block_tokens", q.block_tokens},
          {"kv_blocks", s.kv_blocks},
          {"kv_blocks_used_max", s.kv_blocks_used_max},
          {"context", q.context},
          {"response_kv_bytes", s.response_kv_bytes},
          {"max_batch", q.max_batch},
          {"fit_full", s.fit_full},
          {"at_once_full", s.at_once_full},
          {"fit_expected", or_null(s.fit_expected)},
          {"at_once_expected", or_null(s.at_once_expected)},
          {"groups_at_once", s.groups_at_once},
          {"workers_for_group", s.workers_for_group},
          {"responses", s.responses},
          {"workers_full", s.workers_full},
          {"workers_expected", or_null(s.workers_expected)},
          {"batch_tokens", or_null(s.batch_tokens)},
          {"batch_s", or_null(s.batch_s)},
          {"result_bytes_max", s.result_bytes_max},
          {"ports", ports()}};
}

void line(const char* what, const std::string& figure, const std::string& note = {}) {
  std::printf("%-34s %14s  %s\n", what, figure.c_str(), note.c_str());
}

std::string in_units(std::uint64_t bytes) {
  char text[32];
  const auto n = static_cast<double>(bytes);
  if (n >= 0x1p30)
    std::snprintf(text, sizeof text, "%.2f GiB", n / 0x1p30);
  else if (n >= 0x1p20)
    std::snprintf(text, sizeof text, "%.2f MiB", n / 0x1p20);
  else
    std::snprintf(text, sizeof text, "%.1f KiB", n / 0x1p10);
  return text;
}

void print_worker(const plan& p) {
  const auto& s = p.found;
  const auto& q = p.asked;
  std::printf("one worker: %s, %s\n", p.device.c_str(), std::string{p.profile.name}.c_str());
  line("memory", in_units(q.memory_bytes), p.memory_source);
  line("usable", in_units(s.usable_bytes), std::to_string(q.memory_percent) + " % of it");
  line("parameters", std::to_string(p.weights.parameters));
  line("weights", in_units(s.weight_bytes),
       std::to_string(q.weight_copies) + " x " + in_units(p.weights.packed)
         + (q.weight_copies > 1 ? ": served, and the next or the last epoch" : ""));
  line("KV of a token", in_units(s.kv_bytes_per_token));
  line("KV of a response", in_units(s.response_kv_bytes),
       std::to_string(q.context) + " tokens of prompt and response");
  line("KV blocks that fit", std::to_string(s.kv_blocks),
       std::to_string(q.block_tokens) + " tokens, " + in_units(s.kv_block_bytes) + " each");
  line("responses at once, full context", std::to_string(s.at_once_full),
       std::to_string(s.fit_full) + " fit, --max-batch is " + std::to_string(q.max_batch));
  if (s.at_once_expected)
    line("responses at once, as expected", std::to_string(*s.at_once_expected),
         std::to_string(*s.fit_expected) + " fit with "
           + std::to_string(q.prompt_tokens + q.response_tokens) + " tokens each");
  std::printf("  start it with --kv-blocks %" PRIu64 "\n", s.kv_blocks);
}

/// What can be said of workers without a number of prompts.
void print_groups(const plan& p) {
  const auto& s = p.found;
  const auto size = p.asked.group_size;
  if (size == 1)
    return;
  const auto length = s.at_once_expected ? "as expected" : "full context";
  std::printf("groups of %u, %s\n", size, length);
  line("groups at once on one worker", std::to_string(s.groups_at_once));
  line("workers for one group at once", std::to_string(s.workers_for_group));
  if (s.responses == 0)
    std::printf("  with --prompts N it says how many workers a batch takes\n");
}

void print_batch(const plan& p) {
  const auto& s = p.found;
  if (s.responses == 0)
    return;
  std::printf("a batch: %u prompts, groups of %u\n", p.asked.prompts, p.asked.group_size);
  line("responses", std::to_string(s.responses));
  line("workers for all at once, full", std::to_string(s.workers_full));
  if (s.workers_expected)
    line("workers for all at once, expected", std::to_string(*s.workers_expected));
  if (s.batch_tokens)
    line("tokens generated, expected", std::to_string(*s.batch_tokens));
  if (s.batch_s) {
    char text[32];
    std::snprintf(text, sizeof text, "%.0f s", *s.batch_s);
    line("time at the speed given, at least", text,
         std::to_string(p.asked.workers) + " workers, busy to the end");
  }
  line("results kept by the scheduler", in_units(s.result_bytes_max), "at most, 12 bytes a token");
}

void print_ports() {
  std::printf("ports (0: any that is free)\n");
  const auto all = ports();
  for (const auto& [name, port] : all.items())
    line(name.c_str(), port.is_string() ? port.get<std::string>() : port.dump());
}

} // namespace

int run_plan(const plan_options& options) {
  const auto made = make_plan(options);
  if (!made)
    return refuse(made.error());
  if (options.json) {
    std::printf("%s\n", json_of(*made).dump(2).c_str());
    return exit_done;
  }
  print_worker(*made);
  print_groups(*made);
  print_batch(*made);
  print_ports();
  return exit_done;
}

} // namespace rollcast::cli
