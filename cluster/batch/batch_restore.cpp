#include "cluster/batch/admission.hpp"
#include "cluster/batch/batch_book.hpp"
#include "engine/base/check.hpp"

#include <algorithm>
#include <vector>

namespace rollcast {
namespace {

/// The steady clock's time of a moment that the system's clock saw. A clock that was set, or a
/// machine that was started since, makes it wrong but never later than now.
std::uint64_t steady_of(std::uint64_t unix_ns, batch_book::moment now) {
  if (unix_ns == 0)
    return 0;
  const auto age = now.unix_ns > unix_ns ? now.unix_ns - unix_ns : 0;
  return now.steady_ns > age ? now.steady_ns - age : 1; // 0 is: not yet
}

bool contains(const std::vector<token_id>& ids, token_id id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

} // namespace

std::optional<wire::finish_reason> end_of(const batch_record& batch, const response_record& r,
                                          const model_ends& model) {
  if (r.tokens.empty() || model.context_max == 0)
    return {};
  const auto& sampling = batch.sampling_of(r);
  const auto last = r.tokens.back();
  if (contains(sampling.stop_token_ids, last)
      || (!sampling.ignore_eos && contains(model.eos_token_ids, last)))
    return wire::finish_reason::stop;
  if (r.tokens.size()
      >= tokens_max(sampling, batch.group_of(r).prompt_token_ids.size(), model.context_max))
    return wire::finish_reason::length;
  return {};
}

void batch_book::restore(const journal::image& found, const model_ends& model, moment now) {
  ROLLCAST_CHECK(batches_.empty());
  next_batch_ = found.next_batch;
  next_group_ = found.next_group;
  next_response_ = found.next_response;
  for (const auto& batch : found.batches)
    restore(batch, now);
  for (auto it = batches_.begin(); it != batches_.end();) {
    auto& batch = (it++)->second; // it may be forgotten
    if (batch.failure && batch.acknowledged_fully())
      forget(batch);
    else if (batch.phase != batch_phase::ended)
      finish_torn(batch, model, now.steady_ns);
  }
}

void batch_book::restore(const journal::batch_image& from, moment now) {
  auto& batch = batches_[from.id];
  batch.id = from.id;
  batch.spec = from.spec;
  batch.spec_hash = from.spec_hash;
  batch.first_response = from.first_response;
  batch.first_group = from.first_group;
  batch.client = batch.owner = from.owner;
  batch.failure = from.failure;
  batch.size = from.size;
  batch.restored = true;
  batch.acknowledged = batch.sent = from.acknowledged;
  batch.submitted_ns = steady_of(from.submitted_unix_ns, now);
  batch.started_ns = steady_of(from.started_unix_ns, now);
  batch.ended_ns = steady_of(from.ended_unix_ns, now);
  if (from.started) {
    batch.phase = batch_phase::running;
    batch.numerics_profile = from.started->numerics_profile;
    batch.weight_version = from.started->weight_version;
    batch.experts = from.started->experts;
  }
  if (from.ended) {
    batch.phase = batch_phase::ended;
    batch.summary = from.ended->summary;
  }
  if (batch.acknowledged_fully()) {
    batch.finished_count = batch.size;
    batch.sent_max = batch.last_sequence();
  } else {
    restore_responses(from, batch);
    note_held(batch);
  }
  by_key_.emplace(std::pair{batch.spec.batch_key, batch.owner}, batch.id);
  by_first_response_.emplace(batch.first_response, batch.id);
  if (batch.phase != batch_phase::ended && batch.finished_count > 0
      && (batch.size - batch.finished_count) * 10 <= batch.size)
    batch.tail_ns = now.steady_ns;
}

void batch_book::restore_responses(const journal::batch_image& from, batch_record& batch) {
  make_responses(batch);
  ROLLCAST_CHECK(batch.responses.size() == from.responses.size()); // the journal has checked it
  std::vector<std::pair<std::uint64_t, std::uint64_t>> finished;   // sequence, ordinal
  for (std::uint64_t i = 0; i < batch.responses.size(); ++i) {
    const auto& r = from.responses[i];
    auto& to = batch.responses[i];
    to.tokens = r.tokens;
    to.logprobs = r.logprobs;
    to.kept_masses = r.kept_masses;
    to.experts = r.experts;
    for (const auto& v : r.versions)
      to.versions.push_back({v.version, v.start});
    to.sequence = r.sequence;
    to.reason = r.reason;
    batch.tokens_held += to.weight();
    tokens_held_ += to.weight();
    batch.generated_tokens += to.tokens.size();
    if (to.sequence == 0)
      continue;
    finished.emplace_back(to.sequence, i);
    if (--batch.group_unfinished[to.group] == 0)
      --batch.live_groups;
  }
  std::sort(finished.begin(), finished.end());
  for (const auto& [sequence, ordinal] : finished) {
    batch.finished.push_back(ordinal);
    ROLLCAST_CHECK(sequence == batch.finished.size());
  }
  batch.finished_count = batch.finished.size();
  // Whatever is on disk may have been sent, and nothing else.
  batch.sent_max = batch.phase == batch_phase::ended ? batch.last_sequence() : batch.finished_count;
}

void batch_book::finish_torn(batch_record& batch, const model_ends& model, std::uint64_t now_ns) {
  const bool cancelled =
    std::any_of(batch.responses.begin(), batch.responses.end(), [](const response_record& r) {
      return r.sequence != 0 && r.reason == wire::finish_reason::cancelled;
    });
  if (batch.finished_count == batch.size)
    return end(batch, now_ns);
  if (cancelled || batch.failure) { // all or nothing
    (void)cancel(batch, now_ns);
    return;
  }
  for (auto& r : batch.responses)
    if (r.sequence == 0)
      if (const auto reason = end_of(batch, r, model))
        finish({&batch, &r}, *reason, now_ns);
}

} // namespace rollcast
