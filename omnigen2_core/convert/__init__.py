"""Making smaller files of the published weights: GGUF, fp8, int8. `python dev.py convert` is the command."""
