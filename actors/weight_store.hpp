#pragma once

#include "cluster/weights/weight_exchange.hpp"
#include "cluster/weights/weight_stage.hpp"
#include "cluster/wire/weight_messages.hpp"
#include "engine/base/error.hpp"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace rollcast {

/// What workers are to be given of an epoch.
struct weight_parcel {
  std::shared_ptr<const weight_cargo> cargo;
  bool complete = false; ///< All tensors of the model.
};

/// The scheduler's tensors: those of the update that a controller sends, and all that was sent up
/// to the epoch served and the one before, for workers that come back. Workers pull them through
/// its exchange. Not thread-safe, but for what `read` and `finish` start.
class weight_store {
public:
  /// Bytes of tensors in one bucket.
  static constexpr std::uint64_t bucket_bytes_max = std::uint64_t{32} << 20;

  /// @param memory_kept  Bytes of one update kept for the next.
  static result<std::unique_ptr<weight_store>> open(weight_exchange_options options,
                                                    std::uint64_t memory_kept);
  /// Runs what takes long beside the caller.
  using runner = std::function<void(std::function<void()>)>;
  /// Over a mover that is there already.
  /// @param aside  none: a thread of its own
  weight_store(std::unique_ptr<weight_mover> exchange, std::uint64_t memory_kept, runner aside = {})
    : memory_(memory_kept), exchange_(std::move(exchange)), aside_(std::move(aside)) {}

  const std::string& endpoint() const noexcept { return exchange_->endpoint(); }

  /// Opens the stage of an update. The one before is forgotten.
  void begin(std::uint64_t update, bool complete);
  /// Takes a bucket. Fails with `batch_conflict` for a number that came before, and as
  /// `weight_stage::add_slice`; the slices before the one that is refused stay.
  result<void> add(const wire::weight_bucket& bucket);
  /// Told the tensors of an update, by a thread of their own.
  using staged_callback = std::function<void(result<std::shared_ptr<weight_cargo>>)>;
  /// Takes every tensor of a checkpoint directory and finishes the stage, on a thread of its own.
  /// Nothing of the directory stays in use afterwards.
  void read(const std::filesystem::path& directory, staged_callback done);
  /// Finishes the stage, on a thread of its own: its last tensors are hashed there. Fails as
  /// `weight_stage::finish`.
  void finish(staged_callback done);
  /// Hands out what was staged, from now on under this number.
  const weight_parcel& hand_out(std::uint64_t update, std::shared_ptr<const weight_cargo> cargo);

  /// The tensors of the update in work, under that number.
  const weight_parcel* staged(std::uint64_t update) const;
  /// All that was ever sent up to `epoch`, under the number of whoever asks. Null if nothing was
  /// sent (it is the checkpoint that all were started from, or older than this scheduler), or the
  /// epoch is neither the one served nor the one before.
  std::shared_ptr<const weight_parcel> whole(std::uint64_t update, std::uint64_t epoch);

  /// The update is what the fleet serves.
  void commit(std::uint64_t update, std::uint64_t epoch);
  /// The fleet serves `epoch` again, the one before.
  void go_back(std::uint64_t epoch);
  /// The update is over without being served.
  void drop(std::uint64_t update);
  /// Nobody pulls under that number any more.
  void withdraw(std::uint64_t update) { exchange_->withdraw(update); }

  /// True if tensors were ever served from here.
  bool has_served() const noexcept { return !sent_.empty(); }

private:
  struct held_tensor {
    tensor_info info;
    kept_bytes content;
  };
  /// All that was sent up to an epoch.
  struct sent_epoch {
    std::uint64_t epoch = 0;
    bool complete = false;
    std::map<std::string, held_tensor> tensors;
  };

  void start_reader(std::function<void(const std::stop_token&)> body);

  tensor_memory memory_;
  std::uint64_t update_ = 0;
  bool complete_ = false;
  std::shared_ptr<weight_stage> stage_; ///< Shared with the thread that reads.
  std::set<std::uint64_t> buckets_;
  weight_parcel parcel_;         ///< Of `update_`, once it is finished.
  std::vector<sent_epoch> sent_; ///< The one served comes last, before it the one before.
  std::unique_ptr<weight_mover> exchange_;
  runner aside_;
  std::vector<std::jthread> readers_; ///< The last one may still read or hash.
};

} // namespace rollcast
