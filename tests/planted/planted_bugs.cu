// Four kernels, each with one bug on purpose: proof that the sanitizer runs see what they are meant to see.
// usage: pm_test_planted memcheck|racecheck|initcheck|synccheck     (run under compute-sanitizer; without it, it exits 0)
#include <cstdio>
#include <string>

#include "cuda/core/check.h"

namespace {

constexpr int kThreads = 64;

__global__ void write_past_the_end_kernel(int* out) { out[threadIdx.x + 1] = 1; }

__global__ void read_without_barrier_kernel(int* out) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];  // another warp's value, no __syncthreads() before
}

__global__ void copy_kernel(const int* in, int* out) { out[threadIdx.x] = in[threadIdx.x] + 1; }

__global__ void barrier_in_a_branch_kernel(int* out) {
  if (threadIdx.x % 2 == 0) __syncthreads();
  out[threadIdx.x] = 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string bug = argc == 2 ? argv[1] : "";
  int *in = nullptr, *out = nullptr;
  PM_CUDA_CHECK(cudaMalloc(&in, kThreads * sizeof(int)));
  PM_CUDA_CHECK(cudaMalloc(&out, kThreads * sizeof(int)));
  if (bug == "memcheck") {
    write_past_the_end_kernel<<<1, kThreads>>>(out);
    PM_CHECK_LAUNCH("write_past_the_end");
  } else if (bug == "racecheck") {
    read_without_barrier_kernel<<<1, kThreads>>>(out);
    PM_CHECK_LAUNCH("read_without_barrier");
  } else if (bug == "initcheck") {
    copy_kernel<<<1, kThreads>>>(in, out);  // nobody wrote `in`
    PM_CHECK_LAUNCH("copy");
  } else if (bug == "synccheck") {
    barrier_in_a_branch_kernel<<<1, kThreads>>>(out);
    PM_CHECK_LAUNCH("barrier_in_a_branch");
  } else {
    std::fprintf(stderr, "usage: pm_test_planted memcheck|racecheck|initcheck|synccheck\n");
    return 2;
  }
  PM_CUDA_CHECK(cudaDeviceSynchronize());
  PM_CUDA_CHECK(cudaFree(in));
  PM_CUDA_CHECK(cudaFree(out));
  return 0;
}
