#include "tests/sim/protocol_sim.hpp"

#include <algorithm>
#include <utility>

namespace rollcast::sim {
namespace {

using namespace std::chrono_literals;

template <class State, class Handle>
State& state_of(const Handle& whose) {
  using impl = std::remove_pointer_t<typename Handle::template stateful_pointer<State>>;
  auto* found = dynamic_cast<impl*>(caf::actor_cast<caf::abstract_actor*>(whose));
  ROLLCAST_CHECK(found != nullptr);
  return found->state;
}

} // namespace

/// What the scheduler tells controllers goes to their inboxes; whoever has gone hears nothing.
class protocol_sim::link final : public controller_link {
public:
  explicit link(protocol_sim& sim) : sim_(sim) {}
  void send(const std::string& peer, wire::event_envelope what) override {
    if (const auto* served = std::get_if<wire::weights_served>(&what.body))
      sim_.note_served(*served);
    for (std::size_t i = 0; i < sim_.clients_.size(); ++i)
      if (sim_.clients_[i]->peer() == peer)
        sim_.inbox_[i].push_back(std::move(what));
  }

private:
  protocol_sim& sim_;
};

protocol_sim::protocol_sim(std::uint64_t seed, const protocol_faults& faults)
  : rng_(seed), faults_(faults), system_(config_),
    coordinator_(dynamic_cast<caf::scheduler::test_coordinator&>(system_.scheduler())),
    data_(rng_.next()), link_(std::make_shared<link>(*this)) {
  data_.wrong = {faults.transfer, faults.transfer / 2};
  start_scheduler();
  const auto workers = between(2, 4);
  for (std::size_t i = 0; i < workers; ++i) {
    auto& p = *processes_.emplace_back(std::make_unique<process>());
    p.index = i;
    p.shape.mean_length = 24;
    p.shape.block_tokens = 16;
    p.shape.kv_blocks = static_cast<std::uint32_t>(between(4, 14));
    p.slots = static_cast<std::uint32_t>(between(2, 6));
    p.spill_bytes = rng_.chance(50) ? 0 : 1 << 17;
    p.starts_at = after(between(0, 50));
  }
  with_static_ = rng_.chance(30);
  for (auto i = between(1, 3); i > 0; --i)
    clients_.push_back(std::make_unique<sim_client>(
      rng_.next(), std::string(1, static_cast<char>('a' + clients_.size())), clients_.empty(),
      with_static_, truth_,
      [this] { return state_of<scheduler_state>(scheduler_).book->weight_version; }));
  inbox_.resize(clients_.size());
}

protocol_sim::~protocol_sim() {
  for (auto& p : processes_)
    if (p->alive)
      end(*p, true, 0);
  connections_.clear();
  stop_actor(caf::actor_cast<caf::actor>(scheduler_));
  coordinator_.clock().cancel_all();
}

const scheduler_state& protocol_sim::scheduler_now() const {
  return state_of<scheduler_state>(scheduler_);
}

void protocol_sim::wrong(const std::string& what) {
  if (wrong_.empty() && !what.empty())
    wrong_ = what;
}

// -- one event ------------------------------------------------------------------------------------

std::string protocol_sim::step() {
  ++steps_;
  journal_.unix_ns = static_cast<std::uint64_t>(now().time_since_epoch().count());
  inject();
  keep_processes();
  if (!calm_ && happens(faults_.time))
    pass_time(false);
  if (calm_ && nobody_serves())
    publish();
  if (happens(1'000))
    clients_[rng_.below(clients_.size())]->act(calm_);
  using way = bool (protocol_sim::*)();
  static constexpr way ways[] = {
    &protocol_sim::run_job, &protocol_sim::run_job,      &protocol_sim::run_job,
    &protocol_sim::deliver, &protocol_sim::deliver,      &protocol_sim::run_aside,
    &protocol_sim::commit,  &protocol_sim::serve_client, &protocol_sim::hear_client};
  // From a random one on, the first that can.
  const auto first = rng_.below(std::size(ways) + 1);
  bool done = first == std::size(ways) && data_.turn(now());
  for (std::size_t i = 0; i < std::size(ways) && !done; ++i)
    done = (this->*ways[(first + i) % std::size(ways)])();
  if (!done && !data_.turn(now())) {
    for (auto& c : clients_)
      c->act(calm_);
    pass_time(true);
  }
  return check();
}

bool protocol_sim::run_job() {
  auto& jobs = coordinator_.jobs;
  std::vector<std::size_t> ready;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const auto p = std::find_if(processes_.begin(), processes_.end(), [&](const auto& each) {
      return each->alive && each->job == jobs[i];
    });
    if (p == processes_.end() || has_turn(**p))
      ready.push_back(i);
  }
  if (ready.empty())
    return false;
  const auto chosen = jobs.begin() + static_cast<std::ptrdiff_t>(ready[rng_.below(ready.size())]);
  std::rotate(jobs.begin(), chosen, chosen + 1);
  auto* const job = jobs.front();
  coordinator_.run_once();
  for (auto& p : processes_)
    if (p->alive && p->job == job)
      wrong(check(*p));
  return true;
}

bool protocol_sim::deliver() {
  std::vector<std::pair<connection*, connection::side>> ready;
  for (const auto& c : connections_) {
    if (c->can_deliver(connection::side::scheduler, now()))
      ready.emplace_back(c.get(), connection::side::scheduler);
    const bool stopped = std::any_of(processes_.begin(), processes_.end(), [&](const auto& p) {
      return p->life == c->life() && !has_turn(*p);
    });
    if (!stopped && c->can_deliver(connection::side::worker, now()))
      ready.emplace_back(c.get(), connection::side::worker);
  }
  if (ready.empty())
    return false;
  const auto [c, side] = ready[rng_.below(ready.size())];
  c->deliver(side);
  return true;
}

bool protocol_sim::run_aside() {
  if (!aside_.empty()) {
    const auto work = std::move(aside_.front());
    aside_.pop_front();
    work();
    return true;
  }
  for (auto& p : processes_)
    if (has_turn(*p) && !p->aside.empty()) {
      const auto work = std::move(p->aside.front());
      p->aside.pop_front();
      work();
      return true;
    }
  return false;
}

/// The journal's thread has more on disk.
bool protocol_sim::commit() {
  if (durable_ == journal_.all.size() || disk_full_until_ > now())
    return false;
  durable_ += 1 + rng_.below(journal_.all.size() - durable_);
  told_->committed();
  caf::anon_send(scheduler_, atom::durable_v);
  return true;
}

/// A request of a controller arrives, or the end of its connection.
bool protocol_sim::serve_client() {
  const auto ready =
    std::count_if(clients_.begin(), clients_.end(), [](const auto& c) { return !c->out.empty(); });
  if (ready == 0 && gone_.empty())
    return false;
  if (ready == 0 || (!gone_.empty() && rng_.chance(20))) {
    caf::anon_send(scheduler_, atom::gone_v, gone_.back());
    gone_.pop_back();
    return true;
  }
  auto at = rng_.below(static_cast<std::uint64_t>(ready));
  for (auto& c : clients_)
    if (!c->out.empty() && at-- == 0) {
      caf::anon_send(scheduler_,
                     controller_request{c->peer(), std::make_shared<wire::request_envelope>(
                                                     std::move(c->out.front()))});
      c->out.pop_front();
      return true;
    }
  return false;
}

bool protocol_sim::hear_client() {
  for (std::size_t n = clients_.size(), first = rng_.below(n), i = 0; i < n; ++i) {
    const auto at = (first + i) % n;
    if (inbox_[at].empty())
      continue;
    clients_[at]->hear(inbox_[at].front());
    inbox_[at].pop_front();
    wrong(clients_[at]->wrong);
    return true;
  }
  return false;
}

/// Timers that fall due fire. With nothing to do, time goes on to the next of them.
void protocol_sim::pass_time(bool idle) {
  caf::timespan span = std::chrono::milliseconds{between(0, 200)};
  if (idle) {
    const auto& timers = coordinator_.clock().schedule();
    const auto next = timers.empty() ? now() + 1s : timers.begin()->first;
    span = std::clamp<caf::timespan>(next - now(), 1ms, 500ms);
  }
  coordinator_.advance_time(span);
}

// -- what must hold -------------------------------------------------------------------------------

std::string protocol_sim::check() {
  for (const auto& c : connections_)
    if (c->overfilled())
      wrong("a worker was given what it cannot take: " + *c->overfilled());
  return wrong_.empty() ? "" : wrong_ + " (step " + std::to_string(steps_) + ")";
}

std::string protocol_sim::check(process& p) {
  auto& st = state_of<decode_worker_state>(p.actor);
  const auto& values =
    dynamic_cast<const test::fake_weights&>(*p.device->device().weights()).values();
  // What a static batch sends is bounded by nothing but its groups.
  if (!with_static_ && p.device->running() + p.device->waiting() > p.slots)
    return "worker " + std::to_string(st.id.value) + " has more than its slots";
  return truth_.serves(st.epoch, values);
}

void protocol_sim::note_served(const wire::weights_served& s) {
  for (const auto& [id, w] : scheduler_now().workers) {
    if (!w.routable)
      continue;
    for (auto& p : processes_)
      if (p->alive)
        if (const auto& st = state_of<decode_worker_state>(p->actor);
            st.id == id && st.epoch != s.epoch)
          wrong("epoch " + std::to_string(s.epoch) + " is said to be served, worker "
                + std::to_string(id.value) + " serves " + std::to_string(st.epoch));
  }
}

bool protocol_sim::settled() const {
  const auto& st = scheduler_now();
  return std::all_of(clients_.begin(), clients_.end(), [](const auto& c) { return c->done(); })
         && std::all_of(inbox_.begin(), inbox_.end(), [](const auto& i) { return i.empty(); })
         && gone_.empty() && !st.update && !st.held && !data_.busy()
         && clients_.front()->published() && st.workers.size() == processes_.size();
}

/// All workers are kept apart, for want of tensors that a scheduler before this one had.
bool protocol_sim::nobody_serves() const {
  const auto& workers = scheduler_now().workers;
  return !workers.empty() && std::none_of(workers.begin(), workers.end(), [](const auto& w) {
    return w.second.routable;
  });
}

void protocol_sim::publish() {
  clients_.front()->publish();
}

std::string protocol_sim::leftovers() {
  const auto& st = scheduler_now();
  const auto count = [](std::size_t n, const char* what) {
    return n == 0 ? "" : std::to_string(n) + " " + what + "; ";
  };
  std::string left = count(st.misfortunes.size(), "misfortunes") + count(st.scores.size(), "scores")
                     + count(st.policy->running(), "running") + count(data_.offers(0), "offers")
                     + count(st.policy->waiting(), "waiting")
                     + count(st.policy->groups(), "groups");
  for (const auto& [id, batch] : st.book->batches())
    left += batch.acknowledged_fully() ? "" : "batch '" + batch.spec.batch_key + "'; ";
  for (const auto& [id, w] : st.workers)
    left += w.routable && w.scoring.empty() && w.feeding == 0 ? "" : "worker not routable; ";
  for (auto& p : processes_) {
    const auto& ws = state_of<decode_worker_state>(p->actor);
    left += count(ws.responses.size(), "responses held")
            + count(p->device->kv().total - p->device->kv().free, "KV blocks")
            + count(p->spilled->memory_used(), "bytes spilled") + (p->pulse->idle ? "" : "busy; ")
            + count(data_.offers(p->index + 1), "offers of a worker")
            + (ws.preparing ? "a preparation; " : "");
  }
  return left;
}

} // namespace rollcast::sim
