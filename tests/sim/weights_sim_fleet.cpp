#include "tests/sim/weights_sim.hpp"

#include <algorithm>

namespace rollcast::weights::sim {

// -- the network ----------------------------------------------------------------------------------

/// News travels on its own, so that any may overtake any, and may come twice.
void weights_sim::say(const news& what) {
  const auto due = now_ + 1 + rng_.below(faults_.delay_ticks_max + 1);
  at(due, [this, what] { tell(what); });
  if (happens(faults_.replay))
    at(due + between(1, 150), [this, what] { tell(what); });
}

/// Orders to one worker stay in their order, and are dropped where the incarnation is gone.
void weights_sim::order(worker_id to, std::function<void(process&)> what) {
  auto& p = processes_[incarnations_.at(to)];
  p.fifo = std::max(p.fifo, now_ + 1 + rng_.below(faults_.delay_ticks_max + 1));
  at(p.fifo, [this, to, what = std::move(what)] {
    if (auto* alive = who(to))
      what(*alive);
  });
}

weights_sim::process* weights_sim::who(worker_id id) {
  const auto it = incarnations_.find(id);
  if (it == incarnations_.end())
    return nullptr;
  auto& p = processes_[it->second];
  return p.id == id && p.up_at <= now_ ? &p : nullptr;
}

// -- workers --------------------------------------------------------------------------------------

void weights_sim::register_again(std::size_t index) {
  auto& p = processes_[index];
  p.id = {};
  p.running.clear();
  p.second.reset();
  p.orders.clear();
  p.admitted = false;
  const auto hello = ++p.hello;
  worker_joined as{{}, p.host, {p.epoch, hash_of_all(p.serves)}, p.base == p.serves};
  at(now_ + 1 + rng_.below(faults_.delay_ticks_max + 1),
     [this, index, hello, as, generation = generation_] {
       if (generation == generation_)
         registered(index, hello, as);
     });
}

void weights_sim::registered(std::size_t index, std::uint64_t hello, const worker_joined& as) {
  auto& p = processes_[index];
  auto joined = as;
  joined.worker = {++last_worker_.value};
  incarnations_[joined.worker] = index;
  if (p.hello != hello) {
    // The scheduler cannot know that this one is gone already; it hears so later.
    at(now_ + between(5, 40), [this, id = joined.worker] { lost(id, true); });
    return tell(joined);
  }
  p.known = joined.worker;
  p.fifo = std::max(p.fifo, now_ + 1);
  at(p.fifo, [this, index, hello, id = joined.worker] {
    if (processes_[index].hello == hello)
      processes_[index].id = id;
  });
  tell(joined);
}

void weights_sim::restart(std::size_t index, std::uint64_t ticks) {
  auto& p = processes_[index];
  if (p.known != worker_id{})
    at(now_ + between(1, 30), [this, id = p.known] { lost(id, true); });
  p.id = {};
  ++p.hello;
  p.running.clear();
  p.second.reset();
  p.kept.reset();
  p.serves = p.disk;
  p.base = p.disk;
  p.covered = p.admitted = false;
  p.epoch = 1;
  p.orders.clear();
  p.up_at = now_ + ticks;
  const auto hello = p.hello;
  at(p.up_at, [this, index, hello] {
    if (processes_[index].hello == hello)
      register_again(index);
  });
}

void weights_sim::injure(std::size_t index) {
  auto& p = processes_[index];
  if (p.id == worker_id{} || p.id != p.known)
    return;
  if (happens(faults_.crash)) {
    p.disk = base_;
    if (happens(faults_.odd_base) && machine_.current())
      p.disk[0] = rng_.next();
    return restart(index, between(1, 60));
  }
  if (happens(faults_.false_loss)) {
    at(now_ + between(1, 30), [this, index, id = p.id] {
      if (processes_[index].id == id)
        register_again(index);
    });
    lost(p.id, true);
  }
}

void weights_sim::work(std::size_t index) {
  injure(index);
  auto& p = processes_[index];
  if (p.id == worker_id{} || p.up_at > now_)
    return;
  for (const auto& c : p.running)
    if (c.done_at <= now_) {
      const auto report = [this, from = p.id, c, epoch = p.epoch, real = p.serves] {
        finished(from, c, epoch, real);
      };
      at(now_ + 1 + rng_.below(faults_.delay_ticks_max + 1), report);
      if (happens(faults_.replay))
        at(now_ + between(1, 150), report);
    }
  std::erase_if(p.running, [this](const chunk_order& c) { return c.done_at <= now_; });
  if (p.second && !p.second->stuck && !p.second->ready)
    pull_on(p);
}

void weights_sim::pull_on(process& p) {
  auto& next = *p.second;
  const auto update = next.what.update;
  if (now_ >= next.beat_at) {
    next.beat_at = now_ + 8;
    say(progressed{p.id, update, next.blocked ? 1u : 2u});
  }
  if (next.blocked || now_ < next.done_at)
    return;
  const auto* up = next.what.upstream ? who(*next.what.upstream) : nullptr;
  const auto gone = next.what.upstream && (!up || !up->second || up->second->what.update != update);
  if (gone || happens(faults_.upstream)) {
    next.blocked = true;
    next.done_at = now_ + between(1, 8);
    return say(upstream_failed{p.id, update});
  }
  if (up && !up->second->ready) {
    next.done_at = now_ + 1; // What is not there yet cannot be forwarded.
    return;
  }
  next.ready = true;
  if (next.non_finite)
    return say(refused{p.id, update, {errc::bad_checkpoint, "tensor 2 has NaN", {}}});
  say(prepared{p.id, update, hash_of_all(next.content)});
}

// -- controllers ----------------------------------------------------------------------------------

void weights_sim::begin(bool complete) {
  sending next;
  const auto now = machine_.current();
  if (!now)
    return;
  const auto& from = truth_.at(now->epoch);
  next.value = from.value;
  next.spec.covers = complete || rng_.chance(50) ? coverage::complete : coverage::changed_only;
  next.spec.flip = rng_.chance(50) ? flip_at::chunk_edge : flip_at::between_batches;
  next.spec.allow_non_finite = rng_.chance(20);
  next.spec.epoch = rng_.chance(50) ? 0 : now->epoch + rng_.below(4);
  const auto whole = next.spec.covers == coverage::complete;
  for (std::size_t i = 0; i < next.value.size(); ++i)
    if (whole || rng_.chance(40)) {
      next.value[i] = rng_.next();
      next.sent[i] = next.value[i];
    }
  next.bad = !calm_ && happens(faults_.bad);
  next.wrong_hash = !calm_ && happens(faults_.bad);
  next.silent = !calm_ && happens(faults_.silent);
  next.parts = static_cast<std::uint32_t>(between(1, 6));
  const auto number = machine_.begin(next.spec);
  if (!number) {
    ++counters_.refused_commands;
    return;
  }
  next.number = *number;
  next.spec.epoch = machine_.update()->epoch;
  if (!promised_.insert(next.spec.epoch).second)
    wrong("epoch " + std::to_string(next.spec.epoch) + " is given to a second update");
  next_.sent = from.sent;
  for (std::size_t i = 0; i < next.sent.size(); ++i)
    if (next.sent[i])
      next_.sent[i] = next.sent[i];
  sending_ = next;
  carry_out();
}

void weights_sim::send_parts() {
  if (!sending_ || sending_->silent || sending_->parts == 0 || rng_.chance(70))
    return;
  machine_.received(sending_->number);
  carry_out();
  if (--sending_->parts > 0)
    return;
  std::optional<content_hash> hash;
  if (sending_->wrong_hash)
    hash = content_hash{1, 2};
  else if (sending_->spec.covers == coverage::complete && rng_.chance(50))
    hash = hash_of_all(sending_->value);
  if (!machine_.commit(sending_->spec.epoch, hash, 100))
    wrong("the commit of what was begun is refused");
  carry_out();
}

void weights_sim::command() {
  if (happens(faults_.pause))
    paused_until_ = now_ + between(5, 200);
  if (happens(faults_.extinct)) {
    const auto served_by = routable_;
    for (const auto id : served_by)
      if (who(id))
        restart(incarnations_.at(id), between(1, 200));
  }
  if (!happens(40))
    return;
  const auto epoch = machine_.current() ? machine_.current()->epoch : 0;
  bool done = true;
  switch (rng_.below(10)) {
    case 0: done = machine_.abort(epoch + rng_.below(3)).has_value(); break;
    case 1:
    case 3: done = machine_.rollback().has_value(); break;
    case 2:
      if (!sending_)
        done = machine_.commit(epoch + rng_.below(3), {}, 1).has_value();
      break;
    default: begin(); break;
  }
  counters_.refused_commands += !done;
  carry_out();
}

void weights_sim::calm() {
  calm_ = true;
  const auto delay = faults_.delay_ticks_max;
  faults_ = {};
  faults_.delay_ticks_max = delay;
  paused_until_ = 0;
  for (std::size_t i = 0; i < processes_.size(); ++i)
    if (processes_[i].disk != base_) {
      processes_[i].disk = base_;
      restart(i, 1);
    }
}

std::uint64_t weights_sim::publish() {
  while (!sending_)
    begin(); // Until the number that is drawn is a new one.
  return sending_->spec.epoch;
}

} // namespace rollcast::weights::sim
