#include "cluster/collective/runner.hpp"

#include "cluster/transport/kv_exchange.hpp"

#include <algorithm>
#include <utility>

namespace rollcast::collective {

namespace {

constexpr std::size_t early_max = 16; // orders: a few are all that precede an answer to `ready`

instant steady_now() {
  return std::chrono::duration_cast<instant>(std::chrono::steady_clock::now().time_since_epoch());
}

} // namespace

runner::runner(std::shared_ptr<communicator_maker> maker, member_limits limits)
  : maker_(std::move(maker)), device_(maker_->device()), turn_max_(limits.turn_max),
    member_(*maker_, limits) {
  thread_ = std::jthread{[this](const std::stop_token& stop) { run(stop); }};
}

runner::~runner() = default;

void runner::post(command what) {
  {
    const std::scoped_lock lock{mutex_};
    commands_.push_back(std::move(what));
  }
  bell_.notify_one();
}

void runner::run(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    std::vector<command> todo;
    {
      std::unique_lock lock{mutex_};
      bell_.wait_for(lock, stop, member_.patience(), [this] { return !commands_.empty(); });
      todo.swap(commands_);
    }
    const auto now = steady_now();
    for (const auto& c : todo)
      c(member_, now);
    member_.turn(now);
    for (auto& n : member_.drain())
      if (tell_)
        tell_(std::move(n));
    const std::scoped_lock lock{mutex_};
    peers_ = member_.peers();
    turned_ = steady_now();
  }
  member_.serve({}); // what a thread used is let go by it
  serving_ = {};
  over_ = true;
  std::vector<command> left;
  {
    const std::scoped_lock lock{mutex_};
    left.swap(commands_);
  }
  for (const auto& c : left) // what they ask for ends: there is no open epoch
    c(member_, steady_now());
  {
    const std::scoped_lock lock{mutex_};
    peers_.clear();
    ended_ = true;
  }
  bell_.notify_all();
}

bool runner::stop(instant span) {
  thread_.request_stop();
  std::unique_lock lock{mutex_};
  return bell_.wait_for(lock, span, [this] { return ended_; });
}

void runner::serve(worker_id as, tell_function tell) {
  {
    const std::scoped_lock lock{mutex_};
    id_ = as;
    peers_.clear();
  }
  post([this, as, tell = std::move(tell)](member& m, instant) {
    if (over_)
      return;
    m.serve(as);
    tell_ = tell;
    serving_ = as;
    for (const auto& [meant, what] : std::exchange(early_, {}))
      if (meant == as)
        m.obey(what, steady_now());
  });
}

void runner::obey(worker_id meant, order what) {
  post([this, meant, what = std::move(what)](member& m, instant now) {
    if (serving_ == worker_id{} && early_.size() < early_max)
      early_.emplace_back(meant, what);
    else if (meant == serving_)
      m.obey(what, now);
  });
}

worker_id runner::reaches(worker_id holder) const {
  const std::scoped_lock lock{mutex_};
  if (steady_now() - turned_ > turn_max_)
    return {}; // what the thread would be asked for now, it would hold for as long as it hangs
  return holder != id_ && std::find(peers_.begin(), peers_.end(), holder) != peers_.end()
           ? id_
           : worker_id{};
}

void runner::fetch(std::uint64_t pull, memory into, done_function done) {
  post([pull, into = std::move(into), done = std::move(done)](member& m, instant now) {
    m.fetch(pull, into, done, now);
  });
}

void runner::give(worker_id puller, std::uint64_t pull, std::shared_ptr<const kv_image> image) {
  post([puller, pull, image = std::move(image)](member& m, instant now) {
    m.give(puller, pull, image->bytes, image, now);
  });
}

void runner::cast_weights(std::uint64_t update, std::uint64_t epoch,
                          std::shared_ptr<weight_cargo> cargo) {
  post([update, epoch, cargo = std::move(cargo)](member& m, instant) {
    m.cast_weights(update, epoch, cargo);
  });
}

void runner::await_weights(std::uint64_t update, std::uint64_t epoch,
                           std::shared_ptr<weight_cargo> cargo, done_function done) {
  post([update, epoch, cargo = std::move(cargo), done = std::move(done)](member& m, instant now) {
    m.await_weights(update, epoch, cargo, done, now);
  });
}

void runner::forget_weights(std::uint64_t update) {
  post([update](member& m, instant) { m.forget_weights(update); });
}

} // namespace rollcast::collective
