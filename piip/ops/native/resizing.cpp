// Bilinear resizing that adds to a map, channels last, for inference: the resized map is never stored.

#include "vectors.h"

#include <algorithm>

namespace {

using namespace kernels;

// Where a cell of the large map lies between two cells of the small one, by PyTorch's rule (align_corners=False).
struct Between {
  int64_t first, second;
  float share;  // of the second
};

inline Between between(int64_t cell, float ratio, int64_t count) {
  const float position = std::max(ratio * (float(cell) + 0.5f) - 0.5f, 0.0f);
  const int64_t first = std::min(int64_t(position), count - 1);
  return {first, std::min(first + 1, count - 1), std::min(std::max(position - float(first), 0.0f), 1.0f)};
}

template <typename T>
void add_resized(const int64_t* sizes, const T* small, float small_scale, float large_scale, T* large, int threads) {
  const int64_t batch = sizes[0], dim = sizes[1], rows = sizes[2], columns = sizes[3], height = sizes[4], width = sizes[5];
  const int64_t whole = dim / LANES * LANES;
  const float y_ratio = float(rows) / float(height), x_ratio = float(columns) / float(width);
#pragma omp parallel for num_threads(threads)
  for (int64_t line = 0; line < batch * height; ++line) {
    const Between y = between(line % height, y_ratio, rows);
    const T* image = small + line / height * rows * columns * dim;
    const T *upper = image + y.first * columns * dim, *lower = image + y.second * columns * dim;
    for (int64_t column = 0; column < width; ++column) {
      const Between x = between(column, x_ratio, columns);
      const T* corners[] = {upper + x.first * dim, upper + x.second * dim, lower + x.first * dim, lower + x.second * dim};
      const float top = (1 - y.share) * small_scale, bottom = y.share * small_scale;
      const float shares[] = {top * (1 - x.share), top * x.share, bottom * (1 - x.share), bottom * x.share};
      T* place = large + (line * width + column) * dim;
      for (int64_t i = 0; i < dim; i += LANES) {
        const bool is_whole = i < whole;
        Floats total = (is_whole ? load(place + i) : load_part(place + i, dim - i)) * large_scale;
        for (int corner = 0; corner < 4; ++corner) {
          const Floats lanes = is_whole ? load(corners[corner] + i) : load_part(corners[corner] + i, dim - i);
          total = multiply_add(lanes, Floats{} + shares[corner], total);
        }
        if (is_whole)
          store(total, place + i);
        else
          store_part(total, place + i, dim - i);
      }
    }
  }
}

}  // namespace

#define PIIP_FUNCTIONS(T, suffix)                                                                          \
  extern "C" void piip_add_resized_##suffix(const int64_t* sizes, const T* small, double small_scale,      \
                                            double large_scale, T* large, int threads) {                   \
    add_resized(sizes, small, float(small_scale), float(large_scale), large, threads);                     \
  }
PIIP_FUNCTIONS(float, f32)
PIIP_FUNCTIONS(BFloat16, bf16)
