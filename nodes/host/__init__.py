"""Adapters between omnigen2_core and ComfyUI's own objects: MODEL, CLIP, VAE, GUIDER, CONDITIONING."""
