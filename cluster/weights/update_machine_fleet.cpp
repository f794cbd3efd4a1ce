#include "cluster/weights/update_machine.hpp"

#include <algorithm>
#include <utility>
#include <vector>

namespace rollcast::weights {

namespace {

/// A worker whose upstreams keep failing is itself cut off.
constexpr std::uint32_t redirects_max = 3;

std::string name(worker_id worker) {
  return "worker " + std::to_string(worker.value);
}

std::string name(const served_weights& w) {
  return "epoch " + std::to_string(w.epoch) + " (" + to_string(w.hash) + ")";
}

} // namespace

verdict update_machine::on(const news& what) {
  const auto heard = std::visit([this](const auto& e) { return note(e); }, what);
  if (heard == verdict::accepted)
    settle();
  return heard;
}

// -- news -----------------------------------------------------------------------------------------

verdict update_machine::note(const worker_joined& e) {
  if (e.worker <= last_worker_)
    return verdict::stale;
  last_worker_ = e.worker;
  auto& w = workers_[e.worker];
  w.host = e.host;
  w.serves = e.serves;
  if (!current_)
    current_ = epoch_record{e.serves};
  highest_epoch_ = std::max(highest_epoch_, e.serves.epoch);
  return verdict::accepted;
}

verdict update_machine::note(const worker_lost& e) {
  if (!workers_.contains(e.worker))
    return verdict::stale;
  forget(e.worker);
  return verdict::accepted;
}

verdict update_machine::note(const progressed& e) {
  auto* w = find(e.worker, e.update, task::preparing);
  if (!w)
    return verdict::stale;
  w->bytes = std::max(w->bytes, e.bytes);
  w->silence = arm_timer(deadline::silence);
  return verdict::accepted;
}

verdict update_machine::note(const prepared& e) {
  auto* w = find(e.worker, e.update, task::preparing);
  if (!w)
    return verdict::stale;
  w->silence = {};
  if (!takes_part(*w)) {
    if (e.hash == w->target.hash)
      order_flip(e.worker, *w, w->target.epoch);
    else
      mismatch(e, *w, w->target, current_->held);
    return verdict::accepted;
  }
  if (!update_->hash)
    update_->hash = e.hash;
  if (e.hash == *update_->hash) {
    w->doing = task::prepared;
    return verdict::accepted;
  }
  if (w->what == cargo::whole)
    mismatch(e, *w, {update_->spec.epoch, *update_->hash}, previous_->held);
  else
    abandon({errc::bad_checkpoint,
             name(e.worker) + " prepared epoch " + std::to_string(update_->spec.epoch) + " and has "
               + to_string(e.hash) + ", the content that was sent or prepared by others has "
               + to_string(*update_->hash) + "; the transfer or a checkpoint is damaged",
             {}});
  return verdict::accepted;
}

void update_machine::mismatch(const prepared& e, worker_record& w, const served_weights& wanted,
                              bool held) {
  if (!held && !w.routable) {
    // It may lack what was sent before we kept account: a complete update can still heal it.
    decisions_.emplace_back(cancel{e.worker, e.update});
    rest(w);
    w.unfit = true;
    return;
  }
  expel_worker(e.worker,
               {errc::bad_checkpoint,
                name(e.worker) + " was fed " + name(wanted) + " and has " + to_string(e.hash)
                  + ": its checkpoint is another; restart it with the checkpoint of the others",
                {}},
               held);
}

verdict update_machine::note(const refused& e) {
  auto* w = find(e.worker, e.update, task::preparing);
  if (!w)
    return verdict::stale;
  error why{e.why.code, name(e.worker) + ": " + e.why.detail, e.why.where};
  const bool others = std::ranges::any_of(workers_, [&](const auto& kvp) {
    return kvp.first != e.worker && takes_part(kvp.second);
  });
  // What one has no memory for the others may well have.
  if (w->what == cargo::whole || (e.why.code == errc::queue_full && others))
    expel_worker(e.worker, std::move(why), true);
  else
    abandon(std::move(why));
  return verdict::accepted;
}

verdict update_machine::note(const upstream_failed& e) {
  auto* w = find(e.worker, e.update, task::preparing);
  if (!w)
    return verdict::stale;
  if (++w->redirects > redirects_max) {
    expel_worker(e.worker,
                 {errc::peer_lost,
                  name(e.worker) + " could not pull from " + std::to_string(w->redirects)
                    + " upstreams; its network is suspect",
                  {}},
                 false);
    return verdict::accepted;
  }
  w->upstream.reset(); // The coordinator has everything.
  w->silence = arm_timer(deadline::silence);
  decisions_.emplace_back(redirect{e.worker, e.update, {}});
  return verdict::accepted;
}

verdict update_machine::note(const quiet& e) {
  if (at() != phase::waiting || update_->number != e.update)
    return verdict::stale;
  update_->at = phase::flipping;
  update_->phase_timer = arm_timer(deadline::flipping);
  for (auto& [id, w] : workers_)
    if (takes_part(w))
      order_flip(id, w, update_->spec.epoch);
  return verdict::accepted;
}

verdict update_machine::note(const flipped& e) {
  auto* w = find(e.worker, e.update, task::flipping);
  if (!w)
    return verdict::stale;
  if (takes_part(*w)) {
    // After a rollback nobody goes back to what it gave up: numbers only rise from there.
    w->kept = update_->rollback ? std::nullopt : std::optional{w->serves};
    w->serves = {update_->spec.epoch, *update_->hash};
    w->doing = task::flipped;
  } else {
    w->serves = w->target;
    rest(*w);
  }
  return verdict::accepted;
}

verdict update_machine::note(const expired& e) {
  if (e.timer == timer_id{})
    return verdict::stale;
  if (update_ && e.timer == update_->phase_timer) {
    update_->phase_timer = {};
    const auto epoch = "epoch " + std::to_string(update_->spec.epoch);
    if (update_->at == phase::receiving)
      abandon({errc::timed_out, epoch + ": its controller fell silent before the commit", {}});
    else if (update_->at == phase::waiting)
      abandon({errc::timed_out, epoch + ": what runs did not end in time for the flip", {}});
    else
      expel_while(task::flipping, "did not say in time that it had flipped");
    return verdict::accepted;
  }
  if (update_ && e.timer == update_->preparing_timer) {
    update_->preparing_timer = {};
    update_->overdue = true;
    if (update_->at == phase::distributing && count(task::preparing) > 0) {
      if (count(task::prepared) == 0)
        abandon(
          {errc::timed_out,
           "epoch " + std::to_string(update_->spec.epoch) + ": no worker was prepared in time",
           {}});
      else
        expel_while(task::preparing, "was not prepared in time");
    }
    return verdict::accepted;
  }
  const auto silent =
    std::ranges::find_if(workers_, [&](const auto& kvp) { return kvp.second.silence == e.timer; });
  if (silent == workers_.end())
    return verdict::stale;
  const auto id = silent->first;
  expel_worker(id, {errc::timed_out, name(id) + " fell silent while it took weights", {}}, false);
  return verdict::accepted;
}

// -- workers --------------------------------------------------------------------------------------

bool update_machine::takes_part(const worker_record& w) const {
  return update_ && w.doing != task::none && w.update == update_->number;
}

void update_machine::rest(worker_record& w) {
  w.doing = task::none;
  w.silence = {}; // Nothing is awaited of it.
}

update_machine::worker_record* update_machine::find(worker_id id, update_id update, task doing) {
  const auto it = workers_.find(id);
  if (it == workers_.end() || it->second.doing != doing || it->second.update != update)
    return nullptr;
  return &it->second;
}

bool update_machine::serves_current(const worker_record& w) const {
  return current_ && w.serves == current_->serves;
}

bool update_machine::can_recruit(const worker_record& w) const {
  if (at() != phase::distributing)
    return false;
  const auto any = !update_->rollback && update_->spec.covers == coverage::complete;
  return any || serves_current(w);
}

std::uint32_t update_machine::count(task doing) const {
  return static_cast<std::uint32_t>(std::ranges::count_if(workers_, [&](const auto& kvp) {
    return takes_part(kvp.second) && kvp.second.doing == doing;
  }));
}

void update_machine::place_idle_workers() {
  // Once the fleet waits for its flip nobody joins it: the flip would not take him along.
  if (at() == phase::waiting || at() == phase::flipping)
    return;
  for (auto& [id, w] : workers_) {
    if (w.doing != task::none)
      continue;
    if (serves_current(w) && !std::exchange(w.routable, true))
      decisions_.emplace_back(admit{id});
    if (can_recruit(w))
      recruit(id, w, update_->tail);
    else if (!w.routable && !w.unfit)
      feed(id, w);
  }
}

void update_machine::recruit(worker_id id, worker_record& w, std::optional<worker_id> upstream) {
  w.update = update_->number;
  w.back = update_->rollback && w.kept == previous_->serves;
  if (w.back) {
    w.doing = task::prepared;
    return;
  }
  // Who goes back without having kept it pulls from the coordinator: the others kept no cargo.
  const auto what = update_->rollback ? cargo::whole : cargo::sent;
  if (update_->rollback)
    upstream.reset();
  else
    update_->tail = id;
  order(w, {id, w.update, update_->spec.epoch, what, update_->spec.allow_non_finite, upstream});
}

void update_machine::feed(worker_id id, worker_record& w) {
  w.update = {++last_update_};
  w.back = false;
  w.target = current_->serves;
  order(w, {id, w.update, w.target.epoch, cargo::whole, current_->allow_non_finite, std::nullopt});
}

void update_machine::order(worker_record& w, const prepare& what) {
  w.doing = task::preparing;
  w.what = what.what;
  w.upstream = what.upstream;
  w.kept.reset(); // Its second buffer is overwritten.
  w.bytes = 0;
  w.redirects = 0;
  decisions_.emplace_back(what);
  w.silence = arm_timer(deadline::silence);
}

void update_machine::order_flip(worker_id id, worker_record& w, std::uint64_t epoch) {
  const auto alone = !takes_part(w);
  w.doing = task::flipping;
  decisions_.emplace_back(flip{id, w.update, epoch, w.back});
  if (alone)
    w.silence = arm_timer(deadline::silence);
}

void update_machine::expel_worker(worker_id id, error why, bool for_good) {
  decisions_.emplace_back(expel{id, std::move(why), for_good});
  forget(id);
}

void update_machine::expel_while(task doing, const char* late) {
  std::vector<worker_id> whom;
  for (const auto& [id, w] : workers_)
    if (takes_part(w) && w.doing == doing)
      whom.push_back(id);
  for (const auto id : whom)
    expel_worker(id, {errc::timed_out, name(id) + " " + late, {}}, false);
}

void update_machine::forget(worker_id id) {
  const auto gone = workers_.extract(id);
  if (!gone || !update_ || gone.mapped().update != update_->number)
    return;
  const auto upstream = gone.mapped().upstream;
  if (update_->tail == id)
    update_->tail = upstream;
  for (auto& [other, w] : workers_) {
    if (!takes_part(w) || w.upstream != id)
      continue;
    w.upstream = upstream;
    if (w.doing != task::preparing)
      continue;
    decisions_.emplace_back(redirect{other, w.update, upstream});
    w.silence = arm_timer(deadline::silence);
  }
}

} // namespace rollcast::weights
