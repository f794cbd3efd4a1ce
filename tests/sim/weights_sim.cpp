#include "tests/sim/weights_sim.hpp"

#include <algorithm>
#include <iterator>

namespace rollcast::weights::sim {

namespace {

constexpr std::uint64_t hang_ticks = 400; ///< Above preparing + waiting + flipping.
constexpr std::uint64_t pause_ticks = 30; ///< That a flip waits for paused batches.

std::uint64_t ticks_of(deadline kind) {
  switch (kind) {
    case deadline::receiving: return 60;
    case deadline::preparing: return 120;
    case deadline::silence: return 25;
    case deadline::waiting: return 150;
    case deadline::flipping: return 40;
  }
  return 0;
}

std::string name(worker_id w) {
  return "worker " + std::to_string(w.value);
}

} // namespace

weights_sim::weights_sim(std::uint64_t seed, std::uint32_t workers, const weight_faults& faults)
  : rng_(seed), faults_(faults) {
  for (auto& x : base_)
    x = rng_.next();
  truth_[1].value = base_;
  if (rng_.chance(50))
    machine_ = update_machine{"host0", served_weights{1, hash_of_all(base_)}};
  for (std::uint32_t i = 0; i < workers; ++i) {
    process p;
    p.host = "host" + std::to_string(rng_.below(3));
    p.disk = p.serves = base_;
    p.base = base_;
    processes_.push_back(std::move(p));
    at(between(0, 20), [this, i] { register_again(i); });
  }
}

void weights_sim::wrong(const std::string& what) {
  if (wrong_.empty())
    wrong_ = "tick " + std::to_string(now_) + ": " + what;
}

std::string weights_sim::step() {
  ++now_;
  while (!events_.empty() && events_.begin()->first <= now_) {
    auto next = events_.extract(events_.begin());
    next.mapped()();
  }
  for (std::size_t i = 0; i < processes_.size(); ++i)
    work(i);
  if (!calm_)
    command();
  else
    heal();
  if (happens(faults_.restart))
    restart_scheduler();
  send_parts();
  open_batches();
  place();
  say_quiet();
  watch_pause();
  check();
  return wrong_;
}

// -- the scheduler --------------------------------------------------------------------------------

void weights_sim::tell(const news& what) {
  const auto heard = machine_.on(what);
  counters_.stale_news += heard == verdict::stale;
  counters_.expired += heard == verdict::accepted && std::holds_alternative<weights::expired>(what);
  carry_out();
}

void weights_sim::carry_out() {
  for (const auto& d : machine_.drain())
    std::visit([this](const auto& x) { take(x); }, d);
}

void weights_sim::take(const prepare& d) {
  changes over;
  bool bad = false;
  if (d.what == cargo::sent) {
    over = sending_->sent;
    bad = sending_->bad && !d.allow_non_finite;
  } else {
    over = truth_.at(d.epoch).sent;
    counters_.fed += !machine_.update() || machine_.update()->number != d.update;
  }
  order(d.worker, [this, d, over, bad](process& p) {
    if (!p.orders.insert(d.update).second)
      return wrong(name(d.worker) + " is told twice to prepare the same update");
    p.kept.reset();
    if (d.what == cargo::sent && p.covered && p.admitted)
      p.base.reset();
    pull next{d, d.what == cargo::whole && p.base ? *p.base : p.serves};
    for (std::size_t i = 0; i < over.size(); ++i)
      next.content[i] = over[i].value_or(next.content[i]);
    next.complete = std::ranges::all_of(over, [](const auto& t) { return t.has_value(); });
    next.non_finite = bad;
    next.stuck = happens(faults_.stuck);
    next.done_at = now_ + (happens(faults_.slow) ? 500 : between(3, 15));
    p.second = next;
  });
}

void weights_sim::take(const redirect& d) {
  ++counters_.redirected;
  order(d.worker, [d](process& p) {
    if (!p.second || p.second->what.update != d.update)
      return;
    p.second->what.upstream = d.upstream;
    p.second->blocked = false;
  });
}

void weights_sim::take(const cancel& d) {
  order(d.worker, [d](process& p) {
    if (p.second && p.second->what.update == d.update)
      p.second.reset();
  });
}

void weights_sim::take(const hold& d) {
  const auto again = held_ && held_->update == d.update && d.flip == flip_at::chunk_edge;
  if (held_ && !again)
    wrong("held twice");
  if (again && !routable_.empty())
    wrong("the flip does not wait for batches that can end");
  counters_.deserted += again && is_open();
  held_ = d;
}

void weights_sim::take(const release&) {
  if (!held_)
    wrong("released and not held");
  held_.reset();
}

void weights_sim::take(const flip& d) {
  const auto fleet = machine_.update() && machine_.update()->number == d.update;
  if (fleet && !held_)
    wrong("the fleet flips while work is placed");
  if (fleet && !machine_.update()->rollback) {
    const content sent{sending_->value, next_.sent};
    const auto [it, added] = truth_.emplace(d.epoch, sent);
    if (!added && it->second.value != sent.value)
      wrong("epoch " + std::to_string(d.epoch) + " names two contents");
    if ((sending_->bad && !sending_->spec.allow_non_finite) || sending_->wrong_hash)
      wrong("content that is to be refused is flipped to");
  }
  order(d.worker, [this, d](process& p) {
    if (!p.running.empty())
      wrong(name(d.worker) + " flips under a running chunk");
    const auto deaf = happens(faults_.stuck);
    if (deaf && rng_.chance(50))
      return; // Neither flips nor says so.
    if (d.back) {
      if (!p.kept || p.kept->first != d.epoch)
        return wrong(name(d.worker) + " does not hold what it is to go back to");
      p.serves = p.kept->second;
      p.covered = false;
      p.kept.reset();
    } else {
      if (!p.second || !p.second->ready || p.second->what.update != d.update)
        return wrong(name(d.worker) + " is to flip to what it has not prepared");
      p.kept = {p.epoch, p.serves};
      p.serves = p.second->content;
      p.covered = p.second->complete || (p.covered && p.second->what.what == cargo::sent);
      p.second.reset();
    }
    p.epoch = d.epoch;
    if (!deaf)
      say(flipped{d.worker, d.update});
  });
}

void weights_sim::take(const expel& d) {
  ++counters_.expelled;
  latest_expulsion_ = d.why.detail;
  if (d.why.detail.empty())
    wrong(name(d.worker) + " is expelled without a reason");
  const auto index = incarnations_.at(d.worker);
  auto& p = processes_[index];
  lost(d.worker, false);
  if (d.for_good && p.id == d.worker) {
    ++counters_.for_good;
    if (p.disk == base_)
      wrong(name(d.worker) + " is refused for good: " + d.why.detail);
    restart(index, 100); // By a person, with the right checkpoint.
    p.disk = p.serves = base_;
    p.base = base_;
    return;
  }
  // Late enough that it has heard of its id: it may be expelled as soon as it joined.
  at(now_ + between(8, 30), [this, index, id = d.worker] {
    if (processes_[index].id == id)
      register_again(index);
  });
}

void weights_sim::take(const admit& d) {
  if (!routable_.insert(d.worker).second)
    wrong(name(d.worker) + " is admitted twice");
  order(d.worker, [](process& p) { p.admitted = true; });
}

void weights_sim::take(const ended& d) {
  counters_.committed += d.how == outcome::committed;
  counters_.aborted += d.how == outcome::aborted;
  counters_.rolled_back += d.how == outcome::rolled_back;
  if ((d.how == outcome::aborted) == d.why.detail.empty())
    wrong("an end has a reason if and only if it is an abort");
  if (sending_ && sending_->number == d.update)
    sending_.reset();
  if (d.how == outcome::aborted)
    return;
  for (const auto id : routable_) {
    const auto* p = who(id);
    if (p && (p->epoch != d.epoch || p->serves != truth_.at(d.epoch).value))
      wrong("epoch " + std::to_string(d.epoch) + " is served, but not by " + name(id));
  }
  end_outdated(d.epoch);
}

/// Who asked for one version only cannot go on under another.
void weights_sim::end_outdated(std::uint64_t epoch) {
  std::vector<std::uint64_t> over;
  for (const auto& [id, b] : batches_)
    if (b.open && b.required && b.required != epoch)
      over.push_back(id);
  for (const auto id : over) {
    ++counters_.outdated;
    end_batch(id);
  }
}

void weights_sim::take(const arm& d) {
  at(now_ + ticks_of(d.kind) + rng_.below(4), [this, d] { tell(weights::expired{d.timer}); });
}

void weights_sim::lost(worker_id id, bool tells) {
  routable_.erase(id);
  for (auto& [number, c] : chunks_)
    if (c.holder == id)
      c.holder.reset();
  if (tells)
    tell(worker_lost{id});
}

void weights_sim::open_batches() {
  if (!calm_ && batches_.size() < 4 && happens(100)) {
    auto& b = batches_[++last_batch_];
    const auto now = machine_.current() ? machine_.current()->epoch : 1;
    if (rng_.chance(60))
      b.required = now + rng_.below(3) - (now > 1 ? 1 : 0);
    b.chunks = static_cast<std::uint32_t>(between(1, 6));
  }
  if (held_ || !machine_.current())
    return;
  for (auto it = batches_.begin(); it != batches_.end();) {
    auto& [id, b] = *it;
    if (!b.open && b.required && b.required != machine_.current()->epoch) {
      ++counters_.outdated;
      it = batches_.erase(it);
      continue;
    }
    for (std::uint32_t i = 0; !b.open && i < b.chunks; ++i) {
      auto& c = chunks_[++last_chunk_];
      c.batch = id;
      c.edges = static_cast<std::uint32_t>(between(1, 4));
    }
    b.open = true;
    ++it;
  }
}

void weights_sim::place() {
  if (routable_.empty() || now_ < paused_until_ || (held_ && held_->flip == flip_at::chunk_edge))
    return;
  for (auto& [number, c] : chunks_) {
    if (c.holder || rng_.chance(50))
      continue;
    const auto pick = static_cast<std::ptrdiff_t>(rng_.below(routable_.size()));
    const auto worker = *std::next(routable_.begin(), pick);
    c.holder = worker;
    const chunk_order what{number, ++c.attempt, machine_.current()->epoch, 0};
    order(worker, [this, what, worker](process& p) {
      if (p.epoch != what.epoch || p.serves != truth_.at(what.epoch).value)
        wrong(name(worker) + " is given work of epoch " + std::to_string(what.epoch)
              + " and serves " + std::to_string(p.epoch));
      p.running.push_back(what);
      p.running.back().done_at = now_ + between(2, 20);
    });
  }
}

bool weights_sim::runs() const {
  return std::ranges::any_of(chunks_,
                             [](const auto& kvp) { return kvp.second.holder.has_value(); });
}

bool weights_sim::is_open() const {
  return std::ranges::any_of(batches_, [](const auto& kvp) { return kvp.second.open; });
}

void weights_sim::say_quiet() {
  if (held_ && !runs() && !(is_open() && held_->flip == flip_at::between_batches))
    tell(quiet{held_->update});
}

void weights_sim::watch_pause() {
  if (!held_ || now_ >= paused_until_ || runs() || !is_open()
      || held_->flip == flip_at::chunk_edge) {
    stuck_at_ = 0;
    return;
  }
  if (stuck_at_ == 0)
    stuck_at_ = now_;
  if (now_ - stuck_at_ < pause_ticks)
    return;
  ++counters_.paused_out;
  const auto aborted =
    machine_.abort(machine_.update()->epoch, error{errc::timed_out, "serving is paused", {}});
  carry_out();
  if (!aborted || held_)
    wrong("an update waits for batches that a pause keeps from ending");
}

void weights_sim::restart_scheduler() {
  if (!machine_.current())
    return;
  ++counters_.restarts;
  ++generation_;
  auto serves = *machine_.current();
  // Its journal knows a flip that was decided.
  if (const auto u = machine_.update(); u && u->at == phase::flipping)
    serves = {u->epoch, hash_of_all(truth_.at(u->epoch).value)};
  machine_ = update_machine{"host0", serves, machine_.promised(), generation_ * 1'000'000};
  for (auto& [epoch, what] : truth_)
    what.sent = {};
  sending_.reset();
  held_.reset();
  watched_ = {};
  routable_.clear();
  for (auto& [number, c] : chunks_)
    c.holder.reset();
  end_outdated(serves.epoch);
  for (std::size_t i = 0; i < processes_.size(); ++i)
    if (processes_[i].up_at <= now_)
      register_again(i);
}

void weights_sim::heal() {
  const auto all = std::ranges::all_of(processes_, [this](const process& p) {
    return p.id != worker_id{} && routable_.contains(p.id);
  });
  if (all || counters_.restarts == 0 || machine_.update() || sending_) {
    aside_at_ = 0;
    return;
  }
  if (aside_at_ == 0)
    aside_at_ = now_;
  if (now_ - aside_at_ < 100)
    return;
  ++counters_.left_aside;
  begin(true);
}

void weights_sim::finished(worker_id from, const chunk_order& done, std::uint64_t epoch,
                           tensors real) {
  const auto it = chunks_.find(done.chunk);
  if (it == chunks_.end() || it->second.holder != from || it->second.attempt != done.attempt)
    return;
  auto& c = it->second;
  auto& b = batches_.at(c.batch);
  ++counters_.chunks;
  if (truth_.at(epoch).value != real)
    wrong("tokens claim epoch " + std::to_string(epoch) + " and were made with other weights");
  c.epochs.insert(epoch);
  c.holder.reset();
  if (b.required && (c.epochs.size() != 1 || *c.epochs.begin() != *b.required))
    wrong("a batch that asked for epoch " + std::to_string(*b.required) + " is given others");
  if (--c.edges > 0)
    return;
  counters_.spanning += c.epochs.size() > 1;
  const auto id = c.batch;
  chunks_.erase(it);
  if (--b.chunks == 0)
    end_batch(id);
}

void weights_sim::end_batch(std::uint64_t id) {
  batches_.erase(id);
  std::erase_if(chunks_, [id](const auto& kvp) { return kvp.second.batch == id; });
}

// -- what must hold -------------------------------------------------------------------------------

void weights_sim::check() {
  for (const auto& w : machine_.workers())
    if (w.routable != routable_.contains(w.worker))
      wrong(name(w.worker) + " is routable for one side only");
  const auto update = machine_.update();
  if (!update || update->number != watched_) {
    watched_ = update ? update->number : update_id{};
    started_at_ = now_;
  }
  if (update && update->at == phase::receiving) {
    if (now_ - started_at_ > hang_ticks)
      wrong("an update hangs while its controller is silent");
  } else if (update && now_ - started_at_ > 2 * hang_ticks) {
    wrong("an update hangs while it is " + std::string{to_string(update->at)});
  }
  if (!update || update->at != phase::waiting || !routable_.empty())
    deserted_at_ = now_;
  if (now_ - deserted_at_ > 3)
    wrong("an update waits for what nobody is left to do");
  if (update && update->at == phase::flipping)
    return;
  for (const auto id : routable_) {
    const auto* p = who(id);
    if (p && (p->epoch != machine_.current()->epoch || p->serves != truth_.at(p->epoch).value))
      wrong(name(id) + " is routable at epoch " + std::to_string(p->epoch) + ", the fleet's is "
            + std::to_string(machine_.current()->epoch));
  }
}

bool weights_sim::settled() const {
  return !machine_.update() && !sending_ && batches_.empty() && !held_
         && std::ranges::all_of(processes_, [this](const process& p) {
              return p.id != worker_id{} && p.id == p.known && routable_.contains(p.id);
            });
}

} // namespace rollcast::weights::sim
