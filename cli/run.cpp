#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cli/local_cluster.hpp"
#include "cli/local_launch.hpp"
#include "cli/output_dir.hpp"
#include "cli/progress.hpp"
#include "cli/prompt_file.hpp"
#include "cli/stop_signal.hpp"
#include "cli/summary.hpp"
#include "cluster/wire/client.hpp"
#include "cluster/wire/validate.hpp"
#include "engine/model/config.hpp"
#include "engine/tokenizer/tokenizer.hpp"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace rollcast::cli {

namespace {

using namespace std::chrono_literals;
using clock = std::chrono::steady_clock;

/// Results that are on disk at a time, and how long the first of them waits for the others. Both
/// are well within what a scheduler pushes without an acknowledgement.
constexpr std::uint64_t results_per_sync = 64;
constexpr auto sync_every = 100ms;

/// The tokenizer of the model, if there is one to be had; text prompts and `text` need it.
result<std::optional<tokenizer>> find_tokenizer(const run_options& options) {
  std::filesystem::path file = options.tokenizer;
  if (file.empty() && !options.cluster.device.model.empty()) {
    file = options.cluster.device.model / "tokenizer.json";
    std::error_code ignored; // an unreadable model directory is refused when it is loaded
    if (!std::filesystem::exists(file, ignored))
      return std::optional<tokenizer>{};
  }
  if (file.empty())
    return std::optional<tokenizer>{};
  auto loaded = tokenizer::load(file);
  if (!loaded)
    return fail(loaded);
  return std::optional<tokenizer>{std::move(*loaded)};
}

wire::submit_batch batch_of(const run_options& options, std::vector<wire::prompt_group> groups) {
  wire::submit_batch batch;
  batch.batch_key = options.batch_key;
  if (batch.batch_key.empty())
    batch.batch_key = "run-" + std::to_string(::getpid()) + "-"
                      + std::to_string(clock::now().time_since_epoch().count());
  batch.groups = std::move(groups);
  batch.sampling = options.sampling;
  batch.seed = options.seed;
  batch.policy = options.policy;
  batch.chunk_tokens = options.chunk_tokens;
  batch.force_migration = options.force_migration;
  batch.routed_experts_from = options.routed_experts_from;
  if (options.routed_experts && !batch.routed_experts_from)
    batch.routed_experts_from = 0;
  return batch;
}

/// One batch on its way from the scheduler to the disk.
class collection {
public:
  collection(wire::controller_client& client, const wire::submit_batch& batch,
             const tokenizer* words, output_dir& out, local_cluster* cluster,
             std::chrono::milliseconds timeout, std::chrono::seconds patience)
    : client_(client), batch_(batch), words_(words), out_(out), cluster_(cluster),
      timeout_(timeout), patience_(patience) {}

  /// Submits and collects until the batch is done. Afterwards `summary` and `records` are set.
  result<void> run();

  wire::batch_summary summary;
  std::vector<response_record> records;
  bool cancelled = false;

private:
  result<void> take(const wire::event& event);
  result<void> take(const wire::response_ready& ready);
  result<void> take(const wire::request_failed& failed);
  result<void> take_up(std::uint64_t count);
  result<void> submit();
  result<void> wait_for_scheduler(const error& why);
  std::string kept() const;
  result<void> ask_again();
  result<void> look_around();
  result<void> keep_up();
  result<void> acknowledge();
  result<void> sync();
  response_record record_of(const wire::response_ready& ready) const;

