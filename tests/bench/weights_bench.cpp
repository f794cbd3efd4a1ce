// Measures a weight update to one and to two workers beside ZeroMQ itself on the same machine: a
// PUSH in one process to a PULL in each of the others, which drops what it gets. The figure of both
// is bytes * receivers / time, from the start signal until the last receiver has everything.
// weights_bench [megabytes [rounds [slice KiB ...]]] prints a table of medians.
#include "cluster/weights/weight_exchange.hpp"

#include <sys/wait.h>
#include <unistd.h>
#include <zmq.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <future>
#include <string>
#include <vector>

namespace rollcast::bench {
namespace {

/// A process that says a line when it is ready, starts at a byte and says a byte when it is done.
class child {
public:
  /// `body(say, go)` runs in the new process, which ends with it.
  using body_function = std::function<void(const std::function<void(std::string)>& say,
                                           const std::function<void()>& go)>;

  explicit child(const body_function& body) {
    std::array<int, 2> down{};
    std::array<int, 2> up{};
    if (::pipe(down.data()) != 0 || ::pipe(up.data()) != 0)
      std::abort();
    pid_ = ::fork();
    if (pid_ != 0) {
      ::close(down[0]);
      ::close(up[1]);
      to_ = down[1];
      from_ = up[0];
      return;
    }
    ::close(down[1]);
    ::close(up[0]);
    const auto say = [&](const std::string& line) {
      if (::write(up[1], (line + "\n").data(), line.size() + 1) < 0)
        std::_Exit(1);
    };
    const auto go = [&] {
      char byte = 0;
      if (::read(down[0], &byte, 1) != 1)
        std::_Exit(1);
    };
    body(say, go);
    std::_Exit(0);
  }
  child(const child&) = delete;
  child& operator=(const child&) = delete;

  ~child() {
    start(); // whoever waits for its end goes on
    ::close(to_);
    ::waitpid(pid_, nullptr, 0);
    ::close(from_);
  }

