#pragma once

#include "engine/base/error.hpp"

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace rollcast {

/// Turns a pattern of the reference (Oniguruma, Ruby syntax, Unicode) into one that matches the
/// same text in PCRE2: `\s` and `\S` are spelled out, because PCRE2 takes U+180E for a space.
///
/// @returns `bad_tokenizer`, naming the construct, for what the two libraries read differently:
///          `\w \W \b \B \h \H` and their like, `\S` or set operations or a nested `[` in a class,
///          and `(*VERB)`s.
[[nodiscard]] result<std::string> to_pcre2(std::string_view oniguruma);

/// Returns a pattern that matches `literal` and nothing else.
[[nodiscard]] std::string quoted_for_pcre2(std::string_view literal);

/// A pattern that cuts text into pieces, compiled to machine code where PCRE2 can. Any number of
/// threads may use one at the same time.
class split_pattern {
public:
  /// Compiles a PCRE2 pattern in UTF and UCP mode.
  ///
  /// @returns `bad_tokenizer` with PCRE2's message and the offset.
  [[nodiscard]] static result<split_pattern> compile(std::string_view pcre2);

  /// Calls `piece` with every match and with every stretch between matches, in order, none empty
  /// (the behavior "Isolated" of the reference).
  ///
  /// @param text  Valid UTF-8. Should PCRE2 give up (only a pattern with nested repeats can make it
  ///              need more than 1 GiB), the rest of the text is one piece.
  void split(std::string_view text, const std::function<void(std::string_view)>& piece) const;

private:
  struct compiled;
  explicit split_pattern(std::shared_ptr<const compiled> pattern) : pattern_(std::move(pattern)) {}

  std::shared_ptr<const compiled> pattern_;
};

} // namespace rollcast
