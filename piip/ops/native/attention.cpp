// Self-attention of short sequences in bfloat16, such as windows, for inference: a thread holds all scores of a few rows.

#include "tiles.h"

#ifdef __AVX512BF16__

namespace {

using namespace kernels;

// e^x for x <= 0, relative error below 3e-7.
inline __m512 exp_lanes(__m512 x) {
  const __m512 clipped = _mm512_max_ps(_mm512_set1_ps(-87.0f), x);  // in this order NaN stays NaN
  const __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(clipped, _mm512_set1_ps(1.44269504f)), 0);
  const __m512 rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693147182f), clipped);
  __m512 power = _mm512_set1_ps(8.3334519e-3f);
  for (const float factor : {4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f, 1.0f, 1.0f})
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(factor));
  return _mm512_scalef_ps(power, whole);
}

struct Windows {
  int64_t count, tokens, heads, dim;
  float scale;
};

// Attention of one head inside one window; keys and values become tiles like weights.
class Head {
  static constexpr int AT_ONCE = 4;
  const Windows& sizes;
  const int64_t row_bytes, key_tiles, depth;  // depth: tiles along the tokens, where they are what is summed over
  BFloat16 *queries, *keys, *values, *shares;
  float *scores, *sums;
  float inverse[BLOCK];

 public:
  explicit Head(const Windows& sizes)
      : sizes(sizes), row_bytes(3 * sizes.heads * sizes.dim), key_tiles(tiles(sizes.tokens, BLOCK) * 2),
        depth(tiles(sizes.tokens, DEPTH)) {
    const int64_t padded = depth * DEPTH, every = padded * sizes.dim;
    BFloat16* const room = room_for_tokens.of(2 * every + BLOCK * sizes.dim + BLOCK * padded);
    keys = room, values = room + every, queries = values + every, shares = queries + BLOCK * sizes.dim;
    scores = room_for_sums.of(BLOCK * padded + (depth + 3) * BLOCK * BLOCK);
    sums = scores + BLOCK * padded;
  }

  void attend(const BFloat16* qkv, BFloat16* result) {
    const int64_t width = sizes.heads * sizes.dim;
    lay_out_keys(qkv + width);
    lay_out_values(qkv + 2 * width);
    for (int64_t first = 0; first < sizes.tokens; first += BLOCK) {
      const int64_t rows = std::min(BLOCK, sizes.tokens - first), row_tiles = tiles(rows, SIDE);
      lay_out_queries(qkv + first * row_bytes, rows);
      const int64_t padded = depth * DEPTH;
      const int64_t along = sizes.dim / DEPTH;
      for (int64_t column = 0; column < padded; column += BLOCK)
        multiply_block({queries, keys + column / SIDE * along * TILE, along * TILE, along * TILE, along, padded}, row_tiles,
                       true, scores + column, [] {});
      for (int64_t row = 0; row < row_tiles * SIDE; row += AT_ONCE) share(row);
      multiply(shares, row_tiles, Layer{padded, sizes.dim, values, nullptr}, sums, [](int64_t, int64_t) {},
               [=](int64_t row, int64_t column, const float* numbers) {
                 if (row >= rows) return;
                 BFloat16* const place = result + (first + row) * width + column;
                 store_line(load(numbers) * inverse[row], load(numbers + SIDE) * inverse[row], place, false);
               });
    }
  }

 private:
  void lay_out_queries(const BFloat16* from, int64_t rows) {
    const int64_t tiles_a_row = sizes.dim / DEPTH;
    for (int64_t row = 0; row < BLOCK; ++row)
      for (int64_t i = 0; i < tiles_a_row; ++i) {
        BFloat16* const place = queries + (row / SIDE * tiles_a_row + i) * TILE + row % SIDE * DEPTH;
        if (row < rows)
          std::memcpy(place, from + row * row_bytes + i * DEPTH, 2 * DEPTH);
        else
          std::memset(place, 0, 2 * DEPTH);
      }
  }

