// What lies between the products of a frozen encoder, in one pass over memory each: a row is read,
// changed and rounded while it is in the nearest cache. int8_rows.py builds this file and says what each does.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr float kSteps = 254.0f;       // from a row's least level to its last, one less than there are
constexpr float kMiddle = 128.0f;      // what a product takes off every level
constexpr float kSmallest = 1e-35f;    // of a row's range: its reciprocal stays finite

// Phi(x) = 1/2 + x P(2 x^2 / 25 - 1) for |x| < 5: a least-squares fit of degree 12 at 4,000 Chebyshev points,
// weighted by |x|, the highest power first. x Phi(x) is then right within 2e-6.
constexpr float kFit[] = {
    0.000586201262f, -0.001603059f, 0.00178566179f, -0.00271144253f, 0.00634524133f, -0.0111407321f,
    0.0164331123f, -0.0232779644f, 0.03143562f, -0.0404411331f, 0.0515210219f, -0.0702963471f,
    0.141363785f,
};

// x Phi(x), without the exponential and the division that erf would take.
inline float gelu(float x) {
  const float u = x * x * 0.08f - 1.0f;
  float p = kFit[0];
  for (int i = 1; i < 13; ++i) {
    p = p * u + kFit[i];
  }
  const float phi = 0.5f + x * p;
  return x > 5.0f ? x : x < -5.0f ? 0.0f : x * phi;
}

// Writes a row's levels, and what makes numbers of a product of theirs: product * factors[0] + factors[1] *
// the sum of the weights. Both are not a number where one of the row is none.
inline void round_row(const float* row, uint8_t* levels, float* factors, int64_t width) {
  float low = 0.0f;
  float high = 0.0f;
  float nothing = 0.0f;
#pragma omp simd reduction(min : low) reduction(max : high) reduction(+ : nothing)
  for (int64_t i = 0; i < width; ++i) {
    low = row[i] < low ? row[i] : low;
    high = row[i] > high ? row[i] : high;
    nothing += 0.0f * row[i];
  }
  const float range = std::max(high - low, kSmallest);
  const float inverse = kSteps / range;
  const float zero = std::floor(0.5f - low * inverse);  // its level: numbers are not as many on either side
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    levels[i] = static_cast<uint8_t>(static_cast<int32_t>(row[i] * inverse + (zero + 0.5f)));
  }
  factors[0] = range / kSteps + nothing;
  factors[1] = range / kSteps * (kMiddle - zero) + nothing;
}

typedef float Lane __attribute__((vector_size(64)));  // sixteen at once
typedef int32_t Whole __attribute__((vector_size(64)));
constexpr int64_t kLane = 16;
constexpr int64_t kBlock = 6;  // queries at once: their sums fill the registers

