#pragma once

#include "engine/base/error.hpp"

#include <caf/all.hpp>

#include <exception>
#include <string>

namespace rollcast {

inline constexpr auto error_category = caf::atom("rollcast");

/// The only place where house errors become CAF errors.
inline caf::error to_caf(errc code, std::string detail) {
  return {static_cast<std::uint8_t>(code), error_category, caf::make_message(std::move(detail))};
}

inline caf::error to_caf(const error& e) {
  return to_caf(e.code, e.detail);
}

/// True if the peer itself answered with an error; false if CAF did in its place (a broken link, a
/// timeout), which means that we lost the peer.
inline bool answered_by_peer(const caf::error& e) {
  return e.category() == error_category;
}

/// Returns the house code inside `e`, or `peer_lost` for anything CAF raised itself.
inline errc code_of(const caf::error& e) {
  return answered_by_peer(e) ? static_cast<errc>(e.code()) : errc::peer_lost;
}

/// Returns the house detail inside `e`, or CAF's own text.
inline std::string detail_of(const caf::error& e) {
  if (answered_by_peer(e) && e.context().match_elements<std::string>())
    return e.context().get_as<std::string>(0);
  return caf::to_string(e);
}

/// For `set_exception_handler`: what an actor does not catch ends the process, as it does in any
/// thread. CAF would end the actor alone, and leave a process that answers nobody.
inline caf::error end_process(std::exception_ptr&) {
  std::terminate();
}

} // namespace rollcast
