#include "cluster/security/doorkeeper.hpp"

#include <arpa/inet.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

namespace rollcast {
namespace {

constexpr const char* zap_endpoint = "inproc://zeromq.zap.01";
constexpr const char* monitor_endpoint = "inproc://rollcast.door";
constexpr const char* key_property = "X-Rollcast-Key";
constexpr int watched = ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_CLOSED
                        | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL
                        | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH | ZMQ_EVENT_MONITOR_STOPPED;

/// The address at the other end of a connection; "" if it is none any more.
std::string address_of(int descriptor) {
  sockaddr_storage name{};
  socklen_t size = sizeof name;
  if (::getpeername(descriptor, reinterpret_cast<sockaddr*>(&name), &size) != 0)
    return {};
  std::array<char, INET6_ADDRSTRLEN> text{};
  const void* from =
    name.ss_family == AF_INET6
      ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in6&>(name).sin6_addr)
      : &reinterpret_cast<const sockaddr_in&>(name).sin_addr;
  if (::inet_ntop(name.ss_family, from, text.data(), text.size()) == nullptr)
    return {};
  return text.data();
}

/// A property of ZMTP metadata: a byte of length and the name, four bytes of length and the value.
std::string property(std::string_view name, std::string_view value) {
  std::string bytes(1, static_cast<char>(name.size()));
  bytes += name;
  for (int shift = 24; shift >= 0; shift -= 8)
    bytes += static_cast<char>((value.size() >> shift) & 0xff);
  return bytes.append(value);
}

const char* property_of(const zmq::message_t& message, const char* name) {
  return ::zmq_msg_gets(message.handle(), name);
}

/// The most connections that leave room for the process's own files: `wanted`, or three eighths of
/// the soft limit if that is less. A scheduler and a worker have two doors each.
std::size_t connections_within_file_limit(std::size_t wanted) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
    return wanted;
  return std::min<std::size_t>(wanted, limit.rlim_cur / 8 * 3);
}

} // namespace

class doorkeeper::loop {
public:
  explicit loop(door_options options) : options_(std::move(options)) {}
  ~loop();
  loop(const loop&) = delete;
  loop& operator=(const loop&) = delete;

  /// @returns false if the listener cannot be watched, with errno. Throws as ZeroMQ does.
  bool open(zmq::context_t& context, zmq::socket_t& listener);
  std::optional<visitor> who_sent(const zmq::message_t& body);

  counters counts;

private:
  struct connection {
    std::string address;
    std::uint64_t number = 0; ///< Ascends from one to the next.
    bool spoke = false;       ///< A whole message has come by it.
    std::string key;          ///< Once it has spoken.
    std::string client;       ///< Whose key it is.
    /// Since when nothing of it counts: its client has too many, or its key is not on the list.
    std::optional<std::chrono::steady_clock::time_point> refused;
  };
  /// The connections of one address.
  struct neighbours {
    std::size_t count = 0;
    std::map<std::uint64_t, int> silent; ///< Descriptors of those that have not spoken, by number.
  };

  void run();
  void hear_monitor();
  void accepted(int descriptor);
  void ended(int descriptor);
  void make_room(neighbours& of, int descriptor);
  static bool may_log(std::chrono::steady_clock::time_point& last);
  void warn_of_too_many(const std::string& what);
  void spoke(connection& which, const std::string& key, const std::optional<client_entry>& who);
  void forget_client(connection& which);
  void hear_zap();
  void say_unknown_key(const std::string& address);
  void each_second();
  void look_at_files();
  void show_out_removed();
  void end_refused();

  door_options options_;
  zmq::socket_t zap_;
  zmq::socket_t monitor_;
  void* listener_ = nullptr;
  std::atomic<bool> running_{true};
  std::chrono::steady_clock::time_point looked_{};
  std::chrono::steady_clock::time_point warned_{}; ///< Guarded by `mutex_`.
  std::chrono::steady_clock::time_point said_unknown_{};
  std::uint64_t unknown_keys_ = 0; ///< Since then.
  std::uint64_t list_version_ = 0;
  std::uint64_t last_number_ = 0;
  std::mutex mutex_; ///< Guards the three below, too.
  std::unordered_map<std::string, neighbours> by_address_;
  std::unordered_map<int, connection> connections_; ///< By descriptor.
  /// Connections that have spoken with a key of the client.
  std::unordered_map<std::string, std::size_t> by_client_;
  std::thread thread_;
};

