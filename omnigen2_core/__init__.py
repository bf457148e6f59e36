"""OmniGen2 in plain PyTorch: model, sampling, checkpoints. Nothing here knows of ComfyUI."""
