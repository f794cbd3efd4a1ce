#pragma once

#include "actors/controller_link.hpp"
#include "actors/outbox.hpp"
#include "actors/protocol.hpp"
#include "actors/request_ledger.hpp"
#include "cluster/security/curve_policy.hpp"
#include "cluster/telemetry/metrics.hpp"
#include "engine/base/error.hpp"

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace rollcast {

struct frontend_options {
  std::string bind = "tcp://127.0.0.1:7450"; ///< ZeroMQ endpoint; port `*` or 0 takes any.
  int messages_per_peer_max = 4096;          ///< Queued for a peer that does not read; more drop.
  outbox_bounds out;                         ///< Bytes of what is queued.
  /// Of what the frontend itself refuses; more is dropped, so nobody grows by what it did wrong.
  outbox_bounds refusals{std::size_t{256} << 10, std::size_t{64} << 20, std::size_t{4} << 10};
  request_bounds in;                  ///< Requests given to the scheduler, not answered.
  std::shared_ptr<curve_policy> keys; ///< Null: whoever reaches the port is a controller.
  client_limits client;               ///< Of a client by its address, where there are no keys.
  std::size_t connections_max = 8'192;
  std::size_t connections_per_address_max = 2'048;
};

/// The controllers' door: one thread that owns a ZeroMQ ROUTER. Decodes requests and hands them on,
/// encodes and sends what the scheduler says. Whatever arrives, the answer is an event or an Error
/// and a counter; a peer that does not read loses its own messages and holds up nobody.
class frontend final : public controller_link {
public:
  /// Where requests and news of lost peers go; called on the frontend's thread, must not block.
  struct handlers {
    std::function<void(controller_request)> request;
    std::function<void(std::string)> gone;
  };

  /// Binds. Fails with `address_in_use` or `bad_config` (detail: endpoint). Nothing is served
  /// before `start`.
  static result<std::shared_ptr<frontend>> open(frontend_options options,
                                                std::shared_ptr<scheduler_metrics> metrics);
  /// Starts the thread. Once.
  void start(handlers to);
  /// Stops the thread and closes the socket; what is queued gets a moment to leave.
  void stop();
  ~frontend() override;

  /// The endpoint with the port that was bound.
  const std::string& endpoint() const noexcept;

  void send(const std::string& peer, wire::event_envelope what) override;

private:
  class loop;
  explicit frontend(std::unique_ptr<loop> l) noexcept;
  std::unique_ptr<loop> loop_;
};

} // namespace rollcast
