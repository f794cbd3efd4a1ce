#include "cluster/weights/weight_exchange.hpp"

#include "cluster/transport/silent_peers.hpp"
#include "cluster/weights/weight_exchange_loop.hpp"

#include <algorithm>
#include <utility>

namespace rollcast {

weight_exchange::loop::loop(weight_exchange_options options)
  : options_(std::move(options)), listener_(options_.keys) {}

weight_exchange::loop::~loop() {
  post(stop_command{});
  if (thread_.joinable())
    thread_.join();
}

result<void> weight_exchange::loop::bind() {
  try {
    router_ = zmq::socket_t{context_, zmq::socket_type::router};
    router_.set(zmq::sockopt::linger, 0);
    router_.set(zmq::sockopt::router_mandatory, true);
    router_.set(zmq::sockopt::maxmsgsize, std::int64_t{1024}); // nobody sends slices here
    // A frozen peer would keep the slices on their way to it, and so the update, in memory.
    end_silent_connections(router_, 3 * options_.idle_ms_max);
  } catch (const zmq::error_t& e) {
    return fail(errc::bad_config, std::string{"cannot open the weights endpoint: "} + e.what());
  }
  if (options_.keys) {
    auto door = doorkeeper::open(context_, router_, {options_.keys});
    if (!door)
      return fail(door);
    door_ = std::move(*door);
  }
  if (auto bound = listener_.bind(router_, options_.bind, "cannot bind the weights endpoint");
      !bound)
    return bound;
  endpoint_ = listener_.endpoint();
  if (!options_.advertise_host.empty())
    endpoint_ = "tcp://" + options_.advertise_host + endpoint_.substr(endpoint_.rfind(':'));
  return {};
}

void weight_exchange::loop::start() {
  thread_ = std::thread{[this] { run(); }};
}

void weight_exchange::loop::post(command what) {
  {
    const std::scoped_lock lock{mutex_};
    commands_.push_back(std::move(what));
  }
  wake_.ring();
}

void weight_exchange::loop::run() {
  while (running_) {
    std::vector<zmq::pollitem_t> items{{router_.handle(), 0, ZMQ_POLLIN, 0},
                                       {nullptr, wake_.descriptor(), ZMQ_POLLIN, 0}};
    std::vector<std::uint64_t> updates;
    for (auto& [update, p] : pulls_) {
      items.push_back({p.socket.handle(), 0, ZMQ_POLLIN, 0});
      updates.push_back(update);
    }
    try {
      zmq::poll(items, until_next_deadline());
    } catch (const zmq::error_t&) { // interrupted by a signal: look at everything and poll again
    }
    if ((items[1].revents & ZMQ_POLLIN) != 0)
      wake_.silence();
    obey();
    if ((items[0].revents & ZMQ_POLLIN) != 0)
      hear_pullers();
    for (std::size_t i = 0; i < updates.size(); ++i)
      if ((items[i + 2].revents & ZMQ_POLLIN) != 0)
        hear_upstream(updates[i]);
    expire();
    keep_memory();
    listener_.turn(router_);
  }
  while (!pulls_.empty())
    end_pull(pulls_.begin()->first, fail(errc::cancelled, "the weight exchange is stopping"));
}

void weight_exchange::loop::obey() {
  std::vector<command> todo;
  {
    const std::scoped_lock lock{mutex_};
    todo.swap(commands_);
  }
  for (auto& what : todo)
    std::visit([this](auto& c) { on(c); }, what);
}

std::chrono::milliseconds weight_exchange::loop::until_next_deadline() const {
  auto next = std::min(tell_at_, clock::now() + std::chrono::milliseconds{500});
  for (const auto& [update, p] : pulls_)
    next = std::min({next, p.deadline, p.again});
  const auto left =
    std::chrono::duration_cast<std::chrono::milliseconds>(next - clock::now()).count();
  return std::chrono::milliseconds{std::max<std::int64_t>(0, left + 1)};
}

void weight_exchange::loop::expire() {
  const auto now = clock::now();
  expire_pulls(now);
  if (tell_at_ <= now)
    tell_waiting(now);
}

void weight_exchange::loop::keep_memory() {
  if (pulls_.empty())
    kept_.reset();
  else if (!kept_ && options_.malloc_keeps_bytes != 0)
    kept_.emplace(options_.malloc_keeps_bytes);
  give_back_heap();
}

// -- the public class ---------------------------------------------------------

weight_exchange::weight_exchange(std::unique_ptr<loop> l) noexcept : loop_(std::move(l)) {}
weight_exchange::~weight_exchange() = default;

result<std::unique_ptr<weight_exchange>> weight_exchange::open(weight_exchange_options options) {
  auto made = std::make_unique<loop>(std::move(options));
  if (auto bound = made->bind(); !bound)
    return fail(bound);
  made->start();
  return std::unique_ptr<weight_exchange>{new weight_exchange{std::move(made)}};
}

const std::string& weight_exchange::endpoint() const noexcept {
  return loop_->endpoint();
}

void weight_exchange::offer(std::uint64_t update, std::shared_ptr<const weight_cargo> cargo) {
  loop_->post(loop::offer_command{update, std::move(cargo)});
}

void weight_exchange::withdraw(std::uint64_t update) {
  loop_->post(loop::withdraw_command{update});
}

void weight_exchange::pull(std::uint64_t update, std::string endpoint,
                           std::shared_ptr<weight_cargo> cargo, progress_function progress,
                           done_function done) {
  loop_->post(loop::pull_command{update, std::move(endpoint), std::move(cargo), std::move(progress),
                                 std::move(done)});
}

void weight_exchange::redirect(std::uint64_t update, std::string endpoint) {
  loop_->post(loop::redirect_command{update, std::move(endpoint)});
}

void weight_exchange::cancel(std::uint64_t update) {
  loop_->post(loop::cancel_command{update});
}

const weight_exchange::counters& weight_exchange::counts() const noexcept {
  return loop_->counts;
}

} // namespace rollcast