  // Tiles (tokens / 16, dim / 32) of pairs of channels.
  void lay_out_keys(const BFloat16* from) {
    const int64_t tiles_a_row = sizes.dim / DEPTH;
    const __m512i steps = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                             _mm512_set1_epi32(int(2 * row_bytes)));
    for (int64_t tile = 0; tile < key_tiles; ++tile) {
      const int64_t there = std::clamp<int64_t>(sizes.tokens - tile * SIDE, 0, SIDE);
      const __mmask16 mask = __mmask16((1u << there) - 1);
      const BFloat16* const begin = from + tile * SIDE * row_bytes;
      for (int64_t pair = 0; pair < sizes.dim / 2; ++pair) {
        const __m512i line = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), mask, steps, begin + 2 * pair, 1);
        BFloat16* const place = keys + (tile * tiles_a_row + pair / SIDE) * TILE + pair % SIDE * DEPTH;
        _mm512_storeu_si512(place, line);
      }
    }
  }

  // Tiles (dim / 16, tokens / 32) of pairs of tokens.
  void lay_out_values(const BFloat16* from) {
    for (int64_t pair = 0; pair < depth * SIDE; ++pair)
      for (int64_t column = 0; column < sizes.dim; column += SIDE) {
        const auto read = [&](int64_t token) {
          if (token >= sizes.tokens) return _mm512_setzero_si512();
          return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(from + token * row_bytes + column)));
        };
        const __m512i line = _mm512_or_si512(read(2 * pair), _mm512_slli_epi32(read(2 * pair + 1), 16));
        _mm512_storeu_si512(values + (column / SIDE * depth + pair / SIDE) * TILE + pair % SIDE * DEPTH, line);
      }
  }

  // Turn rows of scores into shares of their sum, still to be multiplied by `inverse`; a few at once hide latencies.
  void share(int64_t first) {
    const int64_t padded = depth * DEPTH;
    float* const lines = scores + first * padded;
    const __m512 scale = _mm512_set1_ps(sizes.scale);
    __m512 most[AT_ONCE], total[AT_ONCE] = {};
    for (int row = 0; row < AT_ONCE; ++row) {
      most[row] = _mm512_set1_ps(-INFINITY);
      for (int64_t i = sizes.tokens; i < padded; ++i) lines[row * padded + i] = -INFINITY;
    }
    for (int64_t i = 0; i < padded; i += LANES)
      for (int row = 0; row < AT_ONCE; ++row) most[row] = _mm512_max_ps(most[row], _mm512_loadu_ps(lines + row * padded + i));
    for (int row = 0; row < AT_ONCE; ++row) most[row] = _mm512_set1_ps(_mm512_reduce_max_ps(most[row]) * sizes.scale);
    BFloat16* place = shares + first / SIDE * depth * TILE + first % SIDE * DEPTH;
    for (int64_t i = 0; i < padded; i += DEPTH, place += TILE)
      for (int row = 0; row < AT_ONCE; ++row) {
        const float* const line = lines + row * padded + i;
        const __m512 left = exp_lanes(_mm512_fmsub_ps(_mm512_loadu_ps(line), scale, most[row]));
        const __m512 right = exp_lanes(_mm512_fmsub_ps(_mm512_loadu_ps(line + LANES), scale, most[row]));
        total[row] = _mm512_add_ps(total[row], _mm512_add_ps(left, right));
        _mm512_storeu_si512(place + row * DEPTH, (__m512i)_mm512_cvtne2ps_pbh(right, left));
      }
    for (int row = 0; row < AT_ONCE; ++row) inverse[first + row] = 1 / _mm512_reduce_add_ps(total[row]);
  }
};

void attend(const Windows& sizes, const BFloat16* qkv, BFloat16* result, int threads) {
  const int64_t width = sizes.heads * sizes.dim;
#pragma omp parallel num_threads(threads)
  {
    TileRegisters registers;
    Head head(sizes);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < sizes.count * sizes.heads; ++task) {
      const int64_t window = task / sizes.heads, column = task % sizes.heads * sizes.dim;
      head.attend(qkv + window * sizes.tokens * 3 * width + column, result + window * sizes.tokens * width + column);
    }
  }
}

}  // namespace

// sizes: windows, tokens, heads, channels a head (whole tiles)
extern "C" void piip_attend_bf16(const int64_t* sizes, const BFloat16* qkv, double scale, BFloat16* result, int threads) {
  attend(Windows{sizes[0], sizes[1], sizes[2], sizes[3], float(scale)}, qkv, result, threads);
}

#endif
