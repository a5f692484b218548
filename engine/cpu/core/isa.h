// One body of code, compiled for several x86 instruction sets and chosen at run time. Elsewhere the body runs as it is.
#pragma once

namespace pm::cpu {

// with_best_isa([&]() PM_ISA_BODY { loops }): AVX-512 where the processor has it, else AVX2 with FMA, else the baseline. What
// the body calls gets the instruction set only where it is inlined: mark helpers [[gnu::always_inline]].
#define PM_ISA_BODY __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
template <typename Body>
[[gnu::target("arch=x86-64-v3"), gnu::noinline]] void run_v3(const Body& body) {
  body();
}
template <typename Body>
[[gnu::target("arch=x86-64-v4"), gnu::noinline]] void run_v4(const Body& body) {
  body();
}
template <typename Body>
void with_best_isa(const Body& body) {
  if (__builtin_cpu_supports("x86-64-v4")) return run_v4(body);
  if (__builtin_cpu_supports("x86-64-v3")) return run_v3(body);
  body();
}
#else
template <typename Body>
void with_best_isa(const Body& body) {
  body();
}
#endif

}  // namespace pm::cpu
