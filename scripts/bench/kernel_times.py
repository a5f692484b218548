#!/usr/bin/env python3
"""Where a step spends its time: the kernels of the last step of `pixel-mamba bench`, by name. Needs a GPU, g++ and CUPTI (CUDA toolkit).

    scripts/bench/kernel_times.py build/bin/pixel-mamba bench slide --size 4480 --mode train --precision bf16
    scripts/bench/kernel_times.py build/bin/pixel-mamba bench images --batch 128 --mode train --precision bf16 --no-graph
    scripts/bench/kernel_times.py --launches block_grad build/bin/pixel-mamba bench slide --mode train      every launch of some kernels
    scripts/bench/kernel_times.py --read trace.tsv                                                          of an earlier --keep

A step is what lies between the last two runs of its last kernel: of the loss in training, of the head in inference. A captured
graph works too, but bench replays it without a mark between steps: give --no-graph.
"""
import argparse
import collections
import os
import re
import subprocess
import sys
import tempfile

LIBRARY_KERNELS = re.compile(r"nvjet|cutlass|cublas|gemv|splitK", re.IGNORECASE)


def trace(command, path):
    """Runs `command` with every kernel written to `path`."""
    here = os.path.dirname(os.path.abspath(__file__))
    cuda = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    with tempfile.TemporaryDirectory() as folder:
        library = os.path.join(folder, "libkernel_trace.so")
        build = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", os.path.join(here, "kernel_trace.cpp"), "-o", library]
        for part in (cuda, os.path.join(cuda, "extras", "CUPTI")):
            build += [f"-I{part}/include", f"-L{part}/lib64", f"-L{part}/lib", f"-Wl,-rpath,{part}/lib64:{part}/lib"]
        subprocess.run(build + ["-lcupti"], check=True)
        environment = dict(os.environ, CUDA_INJECTION64_PATH=library, KERNEL_TRACE_OUT=path)
        subprocess.run(command, check=True, env=environment)


def read(path):
    """Rows (start, length, shape, name), in order of start."""
    with open(path, encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t", 3) for line in file]
    return sorted((int(start), int(length), shape, name) for start, length, shape, name in rows)


def last_step(rows):
    """The rows after the last mark but one, up to the last."""
    training = any("cross_entropy" in name for _, _, _, name in rows)
    mark = "cross_entropy_grad" if training else "add_bias"
    marks = [i for i, row in enumerate(rows) if mark in row[3]]
    if len(marks) < 2:
        sys.exit(f"error: fewer than two steps were run ({len(rows)} kernels, {len(marks)} times {mark}): give bench --repeats 2")
    return rows[marks[-2] + 1 : marks[-1] + 1]


def short(name):
    """The kernel's own name; 'cuBLAS' for those of the library."""
    if LIBRARY_KERNELS.search(name):
        return "cuBLAS"
    found = re.search(r"(\w+_kernel)", name)
    return found.group(1) if found else name.split("<")[0].split("(")[0].split("::")[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launches", metavar="NAME", help="also every launch whose kernel's name contains NAME")
    parser.add_argument("--keep", metavar="FILE", help="where the trace stays")
    parser.add_argument("--read", metavar="FILE", help="a trace that was kept, instead of a command")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if bool(options.command) == bool(options.read):
        parser.error("give a command, or --read FILE")
    with tempfile.TemporaryDirectory() as folder:
        path = options.read or options.keep or os.path.join(folder, "trace.tsv")
        if options.command:
            try:
                trace(options.command, path)
            except subprocess.CalledProcessError as failure:
                sys.exit(f"error: {failure.cmd[0]} failed with exit code {failure.returncode}")
        if not os.path.exists(path):
            sys.exit(f"error: {path}: no such file" if options.read else "error: the program ran on no GPU: nothing was traced")
        rows = last_step(read(path))
    total, launches = collections.Counter(), collections.Counter()
    for _, length, _, name in rows:
        total[short(name)] += length
        launches[short(name)] += 1
    kernels = sum(total.values())
    span = rows[-1][0] + rows[-1][1] - rows[0][0]
    print(f"{len(rows)} launches, {kernels / 1e6:.2f} ms in kernels, {span / 1e6:.2f} ms from first to last")
    for name, length in total.most_common():
        print(f"{length / 1e6:9.3f} ms {100 * length / kernels:5.1f} %  {launches[name]:6d} x {length / launches[name] / 1e3:9.1f} us  {name}")
    if options.launches:
        print()
        for _, length, shape, name in rows:
            if options.launches in name:
                print(f"{length / 1e3:9.1f} us  {shape:22s} {name[:100]}")


if __name__ == "__main__":
    main()
