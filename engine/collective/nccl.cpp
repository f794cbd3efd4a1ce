#include "engine/collective/nccl.hpp"

#include "engine/collective/nccl_calls.hpp"
#include "kernels/cuda/runtime.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

namespace rollcast {
namespace {

namespace gpu = kernels::cuda;

/// What a communicator of NCCL works with.
struct staging {
  gpu::device_buffer device;
  gpu::pinned_buffer pinned;
  gpu::stream stream;

  static gpu::device_result<staging> make(std::size_t bytes) {
    auto device = gpu::device_buffer::allocate(bytes);
    if (!device)
      return tl::unexpected(device.error());
    auto pinned = gpu::pinned_buffer::allocate(bytes);
    if (!pinned)
      return tl::unexpected(pinned.error());
    auto stream = gpu::stream::create();
    if (!stream)
      return tl::unexpected(stream.error());
    return staging{std::move(*device), std::move(*pinned), std::move(*stream)};
  }
};

class nccl_communicator final : public communicator {
public:
  nccl_communicator(std::shared_ptr<const nccl::calls> call, const nccl_limits& limits,
                    staging memory)
    : call_(std::move(call)), limits_(limits), memory_(std::move(memory)) {}
  ~nccl_communicator() override { abort(); }

  result<void> init(const nccl::unique_id& id, std::uint32_t rank, std::uint32_t size) {
    nccl::config how;
    rank_ = rank;
    return check(call_->init_rank(&comm_, static_cast<int>(size), id, static_cast<int>(rank), &how),
                 "forming a group of " + std::to_string(size));
  }

  result<void> exchange(std::vector<rank_transfer> transfers) override {
    if (transfers.size() > limits_.transfers_max)
      return fail(errc::frame_too_large, std::to_string(transfers.size())
                                           + " transfers at once, at most "
                                           + std::to_string(limits_.transfers_max));
    return begin(std::move(transfers), false);
  }

  result<void> broadcast(std::uint32_t root, std::span<std::byte> bytes) override {
    if (root == rank_)
      return begin({{.peer = root, .out = bytes, .in = {}}}, true);
    return begin({{.peer = root, .out = {}, .in = bytes}}, true);
  }

  result<bool> poll() override {
    auto over = advance();
    if (!over)
      failed_ = true;
    return over;
  }

  void abort() override {
    if (comm_ == nullptr)
      return;
    call_->abort(std::exchange(comm_, nullptr));
    failed_ = true;
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds{1};
    auto idle = memory_.stream.idle();
    while (idle && !*idle && std::chrono::steady_clock::now() < until) {
      std::this_thread::sleep_for(std::chrono::milliseconds{1});
      idle = memory_.stream.idle();
    }
    if (idle && !*idle)
      new staging(std::move(memory_)); // to free it would wait for the device, perhaps for ever
  }

private:
  enum class stage : std::uint8_t { resting, posted, copying };

  result<void> begin(std::vector<rank_transfer> transfers, bool to_all) {
    if (comm_ == nullptr || failed_)
      return fail(errc::peer_lost, "the group has failed");
    transfers_ = std::move(transfers);
    to_all_ = to_all;
    piece_ = to_all ? memory_.device.size() : limits_.piece_bytes;
    at_ = 0;
    return post();
  }

  result<void> check(int said, const std::string& doing) {
    if (said == nccl::success || said == nccl::in_progress)
      return {};
    failed_ = true;
    return fail(errc::peer_lost, doing + ": NCCL says " + call_->words(said));
  }

  result<void> check(const gpu::device_status& said) {
    if (said)
      return {};
    failed_ = true;
    return fail(errc::peer_lost, said.error().what);
  }

  /// Bytes of a transfer in the piece at `at_`.
  std::size_t piece_of(const rank_transfer& t) const {
    const auto size = std::max(t.in.size(), t.out.size());
    return at_ < size ? std::min(piece_, size - at_) : 0;
  }

  result<void> post();
  result<bool> advance();

