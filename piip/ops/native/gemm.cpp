// Products of bfloat16 tokens with fixed weights, and what surrounds them in a transformer, for inference.
//
// A thread takes some rows of tokens, small enough for its cache, through all steps: norm, product, bias, activation,
// second product, sum.

#include "tiles.h"

#ifdef __AVX512BF16__

namespace {

using namespace kernels;

constexpr int64_t CACHED = 256 * 1024;  // numbers of tokens and hidden activations that a thread works on at once

struct Norm {
  const BFloat16 *weight, *bias;  // either may be null
  float epsilon;
};

// Rows of tokens put into tiles, normed where asked for. What is missing to whole tiles is zero.
class Rows {
  BFloat16* tiled;
  std::vector<float> scale, shift, row;
  int64_t dim, depth;
  bool is_normed;
  float epsilon;

 public:
  Rows(int64_t most, int64_t dim, const Norm* norm)
      : tiled(room_for_tokens.of(tiles(most, SIDE) * tiles(dim, DEPTH) * TILE)), row(tiles(dim, DEPTH) * DEPTH), dim(dim),
        depth(tiles(dim, DEPTH)), is_normed(norm), epsilon(norm ? norm->epsilon : 0) {
    if (!norm) return;
    scale.resize(row.size()), shift.resize(row.size());
    for (int64_t i = 0; i < dim; ++i) {
      scale[i] = norm->weight ? widen(norm->weight[i]) : 1;
      shift[i] = norm->bias ? widen(norm->bias[i]) : 0;
    }
  }

  const BFloat16* read(const BFloat16* tokens, int64_t count) {
    for (int64_t item = 0; item < tiles(count, SIDE) * SIDE; ++item) {
      BFloat16* place = tiled + item / SIDE * depth * TILE + item % SIDE * DEPTH;
      const BFloat16* from = tokens + item * dim;
      const int64_t length = item < count ? dim : 0, whole = length / DEPTH;
      if (is_normed && length) {
        norm(from, place);
        continue;
      }
      for (int64_t i = 0; i < whole; ++i) std::memcpy(place + i * TILE, from + i * DEPTH, 2 * DEPTH);
      for (int64_t i = whole; i < depth; ++i) {
        BFloat16 rest[DEPTH] = {};
        if (i == whole) std::memcpy(rest, from + i * DEPTH, 2 * (length - i * DEPTH));
        std::memcpy(place + i * TILE, rest, 2 * DEPTH);
      }
    }
    return tiled;
  }

 private:
  void norm(const BFloat16* from, BFloat16* place) {
    const int64_t whole = dim / LANES * LANES;
    Floats total = {}, squares = {};
    for (int64_t i = 0; i < dim; i += LANES) {
      const Floats lanes = i < whole ? load(from + i) : load_part(from + i, dim - i);
      store(lanes, &row[i]);
      total += lanes;
    }
    const float mean = sum(total) / dim;
    for (int64_t i = 0; i < dim; i += LANES) {
      const Floats centred = load(&row[i]) - mean;
      store(centred, &row[i]);
      squares += centred * centred;
    }
    const float beyond = (tiles(dim, LANES) * LANES - dim) * mean * mean;  // lanes behind the last number
    const float inverse = 1 / std::sqrt(std::max(sum(squares) - beyond, 0.0f) / dim + epsilon);
    for (int64_t i = 0; i < depth * DEPTH; i += LANES)  // scale and shift are zero behind the last number
      store(load(&row[i]) * inverse * load(&scale[i]) + load(&shift[i]), place + i / DEPTH * TILE + i % DEPTH);
  }
};

// Where result rows go, `add` being added: row i to row i + i / span * gap.
struct Target {
  BFloat16* result;
  const BFloat16* add;  // or null
  int64_t width, span, gap;
  bool is_large;  // too large for any cache: written past them

