// Exceptions of the engine. Host code throws the narrowest type; main() catches, prints and maps it to an exit code.
#pragma once
#include <stdexcept>
#include <string>

namespace pm {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A tensor has another shape or rank than the operation needs. The message names expected and actual.
class ShapeError : public Error {
 public:
  using Error::Error;
};

// A tensor has an element type that the operation does not take.
class DTypeError : public Error {
 public:
  using Error::Error;
};

// A tensor lives on another device than the context, or the device is not there.
class DeviceError : public Error {
 public:
  using Error::Error;
};

// A call of the CUDA runtime, cuBLAS or CUB failed.
class CudaError : public Error {
 public:
  using Error::Error;
};

// A file cannot be read or written, or its contents are rejected.
class IoError : public Error {
 public:
  using Error::Error;
};

// The disk refuses what is written: it is full, over quota or failing. What was there before is unharmed.
class StorageError : public IoError {
 public:
  using IoError::IoError;
};

// A configuration value is missing, unknown or out of range.
class ConfigError : public Error {
 public:
  using Error::Error;
};

// Device or host memory is exhausted. The message names requested, current and free bytes.
class OutOfMemoryError : public Error {
 public:
  using Error::Error;
};

}  // namespace pm
