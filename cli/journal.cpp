#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cluster/journal/inspect.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <ctime>
#include <string>
#include <utility>

namespace rollcast::cli {

namespace {

/// UTC to the second, "-" for never.
std::string time_of(std::uint64_t unix_ns) {
  const auto seconds = static_cast<std::time_t>(unix_ns / 1'000'000'000);
  std::tm parts{};
  char text[32];
  if (unix_ns == 0 || ::gmtime_r(&seconds, &parts) == nullptr
      || std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts) == 0)
    return "-";
  return text;
}

/// What a file says must not steer the terminal.
std::string printable(std::string text) {
  std::replace_if(
    text.begin(), text.end(),
    [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }, '?');
  return text;
}

nlohmann::ordered_json json_of(const journal::summary& all) {
  nlohmann::ordered_json out{
    {"journal", all.path},          {"schema", all.schema},
    {"generation", all.generation}, {"writer_pid", all.writer},
    {"file_bytes", all.file_bytes}, {"log_bytes", all.log_bytes},
    {"free_bytes", all.free_bytes}, {"model", nullptr},
    {"numerics_profile", nullptr},  {"epoch", nullptr},
    {"weights_hash", nullptr},      {"epoch_promised", all.epoch_promised}};
  if (all.identity) {
    out["model"] = all.identity->model;
    out["numerics_profile"] = all.identity->numerics;
  }
  if (all.weights) {
    out["epoch"] = all.weights->epoch;
    out["weights_hash"] = to_string(all.weights->weights);
  }
  auto batches = nlohmann::ordered_json::array();
  for (const auto& b : all.batches)
    batches.push_back({{"batch_key", b.key},
                       {"batch", b.id.value},
                       {"state", b.state},
                       {"responses", b.responses},
                       {"finished", b.finished},
                       {"tokens_kept", b.tokens},
                       {"acknowledged", b.acknowledged},
                       {"submitted", time_of(b.submitted_unix_ns)}});
  out["batches"] = std::move(batches);
  return out;
}

void print(const journal::summary& all) {
  std::printf("journal %s: schema %" PRIu64 ", generation %" PRIu64 ", ", all.path.c_str(),
              all.schema, all.generation);
  if (all.writer > 0)
    std::printf("process %d writes it\n", static_cast<int>(all.writer));
  else
    std::printf(all.writer == 0 ? "nobody writes it\n" : "a process writes it\n");
  std::printf("%" PRIu64 " bytes, %" PRIu64 " of them free, and a log of %" PRIu64 " bytes\n",
              all.file_bytes, all.free_bytes, all.log_bytes);
  std::printf("model %s, numerics %s\n",
              all.identity ? printable(all.identity->model).c_str() : "-",
              all.identity ? printable(all.identity->numerics).c_str() : "-");
  if (all.weights)
    std::printf("epoch %" PRIu64 ", hash %s, promised up to %" PRIu64 "\n", all.weights->epoch,
                to_string(all.weights->weights).c_str(), all.epoch_promised);
  else
    std::printf("no epoch, promised up to %" PRIu64 "\n", all.epoch_promised);
  for (const auto& b : all.batches)
    std::printf("batch %s (%s): %" PRIu64 " of %" PRIu64 " finished, %" PRIu64
                " tokens kept, acknowledged %" PRIu64 " of %" PRIu64 ", submitted %s\n",
                printable(b.key).c_str(), b.state.c_str(), b.finished, b.responses, b.tokens,
                b.acknowledged, b.responses + 1, time_of(b.submitted_unix_ns).c_str());
}

} // namespace

int run_journal_inspect(const journal_options& options) {
  const auto found = journal::inspect(options.journal.string());
  if (!found)
    return refuse(found.error());
  if (options.json)
    std::printf(
      "%s\n",
      json_of(*found).dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  else
    print(*found);
  return exit_done;
}

int run_journal_compact(const journal_options& options) {
  const auto done = journal::compact(options.journal.string());
  if (!done)
    return refuse(done.error());
  std::printf("journal %s: %" PRIu64 " bytes before, %" PRIu64 " after\n", options.journal.c_str(),
              done->bytes_before, done->bytes_after);
  return exit_done;
}

} // namespace rollcast::cli
