#include "engine/base/check.hpp"
#include "engine/step/engine_state.hpp"

#include <algorithm>
#include <chrono>

namespace rollcast {

// -- who takes part -----------------------------------------------------------

void engine::state::retire_ended() {
  reports_.clear();
  ended_.clear();
}

bool engine::state::take_blocks(sequence& seq, std::uint32_t tokens) {
  const std::uint32_t need = blocks_for(tokens);
  const auto held = static_cast<std::uint32_t>(seq.blocks.size());
  return need <= held || pool_.take(need - held, seq.blocks);
}

bool engine::state::evict_parked() {
  for (const auto& [id, seq] : sequences_)
    if (seq->state == sequence_state::parked)
      return release(id);
  return false;
}

bool engine::state::evict_waiting(const sequence& but) {
  const auto gives = [&](const sequence* seq) {
    return seq != &but && !seq->reserve && !seq->blocks.empty();
  };
  const auto last = std::find_if(waiting.rbegin(), waiting.rend(), gives);
  if (last == waiting.rend())
    return false;
  forget_kv(**last);
  ++stats.preemptions;
  return true;
}

void engine::state::forget_kv(sequence& seq) {
  seq.first_prefill = std::max(seq.first_prefill, seq.cached);
  seq.cached = 0;
  seq.step_rows = 0;
  pool_.give_back(seq.blocks);
}

void engine::state::start_waiting() {
  std::size_t started = 0;
  while (started < waiting.size() && running.size() < limits.batch_max) {
    sequence& seq = *waiting[started];
    // With nothing running nobody else will give blocks back, so parked KV makes way, and then
    // what those behind it brought with them.
    while (!take_blocks(seq, seq.size()))
      if (!running.empty() || !(evict_parked() || evict_waiting(seq)))
        break;
    if (seq.blocks.size() < blocks_for(seq.size()))
      break;
    seq.state = sequence_state::running;
    const auto later = [&](const sequence* other) { return other->arrival > seq.arrival; };
    running.insert(std::find_if(running.begin(), running.end(), later), &seq);
    ++started;
  }
  waiting.erase(waiting.begin(), waiting.begin() + static_cast<std::ptrdiff_t>(started));
}

void engine::state::preempt(sequence& victim) {
  forget_kv(victim);
  victim.state = sequence_state::waiting;
  std::erase(running, &victim);
  const auto later = [&](const sequence* other) { return other->arrival > victim.arrival; };
  waiting.insert(std::find_if(waiting.begin(), waiting.end(), later), &victim);
  ++stats.preemptions;
}

bool engine::state::make_room(sequence& grower, std::uint32_t tokens) {
  while (!take_blocks(grower, tokens)) {
    const auto grows = [](const sequence* seq) { return !seq->reserve; };
    const auto last = std::find_if(running.rbegin(), running.rend(), grows);
    ROLLCAST_CHECK(last != running.rend()); // the grower itself is one
    sequence& victim = **last;
    // Alone it fits: `admit` refused whatever needs more than the pool. Parked KV goes first.
    if (&victim == &grower && evict_parked())
      continue;
    preempt(victim);
    if (&victim == &grower)
      return false;
  }
  return true;
}

// -- the rows of a step -------------------------------------------------------

void engine::state::plan_rows() {
  row_tokens_.clear();
  row_places_.clear();
  row_sequences_.clear();
  logit_rows_.clear();
  choosers_.clear();
  branches_.clear();
  branch_blocks_.clear();
  row_copies_.clear();
  standing_.clear();
  seen_.clear();
  stepping_.assign(running.begin(), running.end());
  for (sequence* seq : stepping_) {
    seq->step_rows = 0;
    seq->draft.clear();
    seq->draft_room = 0;
  }
  keeps_experts_ = false;
  std::uint32_t budget = limits.rows_max;
  for (const bool decode : {true, false}) // whoever only decodes is never held up by a prompt
    for (sequence* seq : stepping_) {
      if (seq->state != sequence_state::running || (seq->pending() == 1) != decode)
        continue;
      const std::uint32_t rows = std::min(seq->pending(), budget);
      if (rows == 0 || !make_room(*seq, seq->cached + rows))
        continue;
      seq->step_rows = rows;
      budget -= rows;
    }
  if (speculator)
    plan_drafts(budget);
  for (sequence* seq : stepping_)
    if (seq->state == sequence_state::running && seq->step_rows > 0)
      add_rows(*seq);
  // Only now do the tables stay where they are.
  for (const branch& b : branches_)
    row_sequences_[b.row_sequence].blocks = &branch_blocks_[b.table];
}

void engine::state::add_rows(sequence& seq) {
  const std::uint32_t block = device->shape().block_tokens;
  seq.row_begin = static_cast<std::uint32_t>(row_tokens_.size());
  row_sequences_.push_back(
    {seq.blocks.data(), static_cast<std::uint32_t>(row_tokens_.size()), seq.step_rows, seq.cached});
  for (std::uint32_t i = 0; i < seq.step_rows; ++i) {
    const std::uint32_t position = seq.cached + i;
    row_tokens_.push_back(seq.tokens[position]);
    row_places_.push_back({position, seq.blocks[position / block]});
    stats.recomputed_tokens += position < seq.first_prefill;
    stats.prompt_tokens += position >= seq.first_prefill && position < seq.prompt_tokens;
  }
  seq.cached += seq.step_rows;
  keeps_experts_ = keeps_experts_ || seq.keeps_experts;
  if (seq.pending() > 0)
    return note_rows(seq, 0);
  choosers_.push_back(&seq);
  logit_rows_.push_back(static_cast<std::uint32_t>(row_tokens_.size()) - 1);
  if (!seq.draft.empty())
    add_draft(seq);
}

// -- ids of experts -----------------------------------------------------------

void engine::state::keep_experts(sequence& seq, std::uint32_t position, std::uint32_t row,
                                 std::uint32_t rows) {
  const auto known = seq.experts_end > position ? seq.experts_end - position : 0;
  if (!seq.keeps_experts || known >= rows)
    return;
  ROLLCAST_CHECK(known > 0 || seq.experts_end == position); // no position is passed over
  const auto bytes = device->shape().experts.position_bytes();
  const auto fresh = device->experts().subspan((row + known) * bytes, (rows - known) * bytes);
  seq.experts.insert(seq.experts.end(), fresh.begin(), fresh.end());
  seq.experts_end = position + rows;
}

void engine::state::keep_prompt_experts() {
  for (sequence* seq : stepping_)
    if (seq->state == sequence_state::running && seq->step_rows > 0 && seq->pending() > 0)
      keep_experts(*seq, seq->cached - seq->step_rows, seq->row_begin, seq->step_rows);
}

// -- tokens -------------------------------------------------------------------

kernels::sample_params engine::state::noise_of(const sequence& seq,
                                               std::uint32_t ahead) const noexcept {
  const sampling_params& how = seq.sampling;
  kernels::sample_params noise;
  noise.temperature = how.temperature;
  noise.top_p = how.top_p;
  noise.top_k = how.top_k;
  noise.min_p = how.min_p;
  noise.seed = how.seed;
  noise.position = seq.size() + ahead;
  if (seq.generated() + ahead < how.min_new_tokens) {
    noise.banned = seq.stop_ids.data();
    noise.banned_count = seq.stop_ids.size();
  }
  return noise;
}

void engine::state::choose_tokens() {
  noise_.clear();
  std::size_t logit_row = 0;
  for (const sequence* seq : choosers_)
    for (std::size_t row = 0; row <= seq->draft.size(); ++row) {
      const std::uint32_t fed = row_places_[logit_rows_[logit_row++]].position;
      noise_.push_back(noise_of(*seq, fed + 1 - seq->size()));
    }
  chosen_.resize(noise_.size());
  outcomes_.clear();
  if (choosers_.empty())
    return;
  if (std::ranges::any_of(choosers_, [](const sequence* seq) { return !seq->draft.empty(); }))
    sample_drafts();
  else
    device->sample(noise_, chosen_);
  std::size_t row = 0;
  for (std::size_t i = 0; i < choosers_.size(); ++i)
    row += verify(i, std::span{chosen_}.subspan(row));
}

bool engine::state::stops(const sequence& seq, token_id token) const noexcept {
  return std::find(seq.stop_ids.begin(), seq.stop_ids.end(), token) != seq.stop_ids.end();
}

bool engine::state::append(sequence& seq, const kernels::sampled_token& chosen) {
  seq.tokens.push_back(chosen.token);
  seq.logprobs.push_back(chosen.logprob);
  seq.kept_masses.push_back(chosen.kept_mass);
  ++stats.generated_tokens;
  if (stops(seq, chosen.token))
    end_chunk(seq, chunk_end::stop);
  else if (seq.size() >= seq.length_max)
    end_chunk(seq, chunk_end::length);
  else if (seq.size() >= seq.chunk_end)
    end_chunk(seq, chunk_end::budget);
  else
    return true;
  return false;
}

void engine::state::end_chunk(sequence& seq, chunk_end why) {
  reports_.push_back(
    {seq.id, why, std::span{seq.tokens}.subspan(seq.chunk_begin), seq.logprobs, seq.kept_masses});
  if (seq.size() > seq.chunk_begin) // else they come with the next chunk's
    reports_.back().experts = seq.experts;
  std::erase(running, &seq);
  if (why == chunk_end::budget && seq.cached > 0) { // one that was cut may have no KV yet
    seq.state = sequence_state::parked;
    seq.prefix = hash_of(std::span{seq.tokens}.first(seq.cached));
    pool_.give_back(seq.blocks, blocks_for(seq.cached));
    if (speculator)
      speculator->parked(seq.id, seq.tokens);
    return;
  }
  pool_.give_back(seq.blocks);
  const auto it = sequences_.find(seq.id);
  ended_.push_back(std::move(it->second));
  sequences_.erase(it);
}

std::span<const chunk_report> engine::state::step() {
  retire_ended();
  if (running.empty() && waiting.empty())
    return reports_;
  const auto begin = std::chrono::steady_clock::now();
  start_waiting();
  plan_rows();
  if (!row_tokens_.empty()) {
    keeps_states_ = wants_states_ && speculator->sees();
    device->forward({row_tokens_, row_places_, row_sequences_, logit_rows_, row_copies_,
                     keeps_states_, keeps_experts_});
    keep_prompt_experts();
    choose_tokens();
    tell_states();
    ++stats.steps;
    stats.rows += row_tokens_.size();
  }
  const auto spent = std::chrono::steady_clock::now() - begin;
  if (speculator && !row_tokens_.empty())
    speculator->learn(outcomes_, load_, std::chrono::duration<double>(spent).count() - drafting_s_);
  stats.busy_ns +=
    static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count());
  return reports_;
}

std::span<const chunk_report> engine::state::cut() {
  retire_ended();
  stepping_.assign(running.begin(), running.end());
  stepping_.insert(stepping_.end(), waiting.begin(), waiting.end());
  waiting.clear();
  for (sequence* seq : stepping_)
    end_chunk(*seq, chunk_end::budget);
  tell_ended();
  return reports_;
}

std::span<const chunk_report> engine::state::cut(response_id response) {
  retire_ended();
  const auto it = sequences_.find(response);
  if (it == sequences_.end() || it->second->state == sequence_state::parked)
    return reports_;
  std::erase(waiting, it->second.get());
  end_chunk(*it->second, chunk_end::budget);
  tell_ended();
  return reports_;
}

} // namespace rollcast
