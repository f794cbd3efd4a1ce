#pragma once

#include "cluster/batch/batch_tally.hpp"
#include "cluster/journal/records.hpp"
#include "cluster/wire/batch_hash.hpp"
#include "cluster/wire/messages.hpp"
#include "engine/base/error.hpp"
#include "engine/base/hash.hpp"
#include "engine/base/ids.hpp"
#include "engine/model/expert_layout.hpp"
#include "engine/step/request.hpp"

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace rollcast {

/// Bounds of what a scheduler keeps for its controllers.
struct batch_limits {
  std::size_t live_batches = 256;      ///< Batches that are not finished.
  std::size_t kept_batches = 1'024;    ///< All, with finished and acknowledged ones.
  std::uint64_t responses = 2'000'000; ///< Of all kept batches whose end was not acknowledged.
  /// Of those batches, when one is submitted: prompts, 4 bytes each, and what was generated and not
  /// acknowledged, 12 bytes each; 12 bytes of ids of experts are as a token.
  std::uint64_t tokens = std::uint64_t{1} << 30;
  std::uint64_t results_in_flight = 256; ///< Per batch, pushed and not acknowledged.
  /// Of those results, 12 bytes each, of ids of experts too; one result may have more.
  std::uint64_t tokens_in_flight = std::uint64_t{1} << 22;
};

/// Where a batch stands.
enum class batch_phase : std::uint8_t {
  queued,  ///< Waits for a worker, or for batches of another mode to end.
  running, ///< Its responses may be placed.
  ended,   ///< Every response is finished; results may still wait for their controller.
};

/// One response of a batch: what is known of it at its last chunk edge.
struct response_record {
  std::uint32_t group = 0; ///< Ordinal in the batch.
  std::uint32_t index = 0; ///< Ordinal in the group.
  std::uint64_t seed = 0;
  std::vector<token_id> tokens;   ///< Generated so far.
  std::vector<float> logprobs;    ///< One a token.
  std::vector<float> kept_masses; ///< One a token.
  std::vector<std::byte> experts; ///< Ids of experts, if the batch asks for them.
  /// What it takes in memory, in tokens of 12 bytes.
  std::uint64_t weight() const noexcept { return tokens.size() + experts.size() / 12; }
  /// From which token on which weight version made them; empty while none was made.
  struct version_start {
    std::uint64_t version = 0;
    std::uint32_t start = 0;
  };
  std::vector<version_start> versions;
  std::uint64_t sequence = 0; ///< Its number as a result, from 1; 0 while unfinished.
  wire::finish_reason reason = wire::finish_reason::stop;
};

/// A batch and all its responses. Ids are consecutive: response i of the batch (by group, then
/// index) has `first_response` + i, group g has `first_group` + g.
struct batch_record {
  batch_id id;
  wire::submit_batch spec; ///< Without groups once the end is acknowledged.
  content_hash spec_hash;
  batch_phase phase = batch_phase::queued;
  std::uint64_t first_response = 0;
  std::uint64_t first_group = 0;
  std::uint64_t size = 0;                      ///< Responses, also when their records are gone.
  std::vector<response_record> responses;      ///< Empty once the end is acknowledged, so are
  std::vector<std::uint32_t> group_unfinished; ///< these (per group)
  std::vector<std::uint64_t> finished;         ///< and these: ordinals, by sequence - 1.
  std::uint64_t finished_count = 0;
  std::uint64_t live_groups = 0; ///< With an unfinished response.
  std::uint64_t running = 0;     ///< Responses whose chunk a worker has.
  batch_tally tally;
  std::string numerics_profile; ///< Of the cluster when it started; "" while queued.
  std::uint64_t weight_version = 0;
  expert_layout experts; ///< Of the model when it started.
  std::uint64_t generated_tokens = 0;
  std::uint64_t tokens_held = 0;   ///< Weight of those that were not acknowledged.
  std::uint64_t prompt_tokens = 0; ///< As `prompt_tokens_of`; 0 once the end is acknowledged.
  /// Why it could not go on. Its unfinished responses are cancelled, and this is told in place of
  /// BatchDone; once that is acknowledged the book forgets the batch and its key.
  std::optional<error> failure;
  std::optional<wire::batch_summary> summary; ///< From its end on, always the same.
  bool restored = false;                      ///< Taken on by an earlier scheduler.

  std::string owner;              ///< Who may ask about it; "" is everybody.
  std::string client;             ///< Whose share it counts for; "" is nobody.
  std::string receiver;           ///< Who is sent results; "" is nobody.
  std::uint64_t sent = 0;         ///< Last sequence pushed to the receiver.
  std::uint64_t tokens_sent = 0;  ///< Of results pushed to it that are not acknowledged.
  std::uint64_t sent_max = 0;     ///< Last sequence pushed to anybody.
  std::uint64_t acknowledged = 0; ///< Last sequence acknowledged.

  std::uint64_t submitted_ns = 0;
  std::uint64_t started_ns = 0;
  std::uint64_t tail_ns = 0; ///< When at most 10 % of the responses were unfinished; 0: not yet.
  std::uint64_t ended_ns = 0;

  /// Sequence of BatchDone: after the last result.
  std::uint64_t last_sequence() const noexcept { return size + 1; }
  bool acknowledged_fully() const noexcept { return acknowledged >= last_sequence(); }
  const wire::prompt_group& group_of(const response_record& r) const {
    return spec.groups[r.group];
  }
  const wire::sampling_params& sampling_of(const response_record& r) const {
    const auto& own = group_of(r).sampling;
    return own ? *own : spec.sampling;
  }
};

/// What ends a response by itself, of the model that the cluster runs.
struct model_ends {
  std::vector<token_id> eos_token_ids;
  std::uint32_t context_max = 0; ///< 0: not known, so nothing runs.
};

/// Whether the tokens that a response has are all it gets, by the rule of the engine: its last one
/// stops it, or there is no room for more. None: it goes on.
std::optional<wire::finish_reason> end_of(const batch_record& batch, const response_record& r,
                                          const model_ends& model);

/// What the groups of a batch take in memory, in tokens: prompts, stop lists and names.
std::uint64_t prompt_tokens_of(const wire::submit_batch& batch);

/// Every batch that the scheduler answers for: tokens so far, results numbered once and kept until
/// acknowledged, and who gets them. Pure: no clock, I/O or threads; times are nanoseconds of one
/// monotonic clock, handed in.
class batch_book {
public:
  /// @param journal  told of every change, in order; null: nobody is. Outlives the book.
  explicit batch_book(batch_limits limits, journal::sink* journal = nullptr);

  /// One moment on two clocks: nanoseconds of the monotonic one, and of the system's since 1970.
  struct moment {
    std::uint64_t steady_ns = 0;
    std::uint64_t unix_ns = 0;
  };
  /// Becomes the book that the journal was told of; limits are not checked again. Nobody is
  /// attached. What runs goes on running from its last edges; the policy must be told of it. What a
  /// journal that was cut short lacks is made up for (`finish_torn`), and written.
  /// @pre the book is new
  void restore(const journal::image& found, const model_ends& model, moment now);

  // -- batches ------------------------------------------------------------------

  /// Takes a validated batch on, or finds the one that has its key (`find`). Fails with
  /// `batch_conflict` (same key, other content) or `queue_full`.
  result<batch_record*> submit(wire::submit_batch spec, std::uint64_t now_ns,
                               const std::string& owner = {});
  /// The batch that somebody means by a key: its own, or one that is nobody's. Each owner has keys
  /// of its own; who is nobody (`owner` is "") means anybody's. Fails with `unknown_batch`, and
  /// with `batch_conflict` if it could be several.
  result<batch_record*> find(const std::string& key, const std::string& owner = {});
  /// As above, and then anybody's, for one who may ask about all.
  result<batch_record*> find_any(const std::string& key, const std::string& owner);
  /// The batch may be placed from now on. @pre it is queued
  void start(batch_record& batch, std::uint64_t now_ns);
  /// Finishes what is unfinished as cancelled.
  /// @returns the responses that were unfinished.
  std::vector<response_id> cancel(batch_record& batch, std::uint64_t now_ns);
  /// Ends a batch that cannot go on: as `cancel`, with `why` in place of BatchDone.
  std::vector<response_id> give_up(batch_record& batch, error why, std::uint64_t now_ns);

  // -- responses ----------------------------------------------------------------

  /// A response and its batch; null if it is unknown.
  struct place {
    batch_record* batch = nullptr;
    response_record* response = nullptr;
    explicit operator bool() const noexcept { return response != nullptr; }
  };
  place locate(response_id response);

  /// Bytes of ids of experts that come with so many more tokens of a response.
  static std::size_t expert_bytes(const place& at, std::size_t more_tokens);
  /// Appends a chunk's tokens, once: only if the response is unfinished and has exactly `position`
  /// tokens, and everything is there that comes with them. @returns false otherwise, having changed
  /// nothing.
  bool append(place at, std::uint32_t position, std::span<const token_id> tokens,
              std::span<const float> logprobs, std::span<const float> kept_masses,
              std::span<const std::byte> experts = {});
  /// Gives the response its result number. @pre unfinished
  void finish(place at, wire::finish_reason reason, std::uint64_t now_ns);

  // -- results ------------------------------------------------------------------

  /// Sends results to `receiver` from now on, after `after_sequence` or after what is acknowledged,
  /// whichever is more; what lies before counts as acknowledged, since the receiver says it has it
  /// (what was never sent it cannot have). @returns as `acknowledge`.
  bool attach(batch_record& batch, std::string receiver, std::uint64_t after_sequence);
  /// Forgets the contents of results up to `sequence` (at most what was ever sent).
  /// @returns false if the batch itself was forgotten with that: it had failed, and its end is
  /// acknowledged now. `batch` is dead then.
  bool acknowledge(batch_record& batch, std::uint64_t sequence);
  /// Results, and at the end BatchDone or what the batch failed with, that the receiver may be sent
  /// now; counts them as sent.
  std::vector<wire::event> deliveries(batch_record& batch);

  /// The fields of summary.json. @pre the batch has ended
  wire::batch_summary summary(const batch_record& batch) const;

  std::map<batch_id, batch_record>& batches() noexcept { return batches_; }
  const std::map<batch_id, batch_record>& batches() const noexcept { return batches_; }

  /// What the cluster serves now; a batch keeps what it was started with.
  std::string numerics_profile;
  std::uint64_t weight_version = 0;
  expert_layout experts;         ///< Of the model; without layers, of a dense one.
  std::string speculate = "off"; ///< Of the first worker.
  std::string default_policy = "context";

private:
  result<void> make_room(std::uint64_t responses, std::uint64_t prompt_tokens);
  void note_held(const batch_record& batch);
  void note_let_go(const batch_record& batch);
  std::string oldest_left() const;
  /// Drops a batch, so that its key is free again. `batch` dies here.
  void forget(batch_record& batch);
  void add_responses(batch_record& batch);
  /// Fills in the empty responses of a batch from what was submitted.
  void make_responses(batch_record& batch);
  void restore(const journal::batch_image& from, moment now);
  void restore_responses(const journal::batch_image& from, batch_record& batch);
  /// Ends what the last records of a cut journal would have ended.
  void finish_torn(batch_record& batch, const model_ends& model, std::uint64_t now_ns);
  void end(batch_record& batch, std::uint64_t now_ns);
  void write(journal::record what);
  wire::batch_summary measure(const batch_record& batch) const;
  bool may_push(const batch_record& batch, std::uint64_t sequence) const;
  wire::response_ready result_of(const batch_record& batch, std::uint64_t sequence) const;
  static wire::routed_experts experts_of(const batch_record& batch, const response_record& r);

  batch_limits limits_;
  journal::sink* journal_;
  std::map<batch_id, batch_record> batches_;
  std::map<std::pair<std::string, std::string>, batch_id> by_key_; ///< And owner.
  std::map<std::uint64_t, batch_id> by_first_response_;
  std::uint64_t next_batch_ = 1;
  std::uint64_t next_group_ = 1;
  std::uint64_t next_response_ = 1;
  std::uint64_t responses_held_ = 0; ///< Of batches whose end was not acknowledged.
  std::uint64_t tokens_held_ = 0;    ///< Weight of those whose results are not acknowledged.
  std::uint64_t prompt_tokens_held_ = 0;
};

/// The engine's form of a response's sampling parameters.
sampling_params to_engine(const wire::sampling_params& sampling, std::uint64_t seed);

} // namespace rollcast
