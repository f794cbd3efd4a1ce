#include "actors/node_system.hpp"

#include "actors/caf_replacements.hpp"

#include <spdlog/spdlog.h>

#include <cstdlib>
#include <future>

namespace rollcast {

node_config::node_config(const liveness_options& liveness, const tls_files* tls,
                         const std::string& version) {
  reserve_connection_numbers();
  load<caf::io::middleman>();
  if (tls != nullptr) {
    load<caf::openssl::manager>();
    openssl_certificate = tls->certificate();
    openssl_key = tls->key();
    openssl_cafile = tls->ca();
  }
  add_message_types<caf::id_block::rollcast>();
  set("middleman.heartbeat-interval", caf::timespan{liveness.heartbeat_interval_ms});
  set("middleman.connection-timeout", caf::timespan{liveness.heartbeat_timeout_ms});
  set("middleman.app-identifiers",
      std::vector{"rollcast " + (version.empty() ? std::string{ROLLCAST_VERSION} : version)});
  // One is with the decode worker while it steps, for a minute if the model is that large.
  set("scheduler.max-threads", 3);
  set("scheduler.policy", caf::atom("sharing")); // halves the latency of a remote request
}

node_system::~node_system() {
  end_actors(std::chrono::seconds{10});
}

bool node_system::end_actors(std::chrono::milliseconds span) {
  caf::scoped_actor self{system_};
  std::size_t alive = actors_.size();
  for (const auto& actor : actors_) {
    self->monitor(actor);
    self->send_exit(actor, caf::exit_reason::user_shutdown);
  }
  bool in_time = true;
  while (alive > 0 && in_time)
    self->receive([&](const caf::down_msg&) { --alive; },
                  caf::after(span) >> [&] { in_time = false; });
  actors_.clear();
  return alive == 0;
}

void node_system::look_at_tls_files() {
  if (!tls_ || !tls_->changed())
    return;
  // CAF reads the files at each handshake: in its multiplexer's thread where it accepts, and for
  // the caller of this where it dials. So neither may see files of which half are new.
  const auto done = std::make_shared<std::promise<void>>();
  system_.middleman().backend().post([this, done] {
    if (const auto news = tls_->renew(); news.good)
      spdlog::info("{}", news.line);
    else if (!news.line.empty())
      spdlog::error("{}", news.line);
    done->set_value();
  });
  done->get_future().wait();
}

result<std::unique_ptr<tls_files>> open_tls(const tls_options& options) {
  if (!options.any())
    return std::unique_ptr<tls_files>{};
  return tls_files::open(options);
}

result<std::unique_ptr<http_server>>
serve_http(const std::string& address, std::optional<std::uint16_t> port, http_routes routes) {
  if (!port)
    return std::unique_ptr<http_server>{};
  http_server_options options;
  options.address = address;
  options.port = *port;
  return http_server::start(std::move(options), std::move(routes));
}

bool is_alive(const std::atomic<std::uint64_t>& beat_ns, std::chrono::seconds span) noexcept {
  const auto limit = static_cast<std::uint64_t>(std::chrono::nanoseconds{span}.count());
  return steady_ns() < beat_ns.load(std::memory_order_relaxed) + limit;
}

} // namespace rollcast
