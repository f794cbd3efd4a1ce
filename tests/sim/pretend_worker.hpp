#pragma once

#include "cluster/policy/view.hpp"
#include "engine/base/prng.hpp"

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace rollcast::sim {

/// What a dispatch carries besides the decision: the shell knows it, the policy does not say it.
struct work_order {
  policy::dispatch what;
  std::uint32_t prompt_tokens = 0;
  std::uint32_t tokens_done = 0;
  std::uint32_t length = 0; ///< Where the response truly ends.
};

/// Keeps the worker's side of the protocol, and fails loudly when the policy breaks it: blocks are
/// counted here by what is really held, not by what the policy believes.
class pretend_worker {
public:
  explicit pretend_worker(policy::worker_joined shape) : shape_(shape) {}

  struct parked {
    std::uint32_t blocks = 0;
    std::uint32_t tokens_done = 0;
    std::uint32_t attempt = 0;
    std::uint32_t context = 0; ///< Tokens of KV, prompt included.
    bool spilled = false;      ///< Out of the blocks.
  };

  /// Takes an order. @returns what is wrong with it. `fails`: cannot start, for the worker's own
  /// reasons. `ticks`: how long the chunk takes.
  std::string take(const work_order& order, bool fails, std::uint32_t ticks);
  void take(const policy::release& r);
  /// `fails`: it cannot keep the KV, and says so. @returns what is wrong: more spilled than there
  /// is space for.
  std::string take(const policy::spill& s, bool fails);
  /// Ends a chunk where it stands, at so many sixteenths of it.
  void take(const policy::cut& c, std::uint32_t sixteenths);
  void cut_all(std::uint32_t sixteenths);
  /// Advances one tick; what it has to say is appended to `says`. `keeps_kv` is asked per chunk.
  template <class KeepsKv, class Import>
  void step(std::vector<policy::event>& says, KeepsKv keeps_kv, Import import);
  /// Loses parked KV of one response, if there is any.
  void lose_parked(std::uint64_t pick, std::vector<policy::event>& says);
  /// Whether it holds KV of the response with exactly so many tokens.
  bool holds(response_id r, std::uint32_t tokens_done) const {
    const auto it = parked_.find(r);
    return it != parked_.end() && it->second.tokens_done == tokens_done;
  }

  const policy::worker_joined& shape() const { return shape_; }

private:
  struct running {
    work_order order;
    std::uint32_t ticks_left = 0;
    bool importing = false; ///< KV is still on its way from a peer.
  };

  std::uint32_t blocks(std::uint32_t tokens) const {
    return (tokens + shape_.block_tokens - 1) / shape_.block_tokens;
  }
  std::string overfilled() const;
  void end_early(const running& chunk, std::uint32_t sixteenths);
  void finish(const running& chunk, bool keeps_kv, std::vector<policy::event>& says);

  policy::worker_joined shape_;
  std::map<response_id, running> running_;
  std::map<response_id, parked> parked_;
  std::map<response_id, std::uint32_t> seen_; ///< Highest attempt ordered or released.
  std::vector<policy::event> failures_; ///< And edges of what was cut: told with the next tick.
};

template <class KeepsKv, class Import>
void pretend_worker::step(std::vector<policy::event>& says, KeepsKv keeps_kv, Import import) {
  says.insert(says.end(), failures_.begin(), failures_.end());
  failures_.clear();
  for (auto it = running_.begin(); it != running_.end();) {
    auto& chunk = it->second;
    const auto& what = chunk.order.what;
    if (chunk.importing) {
      chunk.importing = false;
      if (!import(chunk.order)) {
        says.push_back(policy::chunk_failed{what.response, shape_.worker, what.attempt});
        it = running_.erase(it);
        continue;
      }
      says.push_back(policy::kv_moved{what.response, shape_.worker, what.attempt});
    }
    if (--chunk.ticks_left > 0) {
      ++it;
      continue;
    }
    const auto done = chunk;
    it = running_.erase(it);
    finish(done, keeps_kv(), says);
  }
}

} // namespace rollcast::sim
