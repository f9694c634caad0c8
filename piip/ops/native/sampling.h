// What the kernels of deformable attention share: the neighbours of points, and weighted sums of them.

#pragma once

#include "vectors.h"

#include <algorithm>
#include <vector>

namespace kernels {

// Read LANES numbers; lanes from `count` on are arbitrary. `last` is the last place where LANES numbers may be read.
template <bool CHECKED, typename T>
inline Floats load_row(const T* from, const T* last, int count) {
  if (!CHECKED || from <= last) return load(from);
  T copy[LANES] = {};
  std::memcpy(copy, from, sizeof(T) * std::min(count, LANES));
  return load(copy);
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

  // Finds the neighbours in a map; returns the last place of all.
  int find_neighbours(int height, int width, int stride) {
    return find_neighbours(stride, [=](int) { return Map{height, width, 0}; });
  }

 protected:
  struct Map {
    int height, width, start;  // its first cell
  };

  // The same where each point has a map, `map_of(point)`.
  template <typename MapOf>
  int find_neighbours(int stride, MapOf map_of) {
    const int count = int(x.size());
    for (int corner = 0; corner < 4; ++corner) {
      const int right = corner & 1, below = corner >> 1;
      int32_t* places = place[corner].data();
      float* shares = share[corner].data();
#pragma omp simd
      for (int i = 0; i < count; ++i) {
        const Map map = map_of(i);
        const int height = map.height, width = map.width;
        // two cells outside nothing is read; the comparisons keep NaN, which must reach the result
        float column = x[i] < -2 ? -2 : x[i], line = y[i] < -2 ? -2 : y[i];
        column = column > width + 1 ? width + 1 : column, line = line > height + 1 ? height + 1 : line;
        const float left = std::floor(column), top = std::floor(line);
        const int cx = int(left) + right, cy = int(top) + below;
        const float far_x = column - left, far_y = line - top;
        const float inside = (cx >= 0) & (cx < width) & (cy >= 0) & (cy < height) ? 1.0f : 0.0f;
        shares[i] = (below ? far_y : 1 - far_y) * (right ? far_x : 1 - far_x) * (weight[i] * inside);
        const int cell = std::min(std::max(cy, 0), height - 1) * width + std::min(std::max(cx, 0), width - 1);
        places[i] = (map.start + cell) * stride;
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

// Run `find(item, points)`, which returns the last place of all, and sample, for every query; `cells` of the map.
template <typename Found, typename T, typename Find>
void sample_all(const Sizes& sizes, int64_t cells, const Found& empty, const T* value, T* result, int threads, Find find) {
  const int64_t width = sizes.heads * sizes.dim;
  const T* last = value + sizes.batch * cells * width - LANES;
#pragma omp parallel num_threads(threads)
  {
    Found found = empty;
    std::vector<float> sampled(width + 2 * LANES);
#pragma omp for
    for (int64_t item = 0; item < sizes.batch * sizes.queries; ++item) {
      const int64_t image = item / sizes.queries;
      const int highest = find(item, found);
      const T* map = value + image * cells * width;
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

// Turn logits into weights that sum to 1, for each of `count / group` groups.
inline void softmax(float* weight, int64_t count, int64_t group) {
  for (int64_t first = 0; first < count; first += group) {
    const float highest = *std::max_element(weight + first, weight + first + group);
    for (int64_t i = first; i < first + group; ++i) weight[i] -= highest;
  }
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) weight[i] = exp_negative(weight[i]);
  for (int64_t first = 0; first < count; first += group) {
    float total = 0;
    for (int64_t i = first; i < first + group; ++i) total += weight[i];
    const float inverse = 1 / total;
    for (int64_t i = first; i < first + group; ++i) weight[i] *= inverse;
  }
}

}  // namespace kernels
