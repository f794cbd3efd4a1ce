#pragma once

#include "actors/protocol.hpp"
#include "cluster/weights/weight_cargo.hpp"

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

namespace rollcast {

struct herald_options {
  std::chrono::milliseconds every{1'000}; ///< How often it looks, and speaks.
  /// A step that lasts longer than this has no excuse.
  std::chrono::milliseconds busy_max{600'000};
};

/// Speaks for a worker while a step or a request for scores holds the worker's thread: tells the
/// scheduler, from a thread of its own, that the worker lives and how far its new weights are. So a
/// step of a large model, which may take a minute, does not look like silence. One thread uses it.
class herald {
public:
  explicit herald(herald_options options = {}) : options_(options) {}
  herald(const herald&) = delete;
  herald& operator=(const herald&) = delete;

  /// Speaks to this scheduler from now on, as that incarnation. Starts the thread the first time.
  void serve(registry_actor scheduler, worker_id as);
  /// Speaks to nobody.
  void leave();
  /// What is being prepared; 0: nothing, or nothing that the worker knows of yet.
  void prepares(std::uint64_t update, std::shared_ptr<const weight_cargo> cargo = {});

  /// The worker's thread is held from here to the end of the object.
  class busy {
  public:
    explicit busy(herald& of) : of_(of) { of_.set_busy(true); }
    ~busy() { of_.set_busy(false); }
    busy(const busy&) = delete;
    busy& operator=(const busy&) = delete;

  private:
    herald& of_;
  };

private:
  using clock = std::chrono::steady_clock;

  void set_busy(bool on);
  void speak(const std::stop_token& stop);

  const herald_options options_;
  std::mutex mutex_;
  std::condition_variable_any stopped_;
  registry_actor scheduler_; ///< Guarded by `mutex_`, as all below.
  worker_id id_;
  std::uint64_t update_ = 0;
  std::shared_ptr<const weight_cargo> cargo_;
  std::optional<clock::time_point> busy_since_;
  std::jthread thread_; ///< Ends before what it reads.
};

} // namespace rollcast
