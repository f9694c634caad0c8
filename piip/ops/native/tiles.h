// Products of bfloat16 numbers in tiles of 16 x 32: those of tokens row by row; those of weights in pairs of lines,
// (32 / 2, 16 columns, 2), as the units for matrix products (AMX) and for dot products (AVX-512) want them.

#pragma once

#include "vectors.h"

#ifdef __AVX512BF16__

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

namespace kernels {

constexpr int64_t SIDE = 16, DEPTH = 32, TILE = SIDE * DEPTH, BLOCK = 2 * SIDE;
constexpr int64_t PASS = 12;  // tiles along the depth, so that two columns of weights stay in the nearest cache

inline int64_t tiles(int64_t count, int64_t side) { return (count + side - 1) / side; }

// Room for numbers, from the begin of a cache line on, that a thread keeps for its next call: fresh pages cost more than
// what is done in them.
template <typename T>
class Room {
  T* place = nullptr;
  int64_t size = 0;

 public:
  ~Room() { std::free(place); }
  T* of(int64_t count) {
    if (count > size) {
      std::free(place);
      size = tiles(count, 64) * 64;
      place = static_cast<T*>(std::aligned_alloc(64, size * sizeof(T)));
    }
    return place;
  }
};
inline thread_local Room<BFloat16> room_for_tokens, room_for_hidden;
inline thread_local Room<float> room_for_sums;

struct Layer {
  int64_t in, out;
  const BFloat16 *weight, *bias;  // tiles (out / 16, in / 32), out padded to whole blocks, with zeros
  int64_t depth() const { return tiles(in, DEPTH); }
};

// ---- 32 x 32 results ----

// Tiles that follow each other along a row are contiguous; `below` and `right` lead to the next row or column of tiles.
struct Operands {
  const BFloat16 *tokens, *weight;
  int64_t below, right, depth, result_row = BLOCK;
};

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)

// The kernel hands out the large registers on request only.
inline bool may_use_tiles() {
  constexpr int REQUEST = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}
inline bool use_tiles = may_use_tiles();

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tile registers in our shapes while this lives; then as they were, since oneDNN uses them too.
class TileRegisters {
  alignas(64) uint8_t before[64] = {};

 public:
  TileRegisters() {
    static const TileShapes ours;
    if (!use_tiles) return;
    _tile_storeconfig(before);
    _tile_loadconfig(&ours);
  }
  ~TileRegisters() {
    if (before[0])
      _tile_loadconfig(before);
    else if (use_tiles)
      _tile_release();
  }
};

