#include "cluster/weights/update_machine.hpp"

#include "cluster/weights/fanout.hpp"
#include "engine/base/check.hpp"

#include <algorithm>
#include <utility>

namespace rollcast::weights {

namespace {

std::string name(std::uint64_t epoch) {
  return "epoch " + std::to_string(epoch);
}

} // namespace

std::string_view to_string(phase at) noexcept {
  switch (at) {
    case phase::idle: return "idle";
    case phase::receiving: return "receiving";
    case phase::distributing: return "distributing";
    case phase::waiting: return "waiting";
    case phase::flipping: return "flipping";
  }
  return "unknown";
}

update_machine::update_machine(std::string coordinator_host, std::optional<served_weights> serves,
                               std::uint64_t promised, std::uint64_t numbers)
  : host_(std::move(coordinator_host)), highest_epoch_(promised), last_update_(numbers),
    last_timer_(numbers) {
  if (!serves)
    return;
  current_ = epoch_record{*serves};
  highest_epoch_ = std::max(promised, serves->epoch);
}

void update_machine::reset() {
  ROLLCAST_CHECK(!update_);
  current_.reset();
  previous_.reset();
  highest_epoch_ = 0;
  workers_.clear();
  decisions_.clear();
}

// -- commands -------------------------------------------------------------------------------------

result<update_id> update_machine::begin(const update_spec& spec) {
  if (update_)
    return fail(errc::update_conflict,
                "begin of weights: the update to " + name(update_->spec.epoch) + " is "
                  + std::string{to_string(update_->at)} + "; commit or abort it first");
  if (!current_)
    return fail(errc::update_conflict, "begin of weights: no worker has joined yet, so nothing is "
                                       "known to be served; start one first");
  if (spec.epoch != 0 && spec.epoch <= highest_epoch_)
    return fail(errc::stale_epoch, "begin of weights: " + name(spec.epoch)
                                     + " was used, the next is "
                                     + std::to_string(highest_epoch_ + 1)
                                     + "; an epoch must be above every one before it");
  update_.emplace();
  update_->number = {++last_update_};
  update_->spec = spec;
  update_->spec.epoch = spec.epoch == 0 ? highest_epoch_ + 1 : spec.epoch;
  update_->phase_timer = arm_timer(deadline::receiving);
  settle();
  return update_id{last_update_};
}

void update_machine::received(update_id update) {
  if (at() == phase::receiving && update_->number == update)
    update_->phase_timer = arm_timer(deadline::receiving);
}

result<update_id> update_machine::commit(std::uint64_t epoch, std::optional<content_hash> hash,
                                         std::uint64_t bytes) {
  if (at() != phase::receiving || update_->spec.epoch != epoch)
    return fail(errc::update_conflict,
                "commit of " + name(epoch) + ": "
                  + (update_ ? "the update in work is to " + name(update_->spec.epoch) + " and is "
                                 + std::string{to_string(update_->at)}
                             : "no update was begun")
                  + "; begin one with this epoch first");
  const auto number = update_->number;
  update_->hash = hash;
  update_->bytes = bytes;
  // The second buffers are overwritten from here on.
  previous_.reset();
  distribute();
  settle();
  return number;
}

result<void> update_machine::abort(std::uint64_t epoch, std::optional<error> why) {
  if (!update_ || update_->spec.epoch != epoch)
    return fail(errc::update_conflict,
                "abort of " + name(epoch) + ": "
                  + (update_ ? "the update in work is to " + name(update_->spec.epoch)
                             : "no update is in work"));
  if (update_->at == phase::flipping)
    return fail(errc::update_conflict, "abort of " + name(epoch)
                                         + ": its flip has begun and can only go forward; roll "
                                           "back once it is served");
  if (!why)
    why = error{errc::cancelled, name(epoch) + " was aborted by a controller", {}};
  abandon(std::move(*why));
  settle();
  return {};
}

result<update_id> update_machine::rollback() {
  if (update_)
    return fail(errc::update_conflict,
                "rollback of weights: the update to " + name(update_->spec.epoch) + " is "
                  + std::string{to_string(update_->at)} + "; abort it first");
  if (!previous_)
    return fail(errc::stale_epoch,
                "rollback of weights: no epoch before the one served is held; send it again under "
                "a new number");
  update_.emplace();
  update_->number = {++last_update_};
  update_->rollback = true;
  update_->spec.epoch = previous_->serves.epoch;
  update_->spec.allow_non_finite = previous_->allow_non_finite;
  update_->hash = previous_->serves.hash;
  distribute();
  settle();
  return update_id{last_update_};
}

std::vector<decision> update_machine::drain() {
  return std::exchange(decisions_, {});
}

// -- phases ---------------------------------------------------------------------------------------

timer_id update_machine::arm_timer(deadline kind) {
  const timer_id timer{++last_timer_};
  decisions_.emplace_back(arm{timer, kind});
  return timer;
}

void update_machine::distribute() {
  update_->at = phase::distributing;
  update_->phase_timer = {};
  update_->preparing_timer = arm_timer(deadline::preparing);
  std::vector<chain_member> members;
  for (auto& [id, w] : workers_) {
    const auto fed = w.doing == task::preparing;
    if (fed && !update_->rollback && update_->spec.covers == coverage::complete) {
      // What it is being fed is about to be old, and this update asks nothing of its base.
      decisions_.emplace_back(cancel{id, w.update});
      rest(w);
    }
    if (w.doing == task::none && can_recruit(w))
      members.push_back({id, w.host});
  }
  for (const auto& link : plan_chain(std::move(members), host_))
    recruit(link.worker, workers_.at(link.worker), link.upstream);
}

bool update_machine::advance() {
  if (!update_)
    return false;
  const auto all = [this](task doing) {
    return std::ranges::all_of(workers_, [&](const auto& kvp) {
      return !takes_part(kvp.second) || kvp.second.doing == doing;
    });
  };
  const auto none =
    std::ranges::none_of(workers_, [this](const auto& kvp) { return takes_part(kvp.second); });
  const auto open = update_->at == phase::distributing || update_->at == phase::waiting;
  if (open && none && update_->overdue) {
    abandon(
      {errc::timed_out, name(update_->spec.epoch) + ": no worker is left that could take it", {}});
    return true;
  }
  if (update_->at == phase::distributing && !none && all(task::prepared)) {
    update_->at = phase::waiting;
    update_->phase_timer = arm_timer(deadline::waiting);
    decisions_.emplace_back(hold{update_->number, update_->spec.flip});
    return false;
  }
  if (update_->at == phase::waiting && none) {
    // Whoever comes next may still take it, within the time for preparing.
    update_->at = phase::distributing;
    update_->phase_timer = {};
    decisions_.emplace_back(release{});
    return true;
  }
  if (update_->at == phase::flipping && all(task::flipped)) {
    finish();
    return true;
  }
  return false;
}

void update_machine::settle() {
  do
    place_idle_workers();
  while (advance());
}

void update_machine::finish() {
  const auto done = *update_;
  ROLLCAST_CHECK(done.hash.has_value());
  if (done.rollback) {
    current_ = std::exchange(previous_, std::nullopt);
  } else {
    const auto changed = done.spec.covers == coverage::changed_only;
    previous_ = std::exchange(current_, epoch_record{{done.spec.epoch, *done.hash}, true});
    current_->allow_non_finite =
      done.spec.allow_non_finite || (changed && previous_->allow_non_finite);
  }
  highest_epoch_ = std::max(highest_epoch_, done.spec.epoch);
  for (auto& [id, w] : workers_) {
    w.unfit = false;
    if (takes_part(w)) {
      rest(w);
      if (!std::exchange(w.routable, true))
        decisions_.emplace_back(admit{id});
    } else if (w.doing == task::preparing) {
      decisions_.emplace_back(cancel{id, w.update}); // Fed with what is old now.
      rest(w);
    }
  }
  update_.reset();
  decisions_.emplace_back(ended{done.number,
                                done.spec.epoch,
                                done.rollback ? outcome::rolled_back : outcome::committed,
                                current_->serves,
                                {}});
  decisions_.emplace_back(release{});
}

void update_machine::abandon(error why) {
  ROLLCAST_CHECK(update_ && update_->at != phase::flipping);
  const auto held = update_->at == phase::waiting;
  for (auto& [id, w] : workers_) {
    if (!takes_part(w))
      continue;
    if (!w.back) // Who would flip back was told nothing yet.
      decisions_.emplace_back(cancel{id, w.update});
    rest(w);
  }
  const auto done = *std::exchange(update_, std::nullopt);
  decisions_.emplace_back(
    ended{done.number, done.spec.epoch, outcome::aborted, current_->serves, std::move(why)});
  if (held)
    decisions_.emplace_back(release{});
}

// -- accounting -----------------------------------------------------------------------------------

std::optional<served_weights> update_machine::current() const {
  return current_ ? std::optional{current_->serves} : std::nullopt;
}

std::optional<served_weights> update_machine::previous() const {
  return previous_ ? std::optional{previous_->serves} : std::nullopt;
}

std::optional<update_status> update_machine::update() const {
  if (!update_)
    return {};
  return update_status{update_->number,   update_->spec.epoch, update_->at,
                       update_->rollback, update_->bytes,      update_->hash};
}

std::vector<worker_status> update_machine::workers() const {
  std::vector<worker_status> all;
  for (const auto& [id, w] : workers_)
    all.push_back(
      {id, w.serves, w.routable, w.doing == task::preparing,
       w.doing == task::prepared || w.doing == task::flipping || w.doing == task::flipped,
       w.bytes});
  return all;
}

bool update_machine::routable(worker_id worker) const {
  const auto it = workers_.find(worker);
  return it != workers_.end() && it->second.routable;
}

} // namespace rollcast::weights
