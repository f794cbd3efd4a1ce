#include "cluster/collective/member.hpp"

#include "engine/base/memory_guard.hpp"

#include <algorithm>
#include <numeric>

namespace rollcast::collective {

member::~member() {
  end_epoch({errc::cancelled, "the worker is stopping", {}});
}

void member::say(news what) {
  what.worker = id_;
  what.epoch = epoch_;
  out_.push_back(std::move(what));
}

std::vector<news> member::drain() {
  return std::exchange(out_, {});
}

void member::serve(worker_id as) {
  end_epoch({errc::cancelled, "the worker has another scheduler, or none", {}});
  out_.clear();    // said as somebody else
  passed_.clear(); // another scheduler may count anew
  id_ = as;
}

// -- the epoch ------------------------------------------------------------------------------------

void member::obey(const order& what, instant now) {
  const bool begins = what.kind == order_kind::make_id || what.kind == order_kind::form;
  if (!begins && (what.epoch != epoch_ || epoch_ == 0))
    return; // of an epoch that is over here
  switch (what.kind) {
    case order_kind::make_id: {
      end_epoch({errc::peer_lost, "a new epoch begins", {}});
      epoch_ = what.epoch;
      auto id = maker_.new_id();
      if (!id)
        return fail_epoch(id.error().detail);
      return say({.kind = news_kind::id_made, .id = std::move(*id)});
    }
    case order_kind::form: return form(what, now);
    case order_kind::open: open_ = group_ && !forming_; return;
    case order_kind::run: return begin(what, now);
    case order_kind::decline: return decline(what);
    case order_kind::abort:
      return end_epoch({errc::peer_lost, "the epoch is over: " + what.why, {}});
  }
}

void member::form(const order& what, instant now) {
  end_epoch({errc::peer_lost, "a new epoch begins", {}});
  epoch_ = what.epoch;
  rank_ = what.rank;
  members_ = what.members;
  auto group = maker_.form(what.id, what.rank, static_cast<std::uint32_t>(what.members.size()));
  if (!group)
    return fail_epoch(group.error().detail);
  group_ = std::move(*group);
  forming_ = true;
  form_deadline_ = now + limits_.form_max;
}

void member::fail_epoch(const std::string& why) {
  say({.kind = news_kind::failed, .why = why});
  end_epoch({errc::peer_lost, why, {}});
}

void member::end_epoch(const error& why) {
  if (group_)
    group_->abort(); // before anything that it may touch is let go
  group_.reset();
  running_.reset();
  held_.reset();
  epoch_ = 0;
  forming_ = open_ = false;
  gives_.clear();
  casting_.clear();
  while (!fetches_.empty())
    end_fetch(fetches_.begin()->first, tl::unexpected(why));
  while (!awaited_.empty())
    end_wait(awaited_.begin()->first, tl::unexpected(why));
}

// -- rounds ---------------------------------------------------------------------------------------

void member::begin(const order& what, instant now) {
  if (!group_ || forming_)
    return;
  if (running_ || held_)
    return fail_epoch("told to begin round " + std::to_string(what.round) + " while round "
                      + std::to_string(running_ ? running_->number : held_->what.round) + " runs");
  if (knows(what.slices))
    return start(what, now);
  held_ = held{what, now + limits_.prepare_max};
}

/// Whether this worker has said what it does with a cast: orders of a group come by another way
/// than those of an update, and may be here first.
bool member::knows(const cast& slices) const {
  return slices.count == 0 || slices.root == rank_ || has_passed(slices.update)
         || awaited_.contains(slices.update);
}

bool member::has_passed(std::uint64_t update) const {
  return std::find(passed_.begin(), passed_.end(), update) != passed_.end();
}

/// Of an update that is too old to be known here the group waits for this worker once more.
void member::pass(std::uint64_t update) {
  constexpr std::size_t known_max = 16;
  if (has_passed(update))
    return;
  passed_.push_back(update);
  if (passed_.size() > known_max)
    passed_.pop_front();
}

void member::start_held(instant now) {
  if (held_ && (knows(held_->what.slices) || now >= held_->deadline))
    start(std::exchange(held_, std::nullopt)->what, now);
}

void member::start(const order& what, instant now) {
  if (what.slices.count > 0 && what.slices.root != rank_ && !awaited_.contains(what.slices.update))
    pass(what.slices.update);
  running_.emplace();
  running_->number = what.round;
  running_->deadline = now + limits_.round_max;
  running_->slices = what.slices;
  const auto begun =
    unless_memory_lacks("round " + std::to_string(what.round), [&]() -> result<void> {
      if (what.slices.count > 0) {
        if (auto loaded = load(what.slices); !loaded)
          return loaded;
        return group_->broadcast(what.slices.root, running_->bytes);
      }
      auto transfers = transfers_of(what.moves);
      return transfers ? group_->exchange(std::move(*transfers)) : fail(transfers);
    });
  if (!begun)
    fail_epoch(begun.error().detail);
}

/// Whoever lacks what it should send, or where to put what it should receive, takes part all the
/// same, with memory that nobody reads: the other side must not wait, and hashes tell it.
result<std::vector<rank_transfer>> member::transfers_of(const std::vector<move>& moves) {
  std::vector<rank_transfer> out;
  for (const auto& m : moves) {
    if (m.bytes > limits_.bytes_max || m.from == m.to || (m.from != rank_ && m.to != rank_))
      return fail(errc::frame_malformed, "told to move " + std::to_string(m.bytes)
                                           + " bytes from rank " + std::to_string(m.from) + " to "
                                           + std::to_string(m.to) + ", this is rank "
                                           + std::to_string(rank_));
    rank_transfer t{.peer = m.from == rank_ ? m.to : m.from};
    const auto give = gives_.find({m.puller, m.pull});
    const auto fetch = fetches_.find(m.pull);
    if (m.from == rank_ && give != gives_.end() && give->second.bytes.size() == m.bytes) {
      t.out = give->second.bytes;
      running_->read.push_back(std::move(give->second.owner));
      gives_.erase(give);
    } else if (m.to == rank_ && m.puller == id_ && fetch != fetches_.end() && !fetch->second.running
               && fetch->second.into->size() == m.bytes) {
      t.in = *fetch->second.into;
      fetch->second.running = true;
      running_->fetching.push_back(m.pull);
      running_->written.push_back(fetch->second.into);
    } else {
      auto& scratch =
        *running_->written.emplace_back(std::make_shared<kv_bytes>(m.bytes, std::byte{}));
      if (m.from == rank_)
        t.out = scratch;
      else
        t.in = scratch;
    }
    out.push_back(t);
  }
  return out;
}

void member::finish(instant now) {
  auto over = *std::exchange(running_, std::nullopt);
  over.written.clear();
  over.read.clear();
  for (const auto pull : over.fetching)
    end_fetch(pull, {});
  if (over.slices.count > 0)
    take_cast(over, now);
  say({.kind = news_kind::round_done, .round = over.number});
}

void member::turn(instant now) {
  start_held(now);
  if (forming_ || running_) {
    const auto over = group_->poll();
    const auto late = now >= (forming_ ? form_deadline_ : running_->deadline);
    if (!over) {
      fail_epoch(over.error().detail);
    } else if (*over && forming_) {
      forming_ = false;
      say({.kind = news_kind::ready});
    } else if (*over) {
      finish(now);
    } else if (late) {
      fail_epoch((forming_ ? "the group has not formed within "
                           : "round " + std::to_string(running_->number) + " is not over within ")
                 + std::to_string((forming_ ? limits_.form_max : limits_.round_max)
                                  / std::chrono::milliseconds{1})
                 + " ms");
    }
  }
  end_late(now);
  offer_casts();
}

/// Ends what has waited too long for a round.
void member::end_late(instant now) {
  std::vector<move> dropped; // a round that brings them would be for nobody
  std::erase_if(gives_, [&](const auto& g) {
    if (now < g.second.deadline)
      return false;
    dropped.push_back({g.first.first, g.first.second, 0, 0, g.second.bytes.size()});
    return true;
  });
  std::vector<std::uint64_t> late;
  for (const auto& [pull, f] : fetches_)
    if (!f.running && now >= f.deadline)
      late.push_back(pull);
  for (const auto pull : late) {
    dropped.push_back({id_, pull, 0, 0, fetches_.at(pull).into->size()});
    end_fetch(pull, fail(errc::timed_out, "no round brought it in time"));
  }
  if (!dropped.empty())
    say({.kind = news_kind::declined, .moves = std::move(dropped)});
  late.clear();
  for (const auto& [update, a] : awaited_)
    if (now >= a.deadline && !(running_ && running_->slices.update == update))
      late.push_back(update);
  for (const auto update : late)
    end_wait(update, fail(errc::timed_out, "no round brought its slices in time"));
}

instant member::patience() const noexcept {
  if (running_)
    return std::chrono::microseconds{200}; // a device is at work, another waits for it
  if (forming_ || held_ || !casting_.empty() || !fetches_.empty() || !awaited_.empty())
    return std::chrono::milliseconds{5};
  return std::chrono::seconds{1};
}

// -- KV -------------------------------------------------------------------------------------------

void member::fetch(std::uint64_t pull, kv_carrier::memory into, done_function done, instant now) {
  if (!open_)
    return done(fail(errc::peer_lost, "there is no open epoch"));
  fetches_[pull] = {std::move(into), std::move(done), now + limits_.fetch_max, false};
}

void member::give(worker_id puller, std::uint64_t pull, std::span<const std::byte> bytes,
                  std::shared_ptr<const void> owner, instant now) {
  if (gives_.contains({puller, pull}))
    return;
  const auto waiting =
    std::accumulate(gives_.begin(), gives_.end(), std::uint64_t{0},
                    [](std::uint64_t n, const auto& g) { return n + g.second.bytes.size(); });
  const bool room =
    gives_.empty()
    || (gives_.size() < limits_.given_max && waiting + bytes.size() <= limits_.given_bytes_max);
  const bool taken = group_ && !forming_ && room;
  if (taken)
    gives_[{puller, pull}] = {bytes, std::move(owner), now + 2 * limits_.fetch_max};
  say({.kind = taken ? news_kind::wanted : news_kind::declined,
       .moves = {{puller, pull, 0, 0, bytes.size()}}});
}

void member::end_fetch(std::uint64_t pull, result<void> how) {
  const auto it = fetches_.find(pull);
  if (it == fetches_.end())
    return;
  const auto over = std::move(it->second);
  fetches_.erase(it);
  over.done(std::move(how));
}

void member::decline(const order& what) {
  for (const auto& m : what.moves) {
    gives_.erase({m.puller, m.pull});
    // What a running round brings ends with the round: its memory is in use.
    const auto it = fetches_.find(m.pull);
    if (m.puller == id_ && it != fetches_.end() && !it->second.running)
      end_fetch(m.pull, fail(errc::peer_lost, "the coordinator has declined it"));
  }
  if (what.slices.update == 0)
    return;
  pass(what.slices.update);
  if (awaited_.contains(what.slices.update))
    end_wait(what.slices.update, fail(errc::peer_lost, "its caster has declined it"));
}

// -- weights --------------------------------------------------------------------------------------

void member::cast_weights(std::uint64_t update, std::uint64_t epoch,
                          std::shared_ptr<weight_cargo> cargo) {
  if (!cargo || !open_ || epoch != epoch_) // others may wait for it
    return say({.kind = news_kind::declined, .slices = {.update = update}});
  casting_[update] = {std::move(cargo)};
}

void member::await_weights(std::uint64_t update, std::uint64_t epoch,
                           std::shared_ptr<weight_cargo> cargo, done_function done, instant now) {
  if (!open_ || epoch != epoch_) {
    pass(update); // it is pulled, whatever is cast of it
    return done(fail(errc::peer_lost, "epoch " + std::to_string(epoch) + " is not open"));
  }
  if (has_passed(update))
    return done(fail(errc::stale_epoch, "its casts went by, or are declined"));
  awaited_[update] = {std::move(cargo), std::move(done), now + limits_.cast_max};
}

void member::forget_weights(std::uint64_t update) {
  if (casting_.erase(update) > 0)
    say({.kind = news_kind::declined, .slices = {.update = update}});
  pass(update);
  if (awaited_.contains(update))
    end_wait(update, fail(errc::cancelled, "the update is forgotten"));
}

void member::end_wait(std::uint64_t update, result<void> how) {
  const auto it = awaited_.find(update);
  const auto done = std::move(it->second.done);
  awaited_.erase(it);
  pass(update); // further casts of it, which others lack, do not wait for this worker
  done(std::move(how));
}

/// Tells the coordinator of the next slices of each update, once there are enough of them.
void member::offer_casts() {
  for (auto& [update, c] : casting_) {
    if (c.offered || !open_)
      continue;
    const auto& cargo = *c.cargo;
    while (c.next < cargo.slices() && c.bytes == 0 && cargo.left_out(c.next))
      ++c.next;
    c.end = std::max(c.end, c.next);
    while (c.end < cargo.slices() && c.bytes < limits_.cast_bytes && cargo.has(c.end))
      c.bytes += cargo.size_of(c.end++);
    auto after = c.end;
    while (after < cargo.slices() && cargo.left_out(after))
      ++after;
    if (c.bytes == 0 || (c.bytes < limits_.cast_bytes && after == c.end && after < cargo.slices()))
      continue; // more of it is to come
    c.offered = true;
    say({.kind = news_kind::offered,
         .slices = {update, 0, c.next, c.end - c.next, c.bytes, after == cargo.slices()}});
  }
}

/// What is said of a cast's size must be what is known of it here: else nothing is allocated. Who
/// knows nothing of the update takes part with no more memory than a cast may have.
result<void> member::check(const cast& slices) const {
  const weight_cargo* cargo = nullptr;
  if (const auto it = casting_.find(slices.update); slices.root == rank_ && it != casting_.end())
    cargo = it->second.cargo.get();
  else if (const auto at = awaited_.find(slices.update); at != awaited_.end())
    cargo = at->second.cargo.get();
  const auto of = std::to_string(slices.bytes) + " bytes as " + std::to_string(slices.count)
                  + " slices of update " + std::to_string(slices.update);
  if (cargo == nullptr) {
    const auto most = 2 * limits_.cast_bytes;
    if (slices.bytes > most || slices.count > slices.bytes)
      return fail(errc::frame_malformed,
                  "told to cast " + of + ", at most " + std::to_string(most) + " are cast at once");
    return {};
  }
  std::uint64_t expected = 0;
  const bool named =
    slices.first <= cargo->slices() && slices.count <= cargo->slices() - slices.first;
  for (auto slice = slices.first; named && slice < slices.first + slices.count; ++slice)
    expected += cargo->size_of(slice);
  if (!named || expected != slices.bytes)
    return fail(errc::frame_malformed, "told to cast " + of + " from "
                                         + std::to_string(slices.first) + " on: by its manifest "
                                         + std::to_string(cargo->slices()) + " slices, these of "
                                         + std::to_string(expected) + " bytes");
  return {};
}

result<void> member::load(const cast& slices) {
  if (auto sound = check(slices); !sound)
    return sound;
  running_->bytes.resize(slices.count + slices.bytes);
  const auto it = casting_.find(slices.update);
  if (slices.root != rank_ || it == casting_.end())
    return {};
  std::size_t at = slices.count;
  for (std::uint32_t i = 0; i < slices.count; ++i) {
    // It may be gone since it was offered: its tensor was doubted.
    if (const auto content = it->second.cargo->bytes_of_slice(slices.first + i)) {
      running_->bytes[i] = std::byte{1};
      std::copy(content->bytes.begin(), content->bytes.end(), running_->bytes.begin() + at);
    }
    at += it->second.cargo->size_of(slices.first + i);
  }
  return {};
}

/// Fills `into` with the slices that the root had. @returns whether there was one.
result<bool> member::put_cast(const round& over, weight_cargo& into) const {
  const auto& slices = over.slices;
  if (auto sound = check(slices); !sound) // the cargo may be here since the round began
    return fail(sound);
  const std::span<const std::byte> all{over.bytes};
  const auto here = all.first(slices.count);
  auto rest = all.subspan(slices.count);
  for (std::uint32_t i = 0; i < slices.count; ++i) {
    const auto slice = slices.first + i;
    const auto content = rest.first(into.size_of(slice));
    rest = rest.subspan(content.size());
    if (here[i] == std::byte{0} || into.left_out(slice) || into.has(slice))
      continue;
    if (const auto put = into.put(slice, content); !put)
      return fail(put);
  }
  return std::any_of(here.begin(), here.end(), [](std::byte b) { return b != std::byte{0}; });
}

void member::take_cast(const round& over, instant now) {
  const auto& slices = over.slices;
  if (const auto it = casting_.find(slices.update); slices.root == rank_ && it != casting_.end()) {
    auto& c = it->second;
    c.next = c.end;
    c.bytes = 0;
    c.offered = false;
    if (slices.last)
      casting_.erase(it);
    return;
  }
  const auto it = awaited_.find(slices.update);
  if (it == awaited_.end() || slices.root == rank_)
    return;
  auto& cargo = *it->second.cargo;
  it->second.deadline = now + limits_.cast_max;
  const auto came = unless_memory_lacks("slices of update " + std::to_string(slices.update),
                                        [&] { return put_cast(over, cargo); });
  if (!came)
    end_wait(slices.update, fail(came));
  else if (cargo.complete())
    end_wait(slices.update, {});
  else if (slices.last || !*came)
    end_wait(slices.update,
             fail(errc::stale_epoch, *came ? "the casts are over, some of it is lacking"
                                           : "its caster has none of it any more"));
}

} // namespace rollcast::collective
