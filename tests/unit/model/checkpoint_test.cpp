// Goal: checkpoint finds the right files, gives the right bytes by name, and refuses bad
// directories in one line.
// Method: directories written by hand or by write_tiny_model, then one thing broken in each.

#include "engine/model/checkpoint.hpp"
#include "tests/support/tiny_model.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

namespace rollcast {
namespace {

void write(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

/// A safetensors file with one tensor of three elements whose data begin at an odd address.
std::string one_tensor(const std::string& name, const std::string& dtype, const std::string& data) {
  std::string header = "{\"" + name + "\":{\"dtype\":\"" + dtype
                       + "\",\"shape\":[3],\"data_offsets\":[0," + std::to_string(data.size())
                       + "]}}";
  if (header.size() % 2 == 0)
    header += ' ';
  const std::uint64_t length = header.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out + header + data;
}

std::string refusal(const std::filesystem::path& directory, errc code = errc::bad_checkpoint) {
  const auto opened = checkpoint::open(directory);
  if (opened)
    return "(accepted)";
  EXPECT_EQ(code, opened.error().code) << opened.error().detail;
  EXPECT_EQ(std::string::npos, opened.error().detail.find('\n')) << opened.error().detail;
  return opened.error().detail;
}

void expect_words(const std::string& detail, const std::vector<std::string>& words) {
  for (const auto& word : words)
    EXPECT_NE(std::string::npos, detail.find(word)) << "no '" << word << "' in: " << detail;
}

TEST(checkpoint, gives_tensors_by_name_even_when_unaligned) {
  const temporary_directory directory;
  write(directory / "model.safetensors", one_tensor("t", "BF16", "abcdef"));
  const auto opened = checkpoint::open(directory.path());
  ASSERT_TRUE(opened.has_value()) << opened.error().detail;
  const auto view = opened->tensor("t");
  ASSERT_TRUE(view.has_value()) << view.error().detail;
  EXPECT_EQ(kernels::dtype::bf16, view->type);
  EXPECT_EQ(std::vector<std::size_t>{3}, view->shape);
  EXPECT_EQ(1u, reinterpret_cast<std::uintptr_t>(view->bytes.data()) % 2);
  EXPECT_EQ(0, std::memcmp(view->bytes.data(), "abcdef", 6));
  EXPECT_EQ((directory / "model.safetensors").string(), opened->origin("t"));
}

TEST(checkpoint, refuses_a_missing_tensor_and_a_foreign_dtype_by_name) {
  const temporary_directory directory;
  write(directory / "model.safetensors", one_tensor("t", "I8", "abc"));
  const auto opened = checkpoint::open(directory.path());
  ASSERT_TRUE(opened.has_value()) << "a dtype matters only to who asks for the tensor";
  const auto foreign = opened->tensor("t");
  ASSERT_FALSE(foreign.has_value());
  expect_words(foreign.error().detail, {"tensor t", "I8", "BF16, F16, F32", "model.safetensors"});
  const auto missing = opened->tensor("u");
  ASSERT_FALSE(missing.has_value());
  expect_words(missing.error().detail, {"tensor u", "missing"});
}

TEST(checkpoint, prefers_the_single_file_then_the_index_then_every_file) {
  const temporary_directory directory;
  write(directory / "b.safetensors", one_tensor("b", "U8", "abc"));
  write(directory / "a.safetensors", one_tensor("a", "U8", "abc"));
  using names = std::vector<std::string_view>;
  EXPECT_EQ((names{"a", "b"}), checkpoint::open(directory.path())->names());
  write(directory / "model.safetensors.index.json", R"({"weight_map": {"b": "b.safetensors"}})");
  EXPECT_EQ((names{"b"}), checkpoint::open(directory.path())->names());
  write(directory / "model.safetensors", one_tensor("c", "U8", "abc"));
  EXPECT_EQ((names{"c"}), checkpoint::open(directory.path())->names());
}

TEST(checkpoint, refuses_directories_without_weights) {
  const temporary_directory directory;
  expect_words(refusal(directory.path()), {"no weights", "model.safetensors"});
  write(directory / "pytorch_model.bin", "PK");
  expect_words(refusal(directory.path()),
               {"pytorch_model.bin", "python -m rollcast.convert " + directory.path().string()});
  expect_words(refusal(directory / "nowhere", errc::io_failed), {"nowhere", "not a directory"});
  std::filesystem::create_directory(directory / "model.safetensors");
  expect_words(refusal(directory.path(), errc::io_failed), {"not a regular file"});
}

TEST(checkpoint, refuses_an_empty_file_and_one_cut_short) {
  const temporary_directory directory;
  write(directory / "model.safetensors", "");
  expect_words(refusal(directory.path()), {"model.safetensors", "0 bytes"});
  write_tiny_model(directory.path(), architecture::qwen3);
  const auto path = directory / "model.safetensors";
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  expect_words(refusal(directory.path()), {"model.safetensors", "truncated"});
}

TEST(checkpoint, refuses_a_file_it_may_not_read) {
  if (::geteuid() == 0)
    GTEST_SKIP() << "root may read everything";
  const temporary_directory directory;
  write(directory / "model.safetensors", one_tensor("t", "U8", "abc"));
  std::filesystem::permissions(directory / "model.safetensors", std::filesystem::perms::none);
  expect_words(refusal(directory.path(), errc::io_failed), {"cannot open"});
}

TEST(checkpoint, refuses_a_name_in_two_shards) {
  const temporary_directory directory;
  write(directory / "a.safetensors", one_tensor("t", "U8", "abc"));
  write(directory / "b.safetensors", one_tensor("t", "U8", "abc"));
  expect_words(refusal(directory.path()), {"tensor t", "a.safetensors", "b.safetensors"});
}

TEST(checkpoint, refuses_a_bad_index) {
  const temporary_directory directory;
  write(directory / "a.safetensors", one_tensor("a", "U8", "abc"));
  write(directory / "b.safetensors", one_tensor("b", "U8", "abc"));
  const auto with = [&](const std::string& index, errc code = errc::bad_checkpoint) {
    write(directory / "model.safetensors.index.json", index);
    return refusal(directory.path(), code);
  };
  expect_words(with("{"), {"index.json", "JSON"});
  expect_words(with("{}"), {"weight_map"});
  expect_words(with(R"({"weight_map": {"a": 1}})"), {"tensor a", "not a string"});
  expect_words(with(R"({"weight_map": {"a": "../a.safetensors"}})"), {"../a.safetensors"});
  expect_words(with(R"({"weight_map": {"a": "a.bin"}})"), {"a.bin"});
  expect_words(with(R"({"weight_map": {"a": "c.safetensors"}})", errc::io_failed),
               {"c.safetensors", "cannot open"});
  expect_words(with(R"({"weight_map": {"a": "b.safetensors", "b": "b.safetensors"}})"),
               {"tensor a", "not in", "b.safetensors"});
  expect_words(with(R"({"weight_map": {"a": "b.safetensors", "b": "a.safetensors"}})"),
               {"tensor a", "not in", "b.safetensors"});
}

} // namespace
} // namespace rollcast
