"""The operators' tests over the CUDA kernels, which the host runtime in ``hostcuda`` runs on CPU tensors."""

from pkgutil import extend_path

# `cuda` is also the package of NVIDIA's that torch imports: with `tests` on the path they are found behind this one.
__path__ = extend_path(__path__, __name__)
