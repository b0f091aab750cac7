"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in their own executable."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace.kernels import native

KERNELS = Path(__file__).parents[3] / "src" / "headrace" / "kernels"
OPTIONS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"],
    "avx512_bf16": ["-mavx512bf16"],
}
OPTIONS["avx512"] += OPTIONS["avx2"]
OPTIONS["avx512_bf16"] += OPTIONS["avx512"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_no_kernel_leaves_its_buffers(tmp_path: Path) -> None:
    chosen = native.choose_instruction_set()
    sources = [
        *sorted(KERNELS.glob("*/cpu*.cpp")),
        *(KERNELS / "native" / name for name in ("table.cpp", "program.cpp", "threads.cpp")),
        Path(__file__).with_name("sanitized_steps.cpp"),
    ]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

    def compile_one(source: Path) -> Path:
        target = tmp_path / f"{source.parent.name}_{source.stem}.o"
        command = ["g++", "-std=c++20", "-O0", "-g1", *sanitizers, *OPTIONS[chosen]]
        command += [f"-DHEADRACE_ISA={chosen}", f"-I{KERNELS / 'native'}", "-c", str(source)]
        subprocess.run([*command, "-o", str(target)], check=True, capture_output=True, text=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    program = tmp_path / "sanitized_steps"
    subprocess.run(
        ["g++", *sanitizers, *map(str, objects), "-pthread", "-o", str(program)], check=True
    )
    result = subprocess.run([str(program)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-4000:]
    assert "no errors" in result.stdout
