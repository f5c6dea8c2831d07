"""Benchmarks need PyTorch (the extra `bench`); where it is missing, pytest must not even import what needs it."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("torch") else ["torch_reference.py"]
if not find_spec("pytest_benchmark"):
    collect_ignore.append("bench_kernels.py")
