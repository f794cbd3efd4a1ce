#include "actors/bytes.hpp"
#include "actors/collective_seat.hpp"
#include "actors/decode_worker.hpp"
#include "actors/error_bridge.hpp"
#include "actors/node_system.hpp"
#include "cluster/transport/tcp_probe.hpp"
#include "engine/draft/measure_steps.hpp"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <thread>

namespace rollcast {
namespace {

using milliseconds = std::chrono::milliseconds;
using clock = std::chrono::steady_clock;

/// Where the KV exchange's thread finds the worker actor, which is made after it.
class mailbox_slot {
public:
  void set(decode_worker_actor to) {
    const std::scoped_lock lock{mutex_};
    to_ = std::move(to);
  }
  void post(export_query query) {
    const std::scoped_lock lock{mutex_};
    if (to_) // else the asker's own timeout answers it
      caf::anon_send(to_, std::move(query));
  }

private:
  std::mutex mutex_;
  decode_worker_actor to_;
};

http_routes routes_of(std::shared_ptr<worker_metrics> metrics, std::shared_ptr<worker_pulse> pulse,
                      std::stop_token stop, std::chrono::seconds stuck_after) {
  http_routes routes;
  routes.metrics = [metrics] { return metrics->registry.text(); };
  routes.healthz = [pulse, stuck_after]() -> health {
    if (is_alive(pulse->beat_ns, stuck_after)) // its actor steps the engine, and beats in between
      return {true, "ok"};
    return {false, "the worker has not turned for " + std::to_string(stuck_after.count()) + " s"};
  };
  routes.readyz = [pulse, stop]() -> health {
    if (stop.stop_requested())
      return {false, "draining"};
    if (pulse->link() == link_state::up && pulse->current)
      return {true, "registered"};
    if (pulse->link() == link_state::up)
      return {false, "registered, not at the cluster's weight epoch"};
    return {false, "not registered with a scheduler"};
  };
  return routes;
}

worker_hello hello_of(const worker_node_options& options, const engine& device,
                      const spill_store& spilled, const std::string& data_endpoint,
                      const std::string& weights_endpoint) {
  const auto& shape = device.device().shape();
  const auto& numerics = device.device().numerics();
  const auto batch = device.limits().batch_max;
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  worker_hello hello;
  hello.name = options.name;
  hello.host = host.data();
  hello.pid = static_cast<std::uint64_t>(::getpid());
  hello.data_endpoint = data_endpoint;
  hello.weights_endpoint = weights_endpoint;
  hello.model = options.model;
  hello.numerics = std::string{numerics.name};
  hello.numerics_hash = numerics.hash();
  hello.weights_hash = device.device().weights_hash();
  hello.weight_epoch = options.weight_epoch;
  hello.speculate = to_string(options.speculation.how);
  hello.kv_blocks = shape.kv_blocks;
  hello.block_tokens = shape.block_tokens;
  // A few more than fit a step, so that the next chunk is there when one ends.
  hello.slots = options.slots != 0 ? options.slots : batch + std::max(1u, batch / 8);
  hello.kv_bytes_per_token = static_cast<std::uint32_t>(shape.kv_bytes_per_token());
  hello.spill_page_tokens =
    static_cast<std::uint32_t>(spilled.page_bytes() / shape.kv_bytes_per_token());
  hello.spill_tokens = spilled.pages() * hello.spill_page_tokens;
  hello.context_max = device.limits().context_max;
  hello.vocabulary = shape.vocabulary;
  hello.experts = shape.experts;
  hello.eos_token_ids = to_bytes(device.device().eos_token_ids());
  return hello;
}

/// The actor's options; the hello says what the worker is.
decode_worker_options options_of(const worker_node_options& options, worker_hello hello) {
  decode_worker_options out;
  out.hello = std::move(hello);
  out.weight_threads = options.weight_threads;
  out.weight_memory_kept = options.weight_memory_kept;
  return out;
}

/// What takes part in collective groups for this worker; null if nothing does.
std::shared_ptr<collective::runner> start_collectives(const worker_node_options& options) {
  if (!options.collectives)
    return nullptr;
  auto limits = options.collective_limits;
  limits.given_bytes_max = options.kv.images_bytes_max;
  return std::make_shared<collective::runner>(options.collectives, limits);
}

/// How images travel, given what they are images of.
kv_exchange_options kv_options_of(const worker_node_options& options, const engine& device,
                                  std::shared_ptr<kv_carrier> carrier) {
  auto kv = options.kv;
  kv.group_bytes = device.device().shape().kv_group_bytes;
  kv.group_tokens = static_cast<std::uint32_t>(kernels::kv_group);
  kv.carrier = std::move(carrier);
  return kv;
}

std::string shown(const step_costs& costs) {
  std::string table;
  for (const auto& [rows, seconds] : costs.points())
    table += fmt::format("{}{}: {:.3g} ms", table.empty() ? "" : ", ", rows, seconds * 1e3);
  return table;
}

/// What drafts from what is written here; null if nothing does.
std::shared_ptr<speculator> make_drafts(const worker_node_options& options, backend& device) {
  const auto& how = options.speculation;
  if (how.how == speculation::off || how.how == speculation::mtp || how.how == speculation::eagle3)
    return nullptr;
  if (how.how != speculation::auto_)
    return std::make_shared<speculator>(how);
  auto costs = measure_steps(device);
  // Where rows are dear from the first on, this table says why nothing is drafted.
  spdlog::info("a step by its rows takes {}", shown(costs));
  const auto drafts = std::make_shared<speculator>(how, std::move(costs));
  if (const auto& model = options.draft_model) {
    model->use_target(device.weights());
    auto passes = measure_steps(*model->model().device, model->model().width);
    spdlog::info("a pass of the draft model by its rows takes {}", shown(passes));
    drafts->consider(model, std::move(passes));
  }
  return drafts;
}

/// What drafts also from what siblings write on other workers; null if nothing is shared.
result<std::shared_ptr<shared_drafter>> share_drafts(const worker_node_options& options,
                                                     std::shared_ptr<speculator> drafts,
                                                     std::uint32_t vocabulary,
                                                     std::shared_ptr<worker_metrics> metrics) {
  const auto how = options.speculation.how;
  if (options.draft_server.empty() || (how != speculation::group && how != speculation::auto_))
    return std::shared_ptr<shared_drafter>{};
  draft_link_options link;
  link.server = options.draft_server;
  link.keys = options.draft_keys;
  link.ledger.vocabulary = vocabulary;
  auto opened = draft_link::open(std::move(link));
  if (!opened)
    return fail(opened);
  return std::make_shared<shared_drafter>(
    std::move(drafts), std::move(*opened),
    [metrics](double seconds) { metrics->draft_staleness_seconds.observe(seconds); });
}

/// Has the engine draft with the first that there is.
void begin_drafts(engine& runner, const std::shared_ptr<shared_drafter>& shared,
                  const std::shared_ptr<speculator>& drafts,
                  const std::shared_ptr<model_drafter>& model) {
  if (shared)
    runner.speculate(shared);
  else if (drafts)
    runner.speculate(drafts);
  else
    runner.speculate(model);
}

/// Connects to the scheduler; blocks for a few seconds at most.
result<registry_actor> dial(node_system& node, const std::string& host, std::uint16_t port) {
  auto& system = node.get();
  if (auto there = probe_tcp(host, port, milliseconds{1'000}); !there)
    return fail(there);
  result<registry_actor> out = fail(errc::peer_lost, "no answer");
  caf::scoped_actor self{system};
  self
    ->request(node.has_tls() ? system.openssl_manager().actor_handle()
                             : system.middleman().actor_handle(),
              std::chrono::seconds{5}, caf::connect_atom_v, host, port)
    .receive(
      [&](const caf::node_id&, const caf::strong_actor_ptr& found,
          const std::set<std::string>& offers) {
        if (found && system.assignable(offers, system.message_types<registry_actor>()))
          out = caf::actor_cast<registry_actor>(found);
        else
          out = fail(errc::bad_config, host + ":" + std::to_string(port)
                                         + " is no Rollcast scheduler, or one of another version");
      },
      [&](const caf::error& why) {
        if (why == caf::sec::incompatible_application_ids)
          out =
            fail(errc::bad_config, "the scheduler at " + host + ":" + std::to_string(port)
                                     + " is of another version of Rollcast than " ROLLCAST_VERSION
                                       ": run both in one version");
        else
          out = fail(errc::peer_lost, "no scheduler at " + host + ":" + std::to_string(port) + ": "
                                        + detail_of(why));
      });
  return out;
}

/// Keeps the worker registered until `stop`, a refusal, or too long a time without a scheduler.
result<void> keep_linked(node_system& node, const decode_worker_actor& actor, worker_pulse& pulse,
                         const worker_node_options& options, const std::stop_token& stop) {
  auto linked_last = clock::now();
  auto pause = milliseconds{50};
  std::string last_words;
  while (!stop.stop_requested()) {
    const auto link = pulse.link();
    if (link == link_state::refused)
      return tl::unexpected(*pulse.why());
    if (link == link_state::up) {
      linked_last = clock::now();
      pause = milliseconds{50};
    }
    if (link != link_state::down) {
      pulse.wait_while(link, milliseconds{50});
      continue;
    }
    if (clock::now() - linked_last > options.give_up_ms)
      return fail(errc::peer_lost, "no scheduler at " + options.scheduler_host + ":"
                                     + std::to_string(options.scheduler_port) + " for "
                                     + std::to_string(options.give_up_ms.count())
                                     + " ms: " + last_words);
    node.look_at_tls_files();
    if (const auto found = dial(node, options.scheduler_host, options.scheduler_port)) {
      pulse.set_link(link_state::registering);
      caf::anon_send(actor, atom::join_v, *found);
      continue;
    } else if (found.error().detail != last_words) {
      last_words = found.error().detail; // said once, not at every attempt
      spdlog::warn("waiting for the scheduler: {}", last_words);
    }
    for (auto slept = milliseconds{0}; slept < pause && !stop.stop_requested();
         slept += milliseconds{25})
      std::this_thread::sleep_for(milliseconds{25});
    pause = std::min(pause * 2, milliseconds{2'000});
  }
  return {};
}

bool linked(const worker_pulse& pulse) {
  const auto link = pulse.link();
  return link == link_state::up || link == link_state::registering;
}

/// Waits until `done`, the link is gone or it is late. @returns whether `done`.
template <class Done>
bool wait_linked(const worker_pulse& pulse, clock::time_point until, Done done) {
  while (!done()) {
    if (!linked(pulse) || clock::now() >= until)
      return false;
    std::this_thread::sleep_for(milliseconds{2});
  }
  return true;
}

/// Leaves well: nothing new, running chunks end or are cut, peers fetch the KV, and the scheduler
/// has heard of every edge.
void drain(const decode_worker_actor& actor, worker_pulse& pulse,
           const worker_node_options& options) {
  const auto began = clock::now();
  const auto until = began + options.drain_ms_max;
  const auto empty = [&] { return pulse.drained && pulse.idle; };
  caf::anon_send(actor, atom::drain_v);
  if (!wait_linked(pulse, began + options.drain_ms_max / 2, empty)) {
    caf::anon_send(actor, atom::cut_v, worker_id{});
    if (!wait_linked(pulse, until, empty) && linked(pulse))
      spdlog::info("stopped after {} ms with KV that no peer has fetched; it is computed again",
                   options.drain_ms_max.count());
  }
  if (!linked(pulse))
    return; // nobody is there to be told
  // What was said last may still be on its way; an answer to more shows that it has arrived.
  pulse.drained = false;
  caf::anon_send(actor, atom::drain_v);
  if (!wait_linked(pulse, std::max(until, clock::now() + milliseconds{1'000}),
                   [&] { return pulse.drained.load(); }))
    spdlog::warn("the scheduler did not confirm the last edges; what it lacks is done again");
}

/// Ends what computes. @returns false if some of it does not end in time.
bool end_threads(node_system& node, collective::runner* group, const worker_node_options& options) {
  const bool steps_end = node.end_actors(std::chrono::minutes{2});
  if (!steps_end)
    spdlog::error("worker '{}': a step does not end", options.name);
  const bool group_ends = group == nullptr || group->stop(options.collective_limits.turn_max);
  if (!group_ends)
    spdlog::error("worker '{}': the thread of its collective group does not end", options.name);
  return steps_end && group_ends;
}

} // namespace

result<void> run_worker(const worker_node_options& options, std::unique_ptr<backend> device,
                        std::stop_token stop,
                        const std::function<void(const worker_ports&)>& ready) {
  auto tls = open_tls(options.tls);
  if (!tls)
    return fail(tls);
  auto spill = spill_store::open(options.spill, device->shape().kv_group_bytes);
  if (!spill)
    return fail(spill);
  const std::shared_ptr<spill_store> spilled = std::move(*spill);
  const auto drafts = make_drafts(options, *device);
  const auto runner = std::make_shared<engine>(std::move(device), options.engine);
  const auto metrics = std::make_shared<worker_metrics>(
    ROLLCAST_VERSION, std::string{runner->device().numerics().name});
  metrics->weight_epoch.set(static_cast<double>(options.weight_epoch));
  const auto shared = share_drafts(options, drafts, runner->device().shape().vocabulary, metrics);
  if (!shared)
    return fail(shared);
  begin_drafts(*runner, *shared, drafts, options.draft_model);
  const auto pulse = std::make_shared<worker_pulse>();
  pulse->beat_ns = steady_ns();
  // Destroyed in this order: the actors, the exchange that they use, CAF. So the handles in the
  // exchange's callbacks never outlive the system.
  node_system node{options.liveness, std::move(*tls), options.version};
  mailbox_slot slot;
  const auto collectives = start_collectives(options);
  auto exchange = kv_exchange::open(kv_options_of(options, *runner, collectives),
                                    [&](const kv_request& what, const kv_ticket& ticket) {
                                      slot.post({what, ticket});
                                    });
  if (!exchange)
    return fail(exchange);
  auto weights = weight_exchange::open(options.weights);
  if (!weights)
    return fail(weights);
  auto http = serve_http(options.metrics_address, options.metrics_port,
                         routes_of(metrics, pulse, stop, options.stuck_after_s));
  if (!http)
    return fail(http);
  auto hello =
    hello_of(options, *runner, *spilled, (*exchange)->endpoint(), (*weights)->endpoint());
  if (collectives) {
    hello.collective_device = collectives->device();
    hello.collective_seat = node.get().spawn(collective_seat, collectives);
    node.keep(hello.collective_seat);
  }
  auto actor =
    node.get().spawn(decode_worker,
                     decode_worker_parts{runner, spilled, drafts, exchange->get(), metrics, pulse,
                                         *shared, weights->get(), options.draft_model, collectives},
                     options_of(options, hello));
  node.keep(actor);
  slot.set(actor);
  spdlog::info("worker '{}': data on {}, {} KV blocks of {} tokens", options.name,
               (*exchange)->endpoint(), hello.kv_blocks, hello.block_tokens);
  if (ready)
    ready({(*exchange)->endpoint(),
           *http ? std::optional{(*http)->port()} : std::optional<std::uint16_t>{}});

  const auto ended = keep_linked(node, actor, *pulse, options, stop);
  if (ended)
    drain(actor, *pulse, options);
  spdlog::info("worker '{}': stopping", options.name);
  slot.set(decode_worker_actor{});
  if (!end_threads(node, collectives.get(), options) && options.abandon)
    options.abandon(ended);
  return ended;
}

} // namespace rollcast
