#include "tests/sim/collective_sim.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace rollcast::collective::sim {
namespace {

constexpr coordinator_limits boss_limits{.pause = std::chrono::milliseconds{200},
                                         .id_max = std::chrono::seconds{1},
                                         .form_max = std::chrono::seconds{3},
                                         .round_max = std::chrono::milliseconds{1500},
                                         .failures_max = 4,
                                         .move_max = std::chrono::milliseconds{600},
                                         .moves_max = 3,
                                         .round_bytes_max = 600};
constexpr member_limits half_limits{.form_max = std::chrono::seconds{2},
                                    .round_max = std::chrono::seconds{1},
                                    .fetch_max = std::chrono::seconds{1},
                                    .cast_max = std::chrono::seconds{2},
                                    .prepare_max = std::chrono::milliseconds{300},
                                    .cast_bytes = 100,
                                    .bytes_max = 1'000};
/// Longer than what is asked for may take: a fetch that waits, then its round; five casts and what
/// may lie between two of them.
constexpr std::uint64_t fetch_ticks = 150;
constexpr std::uint64_t cast_ticks = 900;

std::byte byte_of(std::uint64_t number, std::size_t i) {
  return static_cast<std::byte>((number * 131 + i * 7) >> 1);
}

kv_bytes bytes_of_pull(std::uint64_t number) {
  kv_bytes out(50 + number * 37 % 400);
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = byte_of(number, i);
  return out;
}

std::shared_ptr<weight_cargo> whole_cargo(std::uint64_t number) {
  const auto bytes = std::make_shared<kv_bytes>(bytes_of_pull(number));
  bytes->resize(bytes->size() / 4 * 4);
  tensor_info t{"t", kernels::dtype::f32, {bytes->size() / 4}, hash_bytes(*bytes)};
  return *weight_cargo::of({t}, {{bytes, *bytes}}, 64);
}

} // namespace

collective_sim::collective_sim(std::uint64_t seed, std::uint32_t workers, faults f)
  : random_(seed), faults_(f), boss_(boss_limits) {
  for (std::uint32_t i = 0; i < workers; ++i)
    add_worker(false);
}

collective_sim::~collective_sim() {
  workers_.clear(); // they say how everything ends, to the rest of this
}

/// @param alone  on a device of its own; else now and then on one that another has
void collective_sim::add_worker(bool alone) {
  worker w;
  w.id = {++last_worker_};
  w.device = "device " + std::to_string(last_worker_);
  if (!alone && !workers_.empty() && random_.chance(10))
    if (const auto& other = workers_[random_.below(workers_.size())]; !other.dead)
      w.device = other.device;
  w.maker = fabric_.device(w.device);
  w.half = std::make_unique<member>(*w.maker, half_limits);
  w.half->serve(w.id);
  boss_.joined(w.id, w.device, now());
  workers_.push_back(std::move(w));
}

/// Messages on their way, in both directions, are lost with the connection.
void collective_sim::relink(std::size_t i) {
  auto& w = workers_[i];
  boss_.left(w.id, now());
  w.id = {++last_worker_};
  w.half->serve(w.id);
  boss_.joined(w.id, w.device, now());
}

void collective_sim::break_something() {
  const auto happens = [&](std::uint32_t chance) { return random_.below(1000) < chance; };
  const auto any = random_.below(workers_.size());
  auto& w = workers_[any];
  if (happens(faults_.kill) && !w.dead) {
    fabric_.kill(w.device, random_.chance(50));
    // Whoever shares the device has none either: in the sim a device dies with its process.
    for (auto& other : workers_)
      if (!other.dead && other.device == w.device) {
        other.dead = true;
        other.noticed = tick_ + 1 + random_.below(100);
        for (auto& [number, a] : asked_)
          a.matters = a.matters && a.by != other.id;
      }
  }
  if (happens(faults_.relink) && !w.dead)
    relink(any);
  if (happens(faults_.join) && workers_.size() < 40)
    add_worker(false);
  if (happens(faults_.stall))
    stalled_until_ = tick_ + random_.below(120);
  if (happens(faults_.refuse))
    fabric_.refuse_groups(1 + static_cast<std::uint32_t>(random_.below(3)));
  fabric_.corrupt(happens(faults_.corrupt));
  fabric_.stall(tick_ < stalled_until_);
  for (auto& x : workers_)
    if (x.dead && x.noticed == tick_)
      boss_.left(x.id, now());
}

template <class T>
void collective_sim::send(std::deque<late<T>>& on, std::size_t w, T what) {
  auto due = tick_ + random_.below(faults_.delay_ticks_max + 1);
  for (const auto& m : on) // a connection keeps the order
    if (m.worker == w)
      due = std::max(due, m.due);
  on.push_back({due, w, workers_[w].id, std::move(what)});
}

void collective_sim::expect(std::uint64_t number, const worker& by, std::uint64_t within) {
  asked_[number] = {tick_ + within, 0, true, by.id};
}

void collective_sim::end(std::uint64_t number, bool good) {
  if (++asked_.at(number).ended > 1)
    wrong_ = "number " + std::to_string(number) + " ended twice";
  fell_back_ += good ? 0 : 1;
}

void collective_sim::ask_for_kv() {
  auto& to = workers_[random_.below(workers_.size())];
  const auto from = random_.below(workers_.size());
  const auto peers = to.half->peers();
  if (to.dead || to.id == workers_[from].id
      || std::find(peers.begin(), peers.end(), workers_[from].id) == peers.end())
    return;
  const auto number = ++last_number_;
  const auto content = bytes_of_pull(number);
  const kv_carrier::memory into{new kv_bytes(content.size()), [this](kv_bytes* v) {
                                  if (fabric_.uses(v->data()))
                                    wrong_ = "memory was let go while the fabric wrote to it";
                                  delete v;
                                }};
  const std::shared_ptr<const kv_bytes> image{new kv_bytes(content), [this](const kv_bytes* v) {
                                                if (fabric_.uses(v->data()))
                                                  wrong_ =
                                                    "memory was let go while the fabric read it";
                                                delete v;
                                              }};
  expect(number, to, fetch_ticks);
  to.half->fetch(
    number, into,
    [this, number, content, weak = std::weak_ptr{into}](const result<void>& how) {
      const auto got = weak.lock();
      // As the exchange does: what hashes tell is fetched another way.
      const bool good = how && *got == content;
      moved_ += good ? 1 : 0;
      if (how && !good && faults_.corrupt == 0 && faults_.kill == 0 && faults_.relink == 0)
        wrong_ = "number " + std::to_string(number) + " came with other bytes";
      end(number, good);
    },
    now());
  if (random_.below(1000) >= faults_.no_give)
    send(gifts_, from, gift{to.id, number, image});
}

void collective_sim::ask_for_weights() {
  std::vector<std::size_t> open;
  for (std::size_t i = 0; i < workers_.size(); ++i)
    if (!workers_[i].dead && !workers_[i].half->peers().empty())
      open.push_back(i);
  if (open.size() < 2)
    return;
  const auto number = ++last_number_;
  const auto epoch = boss_.epoch();
  const auto whole = whole_cargo(number);
  const auto root = random_.below(open.size());
  for (std::size_t k = 0; k < open.size(); ++k) {
    // The order of an update comes by another way than those of the group, and may be late.
    if (k == root) {
      send(parts_, open[k], part{[number, epoch, whole](worker& w) {
             w.half->cast_weights(number << 20, epoch, whole);
           }});
      continue;
    }
    const auto mine = ++last_number_;
    send(parts_, open[k], part{[this, mine, number, epoch, whole](worker& w) {
           await_weights(mine, number << 20, epoch, *whole, w);
         }});
  }
}

void collective_sim::await_weights(std::uint64_t mine, std::uint64_t update, std::uint64_t epoch,
                                   const weight_cargo& whole, worker& w) {
  const std::shared_ptr<weight_cargo> cargo =
    *weight_cargo::expecting(whole.tensors(), whole.slice_bytes());
  expect(mine, w, cast_ticks);
  w.half->await_weights(
    update, epoch, cargo,
    [this, mine, cargo](const result<void>& how) {
      if (how && !cargo->complete())
        wrong_ = "weights were said to be complete that are not";
      cast_ += how ? 1 : 0;
      end(mine, how.has_value());
    },
    now());
}

void collective_sim::deliver() {
  const auto each_due = [&](auto& queue, auto take) {
    auto waiting = std::exchange(queue, {});
    for (auto& m : waiting)
      if (m.due > tick_)
        queue.push_back(std::move(m));
      else if (workers_[m.worker].id == m.as && !workers_[m.worker].dead)
        take(workers_[m.worker], m.what);
  };
  each_due(parts_, [](worker& w, const part& p) { p(w); });
  each_due(orders_, [&](worker& w, order& o) { w.half->obey(o, now()); });
  each_due(gifts_,
           [&](worker& w, gift& g) { w.half->give(g.puller, g.pull, *g.bytes, g.bytes, now()); });
  each_due(news_, [&](worker&, news& n) { boss_.on(n, now()); });
}

std::string collective_sim::step() {
  ++tick_;
  break_something();
  // Less than a group gets done whose messages are late: a round takes two of them.
  if (asking_ && random_.below(1000) < 100)
    ask_for_kv();
  if (asking_ && random_.below(1000) < 3)
    ask_for_weights();
  deliver();
  boss_.turn(now());
  for (std::size_t i = 0; i < workers_.size(); ++i) {
    if (workers_[i].dead)
      continue;
    workers_[i].half->turn(now());
    for (auto& n : workers_[i].half->drain())
      send(news_, i, std::move(n));
  }
  for (auto& o : boss_.drain())
    for (std::size_t i = 0; i < workers_.size(); ++i)
      if (workers_[i].id == o.to)
        send(orders_, i, std::move(o.what));
  return check();
}

std::string collective_sim::check() const {
  if (!wrong_.empty())
    return wrong_;
  std::set<std::string> devices;
  const auto members = boss_.members();
  for (const auto& w : workers_)
    if (std::find(members.begin(), members.end(), w.id) != members.end()
        && !devices.insert(w.device).second)
      return "two members share " + w.device;
  for (const auto& [number, a] : asked_)
    if (a.ended == 0 && a.matters && tick_ > a.until)
      return "number " + std::to_string(number) + " does not end";
  return "";
}

void collective_sim::calm() {
  faults_ = {.delay_ticks_max = faults_.delay_ticks_max};
  stalled_until_ = 0;
  fabric_.refuse_groups(0);
  for (auto& w : workers_)
    if (w.dead && w.noticed > tick_)
      w.noticed = tick_ + 1;
  add_worker(true);
  add_worker(true);
}

bool collective_sim::settled() const {
  const bool all_ended = std::all_of(asked_.begin(), asked_.end(), [](const auto& a) {
    return a.second.ended > 0 || !a.second.matters;
  });
  const auto members = boss_.members();
  return all_ended && !members.empty()
         && std::all_of(workers_.begin(), workers_.end(), [&](const worker& w) {
              return w.dead || w.half->peers().empty() || w.half->peers().size() == members.size();
            });
}

} // namespace rollcast::collective::sim
