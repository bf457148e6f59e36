"""Ways to skip or approximate evaluations of the main layers, one file each, behind one protocol."""
