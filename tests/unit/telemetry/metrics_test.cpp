// Goal: what is counted is what is exported, counts never go down, and the text is the Prometheus
// format.
// Method: set the real handles from one and from many threads and read the text back line by line;
// promtool, where it is installed, is the second opinion.

#include "cluster/telemetry/metrics.hpp"
#include "tests/support/temporary_directory.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <limits>
#include <regex>
#include <sstream>
#include <thread>
#include <vector>

namespace rollcast {
namespace {

/// Returns the value of a series as the text has it, or "" if it is not there.
std::string value_of(const std::string& text, const std::string& series) {
  std::istringstream lines{text};
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with(series + " "))
      return line.substr(series.size() + 1);
  return "";
}

TEST(metrics, export_what_was_counted) {
  const scheduler_metrics m{"0.1.0", "cpu-f32-v1"};
  m.responses.stop.add(3);
  m.responses.length.add();
  m.generated_tokens.raise_to(9'007'199'254'740'991); // 2^53 - 1, the last whole double
  m.workers.ready.set(2);
  m.requests_waiting.add(5);
  m.requests_waiting.add(-2);
  m.batch_makespan_seconds.observe(3);
  const auto text = m.registry.text();
  EXPECT_EQ(value_of(text, "rollcast_responses_total{finish_reason=\"stop\"}"), "3");
  EXPECT_EQ(value_of(text, "rollcast_responses_total{finish_reason=\"length\"}"), "1");
  EXPECT_EQ(value_of(text, "rollcast_responses_total{finish_reason=\"cancelled\"}"), "0");
  EXPECT_EQ(value_of(text, "rollcast_generated_tokens_total"), "9007199254740991");
  EXPECT_EQ(value_of(text, "rollcast_workers{state=\"ready\"}"), "2");
  EXPECT_EQ(value_of(text, "rollcast_requests_waiting"), "3");
  EXPECT_EQ(value_of(text, "rollcast_batch_makespan_seconds_bucket{le=\"2.5\"}"), "0");
  EXPECT_EQ(value_of(text, "rollcast_batch_makespan_seconds_bucket{le=\"5\"}"), "1");
  EXPECT_EQ(value_of(text, "rollcast_batch_makespan_seconds_bucket{le=\"+Inf\"}"), "1");
  EXPECT_EQ(value_of(text, "rollcast_batch_makespan_seconds_sum"), "3");
}

TEST(metrics, counter_from_snapshots_never_goes_down) {
  const worker_metrics m{"0.1.0"};
  m.generated_tokens.raise_to(100);
  m.generated_tokens.raise_to(40); // a late snapshot
  EXPECT_EQ(m.generated_tokens.value(), 100u);
  EXPECT_EQ(value_of(m.registry.text(), "rollcast_generated_tokens_total"), "100");
  m.generated_tokens.raise_to(101);
  EXPECT_EQ(value_of(m.registry.text(), "rollcast_generated_tokens_total"), "101");
}

TEST(metrics, threads_that_raise_and_add_lose_nothing) {
  const worker_metrics m{"0.1.0"};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&m] {
      for (std::uint64_t i = 1; i <= 5'000; ++i) {
        m.generated_tokens.raise_to(i);
        m.preemptions.add();
        m.step_seconds.observe(0.002);
        if (i % 1'000 == 0) {
          EXPECT_NE(m.registry.text(), "");
        }
      }
    });
  for (auto& thread : threads)
    thread.join();
  const auto text = m.registry.text();
  EXPECT_EQ(value_of(text, "rollcast_generated_tokens_total"), "5000");
  EXPECT_EQ(value_of(text, "rollcast_preemptions_total"), "20000");
  EXPECT_EQ(value_of(text, "rollcast_step_seconds_count"), "20000");
}

TEST(metrics, nan_does_not_poison_a_sum) {
  const worker_metrics m{"0.1.0"};
  m.step_seconds.observe(std::numeric_limits<double>::quiet_NaN());
  m.step_seconds.observe(0.5);
  EXPECT_EQ(value_of(m.registry.text(), "rollcast_step_seconds_sum"), "0.5");
}

TEST(metrics, resident_memory_follows_what_is_touched) {
  const draft_server_metrics m{"0.1.0"};
  const auto before = std::stod(value_of(m.registry.text(), "rollcast_resident_bytes"));
  EXPECT_GT(before, 1 << 20);
  const std::vector<char> touched(64 << 20, 'x');
  const auto after = std::stod(value_of(m.registry.text(), "rollcast_resident_bytes"));
  EXPECT_GT(after - before, 60 << 20);
  EXPECT_EQ(touched.back(), 'x');
}

TEST(metrics, build_info_is_one_series_after_the_profile_becomes_known) {
  scheduler_metrics m{"0.1.0"};
  const auto info = [](const std::string& profile) {
    return "rollcast_build_info{numerics_profile=\"" + profile + "\",version=\"0.1.0\"}";
  };
  EXPECT_EQ(value_of(m.registry.text(), info("")), "1");
  m.registry.describe("0.1.0", "cpu-f32-v1");
  m.registry.describe("0.1.0", "cpu-f32-v1"); // a second worker registers
  EXPECT_EQ(value_of(m.registry.text(), info("")), "");
  EXPECT_EQ(value_of(m.registry.text(), info("cpu-f32-v1")), "1");
}

TEST(metrics, every_line_is_in_the_text_format) {
  const std::regex comment{R"(# (HELP|TYPE) [a-zA-Z_:][a-zA-Z0-9_:]* .+)"};
  const std::string name = "[a-zA-Z_:][a-zA-Z0-9_:]*";
  const std::string labels = R"re((\{([a-z_]+="[^"\\\n]*",?)+\})?)re";
  const std::regex sample{name + labels + R"( (-?[0-9.]+(e[-+]?[0-9]+)?|\+Inf))"};
  const scheduler_metrics scheduler{"0.1.0", "cpu-f32-v1"};
  const worker_metrics worker{"0.1.0", "cpu-f32-v1"};
  worker.step_seconds.observe(1.25e-5);
  std::istringstream lines{scheduler.registry.text() + worker.registry.text()};
  int seen = 0;
  for (std::string line; std::getline(lines, line); ++seen)
    EXPECT_TRUE(std::regex_match(line, line.starts_with('#') ? comment : sample)) << line;
  EXPECT_GT(seen, 100);
}

TEST(metrics, promtool_finds_nothing_to_complain_about) {
  if (std::system("command -v promtool >/dev/null 2>&1") != 0)
    GTEST_SKIP() << "promtool is not installed (Debian package prometheus)";
  const temporary_directory directory;
  const auto path = (directory / "metrics.txt").string();
  for (const auto& text :
       {scheduler_metrics{"0.1.0"}.registry.text(), worker_metrics{"0.1.0"}.registry.text()}) {
    std::ofstream{path} << text;
    EXPECT_EQ(std::system(("promtool check metrics < " + path + " >&2").c_str()), 0);
  }
}

TEST(metrics_death, asking_twice_for_one_series_stops_the_process) {
  metrics_registry r;
  r.counter("rollcast_twice_total", "Help");
  EXPECT_DEATH(r.counter("rollcast_twice_total", "Help"), "check failed");
  EXPECT_DEATH(r.counter("rollcast_no_suffix", "Help"), "check failed");
  EXPECT_DEATH(r.gauge("no_prefix", "Help"), "check failed");
}

} // namespace
} // namespace rollcast
