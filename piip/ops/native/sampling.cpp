// Sampling of multi-head deformable attention on CPU, forward and backward.
//
// Every query and head reads a few points of a map by bilinear interpolation and sums them with weights (Zhu et al.,
// arXiv 2010.04159, equation 2, one level). Shapes, all row-major: value (B, H * W, heads, dim), locations
// (B, Q, heads, points, 2) as (x, y) in [0, 1], weights (B, Q, heads, points), result (B, Q, heads * dim).

#include "sampling.h"

namespace {

using namespace kernels;

// Sum the lanes of four vectors at once: fold halves, then quarters, together.
inline void sum_lanes(const Floats (&four)[4], float (&sums)[4]) {
  Floats folded[2];
  for (int pair = 0; pair < 2; ++pair) {
    const Floats first = four[2 * pair], second = four[2 * pair + 1];
    folded[pair] = __builtin_shufflevector(first, second, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                   __builtin_shufflevector(first, second, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  Floats lanes = __builtin_shufflevector(folded[0], folded[1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                 __builtin_shufflevector(folded[0], folded[1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  lanes += __builtin_shufflevector(lanes, lanes, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  lanes += __builtin_shufflevector(lanes, lanes, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  for (int i = 0; i < 4; ++i) sums[i] = lanes[4 * i];
}

template <typename T>
void forward(const Sizes& sizes, const T* value, const float* locations, const T* weights, T* result, int threads) {
  const int64_t count = sizes.heads * sizes.points;
  sample_all(sizes, sizes.height * sizes.width, Points(count), value, result, threads, [&](int64_t item, Points& found) {
    const float* location = locations + item * count * 2;
    const T* weight = weights + item * count;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      found.x[i] = location[2 * i] * sizes.width - 0.5f;
      found.y[i] = location[2 * i + 1] * sizes.height - 0.5f;
      found.weight[i] = widen(weight[i]);
    }
    return found.find_neighbours(int(sizes.height), int(sizes.width), int(sizes.heads * sizes.dim));
  });
}

// The same from the bare outputs of the offset and weight layers: `raw` (B, Q, 3, heads * points) holds offsets x and y
// in cells of the map and logits; queries lie on a grid.
template <typename T>
void forward_raw(const Sizes& sizes, const T* value, const T* raw, int64_t query_width, T* result, int threads) {
  const int64_t count = sizes.heads * sizes.points, query_height = sizes.queries / query_width;
  sample_all(sizes, sizes.height * sizes.width, Points(count), value, result, threads, [&](int64_t item, Points& found) {
    const int64_t query = item % sizes.queries;
    const float x = (query % query_width + 0.5f) / query_width * sizes.width - 0.5f;
    const float y = (query / query_width + 0.5f) / query_height * sizes.height - 0.5f;
    const T* numbers = raw + item * count * 3;
    float* weight = found.weight.data();
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      found.x[i] = x + widen(numbers[i]);
      found.y[i] = y + widen(numbers[count + i]);
      weight[i] = widen(numbers[2 * count + i]);
    }
    softmax(weight, count, sizes.points);
    return found.find_neighbours(int(sizes.height), int(sizes.width), int(sizes.heads * sizes.dim));
  });
}

// What one point gives back, and to which rows.
struct Corner {
  int64_t row;
  float share, inside;
};

// Gradients of one image and head. `to_value` is (H * W, padded) of this head, padded to whole vectors.
template <int CHUNKS, typename T>
void backward_head(const Sizes& sizes, int64_t image, int64_t head, const T* gradient, const T* value,
                   const float* locations, const T* weights, float* to_value, float* to_locations, float* to_weights) {
  constexpr int64_t padded = CHUNKS * LANES;
  const int64_t width = sizes.heads * sizes.dim, cells = sizes.height * sizes.width;
  const T* map = value + image * cells * width + head * sizes.dim;
  const T* last = value + sizes.batch * cells * width - LANES;
  for (int64_t query = 0; query < sizes.queries; ++query) {
    const int64_t item = image * sizes.queries + query, first = (item * sizes.heads + head) * sizes.points;
    float numbers[padded] = {};  // zeros beyond `dim` silence the neighbours' numbers in over-long rows
    for (int64_t i = 0; i < sizes.dim; ++i) numbers[i] = widen(gradient[item * width + head * sizes.dim + i]);
    Floats given[CHUNKS];
    std::memcpy(given, numbers, sizeof given);
    for (int64_t i = first; i < first + sizes.points; ++i) {
      float column = locations[2 * i] * sizes.width - 0.5f, line = locations[2 * i + 1] * sizes.height - 0.5f;
      const float weight = widen(weights[i]);
      column = column < -2 ? -2 : column > sizes.width + 1 ? sizes.width + 1 : column;
      line = line < -2 ? -2 : line > sizes.height + 1 ? sizes.height + 1 : line;
      const float left = std::floor(column), top = std::floor(line), far_x = column - left, far_y = line - top;
      Floats dot[4] = {};
      for (int corner = 0; corner < 4; ++corner) {
        const int cx = int(left) + (corner & 1), cy = int(top) + (corner >> 1);
        if (cx < 0 || cx >= sizes.width || cy < 0 || cy >= sizes.height) continue;
        const int64_t row = cy * sizes.width + cx;
        const float share = weight * (corner & 1 ? far_x : 1 - far_x) * (corner >> 1 ? far_y : 1 - far_y);
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
          dot[corner] = multiply_add(
              given[chunk], load_row<true>(map + row * width + chunk * LANES, last, int(sizes.dim) - chunk * LANES), dot[corner]);
          float* const there = to_value + row * padded + chunk * LANES;
          store(multiply_add(Floats{} + share, given[chunk], load(there)), there);
        }
      }
      float product[4];
      sum_lanes(dot, product);
      const float above = product[0] + far_x * (product[1] - product[0]), below = product[2] + far_x * (product[3] - product[2]);
      to_weights[i] = above + far_y * (below - above);
      to_locations[2 * i + 1] = weight * sizes.height * (below - above);
      to_locations[2 * i] =
          weight * sizes.width * ((1 - far_y) * (product[1] - product[0]) + far_y * (product[3] - product[2]));
    }
  }
}

template <int CHUNKS, typename T>
void backward_all(const Sizes& sizes, const T* gradient, const T* value, const float* locations, const T* weights,
                  T* to_value, float* to_locations, float* to_weights, int threads) {
  const int64_t cells = sizes.height * sizes.width, padded = CHUNKS * LANES;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> sums(cells * padded);  // one image and head belong to one thread: no two write to one place
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < sizes.batch * sizes.heads; ++task) {
      const int64_t image = task / sizes.heads, head = task % sizes.heads;
      std::fill(sums.begin(), sums.end(), 0.0f);
      backward_head<CHUNKS>(sizes, image, head, gradient, value, locations, weights, sums.data(), to_locations, to_weights);
      for (int64_t cell = 0; cell < cells; ++cell)
        for (int64_t i = 0; i < sizes.dim; ++i)
          narrow(sums[cell * padded + i], to_value[((image * cells + cell) * sizes.heads + head) * sizes.dim + i]);
    }
  }
}

// False for heads wider than eight vectors.
template <typename T>
bool backward(const Sizes& sizes, const T* gradient, const T* value, const float* locations, const T* weights,
              T* to_value, float* to_locations, float* to_weights, int threads) {
  switch ((sizes.dim + LANES - 1) / LANES) {
#define PIIP_CASE(chunks)                                                                                            \
  case chunks:                                                                                                       \
    backward_all<chunks>(sizes, gradient, value, locations, weights, to_value, to_locations, to_weights, threads);   \
    return true;
    PIIP_CASE(1) PIIP_CASE(2) PIIP_CASE(3) PIIP_CASE(4) PIIP_CASE(5) PIIP_CASE(6) PIIP_CASE(7) PIIP_CASE(8)
#undef PIIP_CASE
  }
  return false;
}

}  // namespace

// One set of functions for each dtype; `sizes` are the seven numbers of Sizes.
#define PIIP_FUNCTIONS(T, suffix)                                                                                    \
  extern "C" void piip_sample_##suffix(const int64_t* sizes, const T* value, const float* locations, const T* weights, \
                                       T* result, int threads) {                                                     \
    forward(*reinterpret_cast<const Sizes*>(sizes), value, locations, weights, result, threads);                     \
  }                                                                                                                  \
  extern "C" void piip_sample_raw_##suffix(const int64_t* sizes, const T* value, const T* raw, int64_t query_width,  \
                                           T* result, int threads) {                                                 \
    forward_raw(*reinterpret_cast<const Sizes*>(sizes), value, raw, query_width, result, threads);                   \
  }                                                                                                                  \
  extern "C" bool piip_sample_backward_##suffix(const int64_t* sizes, const T* gradient, const T* value,             \
                                                const float* locations, const T* weights, T* to_value,               \
                                                float* to_locations, float* to_weights, int threads) {               \
    return backward(*reinterpret_cast<const Sizes*>(sizes), gradient, value, locations, weights, to_value,           \
                    to_locations, to_weights, threads);                                                              \
  }
PIIP_FUNCTIONS(float, f32)
PIIP_FUNCTIONS(BFloat16, bf16)
