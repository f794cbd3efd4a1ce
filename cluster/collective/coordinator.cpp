#include "cluster/collective/coordinator.hpp"

#include "engine/base/error.hpp"

#include <algorithm>
#include <utility>

namespace rollcast::collective {

void coordinator::send(worker_id to, order what) {
  what.epoch = epoch_;
  out_.push_back({to, std::move(what)});
}

std::vector<coordinator::addressed> coordinator::drain() {
  return std::exchange(out_, {});
}

std::vector<worker_id> coordinator::members() const {
  return at_ == phase::open ? members_ : std::vector<worker_id>{};
}

std::uint32_t coordinator::rank_of(worker_id worker) const {
  return static_cast<std::uint32_t>(std::find(members_.begin(), members_.end(), worker)
                                    - members_.begin());
}

std::vector<worker_id> coordinator::eligible() const {
  std::vector<worker_id> out;
  std::set<std::string> taken;
  for (const auto& [worker, device] : devices_)
    if (!device.empty() && taken.insert(device).second)
      out.push_back(worker);
  return out.size() < 2 ? std::vector<worker_id>{} : out;
}

// -- membership -----------------------------------------------------------------------------------

void coordinator::joined(worker_id worker, const std::string& device, instant now) {
  const auto before = eligible();
  devices_[worker] = device;
  change(before, false, now);
}

void coordinator::left(worker_id worker, instant now) {
  const auto before = eligible();
  devices_.erase(worker);
  change(before, rank_of(worker) < members_.size(), now);
}

/// The members of an epoch never change: with others there is another one.
void coordinator::change(const std::vector<worker_id>& before, bool lost, instant now) {
  if (eligible() == before)
    return;
  failures_ = 0;
  outgrown_ = running_ && !lost && eligible() != members_;
  if (outgrown_ || (at_ != phase::resting && eligible() == members_))
    return; // what runs may end; or who came has gone again
  if (at_ != phase::resting)
    end_epoch("its members change");
  deadline_ = now + limits_.pause;
}

void coordinator::form(instant now) {
  if (failures_ >= limits_.failures_max)
    return;
  auto members = eligible();
  if (members.empty())
    return;
  ++epoch_;
  members_ = std::move(members);
  at_ = phase::asking;
  deadline_ = now + limits_.id_max;
  send(members_[0], {.kind = order_kind::make_id});
}

void coordinator::end_epoch(const std::string& why) {
  for (const auto member : members_)
    if (devices_.contains(member))
      send(member, {.kind = order_kind::abort, .why = why});
  at_ = phase::resting;
  members_.clear();
  waiting_for_.clear();
  moves_.clear();
  casts_.clear();
  current_ = {};
  running_ = outgrown_ = false;
}

void coordinator::fail_epoch(const std::string& why, instant now) {
  ++counts_.failures;
  last_failure_ = why;
  end_epoch(why);
  deadline_ = now + limits_.pause * (1 << std::min(failures_, 10u));
  ++failures_;
}

// -- news -----------------------------------------------------------------------------------------

void coordinator::on(const news& what, instant now) {
  const auto rank = rank_of(what.worker);
  if (what.kind == news_kind::declined)
    return take_declined(what); // whoever waits must hear it, also from one that has no epoch
  if (what.epoch != epoch_ || rank == members_.size())
    return; // of an epoch that is over
  switch (what.kind) {
    case news_kind::id_made:
      if (at_ != phase::asking || rank != 0)
        return;
      at_ = phase::forming;
      deadline_ = now + limits_.form_max;
      waiting_for_ = {members_.begin(), members_.end()};
      for (std::uint32_t r = 0; r < members_.size(); ++r)
        send(members_[r],
             {.kind = order_kind::form, .rank = r, .members = members_, .id = what.id});
      return;
    case news_kind::ready:
      if (at_ != phase::forming || waiting_for_.erase(what.worker) == 0 || !waiting_for_.empty())
        return;
      at_ = phase::open;
      ++counts_.epochs;
      for (const auto member : members_)
        send(member, {.kind = order_kind::open});
      return begin_round(now);
    case news_kind::failed:
      return fail_epoch(one_line("worker " + std::to_string(what.worker.value) + ": " + what.why),
                        now);
    case news_kind::round_done: return take_done(what, now);
    case news_kind::wanted:
    case news_kind::offered:
      if (at_ != phase::forming && at_ != phase::open)
        return;
      take_wanted(what, now);
      return begin_round(now);
    case news_kind::declined: return; // is taken above
  }
}

void coordinator::take_wanted(const news& what, instant now) {
  const auto from = rank_of(what.worker);
  for (auto m : what.moves) {
    m.from = from;
    m.to = rank_of(m.puller);
    if (m.to == members_.size() || m.to == from)
      decline(m);
    else
      moves_.push_back({m, now + limits_.move_max});
  }
  if (what.slices.count > 0) {
    casts_.push_back(what.slices);
    casts_.back().root = from;
  }
}

void coordinator::take_declined(const news& what) {
  for (auto m : what.moves) {
    m.from = rank_of(what.worker);
    m.to = rank_of(m.puller);
    const auto it = std::find_if(moves_.begin(), moves_.end(), [&](const queued& q) {
      return q.what.puller == m.puller && q.what.pull == m.pull;
    });
    if (it != moves_.end()) { // whichever of its two sides says so
      m = it->what;
      moves_.erase(it);
    }
    decline(m);
  }
  if (what.slices.update == 0)
    return;
  std::erase_if(casts_, [&](const cast& c) { return c.update == what.slices.update; });
  for (const auto member : members_)
    send(member, {.kind = order_kind::decline, .slices = {.update = what.slices.update}});
}

void coordinator::decline(const move& m) {
  for (const auto rank : std::set{m.from, m.to}) // one, if the puller says so of what nobody gave
    if (rank < members_.size())
      send(members_[rank], {.kind = order_kind::decline, .moves = {m}});
}

void coordinator::take_done(const news& what, instant now) {
  if (!running_ || what.round != round_ || waiting_for_.erase(what.worker) == 0
      || !waiting_for_.empty())
    return;
  running_ = false;
  failures_ = 0;
  ++counts_.rounds;
  counts_.moves += current_.moves.size();
  for (const auto& m : current_.moves)
    counts_.moved_bytes += m.bytes;
  counts_.cast_bytes += current_.slices.bytes;
  current_ = {};
  if (!outgrown_)
    return begin_round(now);
  end_epoch("its members change");
  deadline_ = now; // they have waited for the round
}

// -- rounds ---------------------------------------------------------------------------------------

/// What was wanted and could not be begun in time is fetched another way by now, or soon: to bring
/// it all the same would only make those behind it late too.
void coordinator::drop_late_moves(instant now) {
  while (!moves_.empty() && now >= moves_.front().until) {
    decline(moves_.front().what);
    moves_.pop_front();
  }
}

/// One round at a time, so that no two members can disagree on an order.
void coordinator::begin_round(instant now) {
  if (at_ != phase::open || running_)
    return;
  drop_late_moves(now);
  if (moves_.empty() && casts_.empty())
    return;
  cast_last_ = !casts_.empty() && (moves_.empty() || !cast_last_);
  if (cast_last_) {
    current_.slices = casts_.front();
    casts_.pop_front();
    waiting_for_ = {members_.begin(), members_.end()};
  } else {
    for (std::uint64_t bytes = 0; !moves_.empty() && current_.moves.size() < limits_.moves_max;) {
      const auto& m = moves_.front().what;
      bytes += m.bytes;
      if (!current_.moves.empty() && bytes > limits_.round_bytes_max)
        break;
      waiting_for_.insert({members_[m.from], members_[m.to]});
      current_.moves.push_back(m);
      moves_.pop_front();
    }
  }
  running_ = true;
  ++round_;
  deadline_ = now + limits_.round_max;
  for (const auto member : waiting_for_) {
    order o{.kind = order_kind::run, .round = round_, .slices = current_.slices};
    const auto rank = rank_of(member);
    for (const auto& m : current_.moves)
      if (m.from == rank || m.to == rank)
        o.moves.push_back(m);
    send(member, std::move(o));
  }
}

void coordinator::turn(instant now) {
  if (now < deadline_)
    return;
  const auto late = std::to_string(waiting_for_.size()) + " of " + std::to_string(members_.size())
                    + " members said nothing in time";
  switch (at_) {
    case phase::resting: return form(now);
    case phase::asking: return fail_epoch("no id came of rank 0 in time", now);
    case phase::forming: return fail_epoch(late + " of a new epoch", now);
    case phase::open:
      if (running_)
        fail_epoch(late + " of round " + std::to_string(round_), now);
      return;
  }
}

} // namespace rollcast::collective
