// Goal: a trace reads back as it was written, and a wrong one is refused with file, line and what
// to do.
// Method: files in a directory of the test's own.

#include "cluster/sim/trace.hpp"
#include "tests/support/temporary_directory.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

namespace rollcast::sim {
namespace {

std::filesystem::path file_of(const std::string& text) {
  static const temporary_directory directory;
  const auto path = directory / "file";
  std::ofstream{path} << text;
  return path;
}

const std::string header = "group,index,prompt_tokens,output_tokens\n";

TEST(trace, reads_back_what_was_written) {
  const std::vector<traced_response> responses{{0, 0, 5, 100}, {0, 1, 5, 7}, {9, 0, 12, 1}};
  std::ostringstream text;
  write_trace(text, responses);
  const auto seen = read_trace(file_of(text.str()));
  ASSERT_TRUE(seen.has_value()) << seen.error().detail;
  EXPECT_EQ(seen->responses, responses);
  EXPECT_EQ(seen->tokens_max, 100u);
  EXPECT_EQ(read_trace(file_of(text.str()), 4096)->tokens_max, 4096u);
}

TEST(trace, is_sorted_and_forgives_line_ends_and_blank_lines) {
  const auto seen =
    read_trace(file_of("group,index,prompt_tokens,output_tokens\r\n1,0,3,4\r\n\n0,0,1,2\n"));
  ASSERT_TRUE(seen.has_value()) << seen.error().detail;
  EXPECT_EQ(seen->responses, (std::vector<traced_response>{{0, 0, 1, 2}, {1, 0, 3, 4}}));
}

TEST(trace, refuses_what_is_wrong_and_says_where) {
  const std::vector<std::pair<std::string, std::string>> cases{
    {"", "no responses"},
    {header, "no responses"},
    {"group,index\n0,0\n", ":1: the first line must be"},
    {header + "0,0,5\n", ":2: 3 fields"},
    {header + "0,0,5,6,7\n", ":2: output_tokens is \"6,7\""},
    {header + "0,0,5,many\n", ":2: output_tokens is \"many\""},
    {header + "0,-1,5,6\n", ":2: index is \"-1\""},
    {header + "0,4294967296,5,6\n", ":2: index is 4294967296"},
    {header + "0,0,5,6\n0,1,0,6\n", ":3: prompt_tokens is 0"},
    {header + "0,0,5,0\n", ":2: output_tokens is 0"},
    {header + "0,0,5,51\n", ":2: output_tokens is 51, the limit given is 50"},
    {header + "0,0,99999999999999999999999,6\n", ":2: prompt_tokens is \"9999"},
    {header + "3,1,5,6\n3,1,5,6\n", "group 3 index 1 is there twice"},
  };
  for (const auto& [text, wanted] : cases) {
    const auto seen = read_trace(file_of(text), 50);
    ASSERT_FALSE(seen.has_value()) << text;
    EXPECT_EQ(seen.error().code, errc::bad_config);
    EXPECT_NE(seen.error().detail.find(wanted), std::string::npos) << seen.error().detail;
    EXPECT_EQ(seen.error().detail.find('\n'), std::string::npos);
  }
  EXPECT_EQ(read_trace("/nowhere/trace.csv").error().code, errc::io_failed);
}

} // namespace
} // namespace rollcast::sim