inline int64_t up_to(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

inline Lane load(const float* from) {
  Lane lane;
  std::memcpy(&lane, from, sizeof(lane));
  return lane;
}

inline void store(float* to, Lane lane) { std::memcpy(to, &lane, sizeof(lane)); }

typedef float Half __attribute__((vector_size(32)));
typedef float Quarter __attribute__((vector_size(16)));

// One number of a lane's sixteen, by an operation that takes their halves together.
template <typename Operation>
inline float reduce(Lane lane, Operation both) {
  Half half[2];
  std::memcpy(half, &lane, sizeof(half));
  half[0] = both(half[0], half[1]);
  Quarter quarter[2];
  std::memcpy(quarter, half, sizeof(quarter));
  quarter[0] = both(quarter[0], quarter[1]);
  return both(both(quarter[0][0], quarter[0][1]), both(quarter[0][2], quarter[0][3]));
}

inline Lane all(float value) { return value - Lane{}; }

// c = a b for a block's rows of a, `step` apart and `depth` long, and b (depth, width); widths are whole lanes.
template <int lanes>
inline void multiply_lanes(const float* a, int64_t step, int64_t depth, const float* b, int64_t width,
                           int64_t apart, float* c) {
  Lane sums[kBlock][lanes] = {};
  for (int64_t t = 0; t < depth; ++t) {
    Lane row[lanes];
#pragma GCC unroll 4
    for (int l = 0; l < lanes; ++l) {
      row[l] = load(b + t * apart + l * kLane);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kBlock; ++i) {
      const Lane factor = all(a[i * step + t]);
#pragma GCC unroll 4
      for (int l = 0; l < lanes; ++l) {
        sums[i][l] += factor * row[l];
      }
    }
  }
  for (int i = 0; i < kBlock; ++i) {
    for (int l = 0; l < lanes; ++l) {
      store(c + i * width + l * kLane, sums[i][l]);
    }
  }
}

inline void multiply(const float* a, int64_t step, int64_t depth, const float* b, int64_t width,
                           int64_t apart, float* c) {
  int64_t done = 0;
  for (; done + 4 * kLane <= width; done += 4 * kLane) {
    multiply_lanes<4>(a, step, depth, b + done, width, apart, c + done);
  }
  switch ((width - done) / kLane) {
    case 3: return multiply_lanes<3>(a, step, depth, b + done, width, apart, c + done);
    case 2: return multiply_lanes<2>(a, step, depth, b + done, width, apart, c + done);
    case 1: return multiply_lanes<1>(a, step, depth, b + done, width, apart, c + done);
  }
}

// e^x for x <= 0, right within 3e-7 of itself: 2^n times the series of what is left, at most ln(2) / 2.
inline Lane exponential(Lane x) {
  x = x < -87.0f ? all(-87.0f) : x;
  const Whole n = __builtin_convertvector(x * 1.44269504f - 0.5f, Whole);  // cut off towards zero: rounded
  const Lane exact = __builtin_convertvector(n, Lane);
  const Lane r = (x - exact * 0.693359375f) + exact * 2.12194440e-4f;  // ln(2) in two parts
  Lane p = all(1.0f / 720.0f);
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Whole power = (n + 127) << 23;
  Lane two;
  std::memcpy(&two, &power, sizeof(two));
  return p * two;
}

// A block's rows of scores become e^(score - the row's largest) over the keys that are `there` (1, others 0);
// shares are what makes the rows sum to 1.
inline void exponentials(float* scores, const float* there, int64_t width, float* shares) {
  Lane most[kBlock], sums[kBlock] = {};
  float largest[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    most[i] = all(-3e38f);
  }
  for (int64_t j = 0; j < width; j += kLane) {
    const Lane here = load(there + j);
#pragma GCC unroll 8
    for (int i = 0; i < kBlock; ++i) {
      const Lane score = here > 0.0f ? load(scores + i * width + j) : all(-3e38f);
      most[i] = score > most[i] ? score : most[i];
    }
  }
  for (int i = 0; i < kBlock; ++i) {
    largest[i] = reduce(most[i], [](auto a, auto b) { return a > b ? a : b; });
  }
  for (int64_t j = 0; j < width; j += kLane) {
    const Lane here = load(there + j);
#pragma GCC unroll 8
    for (int i = 0; i < kBlock; ++i) {
      const Lane less = load(scores + i * width + j) - largest[i];
      const Lane value = exponential(less > 0.0f ? all(0.0f) : less) * here;
      store(scores + i * width + j, value);
      sums[i] += value;
    }
  }
  for (int i = 0; i < kBlock; ++i) {
    const float total = reduce(sums[i], [](auto a, auto b) { return a + b; });
    shares[i] = total == 0.0f ? 0.0f : 1.0f / total;  // no key is there
  }
}

// Queries, keys or values: products of 8-bit integers to be scaled, or numbers as they are (no factors).
struct Side {
  const float* rows;
  const float* sums;
  const float* bias;
  const float* factors;
  int64_t width;

  // Part of a row, times `scaling`, to places `step` apart.
  void copy(int64_t row, int64_t column, int64_t size, float scaling, float* to, int64_t step) const {
    const float* from = rows + row * width + column;
    if (!factors) {
      for (int64_t d = 0; d < size; ++d) {
        to[d * step] = from[d] * scaling;
      }
      return;
    }
    const float* sum = sums + column;
    const float* shift = bias + column;
    const float factor = factors[2 * row], rest = factors[2 * row + 1];
    if (step == 1) {
#pragma omp simd
      for (int64_t d = 0; d < size; ++d) {
        to[d] = (from[d] * factor + sum[d] * rest + shift[d]) * scaling;
      }
      return;
    }
    for (int64_t d = 0; d < size; ++d) {
      to[d * step] = (from[d] * factor + sum[d] * rest + shift[d]) * scaling;
    }
  }
};

}  // namespace

