#include "actors/bytes.hpp"
#include "actors/error_bridge.hpp"
#include "actors/scheduler_shell.hpp"

#include <algorithm>
#include <bit>
#include <utility>

namespace rollcast::shell {
namespace {

/// Shares that one worker is given at a time: one that it scores, one that waits.
constexpr std::size_t shares_max = 2;
/// Tokens of a share, at which a pass has about all the rows that it can use. A worker steps
/// nothing else meanwhile, so more would hold up the responses that it generates.
constexpr std::uint64_t share_tokens_max = 1'024;
/// Failures of one job that end it: workers lost, or short of KV blocks for the moment.
constexpr std::uint32_t failures_max = 100;
constexpr auto retry_pause = std::chrono::milliseconds{50};

/// The routable worker that scores the least, if any has time and is not known to lack the epoch.
std::map<worker_id, scheduler_state::worker>::iterator
idlest(scheduler_state& st, const scheduler_state::score_job& job) {
  auto best = st.workers.end();
  for (auto it = st.workers.begin(); it != st.workers.end(); ++it)
    if (it->second.routable && !it->second.draining && it->second.scoring.size() < shares_max
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

const wire::score& request_of(const scheduler_state::score_job& job) {
  return std::get<wire::score>(job.from.envelope->body);
}

/// Takes sequences of the job: few enough that every worker gets two shares, if there are so many.
scheduler_state::score_share take_share(scheduler_state& st, std::uint64_t number,
                                        scheduler_state::score_job& job) {
  const auto workers = static_cast<std::uint64_t>(
    std::count_if(st.workers.begin(), st.workers.end(), [&](const auto& w) {
      return w.second.routable && !job.lacking.contains(w.first);
    }));
  const auto tokens_max =
    std::min(share_tokens_max, job.tokens / (shares_max * std::max<std::uint64_t>(workers, 1)));
  scheduler_state::score_share share{number, {}};
  std::uint64_t tokens = 0;
  do {
    const auto sequence = job.waiting.back();
    job.waiting.pop_back();
    share.sequences.push_back(sequence);
    tokens += request_of(job).sequences[sequence].token_ids.size();
  } while (!job.waiting.empty()
           && tokens + request_of(job).sequences[job.waiting.back()].token_ids.size()
                <= tokens_max);
  return share;
}

/// The sequences of a share wait again, in their order.
void put_back(scheduler_state::score_job& job, const scheduler_state::score_share& share) {
  --job.running;
  job.waiting.insert(job.waiting.end(), share.sequences.rbegin(), share.sequences.rend());
}

std::string name_of(const scheduler_state::score_share& share,
                    const scheduler_state::score_job& job) {
  const auto& all = share.sequences;
  return (all.size() == 1 ? "sequence " + std::to_string(all.front()) + " of "
                          : std::to_string(all.size()) + " sequences from "
                              + std::to_string(all.front()) + " on, of ")
         + std::to_string(job.rows.size());
}

/// Notes that the worker is through with a share. None if it was lost before, and the share with
/// it.
std::optional<scheduler_state::score_share> free_worker(self_ptr self, worker_id worker,
                                                        std::uint64_t share) {
  const auto it = self->state.workers.find(worker);
  if (it == self->state.workers.end())
    return {};
  auto taken = it->second.scoring.extract(share);
  if (self->state.scores_wait)
    plan_soon(self); // it looks whether this was the last
  return taken ? std::optional{std::move(taken.mapped())} : std::nullopt;
}

/// Looks at the job again in a while, once however often it is asked to.
void retry(self_ptr self, std::uint64_t number, scheduler_state::score_job& job) {
  const auto now = now_ns(self);
  if (now < job.retry_ns)
    return;
  job.retry_ns = now + static_cast<std::uint64_t>(std::chrono::nanoseconds{retry_pause}.count());
  self->delayed_send(self, retry_pause, atom::score_v, number);
}

/// Gives each sequence of the share its part. @returns false if there are not as many values.
bool take_rows(scheduler_state::score_job& job, const scheduler_state::score_share& share,
               const std::vector<float>& logprobs) {
  const auto count = [&](std::uint32_t sequence) {
    const auto& s = request_of(job).sequences[sequence];
    return s.token_ids.size() - s.prompt_tokens;
  };
  std::size_t wanted = 0;
  for (const auto sequence : share.sequences)
    wanted += count(sequence);
  if (wanted != logprobs.size())
    return false;
  auto from = logprobs.begin();
  for (const auto sequence : share.sequences) {
    const auto end = from + static_cast<std::ptrdiff_t>(count(sequence));
    job.rows[sequence].logprobs.assign(from, end);
    from = end;
  }
  return true;
}

void take_scored(self_ptr self, worker_id worker, std::uint64_t number, const std::string& bytes) {
  auto& st = self->state;
  const auto share = free_worker(self, worker, number);
  const auto it = share ? st.scores.find(share->job) : st.scores.end();
  if (it == st.scores.end())
    return; // the worker was lost, or the job has failed meanwhile
  auto& job = it->second;
  const auto logprobs = from_bytes<float>(bytes);
  if (!take_rows(job, *share, logprobs))
    return end_job(self, share->job,
                   {errc::frame_malformed,
                    name_of(*share, job) + ": worker " + std::to_string(worker.value) + " answers "
                      + std::to_string(logprobs.size()) + " values",
                    {}});
  st.parts.metrics->scored_tokens.add(logprobs.size());
  job.scored += static_cast<std::uint32_t>(share->sequences.size());
  --job.running;
  score_on(self, share->job);
}

void take_unscored(self_ptr self, worker_id worker, std::uint64_t number, const caf::error& why) {
  auto& st = self->state;
  const auto share = free_worker(self, worker, number);
  const auto it = share ? st.scores.find(share->job) : st.scores.end();
  if (it == st.scores.end())
    return;
  auto& job = it->second;
  put_back(job, *share);
  // A worker that was fed holds what it had before that, not the epoch before of the others.
  const bool lacks = answered_by_peer(why) && code_of(why) == errc::stale_epoch;
  if (lacks)
    job.lacking.insert(worker);
  if (lacks && !lacked_by_all(st, job))
    return score_on(self, share->job);
  const bool passes = !answered_by_peer(why) || code_of(why) == errc::out_of_kv_blocks;
  if (!passes || ++job.failures == failures_max)
    return end_job(self, share->job,
                   {code_of(why), name_of(*share, job) + ", not scored: " + detail_of(why), {}});
  retry(self, share->job, job);
}

/// Why a request cannot be taken on now; empty if it can.
std::string too_much(const scheduler_state& st, std::uint64_t tokens) {
  const auto& bounds = st.options.scores;
  std::uint64_t in_work = 0;
  for (const auto& [number, job] : st.scores)
    in_work += job.tokens;
  if (st.scores.size() < bounds.requests_max && tokens <= bounds.tokens_max - in_work)
    return {};
  return "a score request of " + std::to_string(tokens) + " tokens while "
         + std::to_string(st.scores.size()) + " requests with " + std::to_string(in_work)
         + " tokens are in work, at most " + std::to_string(bounds.requests_max) + " and "
         + std::to_string(bounds.tokens_max) + " are taken; ask again when some have ended";
}

} // namespace

void expire_scores(self_ptr self) {
  auto& st = self->state;
  const auto limit = static_cast<std::uint64_t>(
    std::chrono::duration_cast<std::chrono::nanoseconds>(st.options.scores.deadline).count());
  std::vector<std::uint64_t> due;
  for (const auto& [number, job] : st.scores)
    if (now_ns(self) - job.began_ns > limit)
      due.push_back(number);
  const auto routable = std::count_if(st.workers.begin(), st.workers.end(),
                                      [](const auto& w) { return w.second.routable; });
  for (const auto number : due) {
    const auto& job = st.scores.at(number);
    end_job(self, number,
            {errc::timed_out,
             std::to_string(job.scored) + " of " + std::to_string(job.rows.size())
               + " sequences were scored within " + std::to_string(limit / 1'000'000'000)
               + " s, by " + std::to_string(routable)
               + " workers that serve now; split the request or add workers",
             {}});
  }
}

void lose_scores(self_ptr self, const scheduler_state::worker& lost) {
  auto& st = self->state;
  for (const auto& [number, share] : lost.scoring) {
    const auto it = st.scores.find(share.job);
    if (it == st.scores.end())
      continue;
    put_back(it->second, share);
    if (++it->second.failures == failures_max)
      end_job(self, share.job,
              {errc::peer_lost,
               name_of(share, it->second)
                 + ", not scored: too many workers were lost with sequences of this request",
               {}});
    else
      retry(self, share.job, it->second);
  }
}

void score_on(self_ptr self, std::uint64_t number) {
  auto& st = self->state;
  const auto it = st.scores.find(number);
  if (it == st.scores.end())
    return;
  auto& job = it->second;
  if (job.waiting.empty() && job.running == 0)
    return finish_job(self, number);
  if (st.scores_wait)
    return; // until the weights have changed
  while (!job.waiting.empty()) {
    const auto w = idlest(st, job);
    if (w == st.workers.end()) {
      if (job.running == 0) // another job's sequences, or no worker at all: nobody will wake this
        retry(self, number, job);
      return;
    }
    const auto worker = w->first;
    const auto given = ++st.last_share;
    auto share = take_share(st, number, job);
    score_order order{worker, job.epoch, {}};
    for (const auto sequence : share.sequences) {
      const auto& s = request_of(job).sequences[sequence];
      order.sequences.push_back({to_bytes(std::span<const token_id>{s.token_ids}), s.prompt_tokens,
                                 std::bit_cast<std::uint32_t>(s.temperature)});
    }
    ++job.running;
    w->second.scoring.emplace(given, std::move(share));
    self->request(w->second.handle, st.options.request_timeout, atom::score_v, std::move(order))
      .then(
        [self, worker, given](const std::string& logprobs) {
          take_scored(self, worker, given, logprobs);
        },
        [self, worker, given](const caf::error& why) { take_unscored(self, worker, given, why); });
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
  std::uint64_t tokens = 0;
  for (const auto& s : r.sequences)
    tokens += s.token_ids.size();
  if (const auto why = too_much(st, tokens); !why.empty())
    return answer(self, from, error{errc::queue_full, why, {}});
  const auto number = ++st.last_score;
  auto& job = st.scores[number];
  job.from = from;
  job.began_ns = now_ns(self);
  job.tokens = tokens;
  job.epoch = epoch;
  job.rows.resize(r.sequences.size());
  for (auto i = static_cast<std::uint32_t>(r.sequences.size()); i > 0; --i)
    job.waiting.push_back(i - 1);
  score_on(self, number);
}

} // namespace rollcast::shell
