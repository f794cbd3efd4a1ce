#include "cluster/batch/batch_book.hpp"

#include "engine/base/check.hpp"

#include <algorithm>
#include <memory>
#include <utility>

namespace rollcast {

namespace {

/// Empties a vector and gives its memory back, which assigning {} does not.
template <class T>
void drop(std::vector<T>& all) {
  std::vector<T>{}.swap(all);
}

/// Tokens that a result carries, by weight.
std::uint64_t tokens_of(const batch_record& batch, std::uint64_t sequence) {
  if (sequence > batch.size)
    return 0;
  const auto& r = batch.responses[batch.finished[sequence - 1]];
  return r.weight() + (batch.spec.echo_prompts ? batch.group_of(r).prompt_token_ids.size() : 0);
}

/// Positions whose ids of experts come with tokens [before, after). @pre they are asked for
position_range routed(const batch_record& batch, const response_record& r, std::size_t before,
                      std::size_t after) {
  const auto prompt = batch.group_of(r).prompt_token_ids.size();
  return routed_positions(*batch.spec.routed_experts_from, static_cast<std::uint32_t>(prompt),
                          static_cast<std::uint32_t>(before), static_cast<std::uint32_t>(after));
}

/// What was appended behind `position`.
journal::chunk_edge edge_of(const batch_book::place& at, std::uint32_t position,
                            std::uint64_t weight_version, std::span<const std::byte> experts) {
  const auto& r = *at.response;
  journal::chunk_edge e;
  e.id = at.batch->id;
  e.ordinal = static_cast<std::uint64_t>(at.response - at.batch->responses.data());
  e.position = position;
  e.weight_version = weight_version;
  e.tokens.assign(r.tokens.begin() + position, r.tokens.end());
  e.logprobs.assign(r.logprobs.begin() + position, r.logprobs.end());
  if (!std::all_of(r.kept_masses.begin() + position, r.kept_masses.end(),
                   [](float mass) { return mass == 1.0f; }))
    e.kept_masses.assign(r.kept_masses.begin() + position, r.kept_masses.end());
  e.experts.assign(experts.begin(), experts.end());
  return e;
}

} // namespace

std::uint64_t prompt_tokens_of(const wire::submit_batch& batch) {
  std::uint64_t tokens = 0;
  for (const auto& group : batch.groups)
    tokens += group.prompt_token_ids.size() + group.id.size() / sizeof(token_id)
              + (group.sampling ? group.sampling->stop_token_ids.size() : 0);
  return tokens;
}

batch_book::batch_book(batch_limits limits, journal::sink* journal)
  : limits_(limits), journal_(journal) {}

void batch_book::write(journal::record what) {
  if (journal_ != nullptr)
    journal_->write(std::move(what));
}

// -- batches ------------------------------------------------------------------

result<batch_record*> batch_book::submit(wire::submit_batch spec, std::uint64_t now_ns,
                                         const std::string& owner) {
  const auto hash = hash_of(spec);
  const auto known = find(spec.batch_key, owner);
  if (known && (*known)->spec_hash != hash)
    return fail(errc::batch_conflict,
                "batch key '" + spec.batch_key + "' is taken by a batch with other content ("
                  + std::to_string((*known)->size) + " responses); use a new key");
  if (known || known.error().code != errc::unknown_batch)
    return known;
  std::uint64_t responses = 0;
  for (const auto& group : spec.groups)
    responses += group.group_size;
  if (auto room = make_room(responses, prompt_tokens_of(spec)); !room)
    return fail(room);
  const batch_id id{next_batch_++};
  auto& batch = batches_[id];
  batch.id = id;
  batch.spec = std::move(spec);
  batch.spec_hash = hash;
  batch.submitted_ns = now_ns;
  batch.owner = owner;
  add_responses(batch);
  by_key_.emplace(std::pair{batch.spec.batch_key, owner}, id);
  by_first_response_.emplace(batch.first_response, id);
  note_held(batch);
  if (journal_ != nullptr)
    write(journal::batch_submitted{id, std::make_shared<const wire::submit_batch>(batch.spec),
                                   batch.first_response, batch.first_group, owner});
  return &batch;
}

result<void> batch_book::make_room(std::uint64_t responses, std::uint64_t prompt_tokens) {
  std::size_t live = 0;
  for (const auto& [id, batch] : batches_)
    live += batch.phase != batch_phase::ended ? 1 : 0;
  if (live >= limits_.live_batches)
    return fail(errc::queue_full, std::to_string(live) + " batches are queued or running, limit "
                                    + std::to_string(limits_.live_batches));
  if (responses_held_ + responses > limits_.responses)
    return fail(errc::queue_full,
                "the batch has " + std::to_string(responses) + " responses, "
                  + std::to_string(responses_held_) + " are kept already, limit "
                  + std::to_string(limits_.responses)
                  + "; acknowledge results of finished batches or submit a smaller batch");
  if (prompt_tokens + prompt_tokens_held_ + tokens_held_ > limits_.tokens)
    return fail(errc::queue_full, "the batch has " + std::to_string(prompt_tokens)
                                    + " tokens of prompts, " + std::to_string(prompt_tokens_held_)
                                    + " of prompts and " + std::to_string(tokens_held_)
                                    + " of unacknowledged results are kept already, limit "
                                    + std::to_string(limits_.tokens) + "; " + oldest_left());
  if (batches_.size() < limits_.kept_batches)
    return {};
  for (auto& [id, batch] : batches_)
    if (batch.acknowledged_fully()) {
      forget(batch);
      return {};
    }
  return fail(errc::queue_full, std::to_string(batches_.size())
                                  + " batches are kept for controllers that have not "
                                    "acknowledged them; "
                                  + oldest_left());
}

void batch_book::note_held(const batch_record& batch) {
  responses_held_ += batch.size;
  prompt_tokens_held_ += batch.prompt_tokens;
}

void batch_book::note_let_go(const batch_record& batch) {
  responses_held_ -= batch.size;
  prompt_tokens_held_ -= batch.prompt_tokens;
}

/// What to do about batches that nobody collects.
std::string batch_book::oldest_left() const {
  for (const auto& [id, batch] : batches_)
    if (batch.phase == batch_phase::ended)
      return "collect them, or drop them with `rollcast discard --batch-key KEY`; the oldest is '"
             + batch.spec.batch_key + "'";
  return "wait for results to be collected";
}

void batch_book::add_responses(batch_record& batch) {
  batch.first_response = next_response_;
  batch.first_group = next_group_;
  make_responses(batch);
  batch.size = batch.responses.size();
  next_response_ += batch.size;
  next_group_ += batch.spec.groups.size();
}

void batch_book::make_responses(batch_record& batch) {
  for (std::uint32_t g = 0; g < batch.spec.groups.size(); ++g) {
    const auto& group = batch.spec.groups[g];
    for (std::uint32_t i = 0; i < group.group_size; ++i) {
      auto& r = batch.responses.emplace_back();
      r.group = g;
      r.index = i;
      // A group with a seed of its own gives the same responses in any batch, at any place.
      r.seed = group.seed ? response_seed(*group.seed, 0, i) : response_seed(batch.spec.seed, g, i);
    }
    batch.group_unfinished.push_back(group.group_size);
  }
  batch.live_groups = batch.group_unfinished.size();
  batch.prompt_tokens = prompt_tokens_of(batch.spec);
}

result<batch_record*> batch_book::find(const std::string& key, const std::string& owner) {
  if (owner.empty())
    return find_any(key, owner);
  for (const auto& whose : {owner, std::string{}})
    if (const auto it = by_key_.find({key, whose}); it != by_key_.end())
      return &batches_.at(it->second);
  return fail(errc::unknown_batch, "no batch of client " + owner + " has the key '" + key + "' ("
                                     + std::to_string(batches_.size()) + " are kept)");
}

result<batch_record*> batch_book::find_any(const std::string& key, const std::string& owner) {
  for (const auto& whose : {owner, std::string{}})
    if (const auto it = by_key_.find({key, whose}); it != by_key_.end())
      return &batches_.at(it->second);
  const auto first = by_key_.lower_bound({key, {}});
  if (first == by_key_.end() || first->first.first != key)
    return fail(errc::unknown_batch, "no batch has the key '" + key + "' ("
                                       + std::to_string(batches_.size()) + " are kept)");
  if (const auto next = std::next(first); next != by_key_.end() && next->first.first == key)
    return fail(errc::batch_conflict, "several clients have a batch with the key '" + key + "', "
                                        + first->first.second + " and " + next->first.second
                                        + " among them; ask with a key of the one that is meant");
  return &batches_.at(first->second);
}

void batch_book::start(batch_record& batch, std::uint64_t now_ns) {
  ROLLCAST_CHECK(batch.phase == batch_phase::queued);
  batch.phase = batch_phase::running;
  batch.started_ns = now_ns;
  batch.numerics_profile = numerics_profile;
  batch.weight_version = weight_version;
  batch.experts = experts;
  write(
    journal::batch_started{batch.id, batch.numerics_profile, batch.weight_version, batch.experts});
}

std::vector<response_id> batch_book::cancel(batch_record& batch, std::uint64_t now_ns) {
  std::vector<response_id> ended;
  if (batch.phase == batch_phase::queued)
    batch.started_ns = now_ns;
  for (std::uint64_t i = 0; i < batch.responses.size(); ++i)
    if (batch.responses[i].sequence == 0) {
      finish({&batch, &batch.responses[i]}, wire::finish_reason::cancelled, now_ns);
      ended.push_back({batch.first_response + i});
    }
  batch.running = 0;
  return ended;
}

std::vector<response_id> batch_book::give_up(batch_record& batch, error why, std::uint64_t now_ns) {
  batch.failure = std::move(why);
  write(journal::batch_failed{batch.id, *batch.failure});
  return cancel(batch, now_ns);
}

void batch_book::forget(batch_record& batch) {
  write(journal::batch_forgotten{batch.id});
  if (!batch.acknowledged_fully())
    note_let_go(batch);
  by_key_.erase({batch.spec.batch_key, batch.owner});
  by_first_response_.erase(batch.first_response);
  batches_.erase(batch_id{batch.id});
}

// -- responses ----------------------------------------------------------------

batch_book::place batch_book::locate(response_id response) {
  auto it = by_first_response_.upper_bound(response.value);
  if (it == by_first_response_.begin())
    return {};
  auto& batch = batches_.at(std::prev(it)->second);
  const auto ordinal = response.value - batch.first_response;
  if (ordinal >= batch.responses.size())
    return {};
  return {&batch, &batch.responses[ordinal]};
}

std::size_t batch_book::expert_bytes(const place& at, std::size_t more_tokens) {
  if (!at.batch->spec.routed_experts_from)
    return 0;
  const auto before = at.response->tokens.size();
  return routed(*at.batch, *at.response, before, before + more_tokens).size()
         * at.batch->experts.position_bytes();
}

bool batch_book::append(place at, std::uint32_t position, std::span<const token_id> tokens,
                        std::span<const float> logprobs, std::span<const float> kept_masses,
                        std::span<const std::byte> experts) {
  auto& r = *at.response;
  if (r.sequence != 0 || r.tokens.size() != position || logprobs.size() != tokens.size()
      || kept_masses.size() != tokens.size() || experts.size() != expert_bytes(at, tokens.size()))
    return false;
  const auto before = r.weight();
  if (!tokens.empty() && (r.versions.empty() || r.versions.back().version != weight_version))
    r.versions.push_back({weight_version, position});
  r.tokens.insert(r.tokens.end(), tokens.begin(), tokens.end());
  r.logprobs.insert(r.logprobs.end(), logprobs.begin(), logprobs.end());
  r.kept_masses.insert(r.kept_masses.end(), kept_masses.begin(), kept_masses.end());
  r.experts.insert(r.experts.end(), experts.begin(), experts.end());
  at.batch->generated_tokens += tokens.size();
  at.batch->tokens_held += r.weight() - before;
  tokens_held_ += r.weight() - before;
  if (journal_ != nullptr)
    write(edge_of(at, position, weight_version, experts));
  return true;
}

void batch_book::finish(place at, wire::finish_reason reason, std::uint64_t now_ns) {
  auto& batch = *at.batch;
  ROLLCAST_CHECK(at.response->sequence == 0);
  at.response->reason = reason;
  batch.finished.push_back(static_cast<std::uint64_t>(at.response - batch.responses.data()));
  at.response->sequence = ++batch.finished_count;
  write(journal::response_finished{batch.id, batch.finished.back(), reason});
  if (--batch.group_unfinished[at.response->group] == 0)
    --batch.live_groups;
  const auto unfinished = batch.size - batch.finished_count;
  if (batch.tail_ns == 0 && unfinished * 10 <= batch.size)
    batch.tail_ns = now_ns;
  if (unfinished == 0)
    end(batch, now_ns);
}

void batch_book::end(batch_record& batch, std::uint64_t now_ns) {
  batch.phase = batch_phase::ended;
  batch.ended_ns = now_ns;
  batch.summary = measure(batch);
  batch.tally = {};
  write(journal::batch_ended{batch.id, *batch.summary});
}

// -- results ------------------------------------------------------------------

bool batch_book::attach(batch_record& batch, std::string receiver, std::uint64_t after_sequence) {
  batch.receiver = std::move(receiver);
  if (!acknowledge(batch, after_sequence))
    return false;
  batch.sent = batch.acknowledged;
  batch.tokens_sent = 0;
  return true;
}

bool batch_book::acknowledge(batch_record& batch, std::uint64_t sequence) {
  const auto until = std::min(sequence, batch.sent_max);
  const bool was_full = batch.acknowledged_fully();
  if (until > batch.acknowledged)
    write(journal::results_acknowledged{batch.id, until});
  for (; batch.acknowledged < until; ++batch.acknowledged)
    if (batch.acknowledged < batch.finished.size()) {
      if (batch.acknowledged < batch.sent)
        batch.tokens_sent -= tokens_of(batch, batch.acknowledged + 1);
      auto& r = batch.responses[batch.finished[batch.acknowledged]];
      batch.tokens_held -= r.weight();
      tokens_held_ -= r.weight();
      drop(r.tokens);
      drop(r.logprobs);
      drop(r.kept_masses);
      drop(r.experts);
    }
  batch.sent = std::max(batch.sent, batch.acknowledged);
  if (was_full || !batch.acknowledged_fully())
    return true;
  note_let_go(batch);
  batch.prompt_tokens = 0;
  drop(batch.spec.groups);
  drop(batch.responses);
  drop(batch.group_unfinished);
  drop(batch.finished);
  if (!batch.failure)
    return true;
  forget(batch);
  return false;
}

std::vector<wire::event> batch_book::deliveries(batch_record& batch) {
  std::vector<wire::event> out;
  if (batch.receiver.empty())
    return out;
  const auto ready =
    batch.phase == batch_phase::ended ? batch.last_sequence() : batch.finished_count;
  while (batch.sent < ready && may_push(batch, batch.sent + 1)) {
    batch.tokens_sent += tokens_of(batch, ++batch.sent);
    if (batch.sent <= batch.size)
      out.emplace_back(result_of(batch, batch.sent));
    else if (batch.failure)
      out.emplace_back(
        wire::request_failed{batch.failure->code, batch.failure->detail, {}, batch.spec.batch_key});
    else
      out.emplace_back(wire::batch_done{batch.spec.batch_key, batch.sent, summary(batch)});
  }
  batch.sent_max = std::max(batch.sent_max, batch.sent);
  return out;
}

/// Whether the window has room for the next result.
bool batch_book::may_push(const batch_record& batch, std::uint64_t sequence) const {
  return sequence <= batch.acknowledged + limits_.results_in_flight
         && (batch.tokens_sent == 0
             || batch.tokens_sent + tokens_of(batch, sequence) <= limits_.tokens_in_flight);
}

wire::response_ready batch_book::result_of(const batch_record& batch,
                                           std::uint64_t sequence) const {
  const auto& r = batch.responses[batch.finished[sequence - 1]];
  const auto& sampling = batch.sampling_of(r);
  const bool filtered = sampling.top_k > 0 || sampling.top_p < 1 || sampling.min_p > 0;
  wire::response_ready out;
  out.batch_key = batch.spec.batch_key;
  out.sequence = sequence;
  out.group = r.group;
  out.index = r.index;
  out.id = batch.group_of(r).id;
  if (batch.spec.echo_prompts)
    out.prompt_token_ids = batch.group_of(r).prompt_token_ids;
  out.token_ids = r.tokens;
  out.logprobs = r.logprobs;
  if (filtered)
    out.kept_mass = r.kept_masses;
  out.reason = r.reason;
  for (std::size_t i = 0; i < r.versions.size(); ++i)
    out.weight_versions.push_back({r.versions[i].version, r.versions[i].start,
                                   i + 1 < r.versions.size()
                                     ? r.versions[i + 1].start
                                     : static_cast<std::uint32_t>(r.tokens.size())});
  out.response_seed = r.seed;
  out.numerics_profile = batch.numerics_profile;
  if (batch.spec.routed_experts_from)
    out.experts = experts_of(batch, r);
  return out;
}

wire::routed_experts batch_book::experts_of(const batch_record& batch, const response_record& r) {
  return {routed(batch, r, 0, r.tokens.size()).begin,
          batch.experts,
          {reinterpret_cast<const char*>(r.experts.data()), r.experts.size()}};
}

wire::batch_summary batch_book::summary(const batch_record& batch) const {
  return batch.summary ? *batch.summary : measure(batch);
}

wire::batch_summary batch_book::measure(const batch_record& batch) const {
  const auto seconds = [](std::uint64_t from, std::uint64_t to) {
    return to > from ? static_cast<double>(to - from) * 1e-9 : 0.0;
  };
  wire::batch_summary out;
  out.responses = batch.size;
  out.tokens = batch.generated_tokens;
  out.wall_s = seconds(batch.submitted_ns, batch.ended_ns);
  out.makespan_s = seconds(batch.started_ns, batch.ended_ns);
  out.tail_s = seconds(batch.tail_ns, batch.ended_ns);
  if (out.makespan_s > 0)
    out.tokens_per_s = static_cast<double>(out.tokens) / out.makespan_s;
  out.numerics_profile = batch.numerics_profile;
  out.policy = batch.spec.policy.empty() ? default_policy : batch.spec.policy;
  out.speculate = speculate;
  batch.tally.summarise(batch.started_ns, batch.ended_ns, out);
  return out;
}

// -- conversions --------------------------------------------------------------

sampling_params to_engine(const wire::sampling_params& sampling, std::uint64_t seed) {
  return {.temperature = sampling.temperature,
          .top_p = sampling.top_p,
          .top_k = sampling.top_k,
          .min_p = sampling.min_p,
          .max_new_tokens = sampling.max_new_tokens,
          .min_new_tokens = sampling.min_new_tokens,
          .seed = seed,
          .ignore_eos = sampling.ignore_eos,
          .stop_token_ids = sampling.stop_token_ids};
}

} // namespace rollcast
