// A stand-in for cublasLt: the one form of product that the engine asks for. Row-major out[m][n] = x[m][k] weight[n][k] + bias[n] (+ out), sums
// in f32; anything else is refused. It offers three kernels: a plain one, and two that add the sums of both halves of k up, in scratch memory in
// f32 or in the output's type.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) int

namespace {

enum Status { kSuccess = 0, kInvalidValue = 7 };
enum Type { kFloat = 0, kBfloat16 = 14 };
constexpr int kSumsInFloat = 68, kTransposed = 1, kWithBias = 4;
// Ways of adding parts up, as a preference's mask has them.
enum Parts { kNone = 0, kInComputeType = 2, kInOutputType = 4 };

struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t leading;
};
struct Product {
  int transpose = 0, epilogue = 1;
  const void* bias = nullptr;
};
struct Preference {
  size_t workspace = 0;
  uint32_t parts = 7;
};

float wide(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
uint16_t narrow(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
int refuse(const char* what) {
  std::fprintf(stderr, "cublasLt emulator: %s\n", what);
  return kInvalidValue;
}
float dot(const float* a, const float* b, size_t n) {
  // Lanes of their own, which the compiler makes vectors of.
  float lanes[16] = {};
  size_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; j++) lanes[j] += a[i + j] * b[i + j];
  float sum = 0;
  for (float lane : lanes) sum += lane;
  for (; i < n; i++) sum += a[i] * b[i];
  return sum;
}

}  // namespace

API cublasLtCreate(void** handle) { return *handle = std::malloc(1), kSuccess; }
API cublasLtDestroy(void* handle) { return std::free(handle), kSuccess; }
API cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
  return *layout = new Layout{type, rows, columns, leading}, kSuccess;
}
API cublasLtMatrixLayoutDestroy(Layout* layout) { return delete layout, kSuccess; }
API cublasLtMatmulDescCreate(Product** product, int compute, int scale) {
  if (compute != kSumsInFloat || scale != kFloat) return refuse("sums are f32");
  return *product = new Product, kSuccess;
}
API cublasLtMatmulDescDestroy(Product* product) { return delete product, kSuccess; }
API cublasLtMatmulDescSetAttribute(Product* product, int attribute, const void* value, size_t bytes) {
  if (attribute == 3 && bytes == 4) std::memcpy(&product->transpose, value, 4);
  else if (attribute == 7 && bytes == 4) std::memcpy(&product->epilogue, value, 4);
  else if (attribute == 8 && bytes == 8) std::memcpy(&product->bias, value, 8);
  else return refuse("an attribute of a product that it does not know");
  return kSuccess;
}
API cublasLtMatmulPreferenceCreate(Preference** preference) { return *preference = new Preference, kSuccess; }
API cublasLtMatmulPreferenceDestroy(Preference* preference) { return delete preference, kSuccess; }
API cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, const void* value, size_t bytes) {
  if (attribute == 1 && bytes == 8) return std::memcpy(&preference->workspace, value, 8), kSuccess;
  if (attribute == 3 && bytes == 4) return std::memcpy(&preference->parts, value, 4), kSuccess;
  return attribute >= 5 && attribute <= 8 && bytes == 4 ? kSuccess : refuse("a preference that it does not know");
}
struct Algorithm {
  uint64_t parts, workspace, reserved[6];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};
API cublasLtMatmulAlgoGetHeuristic(void*, Product*, Layout*, Layout*, Layout*, Layout* of_out, Preference* preference, int asked, Heuristic* results,
                                   int* count) {
  const size_t outputs = of_out->rows * of_out->columns;
  const Algorithm all[] = {{kNone, 0}, {kInComputeType, 4 * outputs}, {kInOutputType, 2 * outputs}};
  *count = 0;
  for (const Algorithm& one : all)
    if (*count < asked && (one.parts & ~uint64_t{preference->parts}) == 0 && one.workspace <= preference->workspace)
      results[(*count)++] = Heuristic{one, one.workspace};
  return kSuccess;
}
// In cublasLt's column-major words: D = alpha A^T B + beta C, with A the weights, B the input, and C and D the output.
API cublasLtMatmul(void*, Product* product, const float* alpha, const void* a, Layout* of_a, const void* b, Layout* of_b, const float* beta,
                   const void* c, Layout*, void* out, Layout* of_out, const Algorithm* algorithm, void* workspace, size_t workspace_bytes, void*) {
  if (product->transpose != kTransposed || of_a->type != kBfloat16 || of_b->type != kBfloat16 || of_a->rows != of_b->rows ||
      of_out->rows != of_a->columns || of_out->columns != of_b->columns || c != out)
    return refuse("a product of another form");
  if (algorithm->workspace > workspace_bytes || (algorithm->workspace && !workspace)) return refuse("too little scratch memory");
  const auto* weight = static_cast<const uint16_t*>(a);
  const auto* input = static_cast<const uint16_t*>(b);
  const size_t k = of_a->rows, n = of_a->columns, m = of_b->columns;
  std::vector<float> x(m * k), w(k);
  for (size_t i = 0; i < m * k; i++) x[i] = wide(input[i / k * of_b->leading + i % k]);
  for (size_t column = 0; column < n; column++) {
    for (size_t i = 0; i < k; i++) w[i] = wide(weight[column * of_a->leading + i]);
    for (size_t row = 0; row < m; row++) {
      const size_t half = algorithm->parts == kNone ? k : k / 2;
      float parts[] = {dot(w.data(), &x[row * k], half), dot(w.data() + half, &x[row * k + half], k - half)};
      if (algorithm->parts == kInOutputType && of_out->type == kBfloat16)
        for (float& part : parts) part = wide(narrow(part));
      float sum = *alpha * (parts[0] + parts[1]);
      const size_t at = row * of_out->leading + column;
      const bool biased = product->epilogue == kWithBias;
      if (of_out->type == kFloat) {
        float& to = static_cast<float*>(out)[at];
        if (*beta != 0) sum += *beta * to;
        if (biased) sum += static_cast<const float*>(product->bias)[column];
        to = sum;
      } else {
        uint16_t& to = static_cast<uint16_t*>(out)[at];
        if (*beta != 0) sum += *beta * wide(to);
        if (biased) sum += wide(static_cast<const uint16_t*>(product->bias)[column]);
        to = narrow(sum);
      }
    }
  }
  return kSuccess;
}
