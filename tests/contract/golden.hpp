#pragma once

#include <gtest/gtest.h>
#include <xxhash.h>

#include <array>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rollcast::test {

/// The committed hashes of one file, `tests/contract/golden/<file>.txt`: lines of `name hash`.
class golden_file {
public:
  explicit golden_file(std::string_view file)
    : path_{std::string{ROLLCAST_SOURCE_DIR} + "/tests/contract/golden/" + std::string{file}
            + ".txt"} {
    std::ifstream in{path_};
    for (std::string name, hash; in >> name >> hash;)
      hashes_[name] = hash;
  }

  /// The committed hash, empty where there is none.
  std::string hash(const std::string& name) const {
    const auto found = hashes_.find(name);
    return found == hashes_.end() ? std::string{} : found->second;
  }

  /// Writes the whole file again with this one line replaced.
  void replace(const std::string& name, const std::string& hash) {
    hashes_[name] = hash;
    std::ofstream out{path_, std::ios::trunc};
    for (const auto& [key, value] : hashes_)
      out << key << ' ' << value << '\n';
    ASSERT_TRUE(out.flush()) << "cannot write " << path_;
  }

  const std::string& path() const { return path_; }

private:
  std::string path_;
  std::map<std::string, std::string> hashes_; // ordered, so that a rewrite is a small diff
};

/// Expects that `bytes` have the XXH3 hash committed under `name` in the golden file called like
/// the part of `name` before its first dot ("gemm.f32.m7n96k130" is in golden/gemm.txt).
///
/// A change of bits is a new numerics profile: run the test program by itself (not under a parallel
/// ctest) with `ROLLCAST_WRITE_GOLDEN=1` to write the file again, and say why in the commit.
inline void expect_golden(const std::string& name, std::span<const std::byte> bytes) {
  std::array<char, 17> text{};
  std::snprintf(text.data(), text.size(), "%016llx",
                static_cast<unsigned long long>(XXH3_64bits(bytes.data(), bytes.size())));
  const std::string hash{text.data()};
  golden_file golden{name.substr(0, name.find('.'))};
  if (std::getenv("ROLLCAST_WRITE_GOLDEN") != nullptr) {
    golden.replace(name, hash);
    return;
  }
  EXPECT_EQ(golden.hash(name), hash)
    << name << ": " << bytes.size() << " bytes differ from " << golden.path()
    << " (empty: no such line); bits may change only with a new numerics profile";
}

/// The same for the object representation of values.
template <class T>
void expect_golden(const std::string& name, const std::vector<T>& values) {
  expect_golden(name, std::as_bytes(std::span{values}));
}

} // namespace rollcast::test
