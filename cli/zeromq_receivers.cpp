#include "cli/zeromq_receivers.hpp"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstring>
#include <string>
#include <thread>

namespace rollcast::cli {
namespace {

using clock = std::chrono::steady_clock;

constexpr std::size_t message_bytes = std::size_t{1} << 20;
constexpr std::size_t endpoint_bytes = 64;

double seconds_since(clock::time_point begin) {
  return std::chrono::duration<double>(clock::now() - begin).count();
}

/// As the weight exchange does: no copy, the memory outlives the message.
zmq::message_t message_of(const std::vector<std::byte>& content, std::uint64_t number) {
  return {const_cast<std::byte*>(content.data()) + number * message_bytes, message_bytes,
          [](void*, void*) {}};
}

/// Sends all of it to each, one message to each in turn, and an empty message behind.
void send_all(std::vector<zmq::socket_t>& push, const std::vector<std::byte>& content) {
  for (std::uint64_t n = 0; n < content.size() / message_bytes; ++n)
    for (auto& socket : push)
      (void)socket.send(message_of(content, n), zmq::send_flags::none);
  for (auto& socket : push)
    (void)socket.send(zmq::message_t{}, zmq::send_flags::none);
}

/// Takes messages up to the empty one.
void take_all(zmq::socket_t& pull) {
  zmq::message_t message;
  do
    (void)pull.recv(message);
  while (message.size() > 0);
}

/// The life of a receiver. Ends when the pipe is closed, or with its parent.
[[noreturn]] void receive(int pipe) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  zmq::context_t context;
  zmq::socket_t pull{context, zmq::socket_type::pull};
  pull.bind("tcp://127.0.0.1:*");
  std::array<char, endpoint_bytes> endpoint{};
  const auto bound = pull.get(zmq::sockopt::last_endpoint);
  std::strncpy(endpoint.data(), bound.c_str(), endpoint.size() - 1);
  auto said = write(pipe, endpoint.data(), endpoint.size());
  while (said > 0) {
    take_all(pull);
    said = write(pipe, "", 1);
  }
  _exit(0);
}

} // namespace

result<zeromq_receivers> zeromq_receivers::start(std::uint32_t count) {
  zeromq_receivers started{{}};
  for (std::uint32_t i = 0; i < count; ++i) {
    std::array<int, 2> ends{};
    if (pipe(ends.data()) != 0)
      return fail(errc::io_failed, std::string{"cannot make a pipe: "} + std::strerror(errno));
    const auto process = fork();
    if (process == 0) {
      close(ends[0]);
      receive(ends[1]);
    }
    close(ends[1]);
    if (process < 0) {
      close(ends[0]);
      return fail(errc::io_failed, std::string{"cannot fork: "} + std::strerror(errno));
    }
    started.all_.push_back({process, ends[0], {}});
    std::array<char, endpoint_bytes> endpoint{};
    if (read(ends[0], endpoint.data(), endpoint.size()) != std::ssize(endpoint))
      return fail(errc::io_failed, "a receiver did not start");
    started.all_.back().endpoint = endpoint.data();
  }
  return started;
}

zeromq_receivers::~zeromq_receivers() {
  for (const auto& r : all_) {
    close(r.pipe);
    kill(r.process, SIGKILL);
    waitpid(r.process, nullptr, 0);
  }
}

result<double> zeromq_receivers::rate(std::uint64_t bytes) const {
  zmq::context_t context;
  std::vector<zmq::socket_t> push;
  for (const auto& r : all_) {
    push.emplace_back(context, zmq::socket_type::push);
    push.back().connect(r.endpoint);
  }
  const std::vector<std::byte> content(bytes / message_bytes * message_bytes, std::byte{1});
  const auto begin = clock::now();
  send_all(push, content);
  for (const auto& r : all_)
    if (char done = 0; read(r.pipe, &done, 1) != 1)
      return fail(errc::peer_lost, "a receiver of ZeroMQ messages has died");
  return static_cast<double>(content.size() * all_.size()) / seconds_since(begin);
}

double zeromq_rate_in_process(std::uint64_t bytes, std::uint32_t receivers) {
  zmq::context_t context;
  std::vector<zmq::socket_t> push;
  std::vector<std::jthread> readers;
  for (std::uint32_t i = 0; i < receivers; ++i) {
    zmq::socket_t pull{context, zmq::socket_type::pull};
    pull.bind("tcp://127.0.0.1:*");
    push.emplace_back(context, zmq::socket_type::push);
    push.back().connect(pull.get(zmq::sockopt::last_endpoint));
    readers.emplace_back([pull = std::move(pull)]() mutable { take_all(pull); });
  }
  const std::vector<std::byte> content(bytes / message_bytes * message_bytes, std::byte{1});
  const auto begin = clock::now();
  send_all(push, content);
  readers.clear();
  return static_cast<double>(content.size() * receivers) / seconds_since(begin);
}

} // namespace rollcast::cli
