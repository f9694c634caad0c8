// Norms and activations of token rows for inference, each in one pass over memory that is read once and written once.

#include "vectors.h"

#include <algorithm>
#include <vector>

namespace {

using namespace kernels;

void gelu_in_place(int64_t count, BFloat16* numbers, int threads) {
  const int64_t whole = count / LANES * LANES;
#pragma omp parallel for num_threads(threads)
  for (int64_t i = 0; i < whole; i += LANES) store(gelu(load(numbers + i)), numbers + i);
  if (whole < count) store_part(gelu(load_part(numbers + whole, count - whole)), numbers + whole, count - whole);
}

// Norm a few rows at once: each alone would wait for its own sums. `rows` has room for AT_ONCE rows of whole vectors.
template <int AT_ONCE, typename T>
inline void norm_rows(const T* from, int64_t dim, const float* scale, const float* shift, float epsilon, float* rows, T* place) {
  const int64_t whole = dim / LANES * LANES, padded = whole + (whole < dim ? LANES : 0);
  Floats total[AT_ONCE] = {}, squares[AT_ONCE] = {};
  for (int64_t i = 0; i < padded; i += LANES)
    for (int row = 0; row < AT_ONCE; ++row) {
      const Floats lanes = i < whole ? load(from + row * dim + i) : load_part(from + row * dim + i, dim - i);
      store(lanes, rows + row * padded + i);
      total[row] += lanes;
    }
  float mean[AT_ONCE], inverse[AT_ONCE];
  for (int row = 0; row < AT_ONCE; ++row) mean[row] = sum(total[row]) / dim;
  for (int64_t i = 0; i < whole; i += LANES)
    for (int row = 0; row < AT_ONCE; ++row) {
      const Floats centred = load(rows + row * padded + i) - mean[row];
      squares[row] = multiply_add(centred, centred, squares[row]);
    }
  for (int row = 0; row < AT_ONCE; ++row) {
    float variance = sum(squares[row]);
    for (int64_t i = whole; i < dim; ++i) {
      const float centred = rows[row * padded + i] - mean[row];
      variance += centred * centred;
    }
    inverse[row] = 1 / std::sqrt(variance / dim + epsilon);
  }
  for (int64_t i = 0; i < padded; i += LANES)
    for (int row = 0; row < AT_ONCE; ++row) {
      const Floats centred = (load(rows + row * padded + i) - mean[row]) * inverse[row];
      const Floats lanes = multiply_add(centred, load(scale + i), load(shift + i));
      if (i < whole)
        store(lanes, place + row * dim + i);
      else
        store_part(lanes, place + row * dim + i, dim - i);
    }
}

template <typename T>
void layer_norm(int64_t rows, int64_t dim, const T* tokens, const T* weight, const T* bias, float epsilon, T* result,
                int threads) {
  constexpr int AT_ONCE = 4;
  const int64_t padded = (dim + LANES - 1) / LANES * LANES;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> room(AT_ONCE * padded), scale(padded, 0.0f), shift(padded, 0.0f);
    for (int64_t i = 0; i < dim; ++i) scale[i] = weight ? widen(weight[i]) : 1, shift[i] = bias ? widen(bias[i]) : 0;
#pragma omp for
    for (int64_t first = 0; first < rows; first += AT_ONCE) {
      const T* from = tokens + first * dim;
      T* place = result + first * dim;
      if (first + AT_ONCE <= rows) {
        norm_rows<AT_ONCE>(from, dim, scale.data(), shift.data(), epsilon, room.data(), place);
        continue;
      }
      for (int64_t row = 0; row < rows - first; ++row)
        norm_rows<1>(from + row * dim, dim, scale.data(), shift.data(), epsilon, room.data(), place + row * dim);
    }
  }
}

}  // namespace

#define PIIP_FUNCTIONS(T, suffix)                                                                                    \
  extern "C" void piip_layer_norm_##suffix(const int64_t* sizes, const T* tokens, const T* weight, const T* bias,    \
                                           double epsilon, T* result, int threads) {                                 \
    layer_norm(sizes[0], sizes[1], tokens, weight, bias, float(epsilon), result, threads);                           \
  }
PIIP_FUNCTIONS(float, f32)
PIIP_FUNCTIONS(BFloat16, bf16)

extern "C" void piip_gelu_bf16(const int64_t* sizes, BFloat16* numbers, int threads) {
  gelu_in_place(sizes[0], numbers, threads);
}
