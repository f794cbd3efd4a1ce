#pragma once

#include "engine/base/error.hpp"
#include "engine/base/hash.hpp"
#include "engine/base/ids.hpp"
#include "engine/model/tensor_info.hpp"

#include <caf/all.hpp>

#include <cstdint>
#include <string>
#include <vector>

/// What scheduler and workers tell each other about weights; tensors never ride in these.
namespace rollcast {

/// What the collective group does for one worker's part of an update.
enum class weight_way : std::uint8_t {
  chain, ///< Nothing.
  casts, ///< It pulls, and its tensors go from it to the others.
  waits, ///< They come to it; it pulls only if that fails.
};

/// Make weights ready in the second buffer.
struct weight_order {
  worker_id worker;         ///< The incarnation it is meant for.
  std::uint64_t update = 0; ///< Number of the attempt; never reused.
  std::uint64_t epoch = 0;
  bool complete = false; ///< `tensors` are all of the model's.
  bool whole = false; ///< If not complete: they go over the checkpoint that the worker was started
                      ///< from, not over what it serves.
  bool allow_non_finite = false;
  std::string upstream; ///< Endpoint of the weight exchange to pull from.
  std::uint32_t slice_bytes = 0;
  std::vector<tensor_info> tensors;
  std::uint64_t group_epoch = 0; ///< In which the group does it; in another it does nothing.
  weight_way way = weight_way::chain;
};

enum class weight_news_kind : std::uint8_t {
  progressed,
  prepared,
  refused,
  upstream_failed,
  flipped,
};

/// How a worker is getting on with an order.
struct weight_news {
  worker_id worker;
  std::uint64_t update = 0;
  std::uint8_t kind = 0;   ///< A `weight_news_kind`.
  std::uint64_t bytes = 0; ///< Held of what it pulls.
  content_hash hash = {};  ///< Of the epoch, once it is prepared.
  std::uint8_t code = 0;   ///< An `errc`, when refused.
  std::string why;
};

/// A sequence to be scored.
struct score_item {
  std::string tokens; ///< int32, little-endian.
  std::uint32_t prompt_tokens = 0;
  std::uint32_t temperature_bits = 0; ///< float32.
};

/// Log-probabilities of given tokens are wanted, of all sequences together.
struct score_order {
  worker_id worker;
  std::uint64_t epoch = 0;
  std::vector<score_item> sequences;
};

template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, tensor_info& x) {
  auto type = static_cast<std::uint8_t>(x.type);
  auto load = [&]() -> caf::error {
    if (type > static_cast<std::uint8_t>(kernels::dtype::f16))
      return caf::sec::invalid_argument;
    x.type = static_cast<kernels::dtype>(type);
    return caf::none;
  };
  return f(caf::meta::type_name("tensor_info"), x.name, type, x.shape, x.hash,
           caf::meta::load_callback(load));
}

template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, weight_order& x) {
  auto way = static_cast<std::uint8_t>(x.way);
  auto load = [&]() -> caf::error {
    if (way > static_cast<std::uint8_t>(weight_way::waits))
      return caf::sec::invalid_argument;
    x.way = static_cast<weight_way>(way);
    return caf::none;
  };
  return f(caf::meta::type_name("weight_order"), x.worker, x.update, x.epoch, x.complete, x.whole,
           x.allow_non_finite, x.upstream, x.slice_bytes, x.tensors, x.group_epoch, way,
           caf::meta::load_callback(load));
}

template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, weight_news& x) {
  auto load = [&]() -> caf::error {
    if (x.kind > static_cast<std::uint8_t>(weight_news_kind::flipped)
        || to_string(static_cast<errc>(x.code)) == "unknown")
      return caf::sec::invalid_argument;
    return caf::none;
  };
  return f(caf::meta::type_name("weight_news"), x.worker, x.update, x.kind, x.bytes, x.hash, x.code,
           x.why, caf::meta::load_callback(load));
}

template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, score_item& x) {
  return f(caf::meta::type_name("score_item"), x.tokens, x.prompt_tokens, x.temperature_bits);
}

template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, score_order& x) {
  return f(caf::meta::type_name("score_order"), x.worker, x.epoch, x.sequences);
}

} // namespace rollcast
