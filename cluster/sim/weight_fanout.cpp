#include "cluster/sim/weight_fanout.hpp"

#include "engine/base/check.hpp"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <queue>
#include <tuple>
#include <vector>

namespace rollcast::sim {

namespace {

/// Node 0 is the coordinator, node i + 1 worker i. Slices are pulled in order, so what a node holds
/// is a count.
struct node {
  std::size_t upstream = 0;
  std::vector<std::size_t> downstream;
  std::uint64_t held = 0;   ///< Slices.
  std::uint64_t on_way = 0; ///< Of them, and those that are being sent to it.
  std::uint64_t pulls = 0;  ///< Counts its upstreams: a slice of an earlier one is lost.
  std::size_t turn = 0;     ///< Of its downstream, who is served next.
  bool sends = false;
  bool dead = false;
};

enum class what : std::uint8_t { sent, arrived, redirected };

struct happening {
  double at = 0;
  std::uint64_t order = 0; ///< Ties: as they were planned.
  what kind = what::sent;
  std::size_t node = 0;
  std::uint64_t pulls = 0;
  friend bool operator>(const happening& a, const happening& b) {
    return std::tie(a.at, a.order) > std::tie(b.at, b.order);
  }
};

std::size_t upstream_of(fanout_shape shape, std::size_t node) {
  switch (shape) {
    case fanout_shape::chain: return node - 1;
    case fanout_shape::tree: return (node - 1) / 2;
    case fanout_shape::star: return 0;
  }
  return 0;
}

class fanout_run {
public:
  explicit fanout_run(const fanout_load& load)
    : load_(load), slices_((load.bytes + load.slice_bytes - 1) / load.slice_bytes),
      nodes_(load.workers + 1) {
    nodes_[0].held = slices_;
    for (std::size_t i = 1; i < nodes_.size(); ++i) {
      nodes_[i].upstream = upstream_of(load.shape, i);
      nodes_[nodes_[i].upstream].downstream.push_back(i);
    }
  }

  double run() {
    send(0);
    while (!coming_.empty()) {
      const auto next = coming_.top();
      coming_.pop();
      now_ = next.at;
      play(next);
    }
    for (std::size_t i = 1; i < nodes_.size(); ++i)
      ROLLCAST_CHECK(nodes_[i].dead || nodes_[i].held == slices_);
    return done_;
  }

private:
  void plan(double after, what kind, std::size_t to, std::uint64_t pulls = 0) {
    coming_.push({now_ + after, ++planned_, kind, to, pulls});
  }

  double slice_seconds(std::uint64_t slice) const {
    const auto first = slice * load_.slice_bytes;
    return static_cast<double>(std::min(load_.slice_bytes, load_.bytes - first))
           / load_.link.bytes_per_s;
  }

  /// Begins the next slice of node `from`, if its link is free and anyone lacks what it holds.
  void send(std::size_t from) {
    auto& n = nodes_[from];
    if (n.sends || n.dead)
      return;
    for (std::size_t i = 0; i < n.downstream.size(); ++i) {
      const auto to = n.downstream[(n.turn + i) % n.downstream.size()];
      auto& target = nodes_[to];
      if (target.on_way >= n.held)
        continue;
      n.turn = (n.turn + i + 1) % n.downstream.size();
      n.sends = true;
      const auto seconds = slice_seconds(target.on_way++);
      plan(seconds, what::sent, from);
      plan(seconds + load_.link.latency_s, what::arrived, to, target.pulls);
      return;
    }
  }

  void play(const happening& h) {
    auto& n = nodes_[h.node];
    if (h.kind == what::redirected)
      return redirect(h.node);
    if (h.kind == what::sent) {
      n.sends = false;
      return send(h.node);
    }
    if (n.dead || n.pulls != h.pulls)
      return;
    ++n.held;
    if (load_.dies && h.node == *load_.dies + 1 && n.held >= slices_ / 2)
      return die(h.node);
    if (n.held == slices_)
      done_ = std::max(done_, now_);
    send(h.node);
  }

  void die(std::size_t gone) {
    auto& n = nodes_[gone];
    n.dead = true;
    std::erase(nodes_[n.upstream].downstream, gone);
    nodes_[n.upstream].turn = 0;
    for (const auto next : n.downstream)
      plan(load_.notice_s, what::redirected, next);
    send(n.upstream);
  }

  void redirect(std::size_t moved) {
    auto& n = nodes_[moved];
    n.upstream = nodes_[n.upstream].upstream;
    ++n.pulls;
    n.on_way = n.held; // What was on its way from the dead one never came.
    nodes_[n.upstream].downstream.push_back(moved);
    send(n.upstream);
  }

  const fanout_load load_;
  const std::uint64_t slices_;
  std::vector<node> nodes_;
  std::priority_queue<happening, std::vector<happening>, std::greater<>> coming_;
  std::uint64_t planned_ = 0;
  double now_ = 0;
  double done_ = 0;
};

} // namespace

double fanout_seconds(const fanout_load& load) {
  ROLLCAST_CHECK(load.workers > 0 && load.bytes > 0 && load.slice_bytes > 0);
  return fanout_run{load}.run();
}

} // namespace rollcast::sim
