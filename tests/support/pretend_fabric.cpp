#include "tests/support/pretend_fabric.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace rollcast::test {

namespace {

/// One transfer, or a rank's part of a broadcast.
struct part {
  std::uint32_t peer = 0; ///< Of a broadcast: its root.
  std::span<const std::byte> out;
  std::span<std::byte> in;
  bool done = false;
};

struct seat { ///< Of one rank.
  std::string device;
  bool taken = false;
  bool gone = false; ///< Aborted, or its device died.
  std::vector<part> parts;
  bool to_all = false;     ///< `parts` is one of a broadcast.
  std::uint64_t casts = 0; ///< Begun.
};

struct group {
  std::vector<seat> seats;
  bool refused = false;
  bool failed = false;
};

} // namespace

struct pretend_fabric::state {
  mutable std::mutex mutex;
  std::map<std::string, group> groups; ///< By id.
  std::set<std::string> dead;
  std::uint64_t ids = 0;
  std::uint64_t operations = 0;
  std::uint32_t refusals = 0;
  bool stalled = false;
  bool corrupting = false;

  /// Two sides of another size fail their group: a real one would hang, or write where it should
  /// not.
  void copy(group& g, std::span<const std::byte> from, std::span<std::byte> to) const {
    if (from.size() != to.size()) {
      g.failed = true;
      return;
    }
    std::memcpy(to.data(), from.data(), to.size());
    if (corrupting && !to.empty())
      to[to.size() / 2] ^= std::byte{1};
  }

  /// Copies what both sides of `r` have begun.
  void meet(group& g, std::uint32_t r) {
    auto& mine = g.seats[r];
    for (auto& p : mine.parts) {
      auto& other = g.seats[p.peer];
      if (p.done || other.gone)
        continue;
      if (mine.to_all) {
        meet_root(g, other, p, r);
        continue;
      }
      // The first open one of the other side that is meant for us: they are matched in order.
      const auto match = std::find_if(other.parts.begin(), other.parts.end(), [&](const part& q) {
        return !other.to_all && !q.done && q.peer == r && q.out.empty() != p.out.empty();
      });
      const bool first = std::none_of(mine.parts.data(), &p, [&](const part& q) {
        return !q.done && q.peer == p.peer && q.out.empty() == p.out.empty();
      });
      if (match == other.parts.end() || !first)
        continue;
      if (p.out.empty())
        copy(g, match->out, p.in);
      else
        copy(g, p.out, match->in);
      p.done = match->done = true;
    }
  }

  void meet_root(group& g, seat& root, part& p, std::uint32_t r) {
    if (p.peer == r) // over when all others have it
      return;
    if (!root.to_all || root.parts.empty() || root.casts != g.seats[r].casts)
      return;
    if (root.parts[0].peer != p.peer) { // it takes another for the root
      g.failed = true;
      return;
    }
    copy(g, root.parts[0].out, p.in);
    p.done = true;
  }

  bool all_have(const group& g, std::uint32_t root) const {
    return std::all_of(g.seats.begin(), g.seats.end(), [&](const seat& s) {
      return &s == &g.seats[root] || s.casts > g.seats[root].casts
             || (s.casts == g.seats[root].casts
                 && (s.parts.empty() || !s.to_all || s.parts[0].done));
    });
  }
};

class pretend_fabric::rank final : public communicator {
public:
  rank(std::shared_ptr<state> s, std::string id, std::uint32_t r)
    : state_(std::move(s)), id_(std::move(id)), rank_(r) {}
  ~rank() override { abort(); }

  result<void> exchange(std::vector<rank_transfer> transfers) override {
    std::vector<part> parts;
    for (const auto& t : transfers)
      parts.push_back({t.peer, t.out, t.in});
    return begin(std::move(parts), false);
  }

  result<void> broadcast(std::uint32_t root, std::span<std::byte> bytes) override {
    return begin({root == rank_ ? part{root, bytes, {}} : part{root, {}, bytes}}, true);
  }

