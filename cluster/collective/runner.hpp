#pragma once

#include "cluster/collective/member.hpp"

#include <condition_variable>
#include <mutex>
#include <thread>

namespace rollcast::collective {

/// Runs a `member` on a thread of its own, so that a step of the engine and a communicator never
/// wait for each other. Any thread may call every member; none of them blocks but `stop`.
class runner final : public kv_carrier {
public:
  using done_function = kv_carrier::done_function;
  /// Brings news to the scheduler. On the runner's thread; must not block.
  using tell_function = std::function<void(news)>;

  explicit runner(std::shared_ptr<communicator_maker> maker, member_limits limits = {});
  /// Whatever is under way, or was asked for and not begun, hears why it ends; the communicator is
  /// aborted. Waits for the thread, for ever if that hangs in its device.
  ~runner() override;
  runner(const runner&) = delete;
  runner& operator=(const runner&) = delete;

  /// Has the thread end, as the destructor does, and waits at most `span` for it. Nothing may be
  /// asked afterwards: nobody would hear how it ends. @returns false if the thread still runs.
  bool stop(instant span);

  /// As `communicator_maker::device`.
  const std::string& device() const noexcept { return device_; }

  /// This worker is that incarnation now, of the scheduler that `tell` reaches; 0 and null: of
  /// none.
  void serve(worker_id as, tell_function tell);
  /// An order for that incarnation. One that is here before `serve` waits for it; one for an
  /// incarnation that is over is dropped.
  void obey(worker_id meant, order what);

  /// Nobody while the thread hangs in its device.
  worker_id reaches(worker_id holder) const override;
  void fetch(std::uint64_t pull, memory into, done_function done) override;
  void give(worker_id puller, std::uint64_t pull, std::shared_ptr<const kv_image> image) override;

  /// As `member` says.
  void cast_weights(std::uint64_t update, std::uint64_t epoch, std::shared_ptr<weight_cargo> cargo);
  void await_weights(std::uint64_t update, std::uint64_t epoch, std::shared_ptr<weight_cargo> cargo,
                     done_function done);
  void forget_weights(std::uint64_t update);

private:
  using command = std::function<void(member&, instant now)>;

  void post(command what);
  void run(const std::stop_token& stop);

  const std::shared_ptr<communicator_maker> maker_;
  const std::string device_;
  const instant turn_max_;
  tell_function tell_; ///< The thread's, as these:
  worker_id serving_;
  std::vector<std::pair<worker_id, order>> early_; ///< While it serves nobody.
  bool over_ = false;                              ///< Nobody is served any more.

  mutable std::mutex mutex_;
  std::condition_variable_any bell_;
  std::vector<command> commands_; ///< Guarded by `mutex_`, as all below.
  worker_id id_;
  std::vector<worker_id> peers_;
  instant turned_{0}; ///< When the thread last had a turn behind it; `peers_` are of then.
  bool ended_ = false;
  member member_; ///< The thread's; ends on it.
  std::jthread thread_;
};

} // namespace rollcast::collective
