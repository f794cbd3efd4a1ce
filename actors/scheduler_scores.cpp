#include "actors/bytes.hpp"
#include "actors/error_bridge.hpp"
#include "actors/scheduler_shell.hpp"

#include <algorithm>
#include <bit>
#include <utility>

namespace rollcast::shell {
namespace {

/// Sequences that one worker is given at a time: one that it scores, one that waits.
constexpr std::uint32_t scoring_max = 2;
/// Failures of one job that end it: workers lost, or short of KV blocks for the moment.
constexpr std::uint32_t failures_max = 100;
constexpr auto retry_pause = std::chrono::milliseconds{50};

/// The routable worker that scores the least, if any has time and is not known to lack the epoch.
std::map<worker_id, scheduler_state::worker>::iterator
idlest(scheduler_state& st, const scheduler_state::score_job& job) {
  auto best = st.workers.end();
  for (auto it = st.workers.begin(); it != st.workers.end(); ++it)
    if (it->second.routable && !it->second.draining && it->second.scoring.size() < scoring_max
        && !job.lacking.contains(it->first)
        && (best == st.workers.end() || it->second.scoring.size() < best->second.scoring.size()))
      best = it;
  return best;
}

void finish_job(self_ptr self, std::uint64_t number) {
  auto& st = self->state;
  auto& job = st.scores.at(number);
  answer(self, job.from,
         wire::scored{std::move(job.rows), job.epoch, st.identity->model.numerics_profile});
  st.scores.erase(number);
}

void end_job(self_ptr self, std::uint64_t number, const error& why) {
  answer(self, self->state.scores.at(number).from, why);
  self->state.scores.erase(number);
}

/// Whether there are workers, and all have said that they lack the job's epoch.
bool lacked_by_all(const scheduler_state& st, const scheduler_state::score_job& job) {
  const auto may_have = [&](const auto& w) {
    return w.second.routable && !job.lacking.contains(w.first);
  };
  return !st.workers.empty() && !job.lacking.empty()
         && std::none_of(st.workers.begin(), st.workers.end(), may_have);
}

/// Notes that the worker is through with a sequence. False if it was lost before, and the sequence
/// with it.
bool free_worker(self_ptr self, worker_id worker, std::uint64_t number, std::uint32_t sequence) {
  const auto it = self->state.workers.find(worker);
  return it != self->state.workers.end() && it->second.scoring.erase({number, sequence}) > 0;
}

void take_scored(self_ptr self, std::uint64_t number, worker_id worker, std::uint32_t sequence,
                 const std::string& logprobs) {
  auto& st = self->state;
  const bool known = free_worker(self, worker, number, sequence);
  const auto it = st.scores.find(number);
  if (!known || it == st.scores.end())
    return; // the worker was lost, or the job has failed meanwhile
  auto& row = it->second.rows[sequence].logprobs;
  row = from_bytes<float>(logprobs);
  st.parts.metrics->scored_tokens.add(row.size());
  --it->second.running;
  score_on(self, number);
}

void take_unscored(self_ptr self, std::uint64_t number, worker_id worker, std::uint32_t sequence,
                   const caf::error& why) {
  auto& st = self->state;
  const bool known = free_worker(self, worker, number, sequence);
  const auto it = st.scores.find(number);
  if (!known || it == st.scores.end())
    return;
  auto& job = it->second;
  --job.running;
  job.waiting.push_back(sequence);
  // A worker that was fed holds what it had before that, not the epoch before of the others.
  const bool lacks = answered_by_peer(why) && code_of(why) == errc::stale_epoch;
  if (lacks)
    job.lacking.insert(worker);
  if (lacks && !lacked_by_all(st, job))
    return score_on(self, number);
  const bool passes = !answered_by_peer(why) || code_of(why) == errc::out_of_kv_blocks;
  if (!passes || ++job.failures == failures_max)
    return end_job(self, number,
                   {code_of(why),
                    "sequence " + std::to_string(sequence) + " of "
                      + std::to_string(job.rows.size()) + " is not scored: " + detail_of(why),
                    {}});
  self->delayed_send(self, retry_pause, atom::score_v, number);
}

} // namespace

void lose_scores(self_ptr self, const scheduler_state::worker& lost) {
  auto& st = self->state;
  for (const auto& [number, sequence] : lost.scoring) {
    const auto it = st.scores.find(number);
    if (it == st.scores.end())
      continue;
    --it->second.running;
    it->second.waiting.push_back(sequence);
    if (++it->second.failures == failures_max)
      end_job(self, number,
              {errc::peer_lost,
               "sequence " + std::to_string(sequence) + " of "
                 + std::to_string(it->second.rows.size())
                 + " is not scored: too many workers were lost with sequences of this request",
               {}});
    else
      self->delayed_send(self, retry_pause, atom::score_v, number);
  }
}

void score_on(self_ptr self, std::uint64_t number) {
  auto& st = self->state;
  const auto it = st.scores.find(number);
  if (it == st.scores.end())
    return;
  auto& job = it->second;
  if (st.scores_wait)
    plan_soon(self); // it looks whether this was the last
  if (job.waiting.empty() && job.running == 0)
    return finish_job(self, number);
  if (st.scores_wait)
    return; // until the weights have changed
  const auto& request = std::get<wire::score>(job.from.envelope->body);
  while (!job.waiting.empty()) {
    const auto w = idlest(st, job);
    if (w == st.workers.end()) {
      if (job.running == 0) // another job's sequences, or no worker at all: nobody will wake this
        self->delayed_send(self, retry_pause, atom::score_v, number);
      return;
    }
    const auto sequence = job.waiting.back();
    job.waiting.pop_back();
    ++job.running;
    w->second.scoring.emplace(number, sequence);
    const auto& s = request.sequences[sequence];
    const score_order order{w->first, job.epoch, to_bytes(std::span<const token_id>{s.token_ids}),
                            s.prompt_tokens, std::bit_cast<std::uint32_t>(s.temperature)};
    self->request(w->second.handle, st.options.request_timeout, atom::score_v, order)
      .then(
        [self, number, worker = w->first, sequence](const std::string& logprobs) {
          take_scored(self, number, worker, sequence, logprobs);
        },
        [self, number, worker = w->first, sequence](const caf::error& why) {
          take_unscored(self, number, worker, sequence, why);
        });
  }
}

void take(self_ptr self, const controller_request& from, const wire::score& r) {
  auto& st = self->state;
  if (!st.identity)
    return answer(self, from, error{errc::peer_lost, "no worker has joined yet", {}});
  const auto& model = st.identity->model;
  const auto current = st.machine->current();
  const auto previous = st.machine->previous();
  const auto epoch = r.weight_version.value_or(current->epoch);
  if (epoch != current->epoch && !(previous && previous->epoch == epoch))
    return answer(self, from,
                  error{errc::stale_epoch,
                        "weight version " + std::to_string(epoch) + " is not held: served is "
                          + std::to_string(current->epoch)
                          + (previous ? ", held beside it " + std::to_string(previous->epoch)
                                      : std::string{", none beside it"}),
                        {}});
  for (std::size_t i = 0; i < r.sequences.size(); ++i) {
    const auto& s = r.sequences[i];
    const bool known = std::all_of(s.token_ids.begin(), s.token_ids.end(), [&](token_id t) {
      return t >= 0 && static_cast<std::uint32_t>(t) < model.vocabulary;
    });
    if (!known || s.token_ids.size() > model.context_max)
      return answer(self, from,
                    error{errc::bad_prompt,
                          "sequence " + std::to_string(i) + " has "
                            + std::to_string(s.token_ids.size()) + " tokens"
                            + (known ? "" : ", some outside the vocabulary") + "; the context is "
                            + std::to_string(model.context_max) + ", the vocabulary "
                            + std::to_string(model.vocabulary),
                          {}});
  }
  const auto number = ++st.last_score;
  auto& job = st.scores[number];
  job.from = from;
  job.epoch = epoch;
  job.rows.resize(r.sequences.size());
  for (auto i = static_cast<std::uint32_t>(r.sequences.size()); i > 0; --i)
    job.waiting.push_back(i - 1);
  score_on(self, number);
}

} // namespace rollcast::shell