  wire::controller_client& client_;
  const wire::submit_batch& batch_;
  const tokenizer* words_;
  output_dir& out_;
  local_cluster* cluster_;
  std::chrono::milliseconds timeout_;
  std::chrono::seconds patience_;
  clock::time_point looked_ = clock::now();
  clock::time_point heard_ = clock::now(); ///< When something was last pushed, or asked for.
  clock::time_point alive_ = clock::now(); ///< When the scheduler was last heard.
  bool lost_ = false;                      ///< And not heard since; said so.
  bool ask_soon_ = false;                  ///< A request to go on came to nothing.
  bool submit_again_ = false;              ///< The scheduler has forgotten the batch.
  std::uint64_t responses_ = 0;
  std::uint64_t last_sequence_ = 0;
  std::uint64_t acknowledged_ = 0;
  clock::time_point synced_{};
  std::uint64_t completed_ = 0;   ///< Results that came and were not cancelled.
  std::uint64_t tokens_held_ = 0; ///< Theirs.
  std::uint64_t tokens_ = 0;      ///< Generated, as far as known.
  std::optional<progress> progress_;
  bool asked_ = false; ///< What was lost has been asked for and has not come yet.
  bool done_ = false;
};

response_record collection::record_of(const wire::response_ready& ready) const {
  const auto& group = batch_.groups.at(ready.group);
  response_record r;
  r.group = ready.group;
  r.index = ready.index;
  r.id = ready.id;
  r.prompt_token_ids = group.prompt_token_ids;
  r.token_ids = ready.token_ids;
  r.logprobs = ready.logprobs;
  r.kept_masses = ready.kept_mass;
  r.finish_reason = wire::to_string(ready.reason);
  for (const auto& span : ready.weight_versions)
    r.weight_versions.push_back({span.version, span.start, span.end});
  r.seed = ready.response_seed;
  r.temperature = (group.sampling ? *group.sampling : batch_.sampling).temperature;
  r.numerics_profile = ready.numerics_profile;
  if (ready.experts)
    r.experts = routed_experts{ready.experts->start, ready.experts->layout, ready.experts->ids};
  if (words_ != nullptr)
    if (auto text = words_->decode(ready.token_ids, decode_special::skip))
      r.text = std::move(*text);
  return r;
}

result<void> collection::take(const wire::response_ready& ready) {
  if (ready.sequence <= last_sequence_)
    return {}; // pushed again after a silence
  if (ready.sequence != last_sequence_ + 1)
    return std::exchange(asked_, true) ? result<void>{} : ask_again();
  asked_ = false;
  if (ready.group >= batch_.groups.size())
    return fail(errc::frame_malformed, "a result of group " + std::to_string(ready.group)
                                         + " came, the batch has "
                                         + std::to_string(batch_.groups.size()) + " groups");
  records.push_back(record_of(ready));
  if (auto ok = out_.keep(records.back()); !ok) {
    records.pop_back();
    return fail(ok.error().code, ok.error().detail + kept());
  }
  last_sequence_ = ready.sequence;
  completed_ += ready.reason != wire::finish_reason::cancelled ? 1 : 0;
  tokens_held_ += ready.token_ids.size();
  tokens_ = std::max(tokens_, tokens_held_);
  return last_sequence_ - acknowledged_ < results_per_sync ? result<void>{} : acknowledge();
}

/// Has on disk what was kept, and says so: what is acknowledged the scheduler forgets. Syncing each
/// result would cost a disk's turn each, so they are taken together.
result<void> collection::acknowledge() {
  if (acknowledged_ == last_sequence_)
    return {};
  if (auto ok = sync(); !ok)
    return ok;
  acknowledged_ = last_sequence_;
  return client_.ack(batch_.batch_key, acknowledged_);
}

result<void> collection::sync() {
  if (auto ok = out_.sync(); !ok)
    return fail(ok.error().code, ok.error().detail + kept());
  synced_ = clock::now();
  return {};
}

result<void> collection::take(const wire::event& event) {
  if (const auto* ready = std::get_if<wire::response_ready>(&event))
    return take(*ready);
  if (const auto* failed = std::get_if<wire::request_failed>(&event))
    return take(*failed);
  if (const auto* over = std::get_if<wire::batch_done>(&event)) {
    if (over->sequence != last_sequence_ + 1)
      return ask_again();
    summary = over->summary;
    done_ = true; // acknowledged only when the files are written
    return acknowledge();
  }
  return {};
}

result<void> collection::take(const wire::request_failed& failed) {
  if (failed.code == errc::queue_full && failed.batch_key.empty())
    return {}; // an acknowledgement came at a busy moment; the next one covers it
  if (failed.code == errc::unknown_batch && failed.batch_key == batch_.batch_key)
    return ask_again();
  if (failed.batch_key == batch_.batch_key) {
    if (last_sequence_ < responses_)
      return ask_again(); // it stands in the place of BatchDone: results before it were lost
    if (auto ok = acknowledge(); !ok)
      return ok;
    (void)client_.ack(batch_.batch_key, responses_ + 1); // told; the key may be used again
  }
  return fail(failed.code, failed.message + kept());
}

/// What is on disk, and how to go on with it: the end of every line that ends a run early.
std::string collection::kept() const {
  const auto where = "; " + std::to_string(records.size()) + " responses are kept in "
                     + out_.partial_file().string();
  if (cluster_ != nullptr)
    return where; // the batch ends with the private cluster
  return where + ", run again with --batch-key " + batch_.batch_key + " to go on";
}

/// A push was lost: has everything after the last result that we hold pushed again. That lets the
/// scheduler forget what we hold, so it must be on disk.
result<void> collection::ask_again() {
  ask_soon_ = false;
  if (auto ok = sync(); !ok)
    return ok;
  if (submit_again_)
    return submit();
  const auto resumed = client_.resume(batch_.batch_key, last_sequence_);
  if (!resumed && resumed.error().code == errc::unknown_batch) {
    // The scheduler was started anew and knows nothing: the same responses are made again, in
    // another order. What came before is set aside, and so are its numbers.
    spdlog::warn("the scheduler has forgotten batch {}, it is submitted again", batch_.batch_key);
    records.clear();
    last_sequence_ = acknowledged_ = completed_ = tokens_held_ = tokens_ = 0;
    submit_again_ = true;
    return submit();
  }
  if (!resumed)
    return wait_for_scheduler(resumed.error());
  acknowledged_ = last_sequence_; // by the request
  if (resumed->first_sequence > last_sequence_ + 1)
    return fail(errc::frame_malformed,
                "the scheduler goes on with result " + std::to_string(resumed->first_sequence)
                  + " of batch " + batch_.batch_key + " after result "
                  + std::to_string(last_sequence_) + ": another run collects the same batch");
  return {};
}

/// Goes on where an earlier run of the same batch, perhaps stopped by a full disk, left off.
result<void> collection::take_up(std::uint64_t count) {
  auto kept = out_.take_up(count);
  if (!kept)
    return fail(kept);
  for (const auto& r : *kept)
    if (r.group >= batch_.groups.size()
        || r.prompt_token_ids != batch_.groups[r.group].prompt_token_ids)
      return fail(errc::io_failed, out_.partial_file().string() + " holds responses of another "
                                     + "batch than " + batch_.batch_key
                                     + ": give the --out of the run that began it");
  records = std::move(*kept);
  last_sequence_ = acknowledged_ = count;
  return {};
}

/// What there is to do while no result comes: children, Ctrl-C, progress, a lost scheduler.
result<void> collection::look_around() {
  if (cluster_ != nullptr)
    if (auto ok = cluster_->supervise(); !ok)
      return ok;
  if (stop_requested() && !cancelled) {
    const auto ok = client_.cancel(batch_.batch_key);
    cancelled = ok || ok.error().code != errc::queue_full;
    if (!ok && ok.error().code != errc::queue_full && ok.error().code != errc::unknown_batch)
      return fail(ok.error().code, ok.error().detail + kept());
  }
  const auto status = client_.status();
  if (!status)
    return wait_for_scheduler(status.error());
  alive_ = clock::now();
  if (std::exchange(lost_, false))
    spdlog::warn("the scheduler is back");
  for (const auto& batch : status->batches)
    if (batch.batch_key == batch_.batch_key)
      tokens_ = batch.generated_tokens;
  return {};
}

/// A request came to nothing. While the scheduler may come back, it is made again.
result<void> collection::wait_for_scheduler(const error& why) {
  const auto now = clock::now();
  ask_soon_ = true;
  if (why.code == errc::queue_full) { // alive, and busy
    alive_ = now;
    return {};
  }
  if (why.code != errc::timed_out && why.code != errc::peer_lost)
    return fail(why.code, why.detail + kept());
  if (cluster_ != nullptr || stop_requested() || now - alive_ > patience_)
    return fail(errc::peer_lost, "the scheduler is gone (" + why.detail + ")" + kept());
  if (!std::exchange(lost_, true))
    spdlog::warn("the scheduler is gone, it may come back within {} s: {}", patience_.count(),
                 why.detail);
  return {};
}

result<void> collection::submit() {
  const auto accepted = client_.submit(batch_);
  if (!accepted)
    return submit_again_ ? wait_for_scheduler(accepted.error()) : fail(accepted);
  submit_again_ = false;
  if (accepted->first_sequence > accepted->responses + 1)
    return fail(errc::batch_conflict, "batch " + batch_.batch_key
                                        + " was collected and acknowledged before: give another "
                                          "--batch-key to run it again");
  if (auto ok = take_up(accepted->first_sequence - 1); !ok)
    return ok;
  responses_ = accepted->responses;
  return cancelled ? client_.cancel(batch_.batch_key) : result<void>{};
}

/// What there is to do beside taking results in.
result<void> collection::keep_up() {
  const auto now = clock::now();
  if (now - synced_ >= sync_every)
    if (auto ok = acknowledge(); !ok)
      return ok;
  bool behind = client_.reconnected(); // what is pushed goes to the old connection
  if (now - looked_ > 500ms) {
    looked_ = now;
    if (auto ok = look_around(); !ok)
      return ok;
    behind = behind || (ask_soon_ && !lost_);
  }
  if (!behind && now - heard_ <= timeout_)
    return {};
  heard_ = now; // perhaps a push was lost; asking costs nothing
  return ask_again();
}

result<void> collection::run() {
  if (auto ok = submit(); !ok)
    return ok;
  progress_.emplace(responses_);
  while (!done_) {
    auto event = client_.next_event(acknowledged_ == last_sequence_ ? 200ms : sync_every);
    if (event) {
      heard_ = alive_ = clock::now();
      if (auto ok = take(*event); !ok)
        return ok;
    } else if (event.error().code != errc::timed_out) {
      return fail(event);
    }
    if (!done_)
      if (auto ok = keep_up(); !ok)
        return ok;
    progress_->show(done_ ? records.size() : completed_, done_ ? summary.tokens : tokens_, done_);
  }
  return {};
}

int run_with(const run_options& options, const std::string& endpoint, local_cluster* cluster,
             const tokenizer* words, const wire::submit_batch& batch, output_dir& out) {
  auto client = wire::controller_client::connect(
    endpoint, options.timeout, options.connect.empty() ? wire::controller_keys{} : options.keys);
  if (!client)
    return refuse_contact(client.error());
  const auto begin = clock::now();
  collection collected{
    *client, batch, words, out, cluster, options.timeout, std::chrono::seconds{options.patience_s}};
  if (auto ok = collected.run(); !ok)
    return refuse(ok.error());
  collected.summary.wall_s = std::chrono::duration<double>(clock::now() - begin).count();
  if (auto ok = out.finish(std::move(collected.records), to_json(collected.summary)); !ok)
    return refuse(ok.error());
  if (auto ok = client->ack(batch.batch_key, collected.summary.responses + 1); !ok)
    return refuse(ok.error());
  print_table(collected.summary, out.responses_file());
  return collected.cancelled ? exit_cancelled : exit_done;
}

/// What a look at the private cluster's model tells, before it is loaded.
result<void> check_model(const run_options& options) {
  const auto config = load_config(options.cluster.device.model);
  if (!config)
    return fail(config);
  if (config->experts.count == 0 && (options.routed_experts || options.routed_experts_from))
    return fail(errc::bad_config, "--routed-experts: the model in "
                                    + options.cluster.device.model.string()
                                    + " has no experts; leave it out");
  return {};
}

} // namespace

int run_run(const run_options& options) {
  catch_stop_signals();
  if (options.connect.empty() == options.cluster.device.model.empty())
    return refuse({errc::bad_config, "run needs either --connect ENDPOINT or --model DIR", {}});
  if (options.connect.empty())
    if (const auto ok = check_model(options); !ok)
      return refuse(ok.error());
  const auto words = find_tokenizer(options);
  if (!words)
    return refuse(words.error());
  const tokenizer* tokens = words->has_value() ? &**words : nullptr;
  auto groups = read_prompts(options.prompts, {options.group_size, options.sampling}, tokens);
  if (!groups)
    return refuse(groups.error());
  // What is wrong with the batch or the place of its results is said before a model is loaded.
  const auto batch = batch_of(options, std::move(*groups));
  if (const auto ok = wire::validate(batch); !ok)
    return refuse(ok.error());
  auto out = output_dir::open(options.out);
  if (!out)
    return refuse(out.error());
  if (!options.connect.empty())
    return run_with(options, options.connect, nullptr, tokens, batch, *out);
  auto cluster = launch(options.cluster, false);
  if (!cluster)
    return refuse(cluster.error());
  return run_with(options, cluster->endpoint(), &*cluster, tokens, batch, *out);
}

} // namespace rollcast::cli
