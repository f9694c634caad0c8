// Sampling of multi-head deformable attention on CPU, forward and backward.
//
// Every query and head reads a few points of a map by bilinear interpolation and sums them with weights (Zhu et al.,
// arXiv 2010.04159, equation 2, one level). Shapes, all row-major: value (B, H * W, heads, dim), locations
// (B, Q, heads, points, 2) as (x, y) in [0, 1], weights (B, Q, heads, points), result (B, Q, heads * dim).

#include "vectors.h"

#include <algorithm>
#include <vector>

namespace {

using namespace kernels;

// Read LANES numbers; lanes from `count` on are arbitrary. `last` is the last place where LANES numbers may be read.
template <bool CHECKED, typename T>
inline Floats load_row(const T* from, const T* last, int count) {
  if (!CHECKED || from <= last) return load(from);
  T copy[LANES] = {};
  std::memcpy(copy, from, sizeof(T) * std::min(count, LANES));
  return load(copy);
}

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

struct Sizes {
  int64_t batch, queries, heads, points, dim, height, width;
};

// Points of one query in cells of the map, and from them the four neighbours: place in the map and share of the sum.
struct Points {
  std::vector<float> x, y, weight;
  std::vector<int32_t> place[4];
  std::vector<float> share[4];

  explicit Points(int64_t count) : x(count), y(count), weight(count) {
    for (int corner = 0; corner < 4; ++corner) place[corner].resize(count), share[corner].resize(count);
  }

