from typing import TypedDict

class _Facts(TypedDict):
    version: str
    torch_version: str
    torch_cuda_version: str
    compiler: str
    nvcc_version: str
    cuda_architectures: list[str]
    cpu_capabilities: list[str]

class _StreamPlan(TypedDict):
    blocks: int
    threads: int
    across: int
    down: int
    slices: int
    chunks: int
    chunk_pixels: int

class _DepthwisePlan(TypedDict):
    blocks: int
    threads: int
    shared_bytes: int
    channels: int
    tile_columns: int
    strip_rows: int
    stage_rows: int
    images_per_block: int
    slices: int
    tiles: int
    strips: int
    groups: int

def stream_plan(
    multiprocessors: int, layout: str, vector: int, images: int, channels: int, pixels: int
) -> _StreamPlan: ...
def depthwise_plan(
    multiprocessors: int,
    shared_per_block: int,
    shared_per_multiprocessor: int,
    layout: str,
    vector: int,
    shape: list[int],
    kernel_size: int,
    stride: int,
    padding: list[int],
    backward: bool,
) -> _DepthwisePlan: ...
def facts() -> _Facts: ...
def cpu_capability() -> str: ...
def processors() -> int: ...
