#pragma once

#include "cluster/wire/messages.hpp"
#include "engine/base/error.hpp"

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace rollcast::wire {

/// A controller's end of the wire, for the command line and tests. One thread at a time. Every call
/// ends within the timeout given to `connect` (`next_event`: within its own).
///
/// Failures of every call: what the scheduler answered (its code, its line); `timed_out` when
/// nothing was heard in time; `frame_malformed` when the peer does not speak this protocol;
/// `peer_lost` when the socket itself failed.
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

  /// Acknowledges all results up to `sequence`. Does not wait for the answer; should the scheduler
  /// refuse, `next_event` returns that.
  result<void> ack(std::string_view batch_key, std::uint64_t sequence);

  /// Returns the next thing pushed: `response_ready`, `batch_done` or `request_failed`. A signal
  /// ends the wait early, with `timed_out`, so that Ctrl-C can be looked at.
  result<event> next_event(milliseconds timeout);

private:
  class socket;
  explicit controller_client(std::unique_ptr<socket> opened);

  result<event> ask(const request& body);
  template <class Answer>
  result<Answer> ask_for(const request& body);

  std::unique_ptr<socket> socket_;
};

} // namespace rollcast::wire
