#pragma once

#include "cluster/wire/messages.hpp"
#include "engine/base/error.hpp"

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace rollcast::wire {

/// A controller's end of the wire, for the command line and tests. One thread at a time. Every call
/// ends within the timeout given to `connect`, or its own where it takes one.
///
/// Failures of every call: what the scheduler answered (its code, its line); `timed_out` when
/// nothing was heard in time; `frame_malformed` when the peer does not speak this protocol;
/// `peer_lost` when the socket itself failed, or the connection that a request went out on: whether
/// it was served is not known then.
class controller_client {
public:
  using milliseconds = std::chrono::milliseconds;

  /// Connects to `endpoint` ("tcp://host:port") and asks for the status once, so that a wrong or
  /// dead endpoint is one clear line within `timeout`. @returns also `bad_config` when the endpoint
  /// is none that ZeroMQ understands.
  static result<controller_client> connect(std::string endpoint, milliseconds timeout);
  ~controller_client();
  controller_client(controller_client&&) noexcept;
  controller_client& operator=(controller_client&&) noexcept;

  /// Submits a batch; its results come out of `next_event`. Also attaches to the batch when the key
  /// runs already.
  result<batch_accepted> submit(const submit_batch& batch);

  /// Has the results after `after_sequence` pushed (again) to this connection: after a silence, or
  /// from another process. `next_event` may then repeat sequence numbers.
  result<batch_accepted> resume(std::string_view batch_key, std::uint64_t after_sequence);

  result<void> cancel(std::string_view batch_key);
  result<status_report> status();

  /// Begins an update; its epoch and the largest bucket come back.
  result<weights_begun> begin_weights(const wire::begin_weights& how);
  /// Sends one bucket and waits until it is staged.
  result<void> send_bucket(const weight_bucket& bucket);
  /// Ends the sending. Waits up to `timeout` in place of the client's own, until the fleet has
  /// flipped; so do the next three.
  result<weights_served> commit_weights(const wire::commit_weights& what, milliseconds timeout);
  result<weights_served> load_weights(const wire::load_weights& what, milliseconds timeout);
  result<weights_served> rollback_weights(milliseconds timeout);
  /// Returns one row a sequence, of the right length.
  result<scored> score(const wire::score& what, milliseconds timeout);
  result<void> abort_weights(std::uint64_t epoch);

  /// Stops and starts placing; `resume` above is of a batch.
  result<void> pause_serving();
  result<void> resume_serving();

  /// Whether the connection was lost and made anew since this was last asked: what was pushed to
  /// the old one does not come again unless `resume` asks for it.
  bool reconnected();

  /// Acknowledges all results up to `sequence`. Does not wait for the answer; should the scheduler
  /// refuse, `next_event` returns that.
  result<void> ack(std::string_view batch_key, std::uint64_t sequence);

  /// Returns the next thing pushed: `response_ready`, `batch_done` or `request_failed`. A signal
  /// ends the wait early, with `timed_out`, so that Ctrl-C can be looked at.
  result<event> next_event(milliseconds timeout);

private:
  class socket;
  explicit controller_client(std::unique_ptr<socket> opened);

  result<event> ask(const request& body, milliseconds timeout);
  template <class Answer>
  result<Answer> ask_for(const request& body, std::optional<milliseconds> timeout = std::nullopt);
  result<void> ask_done(const request& body);

  std::unique_ptr<socket> socket_;
};

} // namespace rollcast::wire
