"""EfficientNet, complete, with one switch between fused operators and plain PyTorch."""