  std::shared_ptr<const nccl::calls> call_;
  nccl_limits limits_;
  staging memory_;
  void* comm_ = nullptr;
  std::uint32_t rank_ = 0;
  std::vector<rank_transfer> transfers_; ///< Of the operation that runs; slot i is the i-th's.
  bool to_all_ = false;                  ///< It is a broadcast: the only one, by or from its root.
  std::size_t piece_ = 0;
  std::size_t at_ = 0;
  stage stage_ = stage::resting;
  bool failed_ = false;
};

/// Begins the piece at `at_`. Both ends of a transfer cut it alike, and piece n of all transfers of
/// a rank is one group: nobody waits for a piece that another begins only later.
result<void> nccl_communicator::post() {
  const auto stream = memory_.stream.handle();
  for (std::size_t i = 0; i < transfers_.size(); ++i) {
    const auto& t = transfers_[i];
    const auto bytes = piece_of(t);
    if (t.out.empty() || bytes == 0)
      continue;
    auto* const pinned = memory_.pinned.data() + i * limits_.piece_bytes;
    std::memcpy(pinned, t.out.data() + at_, bytes);
    if (auto ok = check(
          gpu::copy_async(memory_.device.data() + i * limits_.piece_bytes, pinned, bytes, stream));
        !ok)
      return ok;
  }
  auto ok = check(call_->group_start(), "beginning an operation");
  if (!ok)
    return ok;
  for (std::size_t i = 0; i < transfers_.size() && ok; ++i) {
    const auto& t = transfers_[i];
    const auto bytes = piece_of(t);
    auto* const slot = memory_.device.data() + i * limits_.piece_bytes;
    const int peer = static_cast<int>(t.peer);
    if (bytes == 0)
      continue;
    if (to_all_)
      ok =
        check(call_->broadcast(slot, slot, bytes, nccl::uint8, peer, comm_, stream), "a broadcast");
    else if (!t.out.empty())
      ok = check(call_->send(slot, bytes, nccl::uint8, peer, comm_, stream), "a send");
    else
      ok = check(call_->receive(slot, bytes, nccl::uint8, peer, comm_, stream), "a receive");
  }
  const auto ended = check(call_->group_end(), "an operation");
  stage_ = stage::posted;
  return ok ? ended : ok;
}

result<bool> nccl_communicator::advance() {
  if (comm_ == nullptr || failed_)
    return fail(errc::peer_lost, "the group has failed");
  int state = nccl::success;
  if (auto ok = check(call_->async_error(comm_, &state), "asking for errors"); !ok)
    return fail(ok);
  if (state == nccl::in_progress)
    return false; // of the group, or of an operation whose work is not with the device yet
  if (auto ok = check(state, "a rank of the group failed"); !ok)
    return fail(ok);
  if (stage_ == stage::resting)
    return true;
  if (stage_ == stage::posted)
    for (std::size_t i = 0; i < transfers_.size(); ++i)
      if (const auto bytes = piece_of(transfers_[i]); !transfers_[i].in.empty() && bytes > 0)
        if (auto ok = check(gpu::copy_async(memory_.pinned.data() + i * limits_.piece_bytes,
                                            memory_.device.data() + i * limits_.piece_bytes, bytes,
                                            memory_.stream.handle()));
            !ok)
          return fail(ok);
  stage_ = stage::copying;
  const auto idle = memory_.stream.idle();
  if (!idle)
    return fail(errc::peer_lost, idle.error().what);
  if (!*idle)
    return false;
  bool more = false;
  for (std::size_t i = 0; i < transfers_.size(); ++i) {
    const auto& t = transfers_[i];
    const auto bytes = piece_of(t);
    if (!t.in.empty() && bytes > 0)
      std::memcpy(t.in.data() + at_, memory_.pinned.data() + i * limits_.piece_bytes, bytes);
    more = more || at_ + bytes < std::max(t.in.size(), t.out.size());
  }
  at_ += piece_;
  stage_ = stage::resting;
  if (!more)
    return true;
  if (auto ok = post(); !ok)
    return fail(ok);
  return false;
}

/// NCCL takes this variable before what a communicator is configured with. Where it is not set,
/// NCCL's file (/etc/nccl.conf) may set it in the first group of a rank that has made no id.
result<void> refuse_blocking() {
  const char* const value = std::getenv("NCCL_COMM_BLOCKING");
  if (value != nullptr && std::strtoll(value, nullptr, 0) != 1)
    return {};
  return fail(errc::bad_config,
              (value != nullptr ? "NCCL_COMM_BLOCKING=" + std::string{value} + " in the environment"
                                : "NCCL_COMM_BLOCKING, which is not set: /etc/nccl.conf")
                + " would have a worker wait for ever for one that is lost: set it to 0");
}

class nccl_maker final : public communicator_maker {
public:
  nccl_maker(std::shared_ptr<const nccl::calls> call, nccl_limits limits, std::uint32_t device,
             std::string name)
    : call_(std::move(call)), limits_(std::move(limits)), device_(device), name_(std::move(name)) {}

  const std::string& device() const noexcept override { return name_; }

  result<std::string> new_id() override {
    nccl::unique_id id{};
    if (const int said = call_->get_unique_id(&id); said != nccl::success)
      return fail(errc::peer_lost, std::string{"ncclGetUniqueId: NCCL says "} + call_->words(said));
    return std::string{id.bytes.begin(), id.bytes.end()};
  }

  result<std::unique_ptr<communicator>> form(const std::string& id, std::uint32_t rank,
                                             std::uint32_t size) override {
    nccl::unique_id native{};
    if (id.size() != native.bytes.size())
      return fail(errc::frame_malformed, "the id of a group has " + std::to_string(id.size())
                                           + " bytes, expected "
                                           + std::to_string(native.bytes.size()));
    std::copy(id.begin(), id.end(), native.bytes.begin());
    if (auto used = gpu::use_device(device_); !used) // it is the thread's
      return fail(errc::peer_lost, used.error().what);
    auto memory = staging::make(limits_.transfers_max * limits_.piece_bytes);
    if (!memory)
      return fail(errc::peer_lost, "memory for NCCL: " + memory.error().what);
    auto made = std::make_unique<nccl_communicator>(call_, limits_, std::move(*memory));
    if (auto begun = made->init(native, rank, size); !begun)
      return fail(begun);
    return made;
  }

private:
  std::shared_ptr<const nccl::calls> call_;
  nccl_limits limits_;
  std::uint32_t device_;
  std::string name_;
};

} // namespace

result<std::unique_ptr<communicator_maker>> open_nccl(std::uint32_t device, nccl_limits limits) {
  const auto info = gpu::describe_device(device);
  if (!info)
    return fail(errc::bad_config, info.error().what);
  if (auto blocks = refuse_blocking(); !blocks)
    return fail(blocks);
  std::string why_not;
  std::shared_ptr<const nccl::calls> call = nccl::calls::find(limits.library, why_not);
  if (!call)
    return fail(errc::bad_config, why_not);
  return std::make_unique<nccl_maker>(std::move(call), std::move(limits), device, info->uuid);
}

} // namespace rollcast