bool doorkeeper::loop::open(zmq::context_t& context, zmq::socket_t& listener) {
  if (options_.keys) {
    list_version_ = options_.keys->list_version();
    zap_ = zmq::socket_t{context, zmq::socket_type::rep};
    zap_.set(zmq::sockopt::linger, 0);
    zap_.bind(zap_endpoint);
  }
  if (::zmq_socket_monitor(listener.handle(), monitor_endpoint, watched) != 0)
    return false;
  listener_ = listener.handle();
  monitor_ = zmq::socket_t{context, zmq::socket_type::pair};
  monitor_.set(zmq::sockopt::linger, 0);
  monitor_.set(zmq::sockopt::rcvhwm, 0); // a full queue would stop ZeroMQ's own thread
  monitor_.connect(monitor_endpoint);
  thread_ = std::thread{[this] { run(); }};
  return true;
}

doorkeeper::loop::~loop() {
  if (listener_ != nullptr)
    ::zmq_socket_monitor(listener_, nullptr, 0); // before its reader is gone, or it would wait
  running_ = false;
  if (thread_.joinable())
    thread_.join();
}

void doorkeeper::loop::run() {
  while (running_) {
    std::vector<zmq::pollitem_t> items{{monitor_.handle(), 0, ZMQ_POLLIN, 0}};
    if (zap_)
      items.push_back({zap_.handle(), 0, ZMQ_POLLIN, 0});
    try {
      zmq::poll(items, std::chrono::milliseconds{1'000});
    } catch (const zmq::error_t&) { // interrupted by a signal: look at everything and poll again
    }
    hear_monitor();
    if (zap_)
      hear_zap();
    each_second();
  }
}

// -- connections --------------------------------------------------------------

void doorkeeper::loop::hear_monitor() {
  for (int turn = 0; turn < 1'024; ++turn) {
    zmq::message_t event;
    zmq::message_t endpoint;
    try {
      if (!monitor_.recv(event, zmq::recv_flags::dontwait))
        return;
      if (event.more() && !monitor_.recv(endpoint, zmq::recv_flags::none))
        return;
    } catch (const zmq::error_t&) {
      return;
    }
    if (event.size() != 6)
      continue;
    std::uint16_t kind = 0;
    std::int32_t value = 0;
    std::memcpy(&kind, event.data(), sizeof kind);
    std::memcpy(&value, event.data<char>() + sizeof kind, sizeof value);
    if (kind == ZMQ_EVENT_ACCEPTED)
      accepted(value);
    else if (kind == ZMQ_EVENT_DISCONNECTED || kind == ZMQ_EVENT_CLOSED)
      ended(value);
    else if (kind == ZMQ_EVENT_MONITOR_STOPPED)
      running_ = false;
    else if (options_.keys)
      ++counts.refused_handshake;
  }
}

void doorkeeper::loop::accepted(int descriptor) {
  ended(descriptor); // of an earlier connection with the same number, should its end be missing
  const auto address = address_of(descriptor);
  if (address.empty())
    return; // it has gone already
  const std::scoped_lock lock{mutex_};
  const auto number = ++last_number_;
  auto& fresh = connections_[descriptor] = {};
  fresh.address = address;
  fresh.number = number;
  counts.connections = connections_.size();
  auto& here = by_address_[address];
  ++here.count;
  here.silent.emplace(number, descriptor);
  if (here.count > options_.connections_per_address_max)
    return make_room(here, descriptor);
  if (connections_.size() <= options_.connections_max)
    return;
  const auto most = std::ranges::max_element(
    by_address_, {}, [](const auto& entry) { return entry.second.silent.size(); });
  make_room(most->second, descriptor);
}

/// Ends the connection that has been silent for longest: whoever works speaks at once. If all have
/// spoken it is the new one.
void doorkeeper::loop::make_room(neighbours& of, int descriptor) {
  if (!of.silent.empty()) {
    descriptor = of.silent.begin()->second;
    of.silent.erase(of.silent.begin());
  }
  ++counts.refused_too_many;
  const auto& address = connections_.at(descriptor).address;
  warn_of_too_many("too many connections, so one of " + address
                   + " is ended: " + std::to_string(connections_.size()) + " are open, "
                   + std::to_string(of.count) + " of that address; at most "
                   + std::to_string(options_.connections_max) + " and "
                   + std::to_string(options_.connections_per_address_max) + " are allowed");
  // ZeroMQ owns the descriptor and closes it when it sees the end. Should it be another's by now,
  // that one dials again.
  if (address_of(descriptor) == address)
    ::shutdown(descriptor, SHUT_RDWR);
}

/// Whether the last line of its kind is old enough: strangers must not fill the log.
bool doorkeeper::loop::may_log(std::chrono::steady_clock::time_point& last) {
  const auto now = std::chrono::steady_clock::now();
  if (now - last <= std::chrono::seconds{10})
    return false;
  last = now;
  return true;
}

void doorkeeper::loop::warn_of_too_many(const std::string& what) {
  if (may_log(warned_))
    spdlog::warn("{}", what);
}

void doorkeeper::loop::ended(int descriptor) {
  const std::scoped_lock lock{mutex_};
  const auto it = connections_.find(descriptor);
  if (it == connections_.end())
    return;
  const auto here = by_address_.find(it->second.address);
  here->second.silent.erase(it->second.number);
  if (--here->second.count == 0)
    by_address_.erase(here);
  forget_client(it->second);
  connections_.erase(it);
  counts.connections = connections_.size();
}

// -- keys ---------------------------------------------------------------------

/// Answers ZeroMQ's questions who may come in (RFC 27).
void doorkeeper::loop::hear_zap() {
  for (int turn = 0; turn < 256; ++turn) {
    std::vector<std::string> parts;
    try {
      for (bool more = true; more;) {
        zmq::message_t part;
        if (!zap_.recv(part, zmq::recv_flags::dontwait))
          return;
        parts.push_back(part.to_string());
        more = part.more();
      }
      // version, request id, domain, address, identity, mechanism, public key
      std::optional<client_entry> known;
      std::array<char, 41> key{};
      if (parts.size() == 7 && parts[0] == "1.0" && parts[5] == "CURVE" && parts[6].size() == 32
          && ::zmq_z85_encode(key.data(), reinterpret_cast<const std::uint8_t*>(parts[6].data()),
                              32)
               != nullptr)
        known = options_.keys->admit(key.data());
      if (!known)
        say_unknown_key(parts.size() > 3 ? parts[3] : "?");
      const std::array<std::string, 6> answer{"1.0",
                                              parts.size() > 1 ? parts[1] : "",
                                              known ? "200" : "400",
                                              known ? "OK" : "unknown key",
                                              known ? known->name : "",
                                              known ? property(key_property, key.data()) : ""};
      for (std::size_t at = 0; at < answer.size(); ++at)
        (void)zap_.send(zmq::buffer(answer[at]),
                        at + 1 < answer.size() ? zmq::send_flags::sndmore : zmq::send_flags::none);
    } catch (const zmq::error_t&) { // interrupted: the client dials again
      return;
    }
  }
}

void doorkeeper::loop::say_unknown_key(const std::string& address) {
  ++unknown_keys_;
  if (may_log(said_unknown_))
    spdlog::info("a client at {} is refused: its key is not in the allow list ({} since this was "
                 "last said)",
                 address, std::exchange(unknown_keys_, 0));
}

void doorkeeper::loop::each_second() {
  const auto now = std::chrono::steady_clock::now();
  if (!options_.keys || now - looked_ < std::chrono::seconds{1})
    return;
  looked_ = now;
  look_at_files();
  end_refused();
}

void doorkeeper::loop::look_at_files() {
  options_.keys->refresh(looked_);
  if (const auto complaint = options_.keys->complaint(); !complaint.empty())
    spdlog::error("{}", complaint);
  if (const auto version = options_.keys->list_version(); version != list_version_) {
    list_version_ = version;
    spdlog::info("who may come in was read again");
    show_out_removed();
  }
}

void doorkeeper::loop::show_out_removed() {
  const std::scoped_lock lock{mutex_};
  for (const auto& [descriptor, who] : connections_)
    if (!who.key.empty() && !options_.keys->admit(who.key)
        && address_of(descriptor) == who.address) {
      ++counts.refused_handshake;
      ::shutdown(descriptor, SHUT_RDWR);
    }
}

/// A second after it was refused: a message of a connection that has ended may come after its
/// descriptor was given to another, whose own messages then take the refusal back.
void doorkeeper::loop::end_refused() {
  const std::scoped_lock lock{mutex_};
  for (const auto& [descriptor, which] : connections_)
    if (which.refused && looked_ - *which.refused >= std::chrono::seconds{1}
        && address_of(descriptor) == which.address)
      ::shutdown(descriptor, SHUT_RDWR);
}

void doorkeeper::loop::forget_client(connection& which) {
  if (which.client.empty())
    return;
  const auto it = by_client_.find(which.client);
  if (--it->second == 0)
    by_client_.erase(it);
  which.client.clear();
}

/// Refuses the connection if its key is not on the list, or if its client, by whatever key, has
/// more than it may have.
void doorkeeper::loop::spoke(connection& which, const std::string& key,
                             const std::optional<client_entry>& who) {
  if (which.spoke && which.key == key)
    return;
  forget_client(which);
  which.spoke = true;
  which.refused.reset();
  which.key = key;
  by_address_.at(which.address).silent.erase(which.number);
  if (!options_.keys)
    return;
  if (!who) {
    ++counts.refused_handshake;
    which.refused = std::chrono::steady_clock::now();
    return;
  }
  which.client = who->name;
  const auto count = ++by_client_[who->name];
  if (count <= who->limits.connections)
    return;
  which.refused = std::chrono::steady_clock::now();
  ++counts.refused_too_many;
  warn_of_too_many("client " + who->name + " has " + std::to_string(count)
                   + " connections, allowed are " + std::to_string(who->limits.connections)
                   + ", so the last to speak is ended");
}

std::optional<visitor> doorkeeper::loop::who_sent(const zmq::message_t& body) {
  const auto* key = property_of(body, key_property);
  if (options_.keys && key == nullptr)
    return std::nullopt;
  const auto known = options_.keys ? options_.keys->admit(key) : std::nullopt;
  {
    const std::scoped_lock lock{mutex_};
    const int descriptor = ::zmq_msg_get(body.handle(), ZMQ_SRCFD);
    const auto it = connections_.find(descriptor);
    if (it != connections_.end()) { // perhaps another's by now, see `end_refused`
      spoke(it->second, options_.keys ? key : "", known);
      if (it->second.refused)
        return std::nullopt;
    }
  }
  if (options_.keys && !known)
    return std::nullopt;
  if (!options_.keys) {
    const auto* address = property_of(body, "Peer-Address");
    return visitor{address == nullptr ? "?" : address, std::nullopt, {}, true};
  }
  return visitor{known->name, known->limits, known->name, known->operates};
}

// -- the public class ---------------------------------------------------------

doorkeeper::doorkeeper(std::unique_ptr<loop> l) noexcept : loop_(std::move(l)) {}
doorkeeper::~doorkeeper() = default;

result<std::unique_ptr<doorkeeper>>
doorkeeper::open(zmq::context_t& context, zmq::socket_t& listener, door_options options) {
  options.connections_max = connections_within_file_limit(options.connections_max);
  auto made = std::make_unique<loop>(std::move(options));
  try {
    if (!made->open(context, listener))
      return fail(errc::bad_config,
                  std::string{"cannot watch a listening socket: "} + ::zmq_strerror(::zmq_errno()));
  } catch (const zmq::error_t& e) {
    return fail(errc::bad_config, std::string{"cannot watch a listening socket: "} + e.what());
  }
  return std::unique_ptr<doorkeeper>{new doorkeeper{std::move(made)}};
}

std::optional<visitor> doorkeeper::who_sent(const zmq::message_t& body) {
  return loop_->who_sent(body);
}

const doorkeeper::counters& doorkeeper::counts() const noexcept {
  return loop_->counts;
}

void raise_file_limit() noexcept {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= limit.rlim_max)
    return;
  limit.rlim_cur = limit.rlim_max;
  (void)::setrlimit(RLIMIT_NOFILE, &limit); // as it is then
}

} // namespace rollcast
