"""OmniGen2-nano: the small built-in model, its world of coloured shapes, its judge and its training."""
