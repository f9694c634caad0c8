// Numbers in vector registers: what all kernels share.
//
// Plain C++17 with the vector types of GCC and Clang; no PyTorch header, so that all compiles in seconds.
// `__init__.py` compiles the kernels for the processor at hand and calls them through ctypes.

#pragma once

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstring>

namespace kernels {

constexpr int LANES = 16;
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

struct BFloat16 {
  uint16_t bits;
};

inline float widen(float number) { return number; }
inline float widen(BFloat16 number) {
  const uint32_t bits = uint32_t(number.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}

inline void narrow(float number, float& result) { result = number; }
inline void narrow(float number, BFloat16& result) {
  uint32_t bits;
  std::memcpy(&bits, &number, 4);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  result.bits = is_nan ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // to the nearest, ties to even
}

inline Floats load(const float* from) {
  Floats lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}
inline Floats load(const BFloat16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  const Words words = __builtin_convertvector(halves, Words) << 16;
  Floats lanes;
  std::memcpy(&lanes, &words, sizeof lanes);
  return lanes;
}

// a * b + c, rounded once where the processor can. The compiler itself may not join products and sums
// (-ffp-contract=off), so that positions and shares are rounded as PyTorch's separate operations round them.
inline Floats multiply_add(Floats a, Floats b, Floats c) {
#ifdef __AVX512F__
  __m512 left, right, sum;
  std::memcpy(&left, &a, sizeof a), std::memcpy(&right, &b, sizeof b), std::memcpy(&sum, &c, sizeof c);
  sum = _mm512_fmadd_ps(left, right, sum);
  std::memcpy(&c, &sum, sizeof c);
  return c;
#else
  return a * b + c;
#endif
}

// Half as many lanes, for short rows: reads of whole vectors nearly always touch two cache lines there.
constexpr int FEW = LANES / 2;
typedef float FewFloats __attribute__((vector_size(4 * FEW)));

inline FewFloats load_few(const float* from) {
  FewFloats lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}
inline FewFloats load_few(const BFloat16* from) {
  typedef uint32_t FewWords __attribute__((vector_size(4 * FEW)));
  typedef uint16_t FewHalves __attribute__((vector_size(2 * FEW)));
  FewHalves halves;
  std::memcpy(&halves, from, sizeof halves);
  const FewWords words = __builtin_convertvector(halves, FewWords) << 16;
  FewFloats lanes;
  std::memcpy(&lanes, &words, sizeof lanes);
  return lanes;
}
inline FewFloats multiply_add(FewFloats a, FewFloats b, FewFloats c) {
#ifdef __AVX512F__
  __m256 left, right, sum;
  std::memcpy(&left, &a, sizeof a), std::memcpy(&right, &b, sizeof b), std::memcpy(&sum, &c, sizeof c);
  sum = _mm256_fmadd_ps(left, right, sum);
  std::memcpy(&c, &sum, sizeof c);
  return c;
#else
  return a * b + c;
#endif
}

inline void store(Floats lanes, float* place) { std::memcpy(place, &lanes, sizeof lanes); }
#ifdef __AVX512BF16__
inline void store(Floats lanes, BFloat16* place) {
  __m512 numbers;
  std::memcpy(&numbers, &lanes, sizeof numbers);
  const __m256bh halves = _mm512_cvtneps_pbh(numbers);
  std::memcpy(place, &halves, sizeof halves);
}
#else
inline void store(Floats lanes, BFloat16* place) {  // to the nearest, ties to even
  Words words;
  std::memcpy(&words, &lanes, sizeof words);
  const Words rounded = (words + 0x7fff + ((words >> 16) & 1)) >> 16;
  const Words is_nan = Words((words & 0x7fffffffu) > 0x7f800000u);
  const Halves halves = __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0), Halves);
  std::memcpy(place, &halves, sizeof halves);
}
#endif

// Read or write `count` < LANES numbers; the other lanes are zero.
template <typename T>
inline Floats load_part(const T* from, int64_t count) {
  T copy[LANES] = {};
  std::memcpy(copy, from, sizeof(T) * count);
  return load(copy);
}
template <typename T>
inline void store_part(Floats lanes, T* place, int64_t count) {
  T copy[LANES];
  store(lanes, copy);
  std::memcpy(place, copy, sizeof(T) * count);
}

inline float sum(Floats lanes) {
  lanes += __builtin_shufflevector(lanes, lanes, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  lanes += __builtin_shufflevector(lanes, lanes, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  lanes += __builtin_shufflevector(lanes, lanes, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  return lanes[0] + lanes[1];
}

// e^x for x <= 0, relative error below 3e-7: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. NaN stays NaN.
inline float exp_negative(float x) {
  const float clipped = x < -87.0f ? -87.0f : x;
  const float whole = std::floor(clipped * 1.44269504f + 0.5f);
  const float rest = (clipped - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float power = 1.9875691500e-4f;
  power = power * rest + 1.3981999507e-3f;
  power = power * rest + 8.3334519073e-3f;
  power = power * rest + 4.1665795894e-2f;
  power = power * rest + 1.6666665459e-1f;
  power = power * rest + 5.0000001201e-1f;
  power = power * rest * rest + rest + 1.0f;
  const int32_t bits = (int32_t(whole) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return power * scale;
}

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

}  // namespace kernels
