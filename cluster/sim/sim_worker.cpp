#include "cluster/sim/sim_worker.hpp"

#include "engine/base/check.hpp"

#include <algorithm>
#include <cmath>

namespace rollcast::sim {

namespace {

/// How much is drafted is decided again when rows or seconds of a step have changed by this share,
/// and after so many spans. An engine decides at every step; a decision takes as long as a span.
constexpr double bar_drift = 1.0 / 16;
constexpr std::uint32_t bar_spans_max = 16;

std::uint64_t blocks_for(std::uint64_t tokens, std::uint32_t block_tokens) {
  return (tokens + block_tokens - 1) / block_tokens;
}

} // namespace

void sim_worker::unpark(std::uint32_t blocks) {
  ROLLCAST_CHECK(blocks <= parked_blocks_);
  parked_blocks_ -= blocks;
}

void sim_worker::arrive(double now, const chunk_job& job) {
  ROLLCAST_CHECK(job.tokens_now > 0);
  sequence s;
  s.job = job;
  s.arrival = arrivals_++;
  waiting_.push_back(s);
  if (running_.empty()) {
    // All that arrives at this very moment starts together.
    if (wakes_at_ == never) {
      span_begin_ = now;
      span_steps_ = 0;
      wakes_at_ = now;
    }
    return;
  }
  const auto steps = steps_until(now - span_begin_);
  if (steps < span_steps_) {
    span_steps_ = steps;
    wakes_at_ = span_begin_ + span_seconds(steps);
  }
}

double sim_worker::span_seconds(std::uint64_t steps) const {
  constexpr double token = one_token;
  const auto n = static_cast<double>(steps);
  const auto rows = static_cast<double>(running_.size());
  const double first = model_.step_fixed_s + rows * model_.step_row_s
                       + static_cast<double>(span_kv_) / token * model_.step_kv_token_s
                       + (span_drafts_ > 0 ? model_.draft_step_s : 0)
                       + static_cast<double>(span_drafts_) * model_.draft_row_s;
  return static_cast<double>(span_prefill_) * model_.prefill_token_s + n * first
         + static_cast<double>(span_pace_) / token * model_.step_kv_token_s * n * (n - 1) / 2;
}

std::uint64_t sim_worker::steps_until(double seconds) const {
  // The smallest whole number of steps that takes at least so long.
  std::uint64_t low = 1;
  std::uint64_t high = std::max<std::uint64_t>(1, span_steps_);
  while (low < high) {
    const auto middle = low + (high - low) / 2;
    if (span_seconds(middle) < seconds)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

std::uint64_t sim_worker::blocks_at(std::uint64_t nth_step) const {
  auto blocks = parked_blocks_;
  for (const auto& s : running_) {
    const auto made = std::min(s.goal(), s.made + (nth_step - 1) * s.pace);
    blocks += s.job.reserved_blocks > 0
                ? s.job.reserved_blocks
                : blocks_for(s.job.context + made / one_token, model_.block_tokens);
  }
  return blocks;
}

std::uint64_t sim_worker::steps_that_fit(std::uint64_t most) const {
  if (blocks_at(most) <= model_.kv_blocks)
    return most;
  std::uint64_t low = 0; // fits
  while (low + 1 < most) {
    const auto middle = low + (most - low) / 2;
    (blocks_at(middle) <= model_.kv_blocks ? low : most) = middle;
  }
  return low;
}

void sim_worker::take_steps(std::uint64_t steps, std::vector<ended_chunk>& ended) {
  totals_.steps += steps;
  step_ += steps;
  for (auto& s : running_) {
    const auto before = s.made / one_token;
    s.made = std::min(s.goal(), s.made + steps * s.pace);
    const auto fresh = s.made / one_token - before;
    totals_.generated_tokens += fresh;
    if (s.drafted > 0) {
      totals_.verifications += steps;
      totals_.draft_tokens += steps * s.drafted;
      totals_.accepted_tokens += fresh - steps;
    }
    if (s.made < s.goal())
      continue;
    ended.push_back({s.job.response, s.job.attempt, s.started_s});
    if (drafts_ != nullptr)
      drafts_->tell(s.job.response, s.context());
  }
  std::erase_if(running_, [](const sequence& s) { return s.made == s.goal(); });
}

void sim_worker::admit() {
  auto held = blocks_at(1);
  while (!waiting_.empty() && running_.size() < model_.batch_max) {
    auto s = waiting_.front();
    const auto need = s.job.reserved_blocks > 0 ? s.job.reserved_blocks
                                                : blocks_for(s.job.context, model_.block_tokens);
    if (held + need > model_.kv_blocks)
      return;
    held += need;
    waiting_.pop_front();
    span_prefill_ += s.job.prefill;
    s.joined = step_;
    if (s.started_s < 0)
      s.started_s = span_begin_;
    if (drafts_ != nullptr)
      s.luck = drafts_->luck(s.job.response, s.job.context);
    const auto later = [&](const sequence& other) { return other.arrival > s.arrival; };
    running_.insert(std::find_if(running_.begin(), running_.end(), later), s);
  }
}

void sim_worker::preempt_last() {
  const auto grows = [](const sequence& s) { return s.job.reserved_blocks == 0; };
  const auto last = std::find_if(running_.rbegin(), running_.rend(), grows);
  ROLLCAST_CHECK(last != running_.rend());
  auto s = *last;
  running_.erase(std::next(last).base());
  // It waits with what it has: the tokens stay, the KV is computed again.
  const auto context = s.context();
  s.job.tokens_now -= static_cast<std::uint32_t>(s.made / one_token);
  s.made %= one_token;
  if (s.joined == step_)
    span_prefill_ -= s.job.prefill;
  else
    s.job.prefill = context;
  s.job.context = context;
  totals_.recomputed_tokens += s.joined == step_ ? 0 : context;
  ++totals_.preemptions;
  const auto later = [&](const sequence& other) { return other.arrival > s.arrival; };
  waiting_.insert(std::find_if(waiting_.begin(), waiting_.end(), later), s);
}

bool sim_worker::bar_is_stale(double seconds) const {
  const auto rows = static_cast<double>(running_.size());
  const auto rows_then = static_cast<double>(bar_rows_);
  return bar_spans_ >= bar_spans_max || std::abs(rows - rows_then) > bar_drift * rows_then
         || std::abs(seconds - bar_seconds_) > bar_drift * bar_seconds_;
}

void sim_worker::draft() {
  for (auto& s : running_)
    if (const auto version = drafts_->version(s.job.response); version != s.level_version) {
      s.level_version = version;
      s.level = drafts_->level(s.job.response);
    }
  span_drafts_ = 0;
  span_pace_ = 0;
  const double prefill = static_cast<double>(span_prefill_) * model_.prefill_token_s;
  const double seconds = span_seconds(1) - prefill;
  ++bar_spans_;
  if (bar_is_stale(seconds)) {
    auto seats = drafting::empty_census();
    for (const auto& s : running_)
      ++seats[s.level][drafts_->probe(s.job.response)];
    bar_ = drafts_->choose(seats, seconds, model_);
    bar_rows_ = running_.size();
    bar_seconds_ = seconds;
    bar_spans_ = 0;
  }
  for (auto& s : running_) {
    s.drafted = drafts_->drafted(s.level, drafts_->probe(s.job.response), bar_);
    const double pace = drafts_->pace(s.luck, s.job.tokens_now, s.level, s.drafted);
    s.pace = static_cast<parts>(std::llround(pace * static_cast<double>(one_token)));
    span_drafts_ += s.drafted;
  }
}

void sim_worker::begin_span() {
  span_prefill_ = 0;
  admit();
  while (!running_.empty() && blocks_at(1) > model_.kv_blocks)
    preempt_last();
  if (running_.empty()) {
    ROLLCAST_CHECK(waiting_.empty());
    wakes_at_ = never;
    return;
  }
  span_kv_ = 0;
  for (const auto& s : running_)
    span_kv_ += s.job.context * one_token + s.made;
  if (drafts_ != nullptr)
    draft();
  span_pace_ = 0;
  auto steps = std::numeric_limits<std::uint64_t>::max();
  for (const auto& s : running_) {
    span_pace_ += s.pace;
    steps = std::min(steps, s.steps_left());
  }
  span_steps_ = steps_that_fit(steps);
  ROLLCAST_CHECK(span_steps_ > 0);
  wakes_at_ = span_begin_ + span_seconds(span_steps_);
}

void sim_worker::wake(std::vector<ended_chunk>& ended) {
  ROLLCAST_CHECK(wakes_at_ != never);
  if (!running_.empty()) {
    totals_.busy_s += wakes_at_ - span_begin_;
    take_steps(span_steps_, ended);
  }
  span_begin_ = wakes_at_;
  begin_span();
}

} // namespace rollcast::sim
