#include "engine/backend/cuda_buffers.hpp"

#include "engine/backend/cuda_error.hpp"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace rollcast {

namespace gpu = kernels::cuda;

namespace {

std::size_t workspace_bytes(const model_config& c, const cuda_buffer_sizes& sizes) {
  if (sizes.library_workspace != 0)
    return sizes.library_workspace;
  const std::size_t q = c.heads * c.head_dim;
  const std::size_t qkv = q + 2 * c.kv_heads * c.head_dim;
  return std::max({gpu::gemm_workspace_bytes(sizes.rows, qkv, c.hidden),
                   gpu::gemm_workspace_bytes(sizes.rows, c.hidden, q),
                   gpu::gemm_workspace_bytes(sizes.rows, 2 * c.intermediate, c.hidden),
                   gpu::gemm_workspace_bytes(sizes.rows, c.hidden, c.intermediate),
                   gpu::gemm_workspace_bytes(sizes.logit_rows, c.vocabulary, c.hidden)});
}

} // namespace

/// Gives every buffer its place behind `base`. @returns the bytes of all.
std::size_t cuda_buffers::place_all(const model_config& c, const cuda_buffer_sizes& sizes,
                                    std::byte* base) {
  std::size_t size = 0;
  const auto place = [&]<class T>(T*& pointer, std::size_t count) {
    pointer = reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(base) + size);
    size = (size + count * sizeof(T) + 255) / 256 * 256;
  };
  const std::size_t rows = sizes.rows;
  const std::size_t logit_rows = sizes.logit_rows;
  const std::size_t q_width = c.heads * c.head_dim;
  const std::size_t context_blocks =
    (sizes.positions + sizes.block_tokens - 1) / sizes.block_tokens;
  place(hidden, rows * c.hidden);
  place(normed, std::max(rows, logit_rows) * c.hidden);
  place(qkv, rows * (q_width + 2 * c.kv_heads * c.head_dim));
  place(q, rows * q_width);
  place(attended, rows * q_width);
  place(gate_up, sizes.library_workspace != 0 ? rows * 2 * c.intermediate : 0);
  place(gated, rows * c.intermediate);
  place(logits, logit_rows * c.vocabulary);
  place(partials,
        gpu::attention_partial_bytes(sizes.attention.partial_rows, c.heads, c.head_dim) / 4 + 1);
  scratch_bytes_ = size;
  place(counters, sizes.attention.groups * c.kv_heads + 1);
  place(workspace, workspace_bytes(c, sizes));
  place(cos_sin, sizes.positions * c.head_dim);
  const std::size_t step_begin = size;
  place(counts, 1);
  place(tokens, rows);
  place(places, rows);
  place(logit_index, logit_rows);
  place(sequences, rows);
  place(copies, rows);
  place(items, sizes.attention.items);
  place(tables, rows * context_blocks);
  step_bytes_ = size - step_begin;
  const std::size_t answers_begin = size;
  place(how, logit_rows);
  place(draft_trees, logit_rows);
  place(draft_tokens, logit_rows);
  place(draft_parents, logit_rows);
  place(chosen, logit_rows);
  place(paths, logit_rows);
  place(path_nodes, logit_rows);
  place(temperatures, logit_rows);
  place(given, logit_rows);
  place(scores, logit_rows);
  answer_bytes_ = size - answers_begin;
  return size;
}

std::uint64_t cuda_buffers::bytes_of(const model_config& config, const cuda_buffer_sizes& sizes) {
  return cuda_buffers{}.place_all(config, sizes, nullptr);
}

result<cuda_buffers> cuda_buffers::make(const model_config& config, const cuda_buffer_sizes& sizes,
                                        gpu::stream_handle stream) {
  const std::string doing = "making the buffers of a pass";
  auto memory = gpu::device_buffer::allocate(bytes_of(config, sizes));
  if (!memory)
    return fail(errc::bad_config, doing + ": " + memory.error().what
                                    + "; take fewer --prefill-rows or a smaller --max-batch");
  cuda_buffers out;
  out.place_all(config, sizes, memory->data());
  out.memory_ = std::move(*memory);
  std::vector<float> table(sizes.positions * config.head_dim);
  kernels::rope_table(config.rope, sizes.positions, table.data());
  // Counters and workspace must be zero; the rest is, so that nothing is read that nobody wrote.
  if (auto ok = gpu::fill_async(out.memory_.data(), 0, out.memory_.size(), stream); !ok)
    return device_failed(ok, doing);
  if (auto ok = gpu::copy_async(out.cos_sin, table.data(), table.size() * sizeof(float), stream);
      !ok)
    return device_failed(ok, doing);
  return out; // the caller synchronises; the table was pageable, so it is copied by now
}

} // namespace rollcast
