#include "tests/support/fixture_models.hpp"

#include "engine/base/check.hpp"
#include "engine/model/checkpoint.hpp"

#include <iostream>

namespace rollcast::test {

namespace {

/// A fixture that does not load is a broken tree; no test can go on.
template <class T>
T must(result<T> got) {
  if (!got)
    std::cerr << got.error().detail << '\n';
  ROLLCAST_CHECK(got.has_value());
  return std::move(*got);
}

} // namespace

std::filesystem::path fixture_model(const std::string& family) {
  return std::filesystem::path{ROLLCAST_SOURCE_DIR} / "tests/fixtures/models" / family;
}

std::shared_ptr<const model_weights> load_weights(const std::filesystem::path& directory,
                                                  std::string_view profile) {
  const auto config = must(load_config(directory));
  return must(model_weights::load(config, must(checkpoint::open(directory)),
                                  must(find_profile(profile)).arithmetic));
}

std::unique_ptr<backend> make_device(const std::shared_ptr<const model_weights>& weights,
                                     std::string_view profile, const cpu_backend_options& options) {
  return must(make_cpu_backend(weights, must(find_profile(profile)), options));
}

} // namespace rollcast::test
