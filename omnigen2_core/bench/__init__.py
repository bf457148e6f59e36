"""Measures this code against ComfyUI's native OmniGen2 and against its own plain path. Imports no host."""
