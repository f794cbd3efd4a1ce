// Goal: a process in a container reckons with the memory of the container, not of the node.
// Method: directories with the files that the kernel shows, of both versions of control groups.

#include "engine/base/machine_memory.hpp"
#include "tests/support/temporary_directory.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

namespace rollcast {
namespace {

constexpr std::uint64_t mib = 1 << 20;

class machine_memory : public testing::Test {
protected:
  void write(const std::string& file, const std::string& text) {
    const auto path = where_ / file;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream{path} << text << "\n";
  }
  std::uint64_t found() { return machine_memory_bytes(where_ / "groups", where_ / "own"); }
  const std::uint64_t all_ = machine_memory_bytes("/nonexistent", "/nonexistent");
  temporary_directory where_;
};

TEST_F(machine_memory, is_the_machines_without_a_limit) {
  EXPECT_GT(all_, 64 * mib);
  write("own", "0::/");
  EXPECT_EQ(found(), all_);
  write("groups/memory.max", "max");
  EXPECT_EQ(found(), all_);
  write("own", "nothing that one knows\n::\n0::");
  EXPECT_EQ(found(), all_);
}

TEST_F(machine_memory, is_the_least_limit_of_the_group_and_those_above_it) {
  write("own", "0::/kubepods/pod1/main");
  write("groups/kubepods/memory.max", std::to_string(32 * mib));
  EXPECT_EQ(found(), 32 * mib);
  write("groups/kubepods/pod1/memory.max", std::to_string(16 * mib));
  write("groups/kubepods/pod1/main/memory.max", "max");
  EXPECT_EQ(found(), 16 * mib);
  write("groups/kubepods/pod1/main/memory.max", std::to_string(8 * mib));
  EXPECT_EQ(found(), 8 * mib);
}

TEST_F(machine_memory, is_the_limit_at_the_root_where_a_container_sees_its_group_alone) {
  write("own", "0::/../other");
  write("groups/memory.max", std::to_string(8 * mib));
  EXPECT_EQ(found(), 8 * mib);
}

TEST_F(machine_memory, is_the_limit_of_the_first_version_too) {
  write("own", "9:name=systemd:/\n4:cpu,memory:/pod\n0::/");
  write("groups/memory/memory.limit_in_bytes", "9223372036854771712");
  EXPECT_EQ(found(), all_);
  write("groups/memory/pod/memory.limit_in_bytes", std::to_string(8 * mib));
  EXPECT_EQ(found(), 8 * mib);
}

} // namespace
} // namespace rollcast
