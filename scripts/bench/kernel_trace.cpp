// Writes every kernel, copy and fill that a CUDA program runs to a file: start and length in ns, grid and threads of a block, name,
// separated by tabs. Loaded into the program by the driver (CUDA_INJECTION64_PATH); scripts/bench/kernel_times.py builds and uses it.
// KERNEL_TRACE_OUT names the file. Adds about 1 % to a step of some thousand launches.
#include <cupti.h>
#include <cxxabi.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

namespace {

struct Record {
  unsigned long long start, end;
  std::string shape, name;
};
std::vector<Record> records;
std::mutex records_mutex;

void offer_buffer(uint8_t** buffer, size_t* size, size_t* most_records) {
  *size = size_t{8} << 20;
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(8, *size));
  *most_records = 0;
}

std::string readable(const char* name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  std::string result = text != nullptr ? text : name;
  std::free(text);
  return result;
}

template <typename Activity>
void add_transfer(const CUpti_Activity* record, const char* name) {
  const auto* r = reinterpret_cast<const Activity*>(record);
  records.push_back({r->start, r->end, std::to_string(r->bytes) + " bytes", name});
}

void take_buffer(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid) {
  const std::lock_guard<std::mutex> lock(records_mutex);
  CUpti_Activity* record = nullptr;
  while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
    if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
      const auto* k = reinterpret_cast<const CUpti_ActivityKernel9*>(record);
      const std::string shape = std::to_string(k->gridX) + "x" + std::to_string(k->gridY) + "x" +
                                std::to_string(k->gridZ) + " of " + std::to_string(k->blockX * k->blockY * k->blockZ);
      records.push_back({k->start, k->end, shape, readable(k->name)});
    }
    if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) add_transfer<CUpti_ActivityMemcpy5>(record, "memcpy");
    if (record->kind == CUPTI_ACTIVITY_KIND_MEMSET) add_transfer<CUpti_ActivityMemset4>(record, "memset");
  }
  std::free(buffer);
}

void write_records() {
  cuptiActivityFlushAll(1);
  const char* path = std::getenv("KERNEL_TRACE_OUT");
  FILE* file = path != nullptr ? std::fopen(path, "w") : nullptr;
  if (file == nullptr) {
    std::perror("kernel_trace: KERNEL_TRACE_OUT");
    return;
  }
  for (const Record& r : records) {
    std::fprintf(file, "%llu\t%llu\t%s\t%s\n", r.start, r.end - r.start, r.shape.c_str(), r.name.c_str());
  }
  std::fclose(file);
}

}  // namespace

extern "C" int InitializeInjection() {
  cuptiActivityRegisterCallbacks(offer_buffer, take_buffer);
  for (const CUpti_ActivityKind kind :
       {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET}) {
    cuptiActivityEnable(kind);
  }
  std::atexit(write_records);
  return 1;
}
