#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace rollcast::oracle {

/// Plain softmax attention of one query over keys[0 .. n), in double. Keys and values are [n][dim].
inline std::vector<double> attention(const float* q, const std::vector<std::vector<float>>& keys,
                                     const std::vector<std::vector<float>>& values, double scale) {
  std::vector<double> weight(keys.size());
  double top = -INFINITY;
  for (std::size_t j = 0; j < keys.size(); ++j) {
    for (std::size_t d = 0; d < keys[j].size(); ++d)
      weight[j] += static_cast<double>(q[d]) * static_cast<double>(keys[j][d]);
    weight[j] *= scale;
    top = std::max(top, weight[j]);
  }
  double sum = 0;
  for (double& w : weight)
    sum += w = std::exp(w - top);
  std::vector<double> out(values[0].size());
  for (std::size_t j = 0; j < values.size(); ++j)
    for (std::size_t d = 0; d < out.size(); ++d)
      out[d] += weight[j] / sum * static_cast<double>(values[j][d]);
  return out;
}

} // namespace rollcast::oracle
