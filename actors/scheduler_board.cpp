#include "actors/scheduler_shell.hpp"
#include "actors/status_board.hpp"

#include <algorithm>
#include <map>
#include <utility>

namespace rollcast::shell {
namespace {

constexpr cluster_view_limits limits;

/// Groups of which something runs, and the ordinal of their first response.
using begun_groups = std::map<std::uint64_t, std::pair<const batch_record*, std::uint64_t>>;

std::uint32_t limit_of(const scheduler_state& st, const batch_record& batch,
                       std::uint64_t ordinal) {
  const auto& group = batch.spec.groups[ordinal];
  const auto& sampling = group.sampling ? *group.sampling : batch.spec.sampling;
  return tokens_max(sampling, group.prompt_token_ids.size(),
                    st.identity ? st.identity->model.context_max : 0);
}

/// The policy's estimate, which knows no limit, up to the limit; 0: there is none yet.
std::uint32_t expected_of(const scheduler_state& st, const batch_record& batch,
                          std::uint64_t ordinal) {
  const auto estimate = st.policy->estimate(group_id{batch.first_group + ordinal});
  return estimate ? std::min(*estimate, limit_of(st, batch, ordinal)) : 0;
}

cluster_view::worker view_of(self_ptr self, worker_id id, const scheduler_state::worker& w,
                             begun_groups& begun) {
  auto& st = self->state;
  cluster_view::worker out;
  out.id = id.value;
  out.name = w.hello.name;
  out.state = w.draining ? "draining" : w.routable ? "ready" : "stale";
  out.epoch = w.hello.weight_epoch;
  out.running = w.last.running;
  out.waiting = w.last.waiting;
  out.slots = w.hello.slots;
  out.kv_blocks = w.hello.kv_blocks;
  out.kv_used = w.last.kv.running;
  out.kv_parked = w.last.kv.parked;
  const auto chunks = st.policy->running_on(id);
  out.chunks_in_all = chunks.size();
  for (const auto response : chunks) {
    if (out.chunks.size() == limits.chunks)
      break;
    const auto at = st.book->locate(response);
    if (!at)
      continue;
    const auto group = at.batch->first_group + at.response->group;
    const auto first = response.value - at.batch->first_response - at.response->index;
    begun.try_emplace(group, at.batch, first);
    out.chunks.push_back({group, at.response->index,
                          static_cast<std::uint32_t>(at.response->tokens.size()),
                          expected_of(st, *at.batch, at.response->group)});
  }
  return out;
}

void show_workers(self_ptr self, begun_groups& begun, cluster_view& view) {
  auto& st = self->state;
  view.workers_in_all = st.workers.size();
  std::size_t draining = 0;
  std::size_t stale = 0;
  for (const auto& [id, w] : st.workers) {
    const auto rate = st.parts.board->pace(id.value, w.last.stats.generated_tokens);
    draining += w.draining ? 1 : 0;
    stale += !w.draining && !w.routable ? 1 : 0;
    if (view.workers.size() == limits.workers)
      continue;
    view.workers.push_back(view_of(self, id, w, begun));
    view.workers.back().tokens_per_s = rate;
  }
  if (st.workers.empty())
    view.alerts.push_back({true, "No worker is here. Batches wait until one joins."});
  else if (draining + stale == st.workers.size())
    view.alerts.push_back({true, "No worker may be given work. Batches wait."});
  if (stale > 0)
    view.alerts.push_back({true, std::to_string(stale)
                                   + " of the workers hold weights of another "
                                     "epoch. They get the cluster's, and no work before."});
  if (draining > 0)
    view.alerts.push_back({false, std::to_string(draining) + " of the workers drain."});
}

void show_group(const scheduler_state& st, const batch_record& batch, std::uint64_t ordinal,
                std::uint64_t first, cluster_view& view) {
  cluster_view::group out;
  out.id = batch.first_group + ordinal;
  out.batch = batch.id.value;
  out.expected = expected_of(st, batch, ordinal);
  out.limit = limit_of(st, batch, ordinal);
  out.responses = batch.spec.groups[ordinal].group_size;
  for (auto i = first; i < first + std::min(out.responses, limits.members); ++i) {
    const auto& r = batch.responses[i];
    cluster_view::member m;
    m.index = r.index;
    // The tokens of a result that was acknowledged are gone; the policy knows how many there were.
    const auto seen = st.policy->response(response_id{batch.first_response + i});
    m.tokens = seen ? seen->tokens_done : static_cast<std::uint32_t>(r.tokens.size());
    if (r.sequence != 0)
      m.at = cluster_view::stage::done;
    else if (seen && seen->holder) {
      m.at = cluster_view::stage::running;
      m.worker = seen->holder->value;
    }
    out.members.push_back(m);
  }
  out.finished = out.responses - batch.group_unfinished[ordinal];
  view.groups.push_back(std::move(out));
}

/// Groups that have begun and are not over, of which nothing runs now.
void show_resting(const scheduler_state& st, const batch_record& batch, const begun_groups& begun,
                  std::size_t& searched, cluster_view& view) {
  const auto touched = [](const response_record& r) {
    return r.sequence != 0 || !r.tokens.empty();
  };
  std::uint64_t first = 0;
  for (std::uint64_t g = 0; g < batch.group_unfinished.size(); ++g) {
    const auto begin = batch.responses.begin() + static_cast<std::ptrdiff_t>(first);
    const auto size = batch.spec.groups[g].group_size;
    if (batch.group_unfinished[g] > 0 && !begun.contains(batch.first_group + g)) {
      if (view.groups.size() == limits.groups || searched >= limits.responses_searched)
        return;
      searched += size;
      if (std::any_of(begin, begin + size, touched))
        show_group(st, batch, g, first, view);
    }
    first += size;
  }
}

cluster_view::batch view_of(const scheduler_state& st, const batch_record& batch,
                            std::uint64_t now) {
  cluster_view::batch b;
  b.id = batch.id.value;
  b.policy = batch.spec.policy.empty() ? st.options.default_policy : batch.spec.policy;
  const bool ended = batch.phase == batch_phase::ended;
  b.phase = ended ? "ended" : batch.phase == batch_phase::queued ? "queued" : "running";
  b.responses = batch.size;
  b.finished = batch.finished_count;
  b.running = batch.running;
  b.tokens = batch.generated_tokens;
  const auto until = ended ? batch.ended_ns : now;
  if (batch.started_ns != 0 && until > batch.started_ns)
    b.seconds = static_cast<double>(until - batch.started_ns) * 1e-9;
  return b;
}

void show_batches(const scheduler_state& st, const begun_groups& begun, std::uint64_t now,
                  cluster_view& view) {
  for (const auto& [id, at] : begun)
    if (view.groups.size() < limits.groups)
      show_group(st, *at.first, id - at.first->first_group, at.second, view);
  std::size_t searched = 0;
  for (const auto& [id, batch] : st.book->batches()) {
    if (batch.acknowledged_fully())
      continue;
    ++view.batches_in_all;
    view.live_groups += batch.live_groups;
    if (batch.phase == batch_phase::running)
      show_resting(st, batch, begun, searched, view);
  }
  // Those that are over only wait to be collected: last.
  for (const bool over : {false, true})
    for (const auto& [id, batch] : st.book->batches())
      if (!batch.acknowledged_fully() && (batch.phase == batch_phase::ended) == over
          && view.batches.size() < limits.batches)
        view.batches.push_back(view_of(st, batch, now));
  std::ranges::sort(view.groups, {}, &cluster_view::group::id);
}

void show_weights(self_ptr self, cluster_view& view) {
  const auto weights = weights_status_of(self);
  view.epoch = self->state.book->weight_version;
  view.next_epoch = weights.next_epoch;
  view.previous_epoch = weights.previous_epoch;
  view.phase = weights.phase;
  for (const auto& w : weights.workers)
    view.workers_prepared += w.prepared ? 1 : 0;
}

/// What is wrong besides workers. Says nothing of files: their names are not for everybody.
void show_alerts(const scheduler_state& st, cluster_view& view) {
  if (st.stopping)
    view.alerts.push_back({false, "The scheduler is stopping. Nothing new begins."});
  if (st.paused)
    view.alerts.push_back({true, "A controller has paused the cluster. Nothing is placed until it "
                                 "says resume."});
  if (st.stranded > 0)
    view.alerts.push_back({true, std::to_string(st.stranded)
                                   + " responses need more KV blocks "
                                     "than any worker has. They wait for a larger one."});
  if (st.parts.journal && !st.parts.journal->health().takes_batches)
    view.alerts.push_back({true, "The journal cannot take new batches on. The scheduler's log "
                                 "says why."});
}

} // namespace

void show_board(self_ptr self) {
  auto& st = self->state;
  const auto now = now_ns(self);
  if (!st.parts.board || !st.parts.board->due(now))
    return;
  cluster_view view;
  view.model = st.identity ? st.identity->name : "";
  view.numerics = st.book->numerics_profile;
  view.uptime_s = static_cast<double>(now - st.started_ns) * 1e-9;
  const auto& m = *st.parts.metrics;
  view.tokens = m.generated_tokens.value();
  view.responses = m.responses.stop.value() + m.responses.length.value();
  view.running = st.policy->running();
  view.waiting = st.policy->waiting();
  begun_groups begun;
  show_workers(self, begun, view);
  show_batches(st, begun, now, view);
  show_weights(self, view);
  show_alerts(st, view);
  st.parts.board->pin(std::move(view));
}

} // namespace rollcast::shell