// `meanwhile` is called once for each tile along the depth; its work fills the time that the units for products need.
template <int ROWS, typename Meanwhile>
void multiply_tiles(const Operands& given, bool is_first, float* result, Meanwhile meanwhile) {
  const int64_t row_bytes = 4 * given.result_row;
  __asm__ volatile("" ::: "memory");  // GCC does not know that tile loads read memory
  if (is_first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, result, row_bytes);
    _tile_loadd(1, result + SIDE, row_bytes);
    if (ROWS > 1) {
      _tile_loadd(2, result + SIDE * given.result_row, row_bytes);
      _tile_loadd(3, result + SIDE * given.result_row + SIDE, row_bytes);
    }
  }
  for (int64_t i = 0; i < given.depth * TILE; i += TILE) {
    _tile_loadd(4, given.tokens + i, 64);
    _tile_loadd(6, given.weight + i, 64);
    _tile_loadd(7, given.weight + given.right + i, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (ROWS > 1) {
      _tile_loadd(5, given.tokens + given.below + i, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    meanwhile();
  }
  _tile_stored(0, result, row_bytes);
  _tile_stored(1, result + SIDE, row_bytes);
  if (ROWS > 1) {
    _tile_stored(2, result + SIDE * given.result_row, row_bytes);
    _tile_stored(3, result + SIDE * given.result_row + SIDE, row_bytes);
  }
}

#else
struct TileRegisters {};
template <int ROWS, typename Meanwhile>
void multiply_tiles(const Operands&, bool, float*, Meanwhile) {}
inline bool may_use_tiles() { return false; }
inline bool use_tiles = false;
#endif

// The same by dot products of pairs, half a tile of rows at a time.
inline void multiply_pairs(const Operands& given, bool is_first, float* result) {
  constexpr int HALF = SIDE / 2;
  for (int first = 0; first < SIDE; first += HALF) {
    __m512 sums[HALF][2];
    for (int row = 0; row < HALF; ++row)
      for (int side = 0; side < 2; ++side)
        sums[row][side] = is_first ? _mm512_setzero_ps() : _mm512_loadu_ps(result + (first + row) * given.result_row + side * SIDE);
    for (int64_t i = 0; i < given.depth * TILE; i += TILE)
      for (int64_t pair = 0; pair < SIDE; ++pair) {
        const BFloat16* line = given.weight + i + pair * DEPTH;
        const __m512bh left = (__m512bh)_mm512_loadu_si512(line), right = (__m512bh)_mm512_loadu_si512(line + given.right);
        for (int row = 0; row < HALF; ++row) {
          int32_t both;
          std::memcpy(&both, given.tokens + i + (first + row) * DEPTH + 2 * pair, 4);
          const __m512bh token = (__m512bh)_mm512_set1_epi32(both);
          sums[row][0] = _mm512_dpbf16_ps(sums[row][0], token, left);
          sums[row][1] = _mm512_dpbf16_ps(sums[row][1], token, right);
        }
      }
    for (int row = 0; row < HALF; ++row)
      for (int side = 0; side < 2; ++side) _mm512_storeu_ps(result + (first + row) * given.result_row + side * SIDE, sums[row][side]);
  }
}

template <typename Meanwhile>
void multiply_block(const Operands& given, int64_t row_tiles, bool is_first, float* result, Meanwhile meanwhile) {
  if (use_tiles) {
    if (row_tiles > 1)
      multiply_tiles<2>(given, is_first, result, meanwhile);
    else
      multiply_tiles<1>(given, is_first, result, meanwhile);
    return;
  }
  multiply_pairs(given, is_first, result);
  if (row_tiles > 1)
    multiply_pairs({given.tokens + given.below, given.weight, 0, given.right, given.depth, given.result_row}, is_first,
                   result + SIDE * given.result_row);
}

// Lines of a block of results that wait for what is done to them.
struct Waiting {
  const float* numbers;
  int64_t row, column, count;

  template <typename Finish>
  void work(int64_t lines, const Finish& finish) {
    for (lines = std::min(lines, count); lines > 0; --lines, --count, ++row, numbers += BLOCK) finish(row, column, numbers);
  }
};

// Multiply tokens in tiles (rows / 16, depth) by a layer's weight. `finish(row, column, numbers)` gets each row of results
// 32 columns at a time; `fetch(row, column)` is told of it a while before. `sums` has room for that many columns of all
// rows, and two blocks.
template <typename Fetch, typename Finish>
void multiply(const BFloat16* tokens, int64_t row_tiles, const Layer& layer, float* sums, const Fetch& fetch,
              const Finish& finish) {
  const int64_t depth = layer.depth();
  const int64_t panel = 2 * depth * TILE, lines_ahead = row_tiles > 2 ? tiles(BLOCK, tiles(row_tiles, 2)) : 0;
  Waiting waiting = {};
  const float* place_of_waiting = nullptr;
  for (int64_t column = 0; column < layer.out; column += BLOCK) {
    const BFloat16* ahead = layer.weight + (column / BLOCK + 1) * panel;
    for (int64_t first = 0; first < depth; first += PASS)
      for (int64_t row = 0; row < row_tiles; row += 2) {
        // one pass needs no sums to come back to; then two places do, which stay near
        const int64_t block = depth > PASS ? row / 2 : (row / 2 + column / BLOCK * tiles(row_tiles, 2)) % 2;
        float* const numbers = sums + block * BLOCK * BLOCK;
        if (numbers == place_of_waiting) waiting.work(BLOCK, finish);
        const int64_t count = std::min<int64_t>(2, row_tiles - row), length = std::min(PASS, depth - first);
        const Operands operands = {tokens + (row * depth + first) * TILE, layer.weight + (column / SIDE * depth + first) * TILE,
                                   depth * TILE, depth * TILE, length};
        const int64_t lines = tiles(BLOCK, length);
        if (first + PASS >= depth)
          for (int64_t i = 0; i < count * SIDE; ++i) fetch(row * SIDE + i, column);
        multiply_block(operands, count, first == 0, numbers, [&] {
          for (int64_t i = 0; i < lines_ahead; ++i, ahead += DEPTH) __builtin_prefetch(ahead, 0, 2);
          waiting.work(lines, finish);
        });
        if (first + PASS < depth) continue;
        waiting.work(BLOCK, finish);
        waiting = {numbers, row * SIDE, column, count * SIDE};
        place_of_waiting = numbers;
      }
  }
  waiting.work(BLOCK, finish);
}

// Write one cache line of 32 numbers.
inline void store_line(Floats left, Floats right, BFloat16* place, bool past_caches) {
  __m512 halves[2];
  std::memcpy(halves, &left, sizeof left), std::memcpy(halves + 1, &right, sizeof right);
  const __m512i line = (__m512i)_mm512_cvtne2ps_pbh(halves[1], halves[0]);
  if (past_caches && reinterpret_cast<uintptr_t>(place) % 64 == 0)
    _mm512_stream_si512((__m512i*)place, line);
  else
    _mm512_storeu_si512(place, line);
}

}  // namespace kernels

#endif
