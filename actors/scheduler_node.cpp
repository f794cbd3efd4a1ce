#include "actors/error_bridge.hpp"
#include "actors/node_system.hpp"

#include <spdlog/spdlog.h>

#include <condition_variable>
#include <mutex>
#include <thread>

namespace rollcast {
namespace {

http_routes routes_of(std::shared_ptr<scheduler_metrics> metrics,
                      std::shared_ptr<scheduler_pulse> pulse, std::stop_token stop) {
  http_routes routes;
  routes.metrics = [metrics] { return metrics->registry.text(); };
  routes.healthz = [pulse]() -> health {
    if (is_alive(pulse->beat_ns, std::chrono::seconds{5}))
      return {true, "ok"};
    return {false, "the scheduler has not turned for 5 s"};
  };
  routes.readyz = [pulse, stop]() -> health {
    const auto workers = pulse->ready_workers.load();
    if (stop.stop_requested())
      return {false, "stopping"};
    return {workers > 0, std::to_string(workers) + " workers ready"};
  };
  return routes;
}

/// Publishes the scheduler's network face. CAF says no more than "cannot open port".
result<std::uint16_t> publish(caf::actor_system& system, const scheduler_actor& actor,
                              const scheduler_node_options& options) {
  const registry_actor face = actor;
  const char* address = options.cluster_address.empty() ? nullptr : options.cluster_address.c_str();
  const auto port = system.middleman().publish(face, options.cluster_port, address, true);
  if (port)
    return *port;
  const auto where = options.cluster_address + ":" + std::to_string(options.cluster_port);
  return fail(errc::address_in_use, "cannot listen for workers on " + where
                                      + ": it is in use, or no address of this machine ("
                                      + caf::to_string(port.error()) + ")");
}

} // namespace

result<void> run_scheduler(const scheduler_node_options& options, std::stop_token stop,
                           const std::function<void(const scheduler_ports&)>& ready) {
  auto metrics = std::make_shared<scheduler_metrics>(ROLLCAST_VERSION);
  auto pulse = std::make_shared<scheduler_pulse>();
  pulse->beat_ns = steady_ns();
  auto door = frontend::open(options.frontend, metrics);
  if (!door)
    return fail(door);
  auto store = weight_store::open(options.weights, options.weight_memory_kept);
  if (!store)
    return fail(store);
  node_system node{options.liveness};
  const auto actor = node.get().spawn(
    scheduler,
    scheduler_parts{*door, metrics, pulse, std::shared_ptr<weight_store>{std::move(*store)}},
    options.scheduler);
  node.keep(actor);
  const auto port = publish(node.get(), actor, options);
  if (!port)
    return fail(port);
  auto http =
    serve_http(options.metrics_address, options.metrics_port, routes_of(metrics, pulse, stop));
  if (!http)
    return fail(http);
  (*door)->start({[&](controller_request request) { caf::anon_send(actor, std::move(request)); },
                  [&](std::string peer) { caf::anon_send(actor, atom::gone_v, std::move(peer)); }});
  spdlog::info("scheduler: controllers on {}, workers on {}:{}", (*door)->endpoint(),
               options.cluster_address, *port);
  if (ready)
    ready({(*door)->endpoint(), *port,
           *http ? std::optional{(*http)->port()} : std::optional<std::uint16_t>{}});

  std::mutex mutex;
  std::condition_variable_any stopped;
  std::unique_lock lock{mutex};
  stopped.wait(lock, stop, [] { return false; });

  spdlog::info("scheduler: stopping");
  caf::anon_send(actor, atom::drain_v);
  const auto until = std::chrono::steady_clock::now() + options.drain_ms_max;
  while (!pulse->stopped && std::chrono::steady_clock::now() < until)
    std::this_thread::sleep_for(std::chrono::milliseconds{2});
  if (!pulse->stopped)
    spdlog::warn("scheduler: chunks still run after {} ms; they are done again",
                 options.drain_ms_max.count());
  (*door)->stop(); // before the actors end, because its thread sends to them
  return {};
}

} // namespace rollcast