  std::string hear() const {
    std::string line;
    for (char c = 0; ::read(from_, &c, 1) == 1 && c != '\n';)
      line += c;
    return line;
  }
  void start() const {
    if (::write(to_, "g", 1) != 1)
      std::perror("weights_bench: a child has gone");
  }

private:
  pid_t pid_ = -1;
  int to_ = -1;
  int from_ = -1;
};

/// A large tensor and many middling ones, as a model has.
std::vector<tensor_info> model_of(std::size_t megabytes) {
  std::vector<tensor_info> out;
  for (std::size_t i = 0, left = megabytes; left > 0; ++i) {
    const auto size = std::min<std::size_t>(i == 0 ? 64 : 4, left);
    out.push_back({"t" + std::to_string(10'000 + i), kernels::dtype::f32, {size << 18}, {}});
    left -= size;
  }
  return out;
}

std::vector<kept_bytes> fill(std::vector<tensor_info>& tensors) {
  std::vector<kept_bytes> out;
  std::uint64_t state = 1;
  tensor_memory some;
  for (auto& tensor : tensors) {
    const auto bytes = bytes_of(tensor);
    auto memory = *some.make(bytes);
    const auto words = reinterpret_cast<std::uint64_t*>(memory.get());
    for (std::uint64_t i = 0; i < bytes / 8; ++i)
      words[i] = state = state * 6364136223846793005u + 1442695040888963407u;
    tensor.hash = hash_bytes({memory.get(), bytes});
    out.push_back({memory, {memory.get(), bytes}});
  }
  return out;
}

double seconds_of(std::vector<std::unique_ptr<child>>& first, const child* then) {
  const auto began = std::chrono::steady_clock::now();
  for (const auto& c : first)
    c->start();
  if (then != nullptr)
    then->start();
  for (const auto& c : first)
    if (c->hear() != "done")
      std::printf("weights_bench: a receiver failed\n");
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

/// Seconds of each of `rounds` updates, one after the other by the same processes.
std::vector<double> chain_s(const std::vector<tensor_info>& tensors,
                            const std::vector<kept_bytes>& content, std::size_t workers,
                            std::uint32_t slice_bytes, int rounds) {
  const child source{[&](const auto& say, const auto& go) {
    const auto exchange = *weight_exchange::open({});
    const auto cargo = *weight_cargo::of(tensors, content, slice_bytes);
    for (int round = 1; round <= rounds; ++round)
      exchange->offer(static_cast<std::uint64_t>(round), cargo);
    say(exchange->endpoint());
    go();
  }};
  auto upstream = source.hear();
  std::vector<std::unique_ptr<child>> chain;
  for (std::size_t i = 0; i < workers; ++i) {
    chain.push_back(std::make_unique<child>([&](const auto& say, const auto& go) {
      const auto exchange = *weight_exchange::open({});
      tensor_memory memory{std::uint64_t{1} << 40};
      say(exchange->endpoint());
      for (int round = 1; round <= rounds; ++round) {
        const auto update = static_cast<std::uint64_t>(round);
        go();
        std::promise<bool> ended;
        exchange->pull(update, upstream,
                       *weight_cargo::expecting(tensors, slice_bytes, {}, weight_bytes_max, memory),
                       {}, [&](const result<void>& how) { ended.set_value(how.has_value()); });
        say(ended.get_future().get() ? "done" : "failed");
        go();
        exchange->withdraw(update);
        while (memory.kept_bytes() == 0)
          ::usleep(1'000); // the exchange lets go
        say("ready");
      }
      go();
    }));
    upstream = chain.back()->hear();
  }
  std::vector<double> out;
  for (int round = 1; round <= rounds; ++round) {
    out.push_back(seconds_of(chain, nullptr));
    for (const auto& c : chain)
      c->start();
    for (const auto& c : chain)
      c->hear();
  }
  return out;
}

double raw_s(const std::vector<kept_bytes>& content, std::size_t receivers,
             std::uint32_t slice_bytes) {
  std::uint64_t total = 0;
  for (const auto& c : content)
    total += c.bytes.size();
  std::vector<std::unique_ptr<child>> pulls;
  std::vector<std::string> endpoints;
  for (std::size_t i = 0; i < receivers; ++i) {
    pulls.push_back(std::make_unique<child>([&](const auto& say, const auto& go) {
      zmq::context_t context{1};
      zmq::socket_t socket{context, zmq::socket_type::pull};
      socket.bind("tcp://127.0.0.1:*");
      say(socket.get(zmq::sockopt::last_endpoint));
      go();
      for (std::uint64_t here = 0; here < total;) {
        zmq::message_t message;
        here += *socket.recv(message);
      }
      say("done");
      go();
    }));
    endpoints.push_back(pulls.back()->hear());
  }
  const child source{[&](const auto& say, const auto& go) {
    zmq::context_t context{1};
    std::vector<zmq::socket_t> sockets;
    for (const auto& endpoint : endpoints) {
      sockets.emplace_back(context, zmq::socket_type::push);
      sockets.back().connect(endpoint);
    }
    say("ready");
    go();
    for (const auto& c : content)
      for (std::size_t at = 0; at < c.bytes.size(); at += slice_bytes)
        for (auto& socket : sockets) {
          const auto size = std::min<std::size_t>(slice_bytes, c.bytes.size() - at);
          const auto data = const_cast<std::byte*>(c.bytes.data() + at);
          socket.send(zmq::message_t{data, size, [](void*, void*) {}, nullptr},
                      zmq::send_flags::none);
        }
    go();
    std::_Exit(0); // ZeroMQ would wait for what nobody reads
  }};
  source.hear();
  return seconds_of(pulls, &source);
}

double median(std::vector<double> xs) {
  std::sort(xs.begin(), xs.end());
  return xs[xs.size() / 2];
}

int run(std::size_t megabytes, int rounds, const std::vector<std::uint32_t>& slices) {
  auto tensors = model_of(megabytes);
  const auto content = fill(tensors);
  const auto bytes = static_cast<double>(megabytes) * (1 << 20);
  std::printf("%zu MiB, medians of %d rounds, GB/s = bytes * receivers / time\n", megabytes,
              rounds);
  std::printf("%9s %9s %10s %13s %13s %13s\n", "slice KiB", "receivers", "raw", "first update",
              "later updates", "later / raw");
  for (const auto kib : slices)
    for (std::size_t receivers = 1; receivers <= 2; ++receivers) {
      const auto all = bytes * static_cast<double>(receivers) / 1e9;
      std::vector<double> raw;
      std::vector<double> first;
      std::vector<double> later;
      for (int round = 0; round < rounds; ++round) {
        raw.push_back(raw_s(content, receivers, kib << 10));
        const auto chain = chain_s(tensors, content, receivers, kib << 10, 4);
        first.push_back(chain[0]);
        later.push_back(median({chain[1], chain[2], chain[3]}));
      }
      std::printf("%9u %9zu %10.2f %13.2f %13.2f %13.2f\n", kib, receivers, all / median(raw),
                  all / median(first), all / median(later), median(raw) / median(later));
      std::fflush(stdout);
    }
  return 0;
}

} // namespace
} // namespace rollcast::bench

int main(int argc, char** argv) {
  const auto number = [&](int i, long otherwise) {
    return i < argc ? std::max(1L, std::strtol(argv[i], nullptr, 10)) : otherwise;
  };
  std::vector<std::uint32_t> slices;
  for (int i = 3; i < argc; ++i)
    slices.push_back(static_cast<std::uint32_t>(number(i, 0)));
  if (slices.empty())
    slices = {512, 1024, 2048, 4096, 8192};
  return rollcast::bench::run(static_cast<std::size_t>(number(1, 400)),
                              static_cast<int>(number(2, 3)), slices);
}
