// What lies between the 8-bit products of a frozen encoder, in one pass over memory each: a row is read,
// changed and rounded while it is in the nearest cache. int8_rows.py builds this file and says what each does.

#include <cmath>
#include <cstdint>
#include <vector>

namespace {

constexpr float kLevels = 127.0f;    // to either side of zero
constexpr float kMiddle = 128.5f;    // zero's level, and a half: cutting off rounds
constexpr float kSmallest = 1.5e-36f;  // of a row's largest magnitude: its reciprocal stays finite

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

// Writes a row's levels; returns what one level stands for, not a number where one of the row is none.
inline float round_row(const float* row, uint8_t* levels, int64_t width) {
  float largest = kSmallest;
  float nothing = 0.0f;
#pragma omp simd reduction(max : largest) reduction(+ : nothing)
  for (int64_t i = 0; i < width; ++i) {
    const float magnitude = std::fabs(row[i]);
    largest = magnitude > largest ? magnitude : largest;
    nothing += 0.0f * magnitude;
  }
  const float inverse = kLevels / largest;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    levels[i] = static_cast<uint8_t>(static_cast<int32_t>(row[i] * inverse + kMiddle));
  }
  return largest / kLevels + nothing;
}

}  // namespace

extern "C" {

void round_rows(const float* rows, uint8_t* levels, float* scales, int64_t count, int64_t width) {
#pragma omp parallel for
  for (int64_t r = 0; r < count; ++r) {
    scales[r] = round_row(rows + r * width, levels + r * width, width);
  }
}

void scale_rows(float* rows, const float* factors, const float* bias, int64_t count, int64_t width) {
#pragma omp parallel for
  for (int64_t r = 0; r < count; ++r) {
    float* row = rows + r * width;
    const float factor = factors[r];
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      row[i] = row[i] * factor + bias[i];
    }
  }
}

void gelu_rows(const float* rows, const float* factors, const float* bias, uint8_t* levels, float* scales,
               int64_t count, int64_t width) {
#pragma omp parallel
  {
    std::vector<float> activated(width);
    float* values = activated.data();
#pragma omp for
    for (int64_t r = 0; r < count; ++r) {
      const float* row = rows + r * width;
      const float factor = factors[r];
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        values[i] = gelu(row[i] * factor + bias[i]);
      }
      scales[r] = round_row(values, levels + r * width, width);
    }
  }
}

void norm_rows(float* rows, const float* factors, const float* bias, const float* residual, const float* gain,
               const float* shift, float epsilon, uint8_t* levels, float* scales, int64_t count,
               int64_t width) {
#pragma omp parallel for
  for (int64_t r = 0; r < count; ++r) {
    float* row = rows + r * width;
    const float* beside = residual + r * width;
    const float factor = factors[r];
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) {
      row[i] = row[i] * factor + bias[i] + beside[i];
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
    scales[r] = round_row(row, levels + r * width, width);
  }
}

}  // extern "C"
