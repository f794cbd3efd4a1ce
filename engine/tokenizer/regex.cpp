#define PCRE2_CODE_UNIT_WIDTH 8

#include "engine/tokenizer/regex.hpp"

#include "engine/base/check.hpp"

#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>

namespace rollcast {
namespace {

/// Unicode's White_Space, as the inside of a character class.
constexpr std::string_view white_space = R"(\t-\r\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a})"
                                         R"(\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

/// Escapes that PCRE2 reads in another way than Oniguruma, or that Oniguruma does not have.
constexpr std::string_view foreign_escapes = "wWbBhHNCQEKX";

constexpr std::uint32_t heap_limit_kib = 1u << 20;

tl::unexpected<error> foreign(std::string_view construct, std::size_t offset) {
  return fail(errc::bad_tokenizer, "pattern uses " + std::string{construct} + " at offset "
                                     + std::to_string(offset)
                                     + ", which is not supported: its meaning differs between "
                                       "Oniguruma and PCRE2");
}

struct release {
  void operator()(pcre2_code* code) const noexcept { pcre2_code_free(code); }
  void operator()(pcre2_match_context* context) const noexcept {
    pcre2_match_context_free(context);
  }
  void operator()(pcre2_match_data* data) const noexcept { pcre2_match_data_free(data); }
  void operator()(pcre2_compile_context* context) const noexcept {
    pcre2_compile_context_free(context);
  }
};

template <class T>
using owned = std::unique_ptr<T, release>;

/// Reads one pattern, copying it with the changes that PCRE2 needs.
class translator {
public:
  explicit translator(std::string_view from) : from_(from) {}

  result<std::string> run() {
    while (at_ < from_.size()) {
      const auto done = from_[at_] == '\\' ? escape() : in_class_ ? class_member() : plain();
      if (!done)
        return fail(done);
    }
    return std::move(to_);
  }

private:
  /// The character `ahead` of the current one; NUL past the end.
  [[nodiscard]] char peek(std::size_t ahead) const {
    return at_ + ahead < from_.size() ? from_[at_ + ahead] : '\0';
  }

  void copy(std::size_t count) {
    to_ += from_.substr(at_, count);
    at_ = std::min(at_ + count, from_.size());
  }

  result<void> escape() {
    const char letter = peek(1);
    if (letter != '\0' && foreign_escapes.find(letter) != std::string_view::npos)
      return foreign(from_.substr(at_, 2), at_);
    if (letter == 'S' && in_class_)
      return foreign("\\S inside [ ]", at_);
    if (letter != 's' && letter != 'S') {
      copy(2);
      return {};
    }
    if (in_class_)
      to_ += white_space;
    else
      (to_ += letter == 's' ? "[" : "[^").append(white_space) += ']';
    at_ += 2;
    return {};
  }

  result<void> class_member() {
    if (peek(0) == '[')
      return foreign("[ inside [ ]", at_);
    if (peek(0) == '&' && peek(1) == '&')
      return foreign("&& inside [ ]", at_);
    in_class_ = peek(0) != ']';
    copy(1);
    return {};
  }

  result<void> plain() {
    if (peek(0) == '(' && peek(1) == '*')
      return foreign("(*", at_);
    if (peek(0) == '[') {
      in_class_ = true;
      copy(peek(1) == '^' ? 2 : 1);
      if (peek(0) == ']') // The first one is a member.
        copy(1);
      return {};
    }
    copy(1);
    return {};
  }

  std::string_view from_;
  std::size_t at_ = 0;
  bool in_class_ = false;
  std::string to_;
};

} // namespace

struct split_pattern::compiled {
  owned<pcre2_code> code;
  owned<pcre2_match_context> limits;

  /// The first match at or after `from`, as an end exclusive range; empty at the end of the text
  /// if there is none.
  [[nodiscard]] std::pair<std::size_t, std::size_t> find(std::string_view text, std::size_t from,
                                                         pcre2_match_data* data) const {
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    // The text was found valid before; checking it again for every match would be quadratic.
    auto found =
      pcre2_match(code.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK, data, limits.get());
    if (found == PCRE2_ERROR_JIT_STACKLIMIT)
      found = pcre2_match(code.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                          data, limits.get());
    if (found < 0)
      return {text.size(), text.size()};
    const auto* range = pcre2_get_ovector_pointer(data);
    return {range[0], range[1]};
  }
};

result<std::string> to_pcre2(std::string_view oniguruma) {
  return translator{oniguruma}.run();
}

std::string quoted_for_pcre2(std::string_view literal) {
  std::string quoted;
  for (const char c : literal) {
    const bool is_word = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
    if (!is_word && c > ' ' && c < '\x7f')
      quoted += '\\';
    quoted += c;
  }
  return quoted;
}

result<split_pattern> split_pattern::compile(std::string_view pcre2) {
  const owned<pcre2_compile_context> context{pcre2_compile_context_create(nullptr)};
  ROLLCAST_CHECK(context != nullptr);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  // In Ruby's syntax ^ and $ always stand at lines.
  constexpr std::uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE;
  int code = 0;
  std::size_t offset = 0;
  auto pattern = std::make_shared<compiled>();
  pattern->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pcre2.data()), pcre2.size(),
                                    options, &code, &offset, context.get()));
  if (pattern->code == nullptr) {
    std::array<PCRE2_UCHAR, 256> message{};
    pcre2_get_error_message(code, message.data(), message.size());
    return fail(errc::bad_tokenizer,
                "pattern does not compile: " + std::string{reinterpret_cast<char*>(message.data())}
                  + " at offset " + std::to_string(offset));
  }
  // Without JIT the same pieces come out, only slower; so its refusal is no failure.
  static_cast<void>(pcre2_jit_compile(pattern->code.get(), PCRE2_JIT_COMPLETE));
  pattern->limits.reset(pcre2_match_context_create(nullptr));
  ROLLCAST_CHECK(pattern->limits != nullptr);
  pcre2_set_match_limit(pattern->limits.get(), std::numeric_limits<std::uint32_t>::max());
  pcre2_set_heap_limit(pattern->limits.get(), heap_limit_kib);
  return split_pattern{std::move(pattern)};
}

void split_pattern::split(std::string_view text,
                          const std::function<void(std::string_view)>& piece) const {
  const owned<pcre2_match_data> data{pcre2_match_data_create(1, nullptr)};
  ROLLCAST_CHECK(data != nullptr);
  std::size_t done = 0;
  for (std::size_t from = 0; from < text.size();) {
    const auto [start, end] = pattern_->find(text, from, data.get());
    if (start > done)
      piece(text.substr(done, start - done));
    if (end > start)
      piece(text.substr(start, end - start));
    done = end;
    from = end;
    // After an empty match the search goes on one character further, or it would never end.
    if (end == start && from < text.size())
      do
        ++from;
      while (from < text.size() && (static_cast<unsigned char>(text[from]) & 0xc0) == 0x80);
  }
  if (done < text.size())
    piece(text.substr(done));
}

} // namespace rollcast
