// Sampling of deformable attention over several levels on CPU, from the bare outputs of the offset and weight layers.
//
// Every query and head reads a few points of every level around its reference there, with weights that sum to 1 over all
// levels (Zhu et al., arXiv 2010.04159, equation 3). Shapes: value (B, N, heads, dim) with the levels one after another,
// offsets (B, Q, heads, levels, points, 2) as (x, y), logits (B, Q, heads, levels, points), references (B, Q, levels, 2)
// or boxes x, y, w, h (B, Q, levels, 4), relative to the level; result (B, Q, heads * dim).

#include "sampling.h"

namespace {

using namespace kernels;

// Rows of offsets and logits may be parts of longer rows: the steps from one query to the next are in numbers.
struct LevelSizes {
  int64_t batch, queries, heads, points, dim, levels, offset_step, logit_step, reference_size;
};

class LevelPoints : public Points {
 public:
  LevelPoints(const LevelSizes& sizes, const int64_t* grids)
      : Points(sizes.heads * sizes.levels * sizes.points), sizes(sizes), maps(x.size()) {
    int start = 0;
    for (int64_t level = 0; level < sizes.levels; ++level) {
      const int height = int(grids[2 * level]), width = int(grids[2 * level + 1]);
      for (int64_t i = 0; i < int64_t(maps.size()); ++i)
        if (i / sizes.points % sizes.levels == level) maps[i] = {height, width, start};
      start += height * width;
    }
    for (std::vector<float>* each : {&middle_x, &middle_y, &scale_x, &scale_y}) each->resize(sizes.levels * sizes.points);
  }

  // Finds the points of a query and their neighbours; `reference` is that of all levels. Returns the last place of all.
  template <typename T>
  int find(const T* offsets, const T* logits, const float* reference) {
    const int64_t points = sizes.points, group = sizes.levels * points, count = sizes.heads * group;
    for (int64_t i = 0; i < group; ++i) {
      const float* own = reference + i / points * sizes.reference_size;
      const bool is_box = sizes.reference_size == 4;
      middle_x[i] = own[0] * maps[i].width - 0.5f, middle_y[i] = own[1] * maps[i].height - 0.5f;
      // offsets count cells around points, and around boxes the points-th parts of half their sides
      scale_x[i] = is_box ? own[2] * 0.5f / points * maps[i].width : 1;
      scale_y[i] = is_box ? own[3] * 0.5f / points * maps[i].height : 1;
    }
    for (int64_t first = 0; first < count; first += group)
#pragma omp simd
      for (int64_t i = 0; i < group; ++i) {
        x[first + i] = middle_x[i] + widen(offsets[2 * (first + i)]) * scale_x[i];
        y[first + i] = middle_y[i] + widen(offsets[2 * (first + i) + 1]) * scale_y[i];
        weight[first + i] = widen(logits[first + i]);
      }
    softmax(weight.data(), count, group);
    const Map* own = maps.data();
    return find_neighbours(int(sizes.heads * sizes.dim), [=](int i) { return own[i]; });
  }

 private:
  LevelSizes sizes;
  std::vector<Map> maps;  // of every point
  std::vector<float> middle_x, middle_y, scale_x, scale_y;  // of the points of one head
};

template <typename T>
void sample_levels(const LevelSizes& sizes, const T* value, const T* offsets, const T* logits, const float* references,
                   T* result, int threads) {
  const int64_t* grids = reinterpret_cast<const int64_t*>(&sizes + 1);
  int64_t cells = 0;
  for (int64_t level = 0; level < sizes.levels; ++level) cells += grids[2 * level] * grids[2 * level + 1];
  const Sizes as_one{sizes.batch, sizes.queries, sizes.heads, sizes.levels * sizes.points, sizes.dim, 1, cells};
  sample_all(as_one, cells, LevelPoints(sizes, grids), value, result, threads, [&](int64_t item, LevelPoints& found) {
    const float* reference = references + item * sizes.levels * sizes.reference_size;
    return found.find(offsets + item * sizes.offset_step, logits + item * sizes.logit_step, reference);
  });
}

}  // namespace

// `sizes` are the numbers of LevelSizes, then height and width of every level.
#define PIIP_FUNCTIONS(T, suffix)                                                                                    \
  extern "C" void piip_sample_levels_##suffix(const int64_t* sizes, const T* value, const T* offsets, const T* logits, \
                                              const float* references, T* result, int threads) {                     \
    sample_levels(*reinterpret_cast<const LevelSizes*>(sizes), value, offsets, logits, references, result, threads); \
  }
PIIP_FUNCTIONS(float, f32)
PIIP_FUNCTIONS(BFloat16, bf16)
