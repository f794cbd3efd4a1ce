#include "actors/bytes.hpp"
#include "actors/error_bridge.hpp"
#include "actors/scheduler_shell.hpp"
#include "engine/base/check.hpp"
#include "engine/step/request.hpp"

#include <spdlog/spdlog.h>

#include <cstddef>
#include <cstdlib>
#include <span>
#include <utility>

namespace rollcast::shell {
namespace {

void send_release(self_ptr self, const policy::release& r) {
  const auto it = self->state.workers.find(r.worker);
  if (it != self->state.workers.end())
    self->send(it->second.handle, atom::release_v, r.worker, r.response, r.attempt);
}

void send_spill(self_ptr self, const policy::spill& s) {
  const auto it = self->state.workers.find(s.worker);
  if (it != self->state.workers.end())
    self->send(it->second.handle, atom::spill_v, s.worker, s.response, s.attempt);
}

void send_cut(self_ptr self, const policy::cut& c) {
  const auto it = self->state.workers.find(c.worker);
  if (it != self->state.workers.end())
    self->send(it->second.handle, atom::cut_v, c.worker, c.response, c.attempt);
}

chunk_assignment assignment_of(scheduler_state& st, const policy::dispatch& d) {
  const auto at = st.book->locate(d.response);
  ROLLCAST_CHECK(at); // the policy knows only what the book gave it
  ++at.batch->running;
  const auto& prompt = at.batch->group_of(*at.response).prompt_token_ids;
  chunk_assignment a;
  a.worker = d.worker;
  a.epoch = st.book->weight_version;
  a.response = d.response;
  a.attempt = d.attempt;
  a.group = {at.batch->first_group + at.response->group};
  a.probe = at.response->index == 0;
  a.tokens = to_bytes(std::span<const token_id>{prompt})
             + to_bytes(std::span<const token_id>{at.response->tokens});
  a.prompt_tokens = static_cast<std::uint32_t>(prompt.size());
  a.sampling = to_engine(at.batch->sampling_of(*at.response), at.response->seed);
  a.generate_max = d.tokens_now;
  a.reserve = d.kv_blocks > 0;
  a.wants_experts = at.batch->spec.routed_experts_from.has_value();
  a.experts_from = at.batch->spec.routed_experts_from.value_or(0);
  if (d.kv == policy::kv_source::pull)
    if (const auto source = st.workers.find(d.from); source != st.workers.end()) {
      a.pull_endpoint = source->second.hello.data_endpoint;
      a.pull_from = d.from;
    }
  return a;
}

void send_dispatch(self_ptr self, const policy::dispatch& d) {
  auto& st = self->state;
  const auto it = st.workers.find(d.worker);
  ROLLCAST_CHECK(it != st.workers.end()); // the policy hears of every loss before it plans
  self->send(it->second.handle, atom::decode_v, assignment_of(st, d));
}

/// The outcome's arrays, if they agree with each other.
struct new_tokens {
  std::vector<token_id> tokens;
  std::vector<float> logprobs;
  std::vector<float> kept_masses;
  std::span<const std::byte> experts; ///< Of the outcome.
  bool sound = false;
};

new_tokens unpack(const chunk_outcome& outcome) {
  new_tokens n{from_bytes<token_id>(outcome.tokens), from_bytes<float>(outcome.logprobs),
               from_bytes<float>(outcome.kept_masses),
               std::as_bytes(std::span{outcome.experts.data(), outcome.experts.size()}), false};
  if (outcome.kept_masses.empty())
    n.kept_masses.assign(n.tokens.size(), 1.0f);
  const bool cut = outcome.why == static_cast<std::uint8_t>(chunk_end::budget);
  n.sound = (!n.tokens.empty() || cut) && n.logprobs.size() == n.tokens.size()
            && n.kept_masses.size() == n.tokens.size()
            && outcome.why <= static_cast<std::uint8_t>(chunk_end::length);
  return n;
}

void note_estimate(self_ptr self, group_id group, std::size_t length) {
  if (const auto estimate = self->state.policy->estimate(group))
    self->state.parts.metrics->length_estimate_error_tokens.observe(
      std::abs(static_cast<double>(*estimate) - static_cast<double>(length)));
}

/// Ends the batch of a response that comes to nothing wherever it runs.
void give_up_on(self_ptr self, response_id response, errc code, const std::string& what) {
  const auto at = self->state.book->locate(response);
  fail_batch(self, *at.batch,
             {code,
              "group " + std::to_string(at.response->group) + ", index "
                + std::to_string(at.response->index) + " of batch '" + at.batch->spec.batch_key
                + "' " + what,
              {}});
  activate(self);
  plan_soon(self);
}

} // namespace

void place(self_ptr self) {
  auto& st = self->state;
  st.plan_pending = false;
  if (st.stopping)
    return note_stopped(self);
  if (!may_place(self))
    return;
  const auto begin = steady_ns();
  const auto decisions = st.policy->plan();
  if (decisions.empty())
    return;
  st.parts.metrics->scheduler_decision_seconds.observe(static_cast<double>(steady_ns() - begin)
                                                       * 1e-9);
  for (const auto& d : decisions) {
    if (const auto* release = std::get_if<policy::release>(&d))
      send_release(self, *release);
    else if (const auto* spill = std::get_if<policy::spill>(&d))
      send_spill(self, *spill);
    else if (const auto* cut = std::get_if<policy::cut>(&d))
      send_cut(self, *cut);
    else
      send_dispatch(self, std::get<policy::dispatch>(d));
  }
  plan_soon(self); // a plan is bounded; there may be more
}

void take_outcome(self_ptr self, const chunk_outcome& outcome) {
  auto& st = self->state;
  take_stats(self, outcome.worker, outcome.stats);
  const auto at = st.book->locate(outcome.response);
  if (!at || at.response->sequence != 0)
    return; // ended meanwhile
  const auto fresh = unpack(outcome);
  if (!fresh.sound || outcome.position != at.response->tokens.size())
    return take_failed(self, outcome.worker, outcome.response, outcome.attempt,
                       "it reports " + std::to_string(fresh.tokens.size()) + " tokens at position "
                         + std::to_string(outcome.position) + ", the edge is at "
                         + std::to_string(at.response->tokens.size()));
  if (const auto due = batch_book::expert_bytes(at, fresh.tokens.size());
      fresh.experts.size() != due)
    return take_failed(self, outcome.worker, outcome.response, outcome.attempt,
                       "it reports " + std::to_string(fresh.experts.size())
                         + " bytes of ids of experts with " + std::to_string(fresh.tokens.size())
                         + " tokens, not " + std::to_string(due));
  if (outcome.epoch != st.book->weight_version)
    return take_failed(self, outcome.worker, outcome.response, outcome.attempt,
                       "its tokens are of epoch " + std::to_string(outcome.epoch) + ", epoch "
                         + std::to_string(st.book->weight_version) + " is served");
  if (fresh.tokens.empty())
    return take_unbegun(self, outcome);
  const auto& prompt = at.batch->group_of(*at.response).prompt_token_ids;
  const auto most =
    tokens_max(at.batch->sampling_of(*at.response), prompt.size(), st.identity->model.context_max);
  const auto done = outcome.position + static_cast<std::uint32_t>(fresh.tokens.size());
  const auto why = static_cast<chunk_end>(outcome.why);
  const bool complete = why != chunk_end::budget || done >= most;
  const group_id group{at.batch->first_group + at.response->group};
  const auto estimate = st.policy->estimate(group);
  const policy::chunk_finished finished{outcome.response, outcome.worker,   outcome.attempt, done,
                                        complete,         outcome.kv_parked};
  if (st.policy->on(finished) != policy::verdict::accepted)
    return; // old news: somebody else runs it now
  ROLLCAST_CHECK(st.book->append(at, outcome.position, fresh.tokens, fresh.logprobs,
                                 fresh.kept_masses, fresh.experts));
  --at.batch->running;
  at.batch->tally.count_chunk(outcome.worker, fresh.tokens.size());
  st.parts.metrics->generated_tokens.add(fresh.tokens.size());
  st.misfortunes.erase(outcome.response);
  if (complete) {
    if (estimate)
      note_estimate(self, group, done);
    finish_response(
      self, at, why == chunk_end::stop ? wire::finish_reason::stop : wire::finish_reason::length);
  }
  plan_soon(self);
}

void take_moved(self_ptr self, worker_id target, response_id response, std::uint32_t attempt,
                const moved_kv& what) {
  auto& st = self->state;
  if (st.policy->on(policy::kv_moved{response, target, attempt}) != policy::verdict::accepted)
    return;
  if (const auto at = st.book->locate(response))
    at.batch->tally.count_migration(target, what.bytes);
  const auto& by_path = st.parts.metrics->migrations;
  (what.carried ? by_path.nccl : by_path.zmq).add();
  st.parts.metrics->migrated_bytes.add(what.bytes);
  plan_soon(self);
}

void take_failed(self_ptr self, worker_id worker, response_id response, std::uint32_t attempt,
                 const std::string& why) {
  auto& st = self->state;
  const auto view = st.policy->response(response);
  if (!view || view->holder != worker || view->attempt != attempt)
    return; // old news
  auto& m = st.misfortunes[response];
  if (std::exchange(m.attempt, attempt) == attempt)
    return; // said twice
  spdlog::warn("worker {} did not run response {}: {}", worker.value, response.value, why);
  if (++m.failures < st.options.failures_max)
    // Until then the policy takes the chunk as running there, so that nobody is given its blocks.
    return self->delayed_send(self, st.options.failure_pause * (1 << (m.failures - 1)),
                              atom::again_v, worker, response, attempt);
  give_up_on(self, response, errc::queue_full,
             "could not be started " + std::to_string(m.failures)
               + " times in a row, the last time: " + why);
}

void place_again(self_ptr self, worker_id worker, response_id response, std::uint32_t attempt) {
  auto& st = self->state;
  if (st.policy->on(policy::chunk_failed{response, worker, attempt}) != policy::verdict::accepted)
    return; // its worker was lost meanwhile, or its batch has ended
  --st.book->locate(response).batch->running;
  plan_soon(self);
}

void note_loss(self_ptr self, response_id response, const std::string& why) {
  auto& st = self->state;
  const auto at = st.book->locate(response);
  if (!at || at.batch->phase != batch_phase::running)
    return; // ended with a sibling's loss
  --at.batch->running;
  if (++st.misfortunes[response].losses >= st.options.losses_max)
    give_up_on(self, response, errc::peer_lost,
               "was with " + std::to_string(st.options.losses_max)
                 + " workers in a row that were lost, the last time: " + why
                 + "; see what those workers logged");
}

} // namespace rollcast::shell
