#pragma once

#include "engine/tokenizer/tokenizer.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <utility>

namespace rollcast {

/// The file of one of the fixtures.
inline std::filesystem::path tokenizer_fixture(const std::string& name) {
  return std::filesystem::path{ROLLCAST_SOURCE_DIR} / "tests/fixtures/tokenizer"
         / (name + ".tokenizer.json");
}

/// Loads a fixture that must load; ends the test program with the reason if it does not.
inline tokenizer load_fixture(const std::string& name) {
  auto loaded = tokenizer::load(tokenizer_fixture(name));
  if (!loaded) {
    ADD_FAILURE() << loaded.error().detail;
    std::abort();
  }
  return std::move(*loaded);
}

} // namespace rollcast