  result<bool> poll() override {
    const std::scoped_lock lock{state_->mutex};
    auto& g = state_->groups.at(id_);
    auto& mine = g.seats[rank_];
    if (mine.gone)
      return false;
    if (g.failed)
      return fail(errc::peer_lost, "a rank of the group failed");
    const bool formed =
      std::all_of(g.seats.begin(), g.seats.end(), [](const seat& s) { return s.taken; });
    if (!formed || state_->stalled)
      return false;
    if (mine.parts.empty())
      return true;
    state_->meet(g, rank_);
    if (g.failed)
      return fail(errc::peer_lost, "two ranks meant different things");
    if (mine.to_all && mine.parts[0].peer == rank_)
      mine.parts[0].done = state_->all_have(g, rank_);
    if (std::any_of(mine.parts.begin(), mine.parts.end(), [](const part& p) { return !p.done; }))
      return false;
    mine.parts.clear();
    ++state_->operations;
    return true;
  }

  void abort() override {
    const std::scoped_lock lock{state_->mutex};
    auto& mine = state_->groups.at(id_).seats[rank_];
    mine.gone = true;
    mine.parts.clear();
  }

private:
  result<void> begin(std::vector<part> parts, bool to_all) {
    const std::scoped_lock lock{state_->mutex};
    auto& mine = state_->groups.at(id_).seats[rank_];
    if (mine.gone)
      return {}; // nobody hears it
    if (!mine.parts.empty())
      return fail(errc::peer_lost, "an operation runs already");
    mine.parts = std::move(parts);
    mine.to_all = to_all;
    mine.casts += to_all ? 1 : 0;
    return {};
  }

  std::shared_ptr<state> state_;
  std::string id_;
  std::uint32_t rank_;
};

class pretend_fabric::maker final : public communicator_maker {
public:
  maker(std::shared_ptr<state> s, std::string name)
    : state_(std::move(s)), name_(std::move(name)) {}

  const std::string& device() const noexcept override { return name_; }

  result<std::string> new_id() override {
    const std::scoped_lock lock{state_->mutex};
    return "group " + std::to_string(++state_->ids);
  }

  result<std::unique_ptr<communicator>> form(const std::string& id, std::uint32_t r,
                                             std::uint32_t size) override {
    const std::scoped_lock lock{state_->mutex};
    auto& g = state_->groups[id];
    if (g.seats.empty()) {
      g.seats.resize(size);
      g.refused = state_->refusals > 0;
      state_->refusals -= g.refused ? 1 : 0;
    }
    if (g.refused || g.seats.size() != size || r >= size || g.seats[r].taken)
      return fail(errc::peer_lost, "the group cannot be formed");
    g.seats[r].taken = true;
    g.seats[r].device = name_;
    g.seats[r].gone = state_->dead.contains(name_);
    return std::make_unique<rank>(state_, id, r);
  }

private:
  std::shared_ptr<state> state_;
  std::string name_;
};

pretend_fabric::pretend_fabric() : state_(std::make_shared<state>()) {}
pretend_fabric::~pretend_fabric() = default;

std::unique_ptr<communicator_maker> pretend_fabric::device(const std::string& name) {
  return std::make_unique<maker>(state_, name);
}

void pretend_fabric::kill(const std::string& device, bool tell) {
  const std::scoped_lock lock{state_->mutex};
  state_->dead.insert(device);
  for (auto& [id, g] : state_->groups)
    for (auto& s : g.seats)
      if (s.taken && !s.gone && s.device == device) {
        s.gone = true;
        s.parts.clear();
        g.failed = g.failed || tell;
      }
}

void pretend_fabric::stall(bool on) {
  const std::scoped_lock lock{state_->mutex};
  state_->stalled = on;
}

void pretend_fabric::refuse_groups(std::uint32_t count) {
  const std::scoped_lock lock{state_->mutex};
  state_->refusals = count;
}

void pretend_fabric::corrupt(bool on) {
  const std::scoped_lock lock{state_->mutex};
  state_->corrupting = on;
}

bool pretend_fabric::uses(const std::byte* at) const {
  const std::scoped_lock lock{state_->mutex};
  const auto covers = [&](auto span) {
    return at >= span.data() && at < span.data() + span.size();
  };
  for (const auto& [id, g] : state_->groups)
    for (const auto& s : g.seats)
      for (const auto& p : s.parts)
        if (covers(p.out) || covers(p.in))
          return true;
  return false;
}

std::uint64_t pretend_fabric::operations() const {
  const std::scoped_lock lock{state_->mutex};
  return state_->operations;
}

} // namespace rollcast::test
