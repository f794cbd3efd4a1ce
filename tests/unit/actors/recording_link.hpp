#pragma once

#include "actors/controller_link.hpp"

#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace rollcast::test {

/// Notes what would be sent to controllers.
struct recording_link final : controller_link {
  struct sent {
    std::string peer;
    wire::event_envelope what;
  };
  void send(const std::string& peer, wire::event_envelope what) override {
    all.push_back({peer, std::move(what)});
  }
  template <class T>
  std::vector<T> of() const {
    std::vector<T> out;
    for (const auto& s : all)
      if (const auto* x = std::get_if<T>(&s.what.body))
        out.push_back(*x);
    return out;
  }
  std::vector<sent> all;
};

} // namespace rollcast::test
