// Goal: what fuzzing has found stays found, in every build and without clang.
// Method: `replay CORPUS MUTATIONS` runs each file of a corpus, then seeded changes of them,
// through the target that it is linked with. A failure prints file and seed; `replay FILE` runs one
// input, and ROLLCAST_TEST_SEED=<n> one mutation.

#include "engine/base/prng.hpp"
#include "tests/fuzz/fuzz.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

namespace rollcast::fuzz {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t input_bytes_max = 1u << 16;
char now_running[512]; // for the signal handler, which may not allocate

struct sample {
  std::string name;
  std::string bytes;
};

sample read(const fs::path& path) {
  std::ifstream in{path, std::ios::binary};
  return {path.filename().string(), {std::istreambuf_iterator<char>{in}, {}}};
}

std::vector<sample> read_corpus(const fs::path& folder) {
  std::vector<sample> found;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.is_regular_file())
      found.push_back(read(entry.path()));
  std::ranges::sort(found, {}, &sample::name);
  return found;
}

extern "C" void tell_and_die(int signal) {
  constexpr std::string_view intro = "\nwhile running ";
  (void)!::write(STDERR_FILENO, intro.data(), intro.size());
  (void)!::write(STDERR_FILENO, now_running, std::char_traits<char>::length(now_running));
  (void)!::write(STDERR_FILENO, "\n", 1);
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

void run(const std::string& input, const std::string& what) {
  std::snprintf(now_running, sizeof now_running, "%s", what.c_str());
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
}

std::size_t below(prng& rng, std::size_t bound) {
  return static_cast<std::size_t>(rng.below(bound));
}

/// A number in the text becomes another: parsers are weak at the edges of ranges.
void change_number(std::string& text, prng& rng) {
  constexpr std::array<std::string_view, 10> numbers{
    "0",     "-1",  "2147483648", "4294967296", "18446744073709551616",
    "1e400", "0.5", "null",       "[]",         "65537"};
  const auto from = text.find_first_of("0123456789", below(rng, text.size()));
  if (from == std::string::npos)
    return;
  const auto to = std::min(text.find_first_not_of("0123456789", from), text.size());
  text.replace(from, to - from, numbers[below(rng, numbers.size())]);
}

void change(std::string& text, const std::vector<sample>& corpus, prng& rng) {
  if (text.empty())
    text.push_back(static_cast<char>(rng.next()));
  const auto at = below(rng, text.size());
  const auto some = 1 + below(rng, std::min<std::size_t>(text.size() - at, 32));
  switch (rng.below(8)) {
    case 0: text[at] = static_cast<char>(text[at] ^ (1 << rng.below(8))); break;
    case 1: text[at] = static_cast<char>(rng.next()); break;
    case 2: text.erase(at, some); break;
    case 3: text.insert(at, text.substr(at, some)); break;
    case 4:
      text.insert(at, 1, static_cast<char>(rng.chance(50) ? rng.next() : rng.below(32)));
      break;
    case 5: text.resize(at); break;
    case 6: change_number(text, rng); break;
    default: {
      const auto& other = corpus[below(rng, corpus.size())].bytes;
      text = text.substr(0, at) + other.substr(std::min(other.size(), at));
    }
  }
  if (text.size() > input_bytes_max)
    text.resize(input_bytes_max);
}

void run_mutation(const std::vector<sample>& corpus, std::uint64_t seed) {
  prng rng{seed};
  const auto& base = corpus[below(rng, corpus.size())];
  auto text = base.bytes;
  for (auto changes = 1 + rng.below(4); changes > 0; --changes)
    change(text, corpus, rng);
  run(text, base.name + " changed: ROLLCAST_TEST_SEED=" + std::to_string(seed));
}

/// Bounds what one input may make us allocate; AddressSanitizer maps terabytes and has its own.
void bound_memory() {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  const rlimit bound{rlim_t{3} << 30, rlim_t{3} << 30};
  setrlimit(RLIMIT_AS, &bound);
#endif
}

int replay(const fs::path& path, std::uint64_t mutations) {
  bound_memory();
  for (const int signal : {SIGABRT, SIGSEGV, SIGFPE, SIGBUS})
    std::signal(signal, tell_and_die);
  if (fs::is_regular_file(path)) {
    run(read(path).bytes, path.string());
    return 0;
  }
  const auto corpus = read_corpus(path);
  if (corpus.empty()) {
    std::fprintf(stderr, "replay: %s holds no files\n", path.c_str());
    return 2;
  }
  if (const char* only = std::getenv("ROLLCAST_TEST_SEED")) {
    run_mutation(corpus, std::strtoull(only, nullptr, 10));
    return 0;
  }
  for (const auto& one : corpus)
    run(one.bytes, one.name);
  for (std::uint64_t seed = 1; seed <= mutations; ++seed)
    run_mutation(corpus, seed);
  std::printf("%zu files and %llu changes of them\n", corpus.size(),
              static_cast<unsigned long long>(mutations));
  return 0;
}

} // namespace
} // namespace rollcast::fuzz

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: replay FILE | replay CORPUS MUTATIONS\n");
    return 2;
  }
  return rollcast::fuzz::replay(argv[1], argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0);
}
