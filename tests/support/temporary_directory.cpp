#include "tests/support/temporary_directory.hpp"

#include "engine/base/check.hpp"

#include <cstdlib>
#include <string>
#include <system_error>

namespace rollcast {

temporary_directory::temporary_directory() {
  std::string name = (std::filesystem::temp_directory_path() / "rollcast-test-XXXXXX").string();
  ROLLCAST_CHECK(::mkdtemp(name.data()) != nullptr);
  path_ = name;
}

temporary_directory::~temporary_directory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

} // namespace rollcast
