#include "cluster/transport/kv_exchange.hpp"

#include "cluster/transport/kv_exchange_loop.hpp"
#include "engine/memory/block_recycler.hpp"

#include <utility>

namespace rollcast {

namespace {
/// For so long the memory of an image waits for the next one.
constexpr std::chrono::seconds memory_pause{10};
} // namespace

kv_exchange::loop::loop(kv_exchange_options options, serve_function serve)
  : options_(std::move(options)), serve_(std::move(serve)), listener_(options_.keys) {}

kv_exchange::loop::~loop() {
  post(stop_command{});
  if (thread_.joinable())
    thread_.join();
}

result<void> kv_exchange::loop::bind() {
  try {
    router_ = zmq::socket_t{context_, zmq::socket_type::router};
    router_.set(zmq::sockopt::linger, 0);
    router_.set(zmq::sockopt::router_mandatory, true);
    router_.set(zmq::sockopt::maxmsgsize, std::int64_t{options_.part_bytes} + 1024);
  } catch (const zmq::error_t& e) {
    return fail(errc::bad_config, std::string{"cannot open the data endpoint: "} + e.what());
  }
  if (options_.keys) {
    auto door = doorkeeper::open(context_, router_, {options_.keys});
    if (!door)
      return fail(door);
    door_ = std::move(*door);
  }
  if (auto bound = listener_.bind(router_, options_.bind, "cannot bind the worker's data endpoint");
      !bound)
    return bound;
  endpoint_ = listener_.endpoint();
  if (!options_.advertise_host.empty())
    endpoint_ = "tcp://" + options_.advertise_host + endpoint_.substr(endpoint_.rfind(':'));
  return {};
}

void kv_exchange::loop::start() {
  thread_ = std::thread{[this] { run(); }};
}

void kv_exchange::loop::put(inbox& into, command what) {
  {
    const std::scoped_lock lock{into.mutex};
    into.commands.push_back(std::move(what));
  }
  into.wake.ring();
}

void kv_exchange::loop::run() {
  while (running_) {
    std::vector<zmq::pollitem_t> items{{router_.handle(), 0, ZMQ_POLLIN, 0},
                                       {nullptr, inbox_->wake.descriptor(), ZMQ_POLLIN, 0}};
    std::vector<std::string> names;
    for (auto& [name, peer] : peers_) {
      items.push_back({peer.socket.handle(), 0, ZMQ_POLLIN, 0});
      names.push_back(name);
    }
    try {
      zmq::poll(items, until_next_deadline());
    } catch (const zmq::error_t&) { // interrupted by a signal: look at everything and poll again
    }
    if ((items[1].revents & ZMQ_POLLIN) != 0)
      inbox_->wake.silence();
    obey();
    if ((items[0].revents & ZMQ_POLLIN) != 0)
      hear_pullers();
    for (std::size_t i = 0; i < names.size(); ++i)
      if ((items[i + 2].revents & ZMQ_POLLIN) != 0)
        hear_holder(names[i]);
    expire();
    give_back_memory();
    listener_.turn(router_);
    start_offers();
    start_pulls();
  }
  while (!pulls_.empty())
    end_pull(pulls_.begin()->first, fail(errc::cancelled, "the KV exchange is stopping"));
}

void kv_exchange::loop::obey() {
  std::vector<command> todo;
  {
    const std::scoped_lock lock{inbox_->mutex};
    todo.swap(inbox_->commands);
  }
  for (auto& what : todo)
    std::visit([this](auto& c) { on(c); }, what);
}

std::chrono::milliseconds kv_exchange::loop::until_next_deadline() const {
  // Room for a pull that waits may come from another thread, which rings no bell.
  auto next = clock::now() + std::chrono::milliseconds{pulls_waiting_.empty() ? 500 : 20};
  for (const auto& [id, p] : pulls_)
    next = std::min(next, p.deadline);
  for (const auto& [ticket, o] : offers_)
    next = std::min(next, o.deadline);
  const auto left =
    std::chrono::duration_cast<std::chrono::milliseconds>(next - clock::now()).count();
  return std::chrono::milliseconds{std::max<std::int64_t>(0, left + 1)};
}

void kv_exchange::loop::expire() {
  const auto now = clock::now();
  std::vector<std::uint64_t> silent, uncarried;
  for (auto& [id, p] : pulls_)
    // What is carried comes or fails by itself; the holder must only know that it is waited for.
    if (p.carried_to != worker_id{} && p.carry_until <= now)
      uncarried.push_back(id);
    else if (p.deadline <= now && (p.carried_to == worker_id{} || !ask_to_carry(id, p)))
      silent.push_back(id);
  for (const auto id : uncarried)
    fall_back(id, pulls_.at(id));
  for (const auto id : silent) {
    const auto it = pulls_.find(id);
    if (it == pulls_.end())
      continue; // ended with another one from the same holder
    const auto name = it->second.endpoint;
    const error why{errc::timed_out,
                    "no KV from " + name + " for " + std::to_string(options_.idle_ms_max.count())
                      + " ms; the response is computed again",
                    {}};
    // A holder that answers others is only slow with this one; one that says nothing is dead, and
    // whoever waits for it need not find out in turn.
    if (peers_.at(name).heard + options_.idle_ms_max <= now) {
      shunned_[{name, it->second.request.holder}] = now + options_.shun_ms;
      end_pulls_from(name, why);
    } else
      end_pull(id, tl::unexpected(why));
  }
  std::erase_if(shunned_, [now](const auto& entry) { return entry.second <= now; });
  expire_offers(now);
  std::erase_if(peers_, [now](const auto& entry) {
    return entry.second.pulls == 0 && entry.second.idle_since + std::chrono::seconds{30} <= now;
  });
}

void kv_exchange::loop::give_back_memory() {
  const auto now = clock::now();
  if (now < give_back_at_)
    return;
  give_back_at_ = now + std::chrono::seconds{1};
  block_recycler::process().give_back(memory_pause);
}

// -- the public class ---------------------------------------------------------

kv_exchange::kv_exchange(std::unique_ptr<loop> l) noexcept : loop_(std::move(l)) {}
kv_exchange::~kv_exchange() = default;

result<std::unique_ptr<kv_exchange>> kv_exchange::open(kv_exchange_options options,
                                                       serve_function serve) {
  auto made = std::make_unique<loop>(std::move(options), std::move(serve));
  if (auto bound = made->bind(); !bound)
    return fail(bound);
  made->start();
  return std::unique_ptr<kv_exchange>{new kv_exchange{std::move(made)}};
}

const std::string& kv_exchange::endpoint() const noexcept {
  return loop_->endpoint();
}

std::uint64_t kv_exchange::pull(std::string endpoint, const kv_request& request,
                                std::vector<token_id> tokens, done_function done) {
  const auto id = loop_->next_pull();
  loop_->post(
    loop::pull_command{id, std::move(endpoint), request, std::move(tokens), std::move(done)});
  return id;
}

void kv_exchange::cancel(std::uint64_t pull) {
  loop_->post(loop::cancel_command{pull});
}

void kv_exchange::answer(const kv_ticket& ticket, result<std::shared_ptr<const kv_image>> image) {
  loop_->post(loop::answer_command{ticket, std::move(image)});
}

const kv_exchange::counters& kv_exchange::counts() const noexcept {
  return loop_->counts;
}

} // namespace rollcast