  // Returns the last place of all.
  int find_neighbours(int height, int width, int stride) {
    const int count = int(x.size());
    for (int corner = 0; corner < 4; ++corner) {
      const int right = corner & 1, below = corner >> 1;
      int32_t* places = place[corner].data();
      float* shares = share[corner].data();
#pragma omp simd
      for (int i = 0; i < count; ++i) {
        // two cells outside nothing is read; the comparisons keep NaN, which must reach the result
        float column = x[i] < -2 ? -2 : x[i], line = y[i] < -2 ? -2 : y[i];
        column = column > width + 1 ? width + 1 : column, line = line > height + 1 ? height + 1 : line;
        const float left = std::floor(column), top = std::floor(line);
        const int cx = int(left) + right, cy = int(top) + below;
        const float far_x = column - left, far_y = line - top;
        const float inside = (cx >= 0) & (cx < width) & (cy >= 0) & (cy < height) ? 1.0f : 0.0f;
        shares[i] = (below ? far_y : 1 - far_y) * (right ? far_x : 1 - far_x) * (weight[i] * inside);
        places[i] = (std::min(std::max(cy, 0), height - 1) * width + std::min(std::max(cx, 0), width - 1)) * stride;
      }
    }
    return *std::max_element(place[3].begin(), place[3].end());  // the corner below and to the right
  }
};

// Sum the neighbours of one query and head for `CHUNKS` * LANES channels from `first` on.
template <int CHUNKS, bool CHECKED, typename T>
inline void sum_rows(const Sizes& sizes, const Points& found, const T* map, const T* last, int64_t head, int64_t first,
                     float* result) {
  Floats total[CHUNKS] = {};
  map += head * sizes.dim + first;
  for (int64_t i = head * sizes.points; i < (head + 1) * sizes.points; ++i)
    for (int corner = 0; corner < 4; ++corner) {
      const T* from = map + found.place[corner][i];
      const float share = found.share[corner][i];
      for (int chunk = 0; chunk < CHUNKS; ++chunk)
        total[chunk] = multiply_add(
            Floats{} + share, load_row<CHECKED>(from + chunk * LANES, last, int(sizes.dim - first) - chunk * LANES),
            total[chunk]);
    }
  std::memcpy(result, total, sizeof total);
}

// The same for at most FEW channels.
template <bool CHECKED, typename T>
inline void sum_few(const Sizes& sizes, const Points& found, const T* map, const T* last, int64_t head, int64_t first,
                    float* result) {
  FewFloats total = {};
  map += head * sizes.dim + first;
  for (int64_t i = head * sizes.points; i < (head + 1) * sizes.points; ++i)
    for (int corner = 0; corner < 4; ++corner) {
      const T* from = map + found.place[corner][i];
      T copy[FEW] = {};
      if (CHECKED && from > last) {
        std::memcpy(copy, from, sizeof(T) * std::min<int64_t>(sizes.dim - first, FEW));
        from = copy;
      }
      total = multiply_add(FewFloats{} + found.share[corner][i], load_few(from), total);
    }
  std::memcpy(result, &total, sizeof total);
}

// The result of one query, in float32; `result` has LANES places more than heads * dim.
template <bool CHECKED, typename T>
void sample_query(const Sizes& sizes, const Points& found, const T* map, const T* last, float* result) {
  for (int64_t head = 0; head < sizes.heads; ++head)
    for (int64_t first = 0; first < sizes.dim; first += 2 * LANES) {  // what is written too far is overwritten next
      float* place = result + head * sizes.dim + first;
      if (sizes.dim - first <= FEW)
        sum_few<CHECKED>(sizes, found, map, last, head, first, place);
      else if (sizes.dim - first > LANES)
        sum_rows<2, CHECKED>(sizes, found, map, last, head, first, place);
      else
        sum_rows<1, CHECKED>(sizes, found, map, last, head, first, place);
    }
}

// Run `find(image, query, points)` and sample, for every query.
template <typename T, typename Find>
void sample_all(const Sizes& sizes, const T* value, T* result, int threads, Find find) {
  const int64_t width = sizes.heads * sizes.dim, cells = sizes.height * sizes.width;
  const T* last = value + sizes.batch * cells * width - LANES;
#pragma omp parallel num_threads(threads)
  {
    Points found(sizes.heads * sizes.points);
    std::vector<float> sampled(width + 2 * LANES);
#pragma omp for
    for (int64_t item = 0; item < sizes.batch * sizes.queries; ++item) {
      const int64_t image = item / sizes.queries;
      find(item, found);
      const T* map = value + image * cells * width;
      const int highest = found.find_neighbours(int(sizes.height), int(sizes.width), int(width));
      if (highest + width + LANES <= last - map)
        sample_query<false>(sizes, found, map, last, sampled.data());
      else
        sample_query<true>(sizes, found, map, last, sampled.data());
      T* place = result + item * width;
      const int64_t whole = width / LANES * LANES;
      for (int64_t i = 0; i < whole; i += LANES) store(load(&sampled[i]), place + i);
      for (int64_t i = whole; i < width; ++i) narrow(sampled[i], place[i]);
    }
  }
}

template <typename T>
void forward(const Sizes& sizes, const T* value, const float* locations, const T* weights, T* result, int threads) {
  const int64_t count = sizes.heads * sizes.points;
  sample_all(sizes, value, result, threads, [&](int64_t item, Points& found) {
    const float* location = locations + item * count * 2;
    const T* weight = weights + item * count;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      found.x[i] = location[2 * i] * sizes.width - 0.5f;
      found.y[i] = location[2 * i + 1] * sizes.height - 0.5f;
      found.weight[i] = widen(weight[i]);
    }
  });
}

// The same from the bare outputs of the offset and weight layers: `raw` (B, Q, 3, heads * points) holds offsets x and y
// in cells of the map and logits; queries lie on a grid.
template <typename T>
void forward_raw(const Sizes& sizes, const T* value, const T* raw, int64_t query_width, T* result, int threads) {
  const int64_t count = sizes.heads * sizes.points, query_height = sizes.queries / query_width;
  sample_all(sizes, value, result, threads, [&](int64_t item, Points& found) {
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
    for (int64_t first = 0; first < count; first += sizes.points) {
      const float highest = *std::max_element(weight + first, weight + first + sizes.points);
      for (int64_t i = first; i < first + sizes.points; ++i) weight[i] -= highest;
    }
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) weight[i] = exp_negative(weight[i]);
    for (int64_t first = 0; first < count; first += sizes.points) {
      float total = 0;
      for (int64_t i = first; i < first + sizes.points; ++i) total += weight[i];
      const float inverse = 1 / total;
      for (int64_t i = first; i < first + sizes.points; ++i) weight[i] *= inverse;
    }
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
