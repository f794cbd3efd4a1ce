#pragma once

#include "engine/base/error.hpp"
#include "engine/base/ids.hpp"

#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rollcast {

/// Whether `encode` puts in what the file's post-processor adds (Llama 3: the begin-of-text token).
enum class encode_special { add, leave_out };

/// Whether `decode` prints tokens that the file calls special.
enum class decode_special { keep, skip };

/// A byte-level BPE tokenizer, read from a Hugging Face `tokenizer.json`.
///
/// For valid UTF-8 the ids are those of the reference (PyPI `tokenizers`) for every file that
/// `load` accepts; held by tests/unit/tokenizer/reference_test.cpp. The README of this folder lists
/// what is accepted. Immutable after loading: any number of threads may call it at the same time.
/// Movable, not copyable; a moved-from tokenizer may only be destroyed or assigned to.
class tokenizer {
public:
  /// Reads a `tokenizer.json`.
  ///
  /// @returns `bad_tokenizer` with one line that starts with the path: the file is missing, is not
  ///          JSON, asks for something that is not supported (named), contradicts itself (an id or
  ///          a token twice, a merge of unknown tokens) or has a pattern that does not compile.
  /// Cost:    about 0.6 s for 150 thousand tokens and as many merges.
  [[nodiscard]] static result<tokenizer> load(const std::filesystem::path& tokenizer_json);

  tokenizer(tokenizer&&) noexcept;
  tokenizer& operator=(tokenizer&&) noexcept;
  ~tokenizer();

  /// Turns text into token ids. Added tokens inside the text become their ids, as in the reference.
  ///
  /// @param utf8  Any bytes. Bytes that are not valid UTF-8 are kept: each becomes its own byte
  ///              token, and the text is tokenized on either side as if it ended there.
  /// @returns the ids, all below `vocabulary()`; empty for an empty text unless special tokens are
  ///          added. Cannot fail.
  /// Cost:    O(n log n) in the length of the text, also without spaces.
  [[nodiscard]] std::vector<token_id> encode(std::string_view utf8,
                                             encode_special special = encode_special::add) const;

  /// Turns token ids into the bytes they stand for, side by side.
  ///
  /// @returns the bytes, which need not be valid UTF-8 (a token may be a part of a character; the
  ///          caller decides what to do about it), or `bad_prompt` for an id that is not in the
  ///          file. Models often have more output rows than the tokenizer has ids, so a sampled id
  ///          may be unknown.
  [[nodiscard]] result<std::string> decode(std::span<const token_id> ids,
                                           decode_special special = decode_special::keep) const;

  /// Returns one more than the largest id. Ids below it may be unknown where the file has gaps.
  [[nodiscard]] std::size_t vocabulary() const noexcept;

  /// Returns the id of an added token such as `<|im_end|>`, or nothing if the file has none.
  [[nodiscard]] std::optional<token_id> id_of(std::string_view added_token) const;

private:
  struct tables;
  class encoder;
  explicit tokenizer(std::unique_ptr<const tables> loaded) noexcept;

  std::unique_ptr<const tables> tables_;
};

} // namespace rollcast
