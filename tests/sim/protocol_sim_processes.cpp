#include "actors/bytes.hpp"
#include "tests/sim/protocol_sim.hpp"

#include <algorithm>
#include <utility>

namespace rollcast::sim {
namespace {

using namespace std::chrono_literals;

/// A heartbeat's timeout: how late a silent end of a connection is noticed.
constexpr std::uint64_t silence_ms = 2'500;

/// Counters that nobody reads, made once: a registry is a thousand times an event.
std::shared_ptr<scheduler_metrics> scheduler_figures() {
  static const auto figures = std::make_shared<scheduler_metrics>("sim");
  return figures;
}

std::shared_ptr<worker_metrics> worker_figures() {
  static const auto figures = std::make_shared<worker_metrics>("sim");
  return figures;
}

} // namespace

void protocol_sim::start_scheduler() {
  scheduler_options options;
  options.policy.reserve_tokens = static_cast<std::uint32_t>(between(1, 24));
  options.policy.prices.recompute_ns_per_token = rng_.chance(50) ? 700'000 : 10;
  options.measured_prices = false; // they are wall times
  options.batches_wait = rng_.chance(20);
  options.batches.results_in_flight = between(1, 8);
  options.losses_max = 10'000;
  options.tick_interval = 1s;
  options.weight_deadlines.receiving = 20s;
  options.weight_deadlines.preparing = 60s;
  options.weight_deadlines.silence = 10s;
  options.weight_deadlines.waiting = 60s;
  options.weight_deadlines.flipping = 10s;
  data_.end_life(0);
  data_.serve(0, [](const kv_request&, const kv_ticket&) {});
  auto access = std::make_shared<journal_access>();
  access->sink = std::shared_ptr<journal::sink>{&journal_, [](auto*) {}};
  access->written = [this] { return journal_.all.size(); };
  access->durable = [this] { return durable_; };
  access->health = [this] {
    journal::journal_health health;
    health.takes_batches = disk_full_until_ <= now();
    return health;
  };
  access->found = std::make_shared<journal::image>(journal_.image_of(durable_, ++generation_));
  told_ = std::make_shared<durable_link>(link_, access->written, access->durable);
  scheduler_ = system_.spawn(
    scheduler,
    scheduler_parts{told_, scheduler_figures(), std::make_shared<scheduler_pulse>(),
                    std::make_shared<weight_store>(
                      data_.weights_of(0), 0,
                      [this](std::function<void()> work) { aside_.push_back(std::move(work)); }),
                    access},
    options);
}

void protocol_sim::stop_actor(const caf::actor& who) {
  caf::anon_send_exit(who, caf::exit_reason::kill);
  while (coordinator_.prioritize(who))
    coordinator_.run_once();
}

void protocol_sim::start(process& p) {
  p.life = ++lives_;
  p.alive = true;
  p.leaving = false;
  p.stopped_until = p.dials_at = now();
  p.device = std::make_shared<engine>(std::make_unique<test::fake_backend>(p.shape),
                                      engine_limits{.batch_max = 3});
  p.spilled = *spill_store::open({p.spill_bytes, 0, {}}, p.device->device().shape().kv_group_bytes);
  p.pulse = std::make_shared<worker_pulse>();
  p.kv = data_.kv_of(p.index + 1);
  p.weights = data_.weights_of(p.index + 1);
  decode_worker_options options;
  options.beat_interval = 1s;
  auto& hello = options.hello;
  const auto& shape = p.device->device().shape();
  const auto& numerics = p.device->device().numerics();
  hello.name = "w" + std::to_string(p.index);
  hello.host = "h" + std::to_string(p.index % 2);
  hello.pid = p.life;
  hello.data_endpoint = hello.weights_endpoint = endpoint_of_place(p.index + 1);
  hello.numerics = std::string{numerics.name};
  hello.numerics_hash = numerics.hash();
  hello.weight_epoch = 1;
  hello.kv_blocks = shape.kv_blocks;
  hello.block_tokens = shape.block_tokens;
  hello.slots = p.slots;
  hello.kv_bytes_per_token = static_cast<std::uint32_t>(shape.kv_bytes_per_token());
  hello.spill_page_tokens =
    static_cast<std::uint32_t>(p.spilled->page_bytes() / shape.kv_bytes_per_token());
  hello.spill_tokens = p.spilled->pages() * hello.spill_page_tokens;
  hello.context_max = p.device->limits().context_max;
  hello.vocabulary = shape.vocabulary;
  hello.experts = shape.experts;
  hello.eos_token_ids = to_bytes(p.device->device().eos_token_ids());
  decode_worker_parts parts{p.device, p.spilled, nullptr, p.kv.get(), worker_figures(), p.pulse};
  parts.weights = p.weights.get();
  parts.aside = [&p](std::function<void()> work) { p.aside.push_back(std::move(work)); };
  p.actor = system_.spawn(decode_worker, parts, options);
  p.job = dynamic_cast<caf::resumable*>(caf::actor_cast<caf::abstract_actor*>(p.actor));
  data_.serve(p.index + 1, [actor = p.actor](const kv_request& what, const kv_ticket& ticket) {
    caf::anon_send(actor, export_query{what, ticket});
  });
}

/// The process is no more. Its connection breaks; whether that is noticed at once is the network's.
void protocol_sim::end(process& p, bool silently, std::uint64_t down_ms) {
  if (auto* c = connection_of(p)) {
    c->cut(rng_, after(silently ? silence_ms : between(0, 5)), now());
    c->forget(connection::side::worker);
  }
  p.alive = false;
  p.job = nullptr;
  stop_actor(caf::actor_cast<caf::actor>(p.actor));
  data_.end_life(p.index + 1);
  p.aside.clear();
  p.actor = nullptr;
  p.kv.reset();
  p.weights.reset();
  p.starts_at = after(down_ms);
}

connection* protocol_sim::connection_of(const process& p) const {
  for (const auto& c : connections_)
    if (c->life() == p.life && !c->closed())
      return c.get();
  return nullptr;
}

/// What the thread does that keeps a worker's link.
void protocol_sim::dial(process& p) {
  auto* c = connection_of(p);
  if (c && c->is_cut())
    return; // CAF keeps one connection between two nodes, until both have noticed its end
  if (!c)
    c =
      connections_.emplace_back(std::make_unique<connection>(system_, scheduler_, p.actor, p.life))
        .get();
  p.pulse->set_link(link_state::registering);
  ++counters_.registrations;
  caf::anon_send(p.actor, atom::join_v, c->far_scheduler());
}

void protocol_sim::keep_processes() {
  std::erase_if(connections_, [](const auto& c) { return c->closed(); });
  for (auto& each : processes_) {
    auto& p = *each;
    if (!p.alive) {
      if (p.starts_at <= now())
        start(p);
      continue;
    }
    if (!has_turn(p))
      continue;
    const auto link = p.pulse->link();
    if (link == link_state::refused) {
      ++counters_.refusals;
      end(p, false, between(100, 3'000));
    } else if (p.leaving && (link == link_state::down || (p.pulse->drained && p.pulse->idle))) {
      end(p, false, between(0, 2'000));
    } else if (link != link_state::down) {
      p.dials_at = after(calm_ ? 10 : between(0, 500));
    } else if (p.dials_at <= now() && !p.leaving) {
      dial(p);
    }
  }
}

// -- faults ---------------------------------------------------------------------------------------

void protocol_sim::inject() {
  if (calm_)
    return;
  auto& p = *processes_[rng_.below(processes_.size())];
  auto* const c = connection_of(p);
  if (p.alive && happens(faults_.kill)) {
    ++counters_.kills;
    end(p, rng_.chance(40), between(0, 4'000));
  } else if (p.alive && c && !c->is_cut() && happens(faults_.cut)) {
    ++counters_.cuts;
    if (rng_.chance(50))
      c->cut(rng_, after(between(0, 10)), after(between(0, 10)));
    else // a partition, which each side notices by itself
      c->cut(rng_, after(between(1, silence_ms)), after(between(1, silence_ms)));
  } else if (has_turn(p) && happens(faults_.stop)) {
    ++counters_.stops;
    p.stopped_until = after(between(100, 6'000));
    if (c && p.stopped_until > after(silence_ms))
      c->cut(rng_, after(silence_ms), p.stopped_until);
  } else if (p.alive && !p.leaving && happens(faults_.drain)) {
    ++counters_.drains;
    p.leaving = true;
    caf::anon_send(p.actor, atom::drain_v);
  }
  if (happens(faults_.disconnect))
    disconnect(*clients_[rng_.below(clients_.size())]);
  if (happens(faults_.restart))
    restart_scheduler();
  if (happens(faults_.disk))
    disk_full_until_ = after(between(100, 8'000));
}

void protocol_sim::disconnect(sim_client& c) {
  ++counters_.disconnects;
  const auto at = std::find_if(clients_.begin(), clients_.end(),
                               [&](const auto& each) { return each.get() == &c; });
  inbox_[static_cast<std::size_t>(at - clients_.begin())].clear();
  gone_.push_back(c.reconnect());
}

void protocol_sim::restart_scheduler() {
  ++counters_.restarts;
  for (auto& c : connections_) {
    c->cut(rng_, now(), after(rng_.chance(60) ? between(0, 5) : silence_ms));
    c->forget(connection::side::scheduler);
  }
  stop_actor(caf::actor_cast<caf::actor>(scheduler_));
  aside_.clear();
  for (std::size_t i = 0; i < clients_.size(); ++i) {
    inbox_[i].clear();
    (void)clients_[i]->reconnect();
  }
  gone_.clear();
  counters_.forgotten += journal_.all.size() - durable_;
  journal_.all.resize(durable_);
  start_scheduler();
}

void protocol_sim::calm() {
  calm_ = true;
  calm_since_ = now();
  data_.wrong = {};
  disk_full_until_ = now();
  for (auto& p : processes_) {
    p->stopped_until = std::min(p->stopped_until, now());
    if (!p->alive)
      p->starts_at = now();
  }
}

std::chrono::seconds protocol_sim::calm_for() const {
  return std::chrono::duration_cast<std::chrono::seconds>(calm_ ? now() - calm_since_ : 0ns);
}

std::string protocol_sim::describe() const {
  std::string out;
  const auto& st = scheduler_now();
  out += "scheduler: " + std::to_string(st.workers.size()) + " workers, "
         + std::to_string(st.policy->running()) + " running, "
         + std::to_string(st.policy->waiting()) + " waiting, phase "
         + std::string{to_string(st.machine->at())} + (st.held ? ", held" : "")
         + (st.paused ? ", paused" : "") + ", " + std::to_string(st.scores.size())
         + " scores, calm for " + std::to_string(calm_for().count()) + " s";
  for (const auto& p : processes_)
    out += "\nworker " + std::to_string(p->index) + ": "
           + (p->alive ? "link " + std::to_string(static_cast<int>(p->pulse->link())) : "dead")
           + (p->leaving ? ", leaving" : "") + (connection_of(*p) ? ", connected" : "");
  for (const auto& c : clients_)
    out += "\n" + c->peer() + (c->done() ? ": done" : ": not done");
  return out;
}

} // namespace rollcast::sim
