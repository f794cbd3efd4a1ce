#pragma once

#include "engine/base/error.hpp"

#include <sys/types.h>
#include <zmq.hpp>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace rollcast::cli {

/// Processes that take ZeroMQ messages over loopback and drop them: what ZeroMQ alone can do from
/// one process to others. They end with the object.
class zeromq_receivers {
public:
  /// Forks them. To be called while the process has no other thread, because a fork takes none
  /// along. Fails with `io_failed`.
  static result<zeromq_receivers> start(std::uint32_t count);
  ~zeromq_receivers();
  zeromq_receivers(zeromq_receivers&& other) noexcept = default;
  zeromq_receivers& operator=(zeromq_receivers&&) = delete;

  /// Bytes a second, of all receivers together, that reach them when each is sent `bytes`. Fails
  /// with `peer_lost` if one has died.
  result<double> rate(std::uint64_t bytes) const;

private:
  struct receiver {
    pid_t process;
    int pipe; ///< It says where it listens, then a byte for each round that has come.
    std::string endpoint;
  };
  explicit zeromq_receivers(std::vector<receiver> all) : all_(std::move(all)) {}

  std::vector<receiver> all_;
};

/// The same to threads of this process.
double zeromq_rate_in_process(std::uint64_t bytes, std::uint32_t receivers);

} // namespace rollcast::cli
