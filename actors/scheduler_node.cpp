#include "actors/durable_link.hpp"
#include "actors/error_bridge.hpp"
#include "actors/node_system.hpp"
#include "actors/status_board.hpp"
#include "cluster/telemetry/status_page.hpp"

#include <spdlog/spdlog.h>

#include <condition_variable>
#include <mutex>
#include <thread>

namespace rollcast {
namespace {

http_routes routes_of(std::shared_ptr<scheduler_metrics> metrics,
                      std::shared_ptr<scheduler_pulse> pulse, std::shared_ptr<status_board> board,
                      std::stop_token stop) {
  http_routes routes;
  routes.page = status_page();
  routes.status = [board] { return board->json(); };
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
  const auto port = options.tls.any()
                      ? caf::openssl::publish(face, options.cluster_port, address, true)
                      : system.middleman().publish(face, options.cluster_port, address, true);
  if (port)
    return *port;
  const auto where = options.cluster_address + ":" + std::to_string(options.cluster_port);
  return fail(errc::address_in_use, "cannot listen for workers on " + where
                                      + ": it is in use, or no address of this machine ("
                                      + caf::to_string(port.error()) + ")");
}

/// A scheduler's journal, and the thread of it that tells scheduler and controllers of commits.
class open_journal {
public:
  static result<std::shared_ptr<open_journal>>
  open(const journal::journal_options& options, const std::shared_ptr<controller_link>& door,
       const std::shared_ptr<scheduler_metrics>& metrics) {
    auto opened = journal::journal::open(options);
    if (!opened)
      return fail(opened);
    auto out = std::make_shared<open_journal>();
    out->access = std::make_shared<journal_access>();
    out->access->found = std::make_shared<journal::image>(std::move(opened->found));
    // The book holds the journal itself; the others only while it lives.
    const std::shared_ptr<journal::journal> keeper = std::move(opened->keeper);
    const auto* raw = keeper.get();
    out->access->sink = keeper;
    out->access->written = [raw] { return raw->written(); };
    out->access->durable = [raw] { return raw->durable(); };
    out->access->health = [raw] { return raw->health(); };
    out->link = std::make_shared<durable_link>(door, out->access->written, out->access->durable);
    keeper->on_commit([link = out->link, metrics, to = out->told_](std::uint64_t, double seconds) {
      metrics->journal.write_seconds.observe(seconds);
      link->committed();
      const std::scoped_lock lock{to->mutex};
      if (to->actor)
        caf::anon_send(to->actor, atom::durable_v);
    });
    return out;
  }

  /// Who is told; nobody, before the actor's system ends.
  void tell(scheduler_actor actor) {
    const std::scoped_lock lock{told_->mutex};
    told_->actor = std::move(actor);
  }

  std::shared_ptr<journal_access> access;
  std::shared_ptr<durable_link> link;

private:
  struct listener {
    std::mutex mutex;
    scheduler_actor actor;
  };
  std::shared_ptr<listener> told_ = std::make_shared<listener>();
};

/// Opens it, and waits for as long as its disk is full: whoever starts a scheduler again has
/// nothing better to do. @returns null when it is told to stop meanwhile.
result<std::shared_ptr<open_journal>>
open_when_it_can(const journal::journal_options& options,
                 const std::shared_ptr<controller_link>& door,
                 const std::shared_ptr<scheduler_metrics>& metrics, const std::stop_token& stop) {
  for (bool told = false; !stop.stop_requested(); told = true) {
    auto opened = open_journal::open(options, door, metrics);
    if (opened || opened.error().code != errc::io_failed)
      return opened;
    if (!told)
      spdlog::error("{}; tried again every second until it can be opened", opened.error().detail);
    std::this_thread::sleep_for(std::chrono::seconds{1});
  }
  return nullptr;
}

/// Its end comes before that of the system that the handle belongs to.
struct telling {
  telling(std::shared_ptr<open_journal> journal, const scheduler_actor& actor)
    : journal_(std::move(journal)) {
    if (journal_)
      journal_->tell(actor);
  }
  ~telling() {
    if (journal_)
      journal_->tell({});
  }
  telling(const telling&) = delete;
  telling& operator=(const telling&) = delete;

private:
  std::shared_ptr<open_journal> journal_;
};

} // namespace

result<void> run_scheduler(const scheduler_node_options& options, std::stop_token stop,
                           const std::function<void(const scheduler_ports&)>& ready) {
  auto tls = open_tls(options.tls);
  if (!tls)
    return fail(tls);
  auto metrics = std::make_shared<scheduler_metrics>(ROLLCAST_VERSION);
  auto pulse = std::make_shared<scheduler_pulse>();
  pulse->beat_ns = steady_ns();
  auto door = frontend::open(options.frontend, metrics);
  if (!door)
    return fail(door);
  auto store = weight_store::open(options.weights, options.weight_memory_kept);
  if (!store)
    return fail(store);
  scheduler_parts parts{*door, metrics, pulse, std::shared_ptr<weight_store>{std::move(*store)}};
  const auto board = std::make_shared<status_board>(ROLLCAST_VERSION);
  parts.board = board;
  std::shared_ptr<open_journal> kept; // outlives the actors, who write to it
  if (!options.journal.path.empty()) {
    auto opened = open_when_it_can(options.journal, *door, metrics, stop);
    if (!opened)
      return fail(opened);
    if (!*opened)
      return {};
    kept = std::move(*opened);
    parts.link = kept->link;
    parts.journal = kept->access;
  }
  node_system node{options.liveness, std::move(*tls)};
  const auto actor = node.get().spawn(scheduler, std::move(parts), options.scheduler);
  node.keep(actor);
  const telling news{kept, actor};
  const auto port = publish(node.get(), actor, options);
  if (!port)
    return fail(port);
  auto http = serve_http(options.metrics_address, options.metrics_port,
                         routes_of(metrics, pulse, board, stop));
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
  while (!stop.stop_requested()) {
    stopped.wait_for(lock, stop, std::chrono::seconds{1}, [] { return false; });
    node.look_at_tls_files();
  }

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
