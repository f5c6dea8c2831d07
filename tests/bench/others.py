"""Other people's RNN-T losses for the CPU, made importable: `python -m tests.bench.others` builds what pip cannot.

fast_rnnt and optimized_transducer ship as source packages whose set-up scripts want a matching cmake and CUDA;
their C++ for the CPU is a few files that PyTorch's own extension builder compiles in a minute or two.  This
command fetches the sources with pip, compiles them into a folder (default: build/bench), and puts the Python
files beside them; lattice.py looks there.  warprnnt_numba is a plain `pip install warprnnt_numba`.
"""

import argparse
import subprocess
import sys
import tarfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "build" / "bench"

# package: version, sources, module, and what of them is Python
PACKAGES = {
    "fast_rnnt": (
        "1.3",
        ["csrc/mutual_information_cpu.cu", "python/csrc/mutual_information.cu", "python/csrc/fast_rnnt.cu"],
    ),
    "optimized_transducer": (
        "1.4",
        ["csrc/cpu.cc", "csrc/transducer-loss.cc", "python/csrc/optimized_transducer.cc"],
    ),
}


def add_to_path(folder=FOLDER):
    """Let `import fast_rnnt` and `import optimized_transducer` find what build() left in `folder`."""
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def build(package, folder=FOLDER):
    """Fetch, compile and lay out one of PACKAGES."""
    import torch
    from torch.utils import cpp_extension

    version, sources = PACKAGES[package]
    folder.mkdir(parents=True, exist_ok=True)
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", package]
    subprocess.run([*fetch, "-d", str(folder), f"{package}=={version}"], check=True)
    with tarfile.open(folder / f"{package}-{version}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    root = folder / f"{package}-{version}"
    renamed = []
    for source in sources:  # the .cu files hold plain C++ unless CUDA is asked for
        path = root / package / source
        plain = path.with_suffix(".cc")
        if plain != path:
            plain.write_text(path.read_text())
        renamed.append(str(plain))
    cpp_extension.load(
        name=f"_{package}", sources=renamed, extra_include_paths=[str(root)], build_directory=str(folder),
        extra_cflags=["-O3"], is_python_module=False,
    )  # fmt: skip
    here = folder / package
    here.mkdir(exist_ok=True)
    for path in (root / package / "python" / package).glob("*.py"):
        (here / path.name).write_text(path.read_text())
    (here / "torch_version.py").write_text(f'{package}_torch_version = "{torch.__version__}"\n')


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.bench.others", description=__doc__.partition("\n\n")[0])
    parser.add_argument("packages", nargs="*", default=list(PACKAGES), help=f"default: {' '.join(PACKAGES)}")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to build (default: build/bench)")
    arguments = parser.parse_args(argv)
    for package in arguments.packages:
        if package not in PACKAGES:
            parser.error(f"{package!r} is not one of {', '.join(PACKAGES)}")
        build(package, arguments.folder)
        print(f"{package}: built in {arguments.folder}")


if __name__ == "__main__":
    main()
