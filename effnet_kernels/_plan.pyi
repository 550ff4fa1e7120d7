from typing import TypedDict

class _Facts(TypedDict):
    version: str
    torch_version: str
    torch_cuda_version: str
    compiler: str
    nvcc_version: str
    cuda_architectures: list[str]
    cpu_capabilities: list[str]

def facts() -> _Facts: ...
def cpu_capability() -> str: ...
def processors() -> int: ...
