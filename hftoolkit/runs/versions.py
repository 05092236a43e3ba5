"""What a bug report needs: versions and devices. No host name, no path, no token."""

import os
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    "hftoolkit",
    "torch",
    "transformers",
    "datasets",
    "peft",
    "accelerate",
    "evaluate",
    "timm",
    "gymnasium",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "numpy",
    "scikit-learn",
)


def describe_environment() -> dict[str, Any]:
    """Return package versions, the operating system, processors, memory and accelerators."""
    import torch

    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "accelerators": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "packages": {name: _version(name) for name in PACKAGES},
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs between two environments of that on which the last bits of results depend."""
    for name, version_now in now["packages"].items():
        if (other := before.get("packages", {}).get(name)) != version_now:
            yield f"{name} {other} -> {version_now}"
    for name in ("threads", "cpu_capability", "accelerators"):
        if name in before and before[name] != now[name]:
            yield f"{name} {before[name]} -> {now[name]}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