extern "C" {

// softmax(q k' scaling) v of every head; q, k, v and out are (sequences length, heads size), mask
// (sequences, length). Then out in 8 bits, where levels are wanted.
void attend_rows(const float* q, const float* k, const float* v, const float* q_sums, const float* k_sums,
                 const float* v_sums, const float* q_bias, const float* k_bias, const float* v_bias,
                 const float* factors, const uint8_t* mask, float scaling, float* out, uint8_t* levels,
                 float* rounded, int64_t sequences, int64_t length, int64_t heads, int64_t size) {
  const int64_t width = heads * size, keys = up_to(length, kLane), wide = up_to(size, kLane);
  const int64_t apart = (keys / kLane | 1) * kLane;  // odd: powers of two fall into the same part of a cache
  const Side query{q, q_sums, q_bias, factors, width}, key{k, k_sums, k_bias, factors, width},
      value{v, v_sums, v_bias, factors, width};
#pragma omp parallel
  {
    std::vector<float> own(kBlock * size), turned(size * apart), held(length * wide);
    std::vector<float> scores(kBlock * keys), found(kBlock * wide), there(keys);
    float shares[kBlock];
#pragma omp for collapse(2)
    for (int64_t s = 0; s < sequences; ++s) {
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t first = s * length, column = h * size;
        for (int64_t j = 0; j < length; ++j) {
          there[j] = mask && !mask[first + j] ? 0.0f : 1.0f;
          key.copy(first + j, column, size, 1.0f, &turned[j], apart);
          value.copy(first + j, column, size, 1.0f, &held[j * wide], 1);
        }
        for (int64_t begin = 0; begin < length; begin += kBlock) {
          const int64_t count = std::min(kBlock, length - begin);
          for (int64_t i = 0; i < count; ++i) {
            query.copy(first + begin + i, column, size, scaling, &own[i * size], 1);
          }
          multiply(own.data(), size, size, turned.data(), keys, apart, scores.data());
          exponentials(scores.data(), there.data(), keys, shares);
          multiply(scores.data(), keys, length, held.data(), wide, wide, found.data());
          for (int64_t i = 0; i < count; ++i) {
            float* to = out + (first + begin + i) * width + column;
#pragma omp simd
            for (int64_t d = 0; d < size; ++d) {
              to[d] = found[i * wide + d] * shares[i];
            }
          }
        }
      }
    }
#pragma omp for
    for (int64_t r = 0; r < (levels ? sequences * length : 0); ++r) {
      round_row(out + r * width, levels + r * width, rounded + 2 * r, width);
    }
  }
}

void round_rows(const float* rows, uint8_t* levels, float* rounded, int64_t count, int64_t width) {
#pragma omp parallel for
  for (int64_t r = 0; r < count; ++r) {
    round_row(rows + r * width, levels + r * width, rounded + 2 * r, width);
  }
}

void scale_rows(float* rows, const float* factors, const float* sums, const float* bias, int64_t count,
                int64_t width) {
#pragma omp parallel for
  for (int64_t r = 0; r < count; ++r) {
    float* row = rows + r * width;
    const float factor = factors[2 * r], rest = factors[2 * r + 1];
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      row[i] = row[i] * factor + sums[i] * rest + bias[i];
    }
  }
}

void gelu_rows(const float* rows, const float* factors, const float* sums, const float* bias, uint8_t* levels,
               float* rounded, int64_t count, int64_t width) {
#pragma omp parallel
  {
    std::vector<float> activated(width);
    float* values = activated.data();
#pragma omp for
    for (int64_t r = 0; r < count; ++r) {
      const float* row = rows + r * width;
      const float factor = factors[2 * r], rest = factors[2 * r + 1];
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        values[i] = gelu(row[i] * factor + sums[i] * rest + bias[i]);
      }
      round_row(values, levels + r * width, rounded + 2 * r, width);
    }
  }
}

void norm_rows(float* rows, const float* factors, const float* sums, const float* bias, const float* residual,
               const float* gain, const float* shift, float epsilon, uint8_t* levels, float* rounded,
               int64_t count, int64_t width) {
#pragma omp parallel for
  for (int64_t r = 0; r < count; ++r) {
    float* row = rows + r * width;
    const float* beside = residual + r * width;
    const float factor = factors[2 * r], rest = factors[2 * r + 1];
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) {
      row[i] = row[i] * factor + sums[i] * rest + bias[i] + beside[i];
      sum += row[i];
    }
    const float mean = sum / static_cast<float>(width);
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; ++i) {
      squares += (row[i] - mean) * (row[i] - mean);
    }
    const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(width) + epsilon);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      row[i] = (row[i] - mean) * inverse * gain[i] + shift[i];
    }
    round_row(row, levels + r * width, rounded + 2 * r, width);
  }
}

}  // extern "C"
