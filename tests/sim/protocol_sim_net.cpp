#include "tests/sim/protocol_sim_net.hpp"

#include "actors/error_bridge.hpp"

#include <utility>

namespace rollcast::sim {
namespace {

caf::strong_actor_ptr far(caf::actor_system& system, const caf::strong_actor_ptr& of,
                          std::uint32_t node, far_actor::out_function out) {
  caf::actor_config cfg;
  caf::node_id::default_data::host_id_type host{};
  return caf::make_actor<far_actor, caf::strong_actor_ptr>(of->id(), caf::make_node_id(node, host),
                                                           &system, cfg, std::move(out));
}

} // namespace

connection::connection(caf::actor_system& system, const scheduler_actor& scheduler,
                       const decode_worker_actor& worker, std::uint32_t life)
  : life_(life) {
  scheduler_.self = caf::actor_cast<caf::strong_actor_ptr>(scheduler);
  worker_.self = caf::actor_cast<caf::strong_actor_ptr>(worker);
  scheduler_.seen = far(system, scheduler_.self, 1, [this](auto mid, auto what) {
    send(side::scheduler, mid, std::move(what));
  });
  worker_.seen = far(system, worker_.self, life + 2,
                     [this](auto mid, auto what) { send(side::worker, mid, std::move(what)); });
}

connection::~connection() {
  close(scheduler_, worker_);
  close(worker_, scheduler_);
}

void connection::send(side to, caf::message_id mid, caf::message what) {
  look(to, what);
  if (!cut_)
    at(to).arriving.push_back({mid, std::move(what)});
}

void connection::look(side to, const caf::message& what) {
  if (to == side::scheduler
      && what.match_elements<atom::failed, worker_id, response_id, std::uint32_t, std::string>())
    overfilled_ = what.get_as<std::string>(4);
}

void connection::cut(prng& rng, sim_time scheduler_told, sim_time worker_told) {
  if (cut_)
    return;
  cut_ = true;
  for (auto* e : {&scheduler_, &worker_})
    e->arriving.resize(rng.below(e->arriving.size() + 1));
  scheduler_.told_at = scheduler_told;
  worker_.told_at = worker_told;
}

void connection::forget(side whose) {
  close(at(whose), at(whose == side::worker ? side::scheduler : side::worker));
}

bool connection::can_deliver(side to, sim_time now) const {
  const auto& e = at(to);
  return !e.closed && (!e.arriving.empty() || (e.told_at && *e.told_at <= now));
}

void connection::deliver(side to) {
  auto& e = at(to);
  auto& other = at(to == side::worker ? side::scheduler : side::worker);
  if (e.arriving.empty())
    return close(e, other);
  auto p = std::move(e.arriving.front());
  e.arriving.pop_front();
  // Whatever answers it answers to what this side sees of the other.
  caf::actor_cast<caf::abstract_actor*>(e.self)->enqueue(other.seen, p.mid, std::move(p.content),
                                                         nullptr);
}

void connection::close(end& told, end& other) {
  if (std::exchange(told.closed, true))
    return;
  told.arriving.clear();
  auto* proxy = dynamic_cast<far_actor*>(caf::actor_cast<caf::abstract_actor*>(other.seen));
  proxy->kill_proxy(nullptr, caf::exit_reason::remote_link_unreachable);
}

} // namespace rollcast::sim
