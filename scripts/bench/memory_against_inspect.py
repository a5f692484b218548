#!/usr/bin/env python3
"""Peak memory that `pixel-mamba inspect` predicts against what `pixel-mamba bench` measures. Needs nothing but Python 3.

    scripts/bench/memory_against_inspect.py build/bin/pixel-mamba                 # a GPU, about two minutes
    scripts/bench/memory_against_inspect.py build-cpu/bin/pixel-mamba --device cpu
    scripts/bench/memory_against_inspect.py PROGRAM --case slide:6m:12544:1:train:bf16 --case images:21m:224:64:infer:tf32

Prints a row for each case; exit code 1 when a prediction is off by more than --tolerance percent or a case cannot run.
"""
import argparse
import json
import subprocess
import sys

# kind:model:size:batch:mode:precision[:region size]
CASES = {
    "cuda": [
        "slide:6m:1120:1:infer:fp32",
        "slide:6m:1120:1:train:fp32",
        "slide:6m:4480:1:infer:tf32",
        "slide:6m:4480:1:infer:bf16",
        "slide:6m:4480:1:train:tf32",
        "slide:6m:4480:1:train:bf16",
        "slide:6m:8960:1:train:tf32",
        "slide:6m:8960:1:train:bf16",
        "slide:6m:12544:1:train:bf16",
        "slide:21m:4480:1:train:bf16",
        "slide:nano:1120:1:infer:fp32",
        "slide:nano:1120:1:train:fp32",
        "slide:nano:1120:1:train:bf16",
        "images:6m:224:1:train:fp32",
        "images:6m:224:128:infer:tf32",
        "images:6m:224:128:infer:bf16",
        "images:6m:224:128:train:tf32",
        "images:6m:224:128:train:bf16",
        "images:6m:32:256:train:bf16:32",
        "images:21m:224:128:train:bf16",
        "images:21m:224:128:infer:bf16",
        "images:nano:224:16:train:tf32",
    ],
    "cpu": [
        "slide:nano:448:1:infer:fp32",
        "slide:nano:448:1:train:fp32",
        "slide:6m:448:1:infer:fp32",
        "slide:6m:448:1:train:fp32",
        "slide:6m:896:1:infer:fp32",
        "slide:6m:896:1:train:fp32",
        "images:6m:224:2:infer:fp32",
        "images:6m:224:2:train:fp32",
        "images:6m:32:16:train:fp32:32",
        "images:nano:224:2:train:fp32",
    ],
}


def run(command):
    """The last JSON line that `command` prints. Raises RuntimeError with what it said instead."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(program, device, case):
    """(predicted, measured) bytes of one case."""
    kind, model, size, batch, mode, precision, *region = case.split(":")
    region = ["--region-size", region[0]] if region else []
    predicted = run([program, "inspect", model, "--size", size, "--batch", batch, "--json", *region])
    backend = "cpu" if device == "cpu" else "cuda"
    predicted = predicted["memory"][backend][precision]["inference_bytes" if mode == "infer" else "training_bytes"]
    command = [program, "bench", kind, "--model", model, "--size", size, "--mode", mode, "--precision", precision]
    command += ["--device", device, "--repeats", "1", "--json", *region]
    if kind == "images":
        command += ["--batch", batch]
        if device != "cpu" and mode == "train":
            command.append("--no-graph")  # a captured step keeps some memory for itself
    return predicted, 1e9 * run(command)["peak_gb"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="pixel-mamba")
    parser.add_argument("--device", default="cuda", help="cpu, cuda or cuda:1")
    parser.add_argument("--case", action="append", help="KIND:MODEL:SIZE:BATCH:MODE:PRECISION[:REGION]; default: a list per device")
    parser.add_argument("--tolerance", type=float, default=10.0, help="percent")
    options = parser.parse_args()

    off = 0
    print(f"{'case':<36}{'predicted':>12}{'measured':>12}{'ratio':>8}")
    for case in options.case or CASES["cpu" if options.device == "cpu" else "cuda"]:
        try:
            predicted, measured = compare(options.program, options.device, case)
        except (RuntimeError, KeyError, ValueError) as error:
            off += 1
            print(f"{case:<36}  FAILED: {type(error).__name__}: {error}", flush=True)
            continue
        ratio = predicted / measured
        wrong = abs(ratio - 1.0) > options.tolerance / 100.0
        off += wrong
        print(f"{case:<36}{predicted / 1e9:>9.3f} GB{measured / 1e9:>9.3f} GB{ratio:>8.3f}{'  OFF' if wrong else ''}", flush=True)
    if off:
        print(f"{off} case(s) are off by more than {options.tolerance:g} % or did not run", file=sys.stderr)
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
