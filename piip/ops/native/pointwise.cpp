// Norms and activations of token rows for inference, each in one pass over memory that is read once and written once.

#include "vectors.h"

#include <algorithm>
#include <vector>

namespace {

inline Floats clip(Floats numbers, float bound) {
  numbers = numbers < -bound ? Floats{} - bound : numbers;
  return numbers > bound ? Floats{} + bound : numbers;
}

// x * Phi(x), the GELU, for results in bfloat16. Phi(x) - 1/2 is x times a polynomial in x^2, fitted at Chebyshev nodes on
// |x| <= 4.5; beyond, the result is 0 or x. It is wrong by 6e-5 at most, which is half a step of bfloat16 at 0.03.
inline Floats gelu(Floats x) {
  constexpr float COEFFICIENTS[] = {2.870581303e-11f, -3.164220017e-09f, 1.534205552e-07f, -4.336338891e-06f, 8.006293238e-05f, -1.028195546e-03f, 9.549192559e-03f, -6.591735699e-02f, 3.986688293e-01f};
  const Floats inner = clip(x, 4.5f), square = inner * inner;
  Floats sum = Floats{} + COEFFICIENTS[0];
  for (int i = 1; i < 9; ++i) sum = multiply_add(sum, square, Floats{} + COEFFICIENTS[i]);
  return (x < -4.5f ? Floats{} : x) * (inner * sum + 0.5f);  // what is left of Phi times a huge x would be huge
}

void gelu_in_place(int64_t count, BFloat16* numbers, int threads) {
  const int64_t whole = count / LANES * LANES;
#pragma omp parallel for num_threads(threads)
  for (int64_t i = 0; i < whole; i += LANES) store(gelu(load(numbers + i)), numbers + i);
  if (whole < count) store_part(gelu(load_part(numbers + whole, count - whole)), numbers + whole, count - whole);
}

template <typename T>
void layer_norm(int64_t rows, int64_t dim, const T* tokens, const T* weight, const T* bias, float epsilon, T* result,
                int threads) {
  const int64_t whole = dim / LANES * LANES, padded = whole + (whole < dim ? LANES : 0);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> row(padded), scale(padded, 0.0f), shift(padded, 0.0f);
    for (int64_t i = 0; i < dim; ++i) scale[i] = weight ? widen(weight[i]) : 1, shift[i] = bias ? widen(bias[i]) : 0;
#pragma omp for
    for (int64_t item = 0; item < rows; ++item) {
      const T* from = tokens + item * dim;
      T* place = result + item * dim;
      Floats total = {}, squares = {};
      for (int64_t i = 0; i < padded; i += LANES) {
        const Floats lanes = i < whole ? load(from + i) : load_part(from + i, dim - i);
        store(lanes, &row[i]);
        total += lanes;
      }
      const float mean = sum(total) / dim;
      for (int64_t i = 0; i < whole; i += LANES) {
        const Floats centred = load(&row[i]) - mean;
        squares += centred * centred;
      }
      float variance = sum(squares);
      for (int64_t i = whole; i < dim; ++i) variance += (row[i] - mean) * (row[i] - mean);
      const float inverse = 1 / std::sqrt(variance / dim + epsilon);
      for (int64_t i = 0; i < padded; i += LANES) {
        const Floats lanes = (load(&row[i]) - mean) * inverse * load(&scale[i]) + load(&shift[i]);
        if (i < whole)
          store(lanes, place + i);
        else
          store_part(lanes, place + i, dim - i);
      }
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
