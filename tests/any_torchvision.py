"""Lets torchvision be imported beside any PyTorch, which transformers does where it is installed."""

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:  # PyPI's is built for CUDA, and looks in vain for its operators beside a PyTorch that is not
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