  int64_t offset(int64_t row) const { return (gap ? row + row / span * gap : row) * width; }
};

struct Share {
  int64_t count, size;
};

// Cut rows into shares of whole tiles that fit a thread's cache, as many for each thread.
Share shares(int64_t rows, int64_t numbers_a_row, int threads) {
  const int64_t all = tiles(rows, SIDE), most = std::max<int64_t>(2, CACHED / (numbers_a_row * SIDE));
  const int64_t rounds = tiles(tiles(all, most), threads);
  const int64_t size = std::max<int64_t>(1, tiles(all, rounds * threads)) * SIDE;
  return {tiles(rows, size), size};
}

void multiply_to(const BFloat16* tokens, int64_t first, int64_t rows, const Layer& layer, float* sums, const Target& target) {
  const auto fetch = [=, &target](int64_t row, int64_t column) {
    const int64_t offset = target.offset(first + row) + column;
    __builtin_prefetch(target.result + offset, 1);
    if (target.add) __builtin_prefetch(target.add + offset);
  };
  multiply(tokens, tiles(rows, SIDE), layer, sums, fetch, [=, &layer, &target](int64_t row, int64_t column, const float* numbers) {
    if (row >= rows) return;
    const int64_t offset = target.offset(first + row) + column;
    if (column + BLOCK <= layer.out && offset % DEPTH == 0) {
      Floats left = load(numbers) + load(layer.bias + column), right = load(numbers + SIDE) + load(layer.bias + column + SIDE);
      if (target.add) left += load(target.add + offset), right += load(target.add + offset + SIDE);
      store_line(left, right, target.result + offset, target.is_large);
      return;
    }
    for (int64_t side = 0; side < std::min(BLOCK, layer.out - column); side += SIDE) {
      const int64_t length = std::min(SIDE, layer.out - column - side);
      Floats lanes = load(numbers + side) + load(layer.bias + column + side);
      if (target.add) lanes += load_part(target.add + offset + side, length);
      store_part(lanes, target.result + offset + side, length);
    }
  });
}

void linear(int64_t rows, const BFloat16* tokens, const Layer& layer, const Target& target, int threads) {
  const Share share = shares(rows, layer.depth() * DEPTH, threads);
#pragma omp parallel num_threads(threads)
  {
    TileRegisters registers;
    float* const sums = room_for_sums.of((share.size + 2 * BLOCK) * BLOCK);
    Rows source(share.size, layer.in, nullptr);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < share.count; ++i) {
      const int64_t first = i * share.size, count = std::min(share.size, rows - first);
      multiply_to(source.read(tokens + first * layer.in, count), first, count, layer, sums, target);
    }
    if (target.is_large) _mm_sfence();  // what went past the caches is there for all threads
  }
}

// tokens + second(gelu(first(norm(tokens))))
void network(int64_t rows, const BFloat16* tokens, const Norm& norm, const Layer& first, const Layer& second,
             const Target& target, int threads) {
  const int64_t depth = second.depth();
  const Share share = shares(rows, (first.depth() + depth) * DEPTH, threads);
#pragma omp parallel num_threads(threads)
  {
    TileRegisters registers;
    float* const sums = room_for_sums.of((share.size + 2 * BLOCK) * BLOCK);
    Rows source(share.size, first.in, &norm);
    BFloat16* const hidden = room_for_hidden.of(share.size / SIDE * depth * TILE);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < share.count; ++i) {
      const int64_t begin = i * share.size, count = std::min(share.size, rows - begin);
      const BFloat16* normed = source.read(tokens + begin * first.in, count);
      const auto nothing = [](int64_t, int64_t) {};
      multiply(normed, tiles(count, SIDE), first, sums, nothing, [=, &first](int64_t row, int64_t column, const float* numbers) {
        BFloat16* place = hidden + row / SIDE * depth * TILE + row % SIDE * DEPTH + column * SIDE;  // 32 columns: a tile
        const Floats left = load(numbers) + load(first.bias + column);
        store_line(gelu(left), gelu(load(numbers + SIDE) + load(first.bias + column + SIDE)), place, false);
      });
      multiply_to(hidden, begin, count, second, sums, target);
    }
  }
}

}  // namespace

// 2 with units for matrix products, 1 with those for dot products.
extern "C" int piip_products() { return use_tiles ? 2 : 1; }

// Do without the units for matrix products, or use them again where there are any; returns as above.
extern "C" int piip_limit_products(int level) {
  use_tiles = level > 1 && may_use_tiles();
  return piip_products();
}

// sizes: rows, in, out, span, gap, whether the result is too large for caches
extern "C" void piip_linear_bf16(const int64_t* sizes, const BFloat16* tokens, const BFloat16* weight, const BFloat16* bias,
                                 BFloat16* result, int threads) {
  linear(sizes[0], tokens, Layer{sizes[1], sizes[2], weight, bias},
         Target{result, nullptr, sizes[2], sizes[3], sizes[4], sizes[5] != 0}, threads);
}

// sizes: rows, width, hidden width
extern "C" void piip_network_bf16(const int64_t* sizes, const BFloat16* tokens, const BFloat16* norm_weight,
                                  const BFloat16* norm_bias, double epsilon, const BFloat16* first_weight,
                                  const BFloat16* first_bias, const BFloat16* second_weight, const BFloat16* second_bias,
                                  BFloat16* result, int threads) {
  network(sizes[0], tokens, Norm{norm_weight, norm_bias, float(epsilon)},
          Layer{sizes[1], sizes[2], first_weight, first_bias}, Layer{sizes[2], sizes[1], second_weight, second_bias},
          Target{result, tokens, sizes[1], 1, 0, false}, threads);
}

#else

extern "C" int piip_products() { return 0; }
extern "C" int piip_limit_products(int) { return 0; }

#endif
